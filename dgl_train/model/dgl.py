"""DGL, the whole of the paper's model: prompts in both towers and global-local video attention.

Global prompts see every frame at once and carry the clip's meaning through all blocks; a frame's tokens
see their own frame and the global prompts. On CLIP, as in the paper, the clip's embedding is global prompt
0, the caption's its end token (Dynamic Global-Local Prompt Tuning, AAAI 2024, section 3).

Frame and caption prompts are replaced before every block, so what a block makes of them is never read:
they take part as keys and values only.

Axes: B batch, F frames, P tokens of a frame (its patches, behind a class token if there is one), K frame
prompts, T keys of a frame (K frame prompts and P tokens), G global prompts, C caption prompts, L caption
tokens, H heads, D width, E embedding.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import Backbone, require_text_tower, require_towers
from dgl_train.model.backbones.block import Block, split_heads
from dgl_train.model.backbones.towers import TextTower, VisionTower
from dgl_train.model.dual_encoder import DualEncoder, OnBackbone, equal_weights, mean_of_frames
from dgl_train.model.prompts import PromptGenerator, Prompts

State = TypeVar("State")

VISUAL_OUTPUTS = (
    "auto",
    "global-prompt",
    "mean-globals",
    "mean-frames",
    "mean-all",
    "global-local",
    "all-tokens",
)
"""What a clip is read from; the paper compares all but the first and the last, and takes "global-prompt".

"global-prompt" reads the global prompts as the backbone reads a frame's tokens: their first, or their mean.
"all-tokens" (ours) is for map pooling, which chooses what it reads: the global prompts and the tokens of all
frames at once. "auto" is this where the backbone pools by map, "global-prompt" for the others, and
"mean-frames" without global prompts.
"""


@dataclass(frozen=True)
class ClipState:
    """A clip's tokens after a block, and how the global prompts attended in it."""

    globals: Tensor  # [B, G, D]
    frames: Tensor  # [B, F, P, D]
    by_frame: Tensor  # attention [B, H, G, F, G + T]: the copies of the global prompts side by side

    @property
    def attention(self) -> Tensor:
        """The global prompts' attention to themselves and all frames: [B, H, G, G + F*T]."""
        num_globals = self.globals.shape[1]
        to_globals, to_frames = self.by_frame.tensor_split([num_globals], dim=-1)
        return torch.cat([to_globals.sum(dim=3), to_frames.flatten(3)], dim=-1)

    def frame_attention(self) -> Tensor:
        """How much global prompt 0 attended to each key of each frame: [B, F, T], mean over heads."""
        to_frames: Tensor = self.by_frame[:, :, 0, :, self.globals.shape[1] :].mean(dim=1)
        return to_frames

    def frame_weights(self) -> Tensor:
        """The same for whole frames: [B, F], rows sum to 1."""
        mass: Tensor = self.frame_attention().sum(dim=-1)
        return mass / mass.sum(dim=-1, keepdim=True)


class DglModel(OnBackbone):
    """A frozen backbone with a prompt generator.

    Args:
        backbone: A network of the level "prompted".
        prompts: The generator.
        visual_output: One of VISUAL_OUTPUTS; the attribute of that name is never "auto".
        inputs: See ``OnBackbone``.

    Raises:
        ConfigError: The output is none, or there are no global prompts to read, or the backbone's blocks
            cannot be attended in.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: PromptGenerator,
        *,
        visual_output: str = VISUAL_OUTPUTS[0],
        inputs: InputSpec | None = None,
    ) -> None:
        super().__init__(backbone, inputs)
        if visual_output not in VISUAL_OUTPUTS:
            raise ConfigError(
                f"visual_output is {visual_output!r}, expected one of {', '.join(VISUAL_OUTPUTS)}."
            )
        num_globals = prompts.counts.global_prompts
        if not num_globals and visual_output not in ("auto", "mean-frames"):
            raise ConfigError(
                f"visual_output is {visual_output!r}, but there are no global prompts to read. "
                "Set visual_output to mean-frames, or global_prompts to 1 or more."
            )
        self.prompts = prompts
        self.visual_output = visual_output
        if visual_output == "auto":
            self.visual_output = own_output(backbone) if num_globals else "mean-frames"

    @property
    def frame_wise(self) -> bool:
        """Whether frames are embedded one by one: in an image encoder that cannot be attended in."""
        return not isinstance(self.backbone.vision, VisionTower)

    @property
    def text(self) -> TextTower:
        """The text encoder."""
        return require_text_tower(self.backbone, "DGL")

    @property
    def vision(self) -> VisionTower:
        """The image encoder, where it can be attended in."""
        return require_towers(self.backbone, "DGL").vision

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Embed captions.

        Args:
            tokens: Token ids [B, L].

        Returns:
            Unit-norm embeddings [B, E].
        """
        state = last(self.caption_states(tokens, self.prompts()))
        return F.normalize(self.text.read(state, tokens).float(), dim=-1)

    def encode_clips(self, frames: Tensor) -> Tensor:
        """Embed clips.

        Args:
            frames: uint8 pixels, or floats already normalised, [B, F, 3, S, S], order RGB.

        Returns:
            Unit-norm embeddings [B, E], read as ``visual_output`` says.

        Raises:
            ConfigError: If F differs from the number of frames the prompts were made for.
        """
        if self.frame_wise:
            return mean_of_frames(self.backbone, frames)
        return F.normalize(self.read_clip(self.last_clip_state(frames)).float(), dim=-1)

    def frame_weights(self, frames: Tensor) -> Tensor:
        """How much global prompt 0 attended to each frame, [B, F]; equal where it is not what is read."""
        if not self.prompts.counts.global_prompts or self.visual_output == "mean-frames":
            return equal_weights(frames)
        return self.last_clip_state(frames).frame_weights()

    def last_clip_state(self, frames: Tensor) -> ClipState:
        """Clips [B, F, 3, S, S] after the last block."""
        return last(self.clip_states(frames, self.prompts()))

    def caption_states(self, tokens: Tensor, prompts: Prompts) -> Iterator[Tensor]:
        """Tokens after each block, [B, L, D]. Under a causal mask the prompts stand behind the start token."""
        text = self.text
        x = text.embed(tokens)
        starts = text.shape.is_causal and text.texts.start_id is not None
        may_see = with_prompts(text.may_see(tokens), prompts.captions.shape[1], starts)
        for block, prompt in zip(text.blocks, prompts.captions, strict=True):
            x = text.run(attend_with_prompts, block, x, prompt, may_see)
            yield x

    def clip_states(self, frames: Tensor, prompts: Prompts) -> Iterator[ClipState]:
        """Global prompts and frame tokens after each block.

        Frame prompts have neither positions nor ln_pre. Global prompts are given once and carry on
        through all blocks.
        """
        vision = self.vision
        batch, num_frames = frames.shape[:2]
        for made_for in (prompts.frames.shape[1], prompts.frame_positions.shape[1]):
            if made_for not in (0, 1, num_frames):
                raise ConfigError(
                    f"clips have {num_frames} frames, the prompts were made for {made_for}. "
                    "DGL-transformer and frame positions are bound to their number of frames; give "
                    "clips of that many."
                )
        tokens = vision.embed(self.backbone.normalize(frames).flatten(0, 1))
        tokens = tokens.unflatten(0, (batch, num_frames))
        state = ClipState(prompts.globals.expand(batch, -1, -1), tokens, tokens.new_empty(0))
        for block, prompt, positions in zip(
            vision.blocks, prompts.frames, prompts.frame_positions, strict=True
        ):
            state = vision.run(
                attend_globally_and_locally, block, state.globals, state.frames, prompt, positions
            )
            yield state

    def read_clip(self, state: ClipState) -> Tensor:
        """The clip's embedding before normalisation, [B, E]."""
        vision = self.vision
        match self.visual_output:
            case "global-prompt":
                return vision.read_pooled(state.globals)
            case "mean-globals":
                return vision.read_pooled(state.globals[:, :, None]).mean(dim=1)
            case "mean-frames":
                return vision.read(state.frames).mean(dim=1)
            case "mean-all":
                by_global = vision.read_pooled(state.globals[:, :, None])
                return torch.cat([by_global, vision.read(state.frames)], dim=1).mean(dim=1)
            case "all-tokens":
                of_frames = state.frames[:, :, vision.shape.num_unpooled :].flatten(1, 2)
                return vision.read_pooled(torch.cat([state.globals, of_frames], dim=1))
        # The paper leaves open how its global-local feature, global prompt 0 beside the frames' class
        # tokens, is compared: here the similarity is the mean of a global and a local one.
        global_ = F.normalize(vision.read_pooled(state.globals).float(), dim=-1)
        local = F.normalize(vision.read(state.frames).mean(dim=1).float(), dim=-1)
        return global_ + local


def own_output(backbone: Backbone) -> str:
    """What "auto" stands for where there are global prompts."""
    vision = backbone.vision
    pools_by_map = isinstance(vision, VisionTower) and vision.pools_by_map
    return "all-tokens" if pools_by_map else "global-prompt"


def with_prompts(may_see: Tensor | None, prompts: int, starts: bool) -> Tensor | None:
    """Which keys a token may see, C prompts before the tokens: bool [..., L or 1, C + L].

    Args:
        may_see: The same without prompts; None: all see all.
        prompts: C.
        starts: Whether a start token stands before the prompts of a causal text, and sees none.
    """
    if may_see is None:
        return None
    sees_prompts = torch.ones_like(may_see[..., :1]).repeat_interleave(prompts, dim=-1)
    if starts:
        sees_prompts[0] = False
    return torch.cat([sees_prompts, may_see], dim=-1)


def attend_with_prompts(block: Block, x: Tensor, prompts: Tensor, may_see: Tensor | None) -> Tensor:
    """One text block: tokens [B, L, D] see the prompts [C, D] and each other; see ``with_prompts``."""
    q, k, v = block.project_tokens(x)
    _, prompt_k, prompt_v = block.project_qkv(prompts)
    each = (len(x), -1, -1, -1)
    k = torch.cat([prompt_k.expand(each), k], dim=2)
    v = torch.cat([prompt_v.expand(each), v], dim=2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=may_see)
    return block.finish(x, attended)


def attend_globally_and_locally(
    block: Block, globals_: Tensor, frames: Tensor, prompts: Tensor, positions: Tensor
) -> ClipState:
    """One vision block, with the same weights for both kinds of attention.

    Frame tokens attend to the global prompts and their own frame; global prompts attend to themselves and
    every frame's tokens. Both read the block's input.

    Args:
        block: A block of the vision tower.
        globals_: Global prompts [B, G, D].
        frames: Frame tokens [B, F, P, D].
        prompts: Frame prompts [F or 1, K, D].
        positions: Frame positions [F or 0, D].

    Returns:
        Both after the block, with the global prompts' attention.
    """
    num_frames = frames.shape[1]
    global_q, global_k, global_v = block.project_qkv(globals_)  # [B, H, G, D/H]
    q, k, v = block.project_tokens(frames)  # [B, F, H, P, D/H]
    _, prompt_k, prompt_v = block.project_qkv(prompts)  # [F or 1, H, K, D/H]

    def seen(global_: Tensor, prompt: Tensor, frame: Tensor) -> Tensor:  # [B, F, H, G + T, D/H]
        each = (frame.shape[0], num_frames, -1, -1, -1)
        return torch.cat([global_[:, None].expand(each), prompt.expand(each), frame], dim=-2)

    keys, values = seen(global_k, prompt_k, k), seen(global_v, prompt_v, v)
    # Its own copy of q lets go of the projection's k and v, which live on in keys and values. Fused
    # attention takes one batch axis.
    local = F.scaled_dot_product_attention(
        q.flatten(0, 1).contiguous(), keys.flatten(0, 1), values.flatten(0, 1)
    ).unflatten(0, (len(frames), num_frames))
    attention = attend_over_frames(global_q, keys, split_heads(positions, block.shape.heads))
    globally = (attention.permute(0, 3, 1, 2, 4) @ values).sum(dim=1)  # [B, H, G, D/H]
    return ClipState(
        globals=block.finish(globals_, globally),
        frames=block.finish(frames, local),
        by_frame=attention,
    )


def attend_over_frames(q: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """The global prompts' attention over all frames, reading the keys laid out for the frames.

    That layout holds the global prompts' own keys once a frame; log F off their logits makes the F
    copies count as one. Written out rather than fused: the weights are read, and there are few queries.

    Args:
        q: Queries [B, H, G, D/H].
        keys: [B, F, H, G + T, D/H].
        positions: Frame positions [H, F or 0, D/H].

    Returns:
        Attention [B, H, G, F, G + T]; over the last two axes it sums to 1.
    """
    num_frames, num_globals = keys.shape[1], q.shape[2]
    q = q * q.shape[-1] ** -0.5
    logits = (q[:, None] @ keys.transpose(-1, -2)).permute(0, 2, 3, 1, 4)
    to_globals, to_frames = logits[..., :num_globals], logits[..., num_globals:]
    if positions.shape[1]:
        to_frames = to_frames + (q @ positions.transpose(-1, -2))[..., None]
    logits = torch.cat([to_globals - math.log(num_frames), to_frames], dim=-1)
    attention: Tensor = logits.flatten(3).softmax(dim=-1).unflatten(3, (num_frames, -1))
    return attention


def last(states: Iterator[State]) -> State:
    """The last state of an iterator, holding no earlier one."""
    return deque(states, maxlen=1)[0]


def global_attention(model: DualEncoder, frames: Tensor) -> ClipState:
    """The last state of clips [B, F, 3, S, S], whose attention says where global prompt 0 looks.

    Raises:
        ConfigError: The model has no global prompts.
    """
    if not isinstance(model, DglModel) or not model.prompts.counts.global_prompts:
        raise ConfigError(
            f"a {type(model).__name__} without global prompts has no global attention to draw. "
            "Give a run of dgl-linear or dgl-transformer."
        )
    return model.last_clip_state(frames)
