"""A tiny CLIP pretrained on stills, for everything that needs a real backbone without a download.

Like the published CLIP networks it has seen pictures with captions and never a video: words for
motion are new to it, and prompt tuning has to teach them. Like them it has seen stills of every look,
each captioned with place and size, which the clips' captions lack.
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from dgl_runtime.bundle.input_spec import CLIP_END
from dgl_runtime.plain_path import plain_path
from dgl_train.shapes.clips import (
    COLOURS,
    SIZE,
    SPLITS,
    Look,
    build_once,
    draw,
    looks,
    read_made_from,
)

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": SIZE,
        "patch_size": 16,
        "width": 192,
        "layers": 4,
        "head_width": 48,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 4,
    },
}
PREPROCESS_CONFIG = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
PLACES = {  # words -> where the centre of the shape may be, shares of the width and height
    "at the left": ((0.23, 0.29), (0.47, 0.53)),
    "at the right": ((0.71, 0.77), (0.47, 0.53)),
    "at the top": ((0.47, 0.53), (0.23, 0.29)),
    "at the bottom": ((0.47, 0.53), (0.71, 0.77)),
    "in the middle": ((0.47, 0.53), (0.47, 0.53)),
}
RADII = {"small": (8, 9), "large": (16, 18)}  # words -> pixels

_FORMAT = 2  # raise it when the same settings give another network
_BATCH = 64
_LEARNING_RATE = 1e-3
_MAX_GRAD_NORM = 1.0
_WARM_UP = 0.1  # share of the steps

_logger = logging.getLogger(__name__)


def make_backbone(folder: Path, *, seed: int = 0, steps: int = 400, progress: bool = True) -> Path:
    """Pretrain the backbone; ``open_clip.create_model("local-dir:FOLDER")`` reads it.

    A folder already made with the same arguments is returned at once; an interrupted call leaves
    no folder. The log and ``read_made_from(folder)["report"]`` have the recall on new stills.

    Raises:
        ConfigError: If the folder holds anything else.
    """
    config = {"stills_backbone": _FORMAT, "seed": seed, "steps": steps, "model": MODEL_CONFIG}

    def write(staging: Path) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = open_clip.CLIP(**MODEL_CONFIG)
            _raise_embeddings(model)
        stills = _ClipOfStills(model)
        loss = pretrain(stills, seed=seed, steps=steps, progress=progress)
        with plain_path(staging / "open_clip_model.safetensors") as plain:
            save_file(model.state_dict(), plain)
        published = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
        (staging / "open_clip_config.json").write_text(json.dumps(published, indent=2), "utf-8")
        return {"loss": loss, **stills_recall(stills, seed)}

    folder = build_once(folder, config, write)
    _logger.info("%s: stills %s", folder, read_made_from(folder)["report"])
    return folder


def all_kinds(*splits: str) -> list[tuple[Look, str, str]]:
    """Every look of the splits at every place in every size."""
    return [(k, p, r) for split in splits for k in looks(split) for p in PLACES for r in RADII]


def _raise_embeddings(model: open_clip.CLIP) -> None:
    """Start positions and words larger than open_clip does.

    In so few steps, embeddings that start small beside the pixels' stay unread: with open_clip's
    own initialisation the network tells places at chance level and ignores most words.
    """
    with torch.no_grad():
        model.visual.positional_embedding.mul_(10)
        model.token_embedding.weight.mul_(5)
        model.positional_embedding.mul_(5)


class StillsModel(Protocol):
    """What can be pretrained on stills: an nn.Module with two encoders of unit-norm embeddings."""

    logit_scale: nn.Parameter  # [], the logarithm of the factor on the cosine

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> [B, E]."""

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """CLIP's token ids int64 [B, L], as long as the longest of them -> [B, E]."""

    # Of nn.Module, which a protocol cannot name as its base:

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in torch."""

    def train(self) -> Self:
        """As in torch."""

    def eval(self) -> Self:
        """As in torch."""


class _ClipOfStills(nn.Module):
    """open_clip's CLIP as a StillsModel."""

    logit_scale: nn.Parameter

    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.clip = model
        self.logit_scale = model.logit_scale

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.clip.encode_image(pixels, normalize=True)
        return embeddings

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """``encode_text`` for tokens cut to their real length: the same embeddings, sooner."""
        length, model = tokens.shape[1], self.clip
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        x = x[torch.arange(len(x)), _ends(tokens)] @ model.text_projection
        return F.normalize(x, dim=-1)


def stills_recall(model: StillsModel, seed: int = 0) -> dict[str, float]:
    """Caption -> still recall, in percent, over 320 kinds of stills with a test clip's look."""
    rng = np.random.default_rng((seed, 1))
    captions, pixels = _stills(all_kinds("test"), rng)
    with torch.no_grad():
        logits = model.embed_texts(captions) @ model.embed_pictures(pixels).T
    ranks = (logits > logits.diagonal()[:, None]).sum(1) + 1
    return {f"R@{k}": round(100 * (ranks <= k).float().mean().item(), 1) for k in (1, 5)}


def pretrain(model: StillsModel, *, seed: int, steps: int, progress: bool = True) -> float:
    """Train on random stills with CLIP's contrastive loss; return the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98))
    warm_up = max(1, round(_WARM_UP * steps))

    def rate(step: int) -> float:
        done = (step - warm_up) / max(1, steps - warm_up)
        return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * max(0.0, done))) / 2

    schedule = LambdaLR(optimizer, rate)
    batches = _batches(seed)
    labels = torch.arange(_BATCH)
    loss = torch.zeros(())
    model.train()
    bar = tqdm(range(steps), desc="stills backbone", disable=not progress)
    for _ in bar:
        captions, pixels = next(batches)
        images = model.embed_pictures(pixels)
        logits = model.logit_scale.exp() * images @ model.embed_texts(captions).T
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    return round(loss.item(), 4)


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of random stills."""
    rng = np.random.default_rng((seed, 0))

    kinds = all_kinds(*SPLITS)
    while True:
        yield _stills([kinds[i] for i in rng.integers(len(kinds), size=_BATCH)], rng)


def _stills(kinds: list[tuple[Look, str, str]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw stills: tokens int64 [B, L], L the longest caption, and pixels float32 [B, 3, H, W]."""
    captions, pictures = [], []
    for look, place, size in kinds:
        x, y = (SIZE * rng.uniform(*share, size=1) for share in PLACES[place])
        radius = rng.uniform(*RADII[size], size=1)
        rgb = np.array([COLOURS[look.colour]], float)
        pictures.append(draw(look, x=x, y=y, radius=radius, rgb=rgb))
        captions.append(f"{look.phrase(size)} {place} on a {look.background} background")
    tokens = open_clip.get_tokenizer("ViT-B-32")(captions)
    pixels = torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(PREPROCESS_CONFIG[key])[:, None, None] for key in ("mean", "std"))
    return tokens[:, : int(_ends(tokens).max()) + 1], (pixels - mean) / std


def _ends(tokens: Tensor) -> Tensor:
    """How many tokens stand before each caption's end token."""
    return (tokens != CLIP_END).long().cumprod(dim=1).sum(dim=1)
