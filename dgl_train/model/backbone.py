"""Any CLIP of open_clip that has CLIP's own architecture, as two plain towers every other file can read.

One constructor reads OpenAI's tensor names, which open_clip and the DGL research checkpoints share, so a
backbone can come from a model name, a folder, a weight file or a research checkpoint.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dgl_runtime.bundle.input_spec import clip_frames
from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.plain_path import plain_path

Result = TypeVar("Result")

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class BackboneSource:
    """Where a backbone comes from: everything needed to load it again."""

    name: str  # an open_clip model name, or a folder in open_clip's format
    pretrained: str = ""  # an open_clip weight tag or a weight file; empty for none


class Block(nn.Module):
    """One residual attention block of CLIP; callers choose who attends to whom."""

    def __init__(
        self, width: int, heads: int, hidden: int, *, quick_gelu: bool, eps: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.quick_gelu = quick_gelu
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.fc = nn.Linear(width, hidden)
        self.proj = nn.Linear(hidden, width)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normalised tokens: [..., T, D] -> three [..., H, T, D/H]."""
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def mlp(self, x: Tensor) -> Tensor:
        """The residual MLP: [..., D] -> [..., D], residual included.

        Frozen, it is computed again in the backward pass: its inner activations are the larger half of
        all, and without a gradient for its weights nothing else needs them.
        """
        return self._mlp(x) if self.fc.weight.requires_grad else recomputed(self._mlp, x)

    def _mlp(self, x: Tensor) -> Tensor:
        hidden = self.fc(self.ln_2(x))
        projected: Tensor = self.proj(activate(hidden, quick_gelu=self.quick_gelu))
        return x + projected


def recomputed(function: Callable[..., Result], *args: object) -> Result:
    """Call a function, keeping only its arguments for the backward pass, which calls it again."""
    if not torch.is_grad_enabled():
        return function(*args)
    # Nothing here is random, so there is no state of a random generator to restore.
    result: Result = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def activate(hidden: Tensor, *, quick_gelu: bool) -> Tensor:
    """QuickGELU (OpenAI's weights) or exact GELU (most of open_clip's)."""
    if not quick_gelu:
        return F.gelu(hidden)
    return hidden * torch.sigmoid(1.702 * hidden)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., T, D] -> [..., H, T, D/H]."""
    return cast(Tensor, x.unflatten(-1, (heads, -1)).transpose(-2, -3))


def merge_heads(x: Tensor) -> Tensor:
    """[..., H, T, D/H] -> [..., T, D]."""
    return x.transpose(-2, -3).flatten(-2)


def attend_within(block: Block, x: Tensor, causal: bool = False) -> Tensor:
    """A plain transformer block: every token of a sequence attends to its sequence, [N, T, D]."""
    q, k, v = block.project_qkv(x)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return block.mlp(x + block.out(merge_heads(attended)))


class VisionTower(nn.Module):
    """ViT with a class token; patch, width and depth are free."""

    blocks: Sequence[Block]

    def __init__(self, shape: "TowerShape", *, patch: int, patches: int, embed_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embedding = nn.Conv2d(3, shape.width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.width))
        self.positions = nn.Parameter(torch.empty(patches + 1, shape.width))
        self.ln_pre = nn.LayerNorm(shape.width, eps=shape.eps)
        self.blocks = shape.make_blocks()
        self.ln_post = nn.LayerNorm(shape.width, eps=shape.eps)
        self.projection = nn.Parameter(torch.empty(shape.width, embed_dim))

    def embed(self, frames: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> tokens before block 0, [N, 1+P, D], class token first."""
        patches = self.patch_embedding(frames).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(frames), 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_token, patches], dim=1) + self.positions)
        return tokens

    def read_out(self, tokens: Tensor) -> Tensor:
        """Final normalisation and projection of tokens: [..., D] -> [..., E]."""
        features: Tensor = self.ln_post(tokens) @ self.projection
        return features


class TextTower(nn.Module):
    """Causal transformer over CLIP's BPE tokens, read at the end token."""

    blocks: Sequence[Block]

    def __init__(
        self, shape: "TowerShape", *, vocabulary: int, context: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Parameter(torch.empty(context, shape.width))
        self.blocks = shape.make_blocks()
        self.ln_final = nn.LayerNorm(shape.width, eps=shape.eps)
        self.projection = nn.Parameter(torch.empty(shape.width, embed_dim))

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> tokens with positions, [B, L, D]."""
        embedded: Tensor = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        return embedded

    def read_out(self, tokens: Tensor) -> Tensor:
        """Final normalisation and projection of tokens: [..., D] -> [..., E]."""
        features: Tensor = self.ln_final(tokens) @ self.projection
        return features


@dataclass(frozen=True)
class TowerShape:
    """Width, depth and kind of one tower's blocks."""

    width: int
    heads: int
    hidden: int
    layers: int
    quick_gelu: bool
    eps: float

    def make_blocks(self) -> Sequence[Block]:
        """New blocks of this shape, in a module list that type checkers see through."""
        blocks = (
            Block(self.width, self.heads, self.hidden, quick_gelu=self.quick_gelu, eps=self.eps)
            for _ in range(self.layers)
        )
        return cast(Sequence[Block], nn.ModuleList(blocks))


class Backbone(nn.Module):
    """The frozen CLIP network that prompts are learned for."""

    vision: VisionTower
    text: TextTower
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        state: Mapping[str, Tensor],
        source: BackboneSource,
        *,
        vision_heads: int,
        text_heads: int,
        quick_gelu: bool,
        eps: float = 1e-5,
        mean: tuple[float, ...] = OPENAI_MEAN,
        std: tuple[float, ...] = OPENAI_STD,
    ) -> None:
        """Build the towers from tensors under OpenAI's names; shapes are read off the tensors."""
        super().__init__()
        self.source = source
        embed_dim = state["text_projection"].shape[1]
        patch_weight = state["visual.conv1.weight"]
        patches = state["visual.positional_embedding"].shape[0] - 1

        def shape(prefix: str, heads: int) -> TowerShape:
            hidden, width = state[f"{prefix}resblocks.0.mlp.c_fc.weight"].shape
            layers = sum(name.startswith(prefix) and name.endswith("ln_1.weight") for name in state)
            return TowerShape(width, heads, hidden, layers, quick_gelu, eps)

        self.vision = VisionTower(
            shape("visual.transformer.", vision_heads),
            patch=patch_weight.shape[-1],
            patches=patches,
            embed_dim=embed_dim,
        )
        vocabulary = state["token_embedding.weight"].shape[0]
        self.text = TextTower(
            shape("transformer.", text_heads),
            vocabulary=vocabulary,
            context=state["positional_embedding"].shape[0],
            embed_dim=embed_dim,
        )
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.load_state_dict(dict(rename_openai_state(state)))
        self.requires_grad_(False)
        self.eval()

    @property
    def embed_dim(self) -> int:
        """E, the width of the embeddings."""
        return self.vision.projection.shape[1]

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        patches = self.vision.positions.shape[0] - 1
        return math.isqrt(patches) * self.vision.patch

    def frame_spec(self, num_frames: int) -> FrameSpec:
        """What it wants of the frames of a clip."""
        mean, std = (tuple(one.flatten().tolist()) for one in (self.mean, self.std))
        return clip_frames(num_frames, self.frame_size, mean, std)

    @property
    def context_length(self) -> int:
        """The longest caption the text tower knows, in tokens."""
        return self.text.positions.shape[0]

    def normalize(self, frames: Tensor) -> Tensor:
        """uint8 [..., 3, S, S] -> normalised float32; floats are taken as normalised already."""
        if frames.dtype != torch.uint8:
            return frames
        return (frames.float() / 255 - self.mean) / self.std

    def digest(self) -> str:
        """sha256 over every tensor's name and bytes: the identity of the weights."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return sha.hexdigest()


_BLOCK_NAMES = {
    "attn.in_proj_weight": "qkv.weight",
    "attn.in_proj_bias": "qkv.bias",
    "attn.out_proj.": "out.",
    "mlp.c_fc.": "fc.",
    "mlp.c_proj.": "proj.",
}
_TENSOR_NAMES = {
    "logit_scale": "logit_scale",
    "text_projection": "text.projection",
    "positional_embedding": "text.positions",
    "token_embedding.weight": "text.token_embedding.weight",
    "visual.conv1.weight": "vision.patch_embedding.weight",
    "visual.class_embedding": "vision.class_embedding",
    "visual.positional_embedding": "vision.positions",
    "visual.proj": "vision.projection",
}
_PREFIXES = {
    "visual.transformer.resblocks.": "vision.blocks.",
    "transformer.resblocks.": "text.blocks.",
    "visual.ln_": "vision.ln_",
    "ln_final.": "text.ln_final.",
}


def rename_block(name: str) -> str:
    """OpenAI's name of a tensor inside a block -> ours."""
    for theirs, ours in _BLOCK_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def rename_openai_state(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """CLIP's tensors under our names; tensors that are not CLIP's are passed over."""
    for name, tensor in state.items():
        if name in _TENSOR_NAMES:
            ours = _TENSOR_NAMES[name]
            yield ours, tensor.reshape(()) if ours == "logit_scale" else tensor
            continue
        for theirs, ours in _PREFIXES.items():
            if name.startswith(theirs):
                yield rename_block(ours + name[len(theirs) :]), tensor
                break


def load_backbone(source: BackboneSource) -> Backbone:
    """Load a backbone through open_clip and check that it is one we support.

    The network is asked for nothing but weights that are named and have not been downloaded yet.

    Raises:
        ConfigError: Unknown model or weights, or a model that is not of CLIP's architecture.
    """
    model = _supported_model(source)
    preprocess = model.visual.preprocess_cfg
    return Backbone(
        {name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()},
        source,
        vision_heads=model.visual.transformer.resblocks[0].attn.num_heads,
        text_heads=_text_tower(model).transformer.resblocks[0].attn.num_heads,
        quick_gelu=type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU",
        eps=model.visual.ln_post.eps,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )


def _supported_model(source: BackboneSource) -> Any:  # noqa: ANN401 - open_clip is untyped
    import open_clip

    from dgl_train.model.downloaded import name_without_download
    from dgl_train.model.openclip_support import foreign_towers, unsupported_parts

    folder = Path(source.name).is_dir()
    try:
        with ExitStack() as links:
            name, pretrained = (
                name_without_download(source.name, source.pretrained),
                source.pretrained,
            )
            if folder:
                name = f"local-dir:{links.enter_context(plain_path(Path(name)))}"
            if Path(pretrained).is_file():
                pretrained = str(links.enter_context(plain_path(Path(pretrained))))
            # Not even built: their libraries may ask the network, also where a folder names them.
            foreign = foreign_towers(open_clip.get_model_config(name))
            model = None if foreign else _created_model(name, pretrained)
    except Exception as error:  # open_clip, torch and safetensors raise many kinds
        raise ConfigError(
            f"backbone {source.name!r} with pretrained {source.pretrained!r} does not load: "
            f"{reason_of(error)}. Give a model name of open_clip.list_models(), or a folder in "
            "open_clip's format."
        ) from error
    if missing := foreign or unsupported_parts(model, source.name if folder else name):
        raise ConfigError(
            f"backbone {source.name!r} is not supported yet: it has {', '.join(missing)}. "
            "Supported: ViT with class token and causal text tower, such as ViT-B-32-quickgelu."
        )
    return model


def _created_model(name: str, pretrained: str) -> Any:  # noqa: ANN401
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a model without pretrained weights is the same each time
        of_hub = name.startswith("hf-hub:")  # whose weights may fail to arrive in silence
        return open_clip.create_model(
            name, pretrained=pretrained or None, require_pretrained=of_hub
        )


def _text_tower(model: Any) -> Any:  # noqa: ANN401 - open_clip is untyped
    return getattr(model, "text", model)
