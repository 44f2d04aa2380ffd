"""BLIP (Li et al. 2022): a ViT and a BERT with one space, from Hugging Face's files or the authors' own.

Only its dual encoder is used, not its matching by cross-attention.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgl_runtime.bundle.input_spec import InputSpec, TextSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_train.model.backbones.backbone import (
    DEFAULT_FRAMES,
    UNKNOWN_LICENCE,
    Backbone,
    BackboneSource,
    Facts,
)
from dgl_train.model.backbones.blip_tensors import (
    AUTHORS,
    HUGGING_FACE,
    TEMPERATURE,
    File,
    Kind,
    text_tower,
    vision_tower,
)
from dgl_train.model.backbones.clip import OPENAI_MEAN, OPENAI_STD
from dgl_train.model.backbones.downloaded import HUB, hub_file, is_of_open_clip
from dgl_train.model.backbones.licences import licence_in
from dgl_train.model.backbones.open_clip_inputs import read_tokenizer
from dgl_train.model.backbones.tensor_files import read_safetensors, read_torch_file

if TYPE_CHECKING:
    import tokenizers

Find = Callable[..., Path | None]
"""The path of the first of some files that is there; None: none is."""
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
VOCABULARIES = ("tokenizer.json", "vocab.txt")
LONGEST_TEXT = 35  # tokens; longer texts were cut in BLIP's training for retrieval
DEFAULT_TEMPERATURE = 0.07  # what BLIP's training starts from; Hugging Face's files hold none
MAX_LOGIT_SCALE = 1000.0  # BLIP's training keeps its temperature at 0.001 or above
_START, _END, _PAD, _UNKNOWN, _MASK = "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"
# What tensors do not tell, so that config.json must: the part, the name, its type, and what to write.
_TOLD = (
    ("text_config", "num_attention_heads", int, "12 for BLIP; 8, transformers' default, is wrong"),
    ("vision_config", "num_attention_heads", int, "12 for BLIP base, 16 for large"),
    ("vision_config", "layer_norm_eps", float, "1e-6 for BLIP; 1e-5 is transformers' default"),
)


def is_blip(source: BackboneSource) -> bool:
    """Whether a source is a BLIP: a .pth file, or a folder or repository whose config.json says so.

    Raises:
        ConfigError: A config.json that cannot be read, or a repository that is neither here nor there.
    """
    if Path(source.name).suffix == ".pth":
        return True
    find = _finder(source.name)
    if find is None or is_of_open_clip(source.name):
        return False
    try:
        config = find(CONFIG)
    except OSError as error:
        raise _not_here(source, error) from error
    return config is not None and _read_config(config).get("model_type") == "blip"


def load_blip(source: BackboneSource) -> Backbone:
    """Load a BLIP; the network is asked for nothing but files of a repository that are not here yet.

    Raises:
        ConfigError: A file is missing, damaged or of another model.
    """
    try:
        return _loaded(source)
    except ConfigError as error:
        raise ConfigError(
            f"backbone {source.name!r} does not load: {str(error).rstrip('.')}."
        ) from error
    except OSError as error:
        raise _not_here(source, error) from error
    except Exception as error:  # tensors of other shapes fail in many ways
        raise ConfigError(
            f"backbone {source.name!r} does not load: {reason_of(error)}. Give a BLIP for retrieval or "
            "matching, whole, as its authors or Hugging Face have it."
        ) from error


def _not_here(source: BackboneSource, error: OSError) -> ConfigError:
    return ConfigError(
        f"backbone {source.name!r} is not here: {reason_of(error)}. Connect to the network once, or give a "
        "folder."
    )


def _loaded(source: BackboneSource) -> Backbone:
    find = _finder(source.name)
    if find is None and not Path(source.name).is_file():
        raise ConfigError(
            "there is no such file; give BLIP's .pth, or a folder with its config.json"
        )
    if source.pretrained:
        raise ConfigError(
            f"pretrained is {source.pretrained!r}, but a BLIP holds its own weights. Leave it empty"
        )
    if find is None:
        file, kind, size = _authors_file(Path(source.name)), Kind(), None
        find, licence = partial(_in_folder, Path(source.name).parent), UNKNOWN_LICENCE
    else:
        file, kind, size = _hugging_face_file(find)
        licence = _licence(source.name)
    tokenizer = _tokenizer(find, file)
    vision, text = vision_tower(file, kind), text_tower(file, kind, tokenizer.spec)
    if size not in (None, vision.frame_size):
        raise ConfigError(
            f"its config.json says image_size {size}, its positions are those of {vision.frame_size} pixels; "
            "give the config.json that belongs to the weights"
        )
    frames = FrameSpec(
        num_frames=DEFAULT_FRAMES,
        size=vision.frame_size,
        resize="squash",
        interpolation="bicubic",
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        sampling="centers",
    )
    facts = Facts(
        source,
        InputSpec(frames, tokenizer.spec),
        tokenizer,
        vision.shape.embed_dim,
        max_logit_scale=MAX_LOGIT_SCALE,
        licence=licence,
    )
    temperature = float(file.state.get(TEMPERATURE, DEFAULT_TEMPERATURE))
    return Backbone(vision, text, facts, logit_scale=-math.log(temperature))


def _finder(name: str) -> Find | None:
    """Where the files of a folder or repository are; None for another source."""
    if name.startswith(HUB):
        return partial(hub_file, name.removeprefix(HUB))
    folder = Path(name)
    return partial(_in_folder, folder) if folder.is_dir() else None


def _in_folder(folder: Path, *files: str) -> Path | None:
    return next((folder / file for file in files if (folder / file).is_file()), None)


def _licence(name: str) -> str:
    """Salesforce's repositories have one; a folder says."""
    if name.startswith(HUB):
        return "BSD-3-Clause" if name.startswith(f"{HUB}Salesforce/") else UNKNOWN_LICENCE
    return licence_in(Path(name))


def _authors_file(path: Path) -> File:
    """A .pth of the authors: {"model": tensors, ...}, with what training needs beside them."""
    if not path.is_file():
        raise ConfigError(
            "there is no such file; give BLIP's .pth, or a folder with its config.json"
        )
    saved = read_torch_file(path)
    model = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(model, dict):
        raise ConfigError(f"{path} holds no 'model'; give BLIP's .pth as its authors published it")
    return File(path, _tensors(model), AUTHORS)


def _hugging_face_file(find: Find) -> tuple[File, Kind, int | None]:
    """The weights, what config.json says of them, and the side of a frame, if it says so."""
    config_file, path = find(CONFIG), find(*WEIGHTS)
    if config_file is None or path is None:
        raise ConfigError(
            f"its weights, {' or '.join(WEIGHTS)}, are not there. Put them into the folder, or connect to "
            "the network once"
        )
    config = _read_config(config_file)
    kind = _kind(config, config_file)
    is_safe = path.suffix == ".safetensors"
    state = read_safetensors(path)[1] if is_safe else _tensors(read_torch_file(path))
    size = config["vision_config"].get("image_size")
    return File(path, state, HUGGING_FACE), kind, size


def _tensors(saved: object) -> dict[str, Tensor]:
    """What of a saved object is a tensor by name."""
    items = saved.items() if isinstance(saved, dict) else ()
    return {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON: {reason_of(error)}. Give the whole file."
        ) from error
    return config if isinstance(config, dict) else {}


def _kind(config: Mapping[str, Any], path: Path) -> Kind:
    """What a config.json says of the blocks.

    Raises:
        ConfigError: It does not say it, or says what our blocks are not.
    """
    told: list[Any] = []
    for part, name, of_type, right in _TOLD:
        found = (config.get(part) or {}).get(name)
        if not isinstance(found, of_type) or isinstance(found, bool) or found <= 0:
            raise ConfigError(
                f"{path} says {found!r} for {part}.{name}, which must be a number above 0 and which no "
                f"tensor tells. Write what the weights were trained with into it: {right}"
            )
        told.append(found)
    for part in ("text_config", "vision_config"):
        if (act := config[part].get("hidden_act", "gelu")) != "gelu":
            raise ConfigError(f"{path} says {act!r} for {part}.hidden_act; BLIP has 'gelu'")
    text_eps = config["text_config"].get("layer_norm_eps", Kind.text_eps)
    return Kind(told[1], told[0], told[2], float(text_eps))


def _tokenizer(find: Find, file: File) -> Tokenizer:
    """BERT's vocabulary, fed as BLIP does it.

    Raises:
        ConfigError: It is not beside the weights, cannot be read, or is another model's.
    """
    if (path := find(*VOCABULARIES)) is None:
        raise ConfigError(
            f"its vocabulary, {' or '.join(VOCABULARIES)}, is not beside {file.path}; put bert-base-uncased's "
            "there, or connect to the network once"
        )
    inner = read_tokenizer(path) if path.suffix == ".json" else word_pieces(path)
    start, end, pad = (inner.token_to_id(token) for token in (_START, _END, _PAD))
    if start is None or end is None or pad is None:
        raise ConfigError(f"{path} has no {_START}, {_END} or {_PAD}; give bert-base-uncased's")
    if (size := inner.get_vocab_size()) > file.vocabulary:
        raise ConfigError(
            f"{path} has {size} tokens, {file.path} embeds {file.vocabulary}; give the weights' own"
        )
    longest = min(LONGEST_TEXT, file.positions)
    return Tokenizer(inner, TextSpec("blip", longest, pad, None, start, end, "first"))


def word_pieces(path: Path) -> "tokenizers.Tokenizer":
    """BERT's tokenizer for small letters, of a vocab.txt with a token a line.

    Raises:
        ConfigError: The file cannot be read.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}") from error
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(lines) if token}
    inner = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=_UNKNOWN))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = (_PAD, _UNKNOWN, _START, _END, _MASK)
    inner.add_special_tokens([token for token in special if token in vocabulary])
    return inner
