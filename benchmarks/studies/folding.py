"""What each step of folding saves, counted from the sizes of published models.

    python benchmarks/studies/folding.py

Nothing is timed. Compared is what the paper's model computes when every prompt, start token and padding runs
through every layer; a multiply-add is 2 FLOP, attention's own products are left out.
"""

from dataclasses import dataclass

from dgl_bench.command import benchmark
from dgl_bench.report import Report, Row, Table
from dgl_train.model.backbones.block import BlockShape
from dgl_train.model.backbones.towers import TextShape, VisionShape
from dgl_train.model.prompts import PromptCounts

QUERY = 10  # tokens, start and end token included
COUNTS = PromptCounts()


@dataclass(frozen=True)
class Sizes:
    """A model with prompts.

    Attributes:
        vision: Of the image encoder.
        text: Of the text encoder.
        frames: F.
        padded: Tokens that every caption has in training.
        pool_heads: Heads of a map pooling; 0 without one.
    """

    vision: VisionShape
    text: TextShape
    frames: int = 12
    padded: int = 32
    pool_heads: int = 0


def _block(width: int) -> BlockShape:
    return BlockShape(width, width // 64, 4 * width)


MODELS = {
    "ViT-B-32": Sizes(
        VisionShape(_block(768), 12, 32, 7, 512), TextShape(_block(512), 12, 0, 77, 512)
    ),
    "PE-Core-B-16": Sizes(
        VisionShape(_block(768), 12, 16, 14, 1024),
        TextShape(_block(1024), 24, 0, 32, 1024),
        pool_heads=8,
    ),
    "ViT-B-16-SigLIP2-256": Sizes(
        VisionShape(_block(768), 12, 16, 16, 768, has_class_token=False),
        TextShape(_block(768), 12, 0, 64, 768, is_causal=False),
        padded=64,
        pool_heads=12,
    ),
    "BLIP base, 224": Sizes(
        VisionShape(_block(768), 12, 16, 14, 256),
        TextShape(_block(768), 12, 0, 512, 256, is_causal=False, masks_padding=True),
    ),
}


@benchmark
def main() -> Report:
    """Constants and saved FLOP by step, for four models.

    Example: python benchmarks/studies/folding.py
    """
    rows = [
        {"model": name, "encoder": encoder, **row}
        for name, sizes in MODELS.items()
        for encoder, steps in (("text", text_steps(sizes)), ("clip", clip_steps(sizes)))
        for row in _rows(steps)
    ]
    return Report(
        name="folding",
        is_timed=False,
        title="What folding saves",
        tables=[Table(f"A query of {QUERY} tokens, a clip of 12 frames", rows)],
        notes=[
            "Counted from sizes, nothing is timed. Saved: of what the paper's model computes where every "
            "prompt, start token and padding runs through every layer.",
            "Constants: numbers that the folded graph holds in place of what made them.",
        ],
    )


@dataclass(frozen=True)
class Step:
    """What one step saves, FLOP, and how many constants it leaves."""

    name: str
    saved: int
    constants: int = 0


def _rows(steps: list[Step]) -> list[Row]:
    whole = steps[0].saved
    return [
        {
            "step": step.name,
            "MFLOP": step.saved / 1e6,
            "of all, %": 100 * step.saved / whole,
            "constants": step.constants or None,
        }
        for step in steps
    ]


def token_flop(block: BlockShape) -> int:
    """FLOP of a token in a block's linear layers."""
    attention = 8 * block.width**2
    return attention + (6 if block.is_gated else 4) * block.width * block.hidden


def text_steps(sizes: Sizes) -> list[Step]:
    """All that a query costs, and what of it each step saves."""
    shape = sizes.text
    block, layers = shape.block, shape.layers
    width, flop = block.width, token_flop(shape.block)
    own = QUERY if shape.is_causal or shape.masks_padding else sizes.padded
    starts = int(shape.is_causal)
    live = COUNTS.prefix if shape.is_causal else COUNTS.caption_prompts
    left = own - starts
    steps = [
        Step(
            "3 caption prompts", COUNTS.caption_prompts * flop * layers, 2 * live * width * layers
        ),
        Step("4 start token", starts * flop * layers, starts * 2 * width * layers),
        Step("5 padding", (sizes.padded - own) * flop * layers),
        Step("6 last block", (left - 1) * (flop - 4 * width**2)),
    ]
    whole = (sizes.padded + COUNTS.caption_prompts) * flop * layers
    return [Step("all of it", whole), *steps]


def clip_steps(sizes: Sizes) -> list[Step]:
    """All that a clip costs, and what of it each step saves."""
    shape = sizes.vision
    block, layers, frames = shape.block, shape.layers, sizes.frames
    width, flop = block.width, token_flop(shape.block)
    tokens, globals_ = shape.side**2 + shape.has_class_token, COUNTS.global_prompts
    rows = frames * tokens + globals_
    saved = 0 if sizes.pool_heads else (rows - 1) * (flop - 4 * width**2)
    steps = [
        Step(
            "2 frame prompts",
            frames * COUNTS.frame_prompts * flop * layers,
            2 * COUNTS.frame_prompts * width * layers,
        ),
        Step("6 last block", saved),
        Step("7 pixel statistics", pixel_flop(sizes)),
        Step("8 globals of block 0", globals_ * 6 * width**2, 4 * globals_ * width),
    ]
    if heads := sizes.pool_heads:
        kept = rows * 4 * width * heads + 2 * width**2
        steps.append(Step("9 pooling's query", rows * 4 * width**2 - kept, width * heads))
    of_blocks = (frames * (tokens + COUNTS.frame_prompts) + globals_) * flop * layers
    return [Step("all of it", of_blocks + around_blocks(sizes)), *steps]


OF_BLOCKS = ("2 frame prompts", "6 last block", "8 globals of block 0")


def around_blocks(sizes: Sizes) -> int:
    """FLOP of a clip outside of its blocks: pixels, patches, the keys and values of a pooling."""
    shape = sizes.vision
    width = shape.block.width
    patches = sizes.frames * shape.side**2 * 2 * 3 * shape.patch**2 * width
    rows = sizes.frames * (shape.side**2 + shape.has_class_token) + COUNTS.global_prompts
    pooling = rows * 4 * width**2 if sizes.pool_heads else 0
    return patches + pixel_flop(sizes) + pooling


def pixel_flop(sizes: Sizes) -> int:
    """FLOP of bringing a clip's pixels to their statistics."""
    return 2 * sizes.frames * 3 * (sizes.vision.side * sizes.vision.patch) ** 2


if __name__ == "__main__":
    main()
