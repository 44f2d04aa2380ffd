"""Models of open_clip with random numbers, as folders that ``--backbone`` takes; nothing is downloaded.

Numbers are random everywhere, biases and norms too, so that nothing is zero or one by chance; a vocabulary
that needs a download is replaced by a small one, beside a table of tokens of the model's own size.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

from dgl_runtime.errors import ConfigError

MOVED = 0.02  # how far every number is moved, at random
_PIXELS = ("mean", "std", "interpolation", "resize_mode")


def count_parameters(name: str) -> int:
    """Of a model of open_clip, without making its numbers.

    Raises:
        ConfigError: There is no such model, or it cannot be made without the network.
    """
    _config(name)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    return sum(one.numel() for one in model.parameters())


def write_random(name: str, folder: Path) -> Path:
    """Make a folder of a model of open_clip, in its format; the folder.

    Raises:
        ConfigError: There is no such model, or it cannot be made without the network.
    """
    config = _config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        state = {key: moved(key, one) for key, one in model.state_dict().items()}
    folder.mkdir()
    save_file(state, folder / "open_clip_model.safetensors")
    tags = open_clip.list_pretrained_tags_by_model(name)
    pixels = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    told = {
        "model_cfg": config,
        "preprocess_cfg": {key: pixels[key] for key in _PIXELS if key in pixels},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(told), "utf-8")
    if config["text_cfg"].get("hf_tokenizer_name"):
        _write_vocabulary(folder, config["text_cfg"])
    return folder


def moved(name: str, tensor: Tensor) -> Tensor:
    """Numbers beside what a tensor holds; variances stay above zero."""
    if not tensor.is_floating_point() or name in ("logit_scale", "logit_bias"):
        return tensor.clone()
    other = tensor + MOVED * torch.randn_like(tensor)
    return (other.abs() + 0.5 if name.endswith("running_var") else other).contiguous()


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(
            f"backbone {name!r} is no model of open_clip.list_models(). Give one of these, or a folder."
        )
    if other := config["text_cfg"].get("hf_model_name"):
        raise ConfigError(f"its text encoder, {other}, is built by the library transformers")
    return config


def _write_vocabulary(folder: Path, text: dict[str, Any]) -> None:
    """Letters as words, with the special tokens where the model looks for them."""
    end = text.get("eos_id", 2)
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    ids = {word: number for number, word in enumerate(words)}
    ids["</s>"], ids[words[end]] = end, ids["</s>"]
    inner = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(word, ids[word]) for word in ("<s>", "</s>")]
    )
    inner.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), "utf-8")
