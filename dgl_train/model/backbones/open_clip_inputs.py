"""How an open_clip model wants its frames and texts: what its configuration, tag or folder says."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgl_runtime.bundle.input_spec import TextSpec, clip_texts
from dgl_runtime.bundle.tokenizer import Tokenizer, read_exactly
from dgl_runtime.errors import ConfigError
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_train.model.backbones.backbone import DEFAULT_FRAMES
from dgl_train.model.backbones.clip_vocabulary import CONTEXT, clip_tokenizer
from dgl_train.model.backbones.open_clip_encoders import READ_OUTS

if TYPE_CHECKING:
    import tokenizers

Config = Mapping[str, Any]
FindFile = Callable[[str], Path | None]
"""The path of one of the tokenizer's own files, by its name; None: there is none."""
CLEANINGS = {"lower": "clip", "canonicalize": "canonicalize", "whitespace": "whitespace"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def frames_of(preprocess: Config, size: int | tuple[int, int]) -> FrameSpec:
    """What ``preprocess_cfg`` says of pictures.

    Raises:
        ConfigError: Pictures are not square, or are resized in a way that we do not know.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ConfigError(f"its pictures are not square: {size}")
    if preprocess["resize_mode"] == "longest" and preprocess.get("fill_color"):
        raise ConfigError(f"its pictures have borders of colour {preprocess['fill_color']}, not 0")
    spec = FrameSpec(
        num_frames=DEFAULT_FRAMES,
        size=int(sides.pop()),
        resize=preprocess["resize_mode"],
        interpolation=preprocess["interpolation"],
        mean=tuple(map(float, preprocess["mean"])),
        std=tuple(map(float, preprocess["std"])),
        sampling="centers",
    )
    if found := list(spec.faults()):
        raise ConfigError(f"its pictures are read in a way that is not known here: {found[0]}")
    return spec


def attends_to_padding(text: Config) -> bool:
    """Whether what stands behind a text changes its embedding, so that it must stand there."""
    reads_last = text.get("embed_cls") or text.get("pool_type") == "last"
    return bool(text.get("no_causal_mask") or reads_last or "hf_model_name" in text)


def tokenizer_of(text: Config, find: FindFile) -> Tokenizer:
    """The tokenizer of a ``text_cfg``; its spec says how texts are cleaned, cut, padded and read.

    Raises:
        ConfigError: A file of it is missing, or it puts tokens where we do not know them.
    """
    more, context = dict(text.get("tokenizer_kwargs") or {}), text.get("context_length", CONTEXT)
    of_hub = text.get("hf_tokenizer_name")
    cleaning = more.pop("clean", "whitespace" if of_hub else "lower")
    strips_end = more.pop("strip_sep_token", False)
    pooling = text.get("pool_type", "argmax")
    unknown = {
        **more,
        **({"tokenizer_mode": mode} if (mode := text.get("tokenizer_mode")) else {}),
        **({} if cleaning in CLEANINGS else {"clean": cleaning}),
        **({} if text.get("embed_cls") or pooling in READ_OUTS else {"pool_type": pooling}),
    }
    if unknown:
        told = ", ".join(f"{name} {value!r}" for name, value in unknown.items())
        raise ConfigError(f"its texts are made or read with {told}, which is not known here")
    padded = {
        "max_tokens": context,
        "pad_to": context if attends_to_padding(text) else None,
        "clean": CLEANINGS[cleaning],
        "read": "last" if text.get("embed_cls") else READ_OUTS[pooling],
    }
    if not of_hub:
        return clip_tokenizer().fed_as(TextSpec(**{**vars(clip_texts(context)), **padded}))
    inner, settings = _read_files(find, of_hub)
    start, end = special_tokens(inner)
    pad = _pad_token(inner, settings, is_read=padded["pad_to"] is not None)
    if strips_end:
        end = _stripped(inner, settings, end)
    return Tokenizer(inner, TextSpec(pad_id=pad, start_id=start, end_id=end, **padded))


def _stripped(inner: "tokenizers.Tokenizer", settings: Config, end: int | None) -> int:
    """What ``strip_sep_token`` puts in the separator's place, wherever that is: 0, whoever that is.

    Raises:
        ConfigError: Texts end with another token than the separator.
    """
    separator = _token(settings, "sep_token") or "[SEP]"  # BERT's files do not name it
    if end is None or inner.token_to_id(separator) != end:
        raise ConfigError(f"its texts are stripped of {separator!r}, with which they do not end")
    return 0


def special_tokens(inner: "tokenizers.Tokenizer") -> tuple[int | None, int | None]:
    """What the tokenizer itself puts before and behind a text.

    Raises:
        ConfigError: More than one token on a side.
    """
    bare = inner.encode("a", add_special_tokens=False).ids
    whole = inner.encode("a", add_special_tokens=True).ids
    before = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    behind = whole[before + len(bare) :]
    if before > 1 or len(behind) > 1:
        raise ConfigError(f"its tokenizer makes {whole} of 'a', more than a token on a side")
    return (whole[0] if before else None), (behind[0] if behind else None)


def _read_files(find: FindFile, name: str) -> "tuple[tokenizers.Tokenizer, Config]":
    paths = [find(file) for file in TOKENIZER_FILES]
    if paths[0] is None:
        raise ConfigError(
            f"its tokenizer, {name}, is not there: put its {' and '.join(TOKENIZER_FILES)} into the folder, "
            "or connect to the network once"
        )
    inner = read_tokenizer(paths[0])
    try:
        settings = json.loads(paths[1].read_text(encoding="utf-8")) if paths[1] else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"its tokenizer, {paths[1]}, cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"its tokenizer, {paths[1]}, holds no JSON object")
    return inner, settings


def read_tokenizer(path: Path) -> "tokenizers.Tokenizer":
    """A ``tokenizer.json``, which neither pads nor cuts.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    try:
        inner = read_exactly(path)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"its tokenizer, {path}, cannot be read: {error}") from error
    inner.no_padding()
    inner.no_truncation()
    return inner


def _pad_token(inner: "tokenizers.Tokenizer", settings: Config, *, is_read: bool) -> int:
    """The id of the padding token; any where nobody reads padding and none is named.

    Raises:
        ConfigError: Padding is read, and there is none, or it stands on the other side.
    """
    token = _token(settings, "pad_token")
    found = None if token is None else inner.token_to_id(token)
    if is_read and found is None:
        raise ConfigError(
            f"its tokenizer names no padding token ({token!r}), and its texts are padded: put its "
            f"{TOKENIZER_FILES[1]} into the folder, or connect to the network once"
        )
    if is_read and settings.get("padding_side", "right") != "right":
        raise ConfigError(f"its texts are padded on the {settings['padding_side']}")
    return found or 0


def _token(settings: Config, name: str) -> str | None:
    named = settings.get(name)
    return named.get("content") if isinstance(named, dict) else named
