"""The self-check of inputs: do texts and pictures still become the tokens and pixels of the export?

Rules that no token and no pixel shows, such as the mean and the read-out, are compared with the export's.

A graph cannot tell a wrong resize or a wrong tokenizer: it embeds whatever it is given, and recall is lost
in silence.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dgl_runtime.bundle.cleaning import CLEANINGS
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.golden import Golden, RawInputs
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import BundleError
from dgl_runtime.media.frame_spec import INTERPOLATIONS, RESIZES, FrameSpec
from dgl_runtime.media.pixels import preprocess

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Spec = TypeVar("Spec", bound="DataclassInstance")
# Another build of Pillow may round a level differently; another resize is off by tens.
MOST_LEVELS = 1


def check_inputs(bundle: Bundle, tokenizer: Tokenizer) -> None:
    """Make tokens and pixels of the golden texts and picture, and compare; schema 2 has none.

    Raises:
        BundleError: They are others, or a rule is; says which rule of the manifest is not the model's.
    """
    for fault in input_faults(bundle.golden, bundle.manifest.inputs.frames, tokenizer):
        raise BundleError(
            f"bundle {bundle.folder} fails its self-check: {fault}. Export it again, or take the "
            "manifest.json that was exported."
        )


def input_faults(golden: Golden, frames: FrameSpec, tokenizer: Tokenizer) -> Iterator[str]:
    """What becomes other tokens or pixels than the golden ones, and by which rule, in words.

    Where all are the same: which rules are others than the export's.
    """
    made = [] if golden.raw is None else list(_made_faults(golden, golden.raw, frames, tokenizer))
    yield from made
    if golden.inputs is not None and not made:
        for side, seen, expected in (
            ("frames", frames, golden.inputs.frames),
            ("texts", tokenizer.spec, golden.inputs.texts),
        ):
            yield from _differences(f"inputs.{side}", seen, expected)


def _differences(where: str, seen: Spec, expected: Spec) -> Iterator[str]:
    for field in fields(seen):
        ours, theirs = (getattr(spec, field.name) for spec in (seen, expected))
        if ours != theirs:
            yield f"{where}.{field.name} is {ours!r}, the model's is {theirs!r}"


def _made_faults(
    golden: Golden, raw: RawInputs, frames: FrameSpec, tokenizer: Tokenizer
) -> Iterator[str]:
    if not _gives_tokens(tokenizer, golden, raw):
        found = _rule(
            tokenizer.spec,
            _other_texts(golden, raw),
            # Which token is read makes no other tokens: a model without an end token reads another.
            lambda spec: (
                not any(replace(spec, read="last").faults())
                and _gives_tokens(tokenizer.fed_as(spec), golden, raw)
            ),
        )
        yield f"texts become other tokens than the model's: {found or 'tokenizer.json is another one'}"
    if not _gives_pixels(frames, raw):
        others = {"resize": RESIZES, "interpolation": INTERPOLATIONS}
        found = _rule(frames, others, lambda spec: _gives_pixels(spec, raw))
        yield f"a picture becomes other pixels than the model's: {found or 'no single rule explains it'}"


def _gives_tokens(tokenizer: Tokenizer, golden: Golden, raw: RawInputs) -> bool:
    tokens = tokenizer(raw.texts.tolist())
    return np.array_equal(tokens.ids, golden.tokens) and np.array_equal(
        tokens.lengths, golden.lengths
    )


def _gives_pixels(spec: FrameSpec, raw: RawInputs) -> bool:
    off = preprocess(raw.picture, spec).astype(int) - raw.pixels
    return bool(np.abs(off).max() <= MOST_LEVELS)


def _other_texts(golden: Golden, raw: RawInputs) -> dict[str, Iterable[Any]]:
    """What the rules for texts may have been; ids are in the row of the shortest text."""
    shortest = min(range(len(raw.texts)), key=lambda row: len(raw.texts[row]))
    ids = {int(number) for number in golden.tokens[shortest]}
    length = golden.tokens.shape[1]
    return {
        "clean": CLEANINGS,
        "pad_id": ids,
        "pad_to": (None, length),
        "start_id": (None, *ids),
        "end_id": (None, *ids),
        "max_tokens": (length,),
    }


def _rule(
    spec: Spec, others: Mapping[str, Iterable[Any]], fits: Callable[[Spec], bool]
) -> str | None:
    """The one field that with another value gives what was expected, in words; None: there is none."""
    for name, values in others.items():
        for value in values:
            if fits(replace(spec, **{name: value})):
                return f"{name} is {getattr(spec, name)!r}, the model's is {value!r}"
    return None
