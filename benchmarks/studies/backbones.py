"""Every model of open_clip, with random numbers: is it exported, or why not.

    python benchmarks/studies/backbones.py results.jsonl

A model takes minutes, all of them hours: what the file holds already is not done again. Numbers are random
everywhere, biases and norms too, so that nothing is zero or one by chance; a vocabulary that needs a download
is replaced by a small one.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import open_clip
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

from dgl_bench.command import benchmark, say
from dgl_bench.report import Report, Row, Table
from dgl_export.bundle_writer import write_bundle
from dgl_export.formats import FLOAT32_ONNX
from dgl_export.request import untuned_request
from dgl_runtime.errors import DglError, reason_of
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.backbones.towers import TextTower, VisionTower

MOVED = 0.02  # how far every number is moved, at random


@benchmark
def main(
    results: Path,
    names: Annotated[str, "Of open_clip's models, with commas; all of them without."] = "",
    most: Annotated[int, "Millions of parameters; larger models are passed over."] = 500,
) -> Report:
    """Export every open_clip model untuned, and say what comes of it.

    Example: python benchmarks/studies/backbones.py results.jsonl --most 500
    """
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    known = {row["model"]: row for row in map(json.loads, lines)}
    for name in names.split(",") if names else open_clip.list_models():
        if name not in known:
            say(name)
            known[name] = outcome(name, most * 1_000_000)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
    rows = [known[name] for name in sorted(known)]
    tried = [row for row in rows if not row["why not"].startswith("passed over")]
    share = sum(row["untuned"] == "yes" for row in tried) / max(1, len(tried))
    return Report(
        name="backbones",
        title="Models of open_clip",
        tables=[Table("Exported untuned, and takes prompts", rows)],
        notes=[
            f"Random numbers. {share:.1%} of {len(tried)} models of up to {most} M parameters are exported.",
            "Off by: the largest difference between the exported graphs and the model, of any number of a "
            "unit embedding.",
        ],
    )


def outcome(name: str, most: int) -> Row:
    """What comes of one model."""
    row: Row = {"model": name, "M parameters": None, "untuned": "no", "prompts": "no"}
    row |= {"off by": None, "why not": ""}
    with TemporaryDirectory() as folder:
        try:
            row["M parameters"] = write_random(name, Path(folder) / "backbone", most) / 1e6
            request = untuned_request(str(Path(folder) / "backbone"), "")
            both = load_backbone(request.model.source)
            is_prompted = isinstance(both.vision, VisionTower) and isinstance(both.text, TextTower)
            parity = write_bundle(request, Path(folder) / "bundle", FLOAT32_ONNX).parity
        except (DglError, RuntimeError, ImportError) as error:
            return {**row, "why not": reason_of(error).replace(folder, "FOLDER")[:200]}
    told = {"untuned": "yes", "prompts": "yes" if is_prompted else "no", "off by": parity.max_abs}
    return {**row, **told}


def write_random(name: str, folder: Path, most: int) -> int:
    """A folder in open_clip's format; the number of parameters.

    Raises:
        DglError: There are too many.
    """
    config = open_clip.get_model_config(name)
    if other := config["text_cfg"].get("hf_model_name"):
        raise DglError(f"its text encoder, {other}, is built by the library transformers")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        count = sum(one.numel() for one in open_clip.create_model(name).parameters())
    if count > most:
        raise DglError(f"passed over: {count / 1e6:.0f} M parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        state = {key: moved(key, one) for key, one in model.state_dict().items()}
    folder.mkdir()
    save_file(state, folder / "open_clip_model.safetensors")
    tags = open_clip.list_pretrained_tags_by_model(name)
    pixels = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    kept = ("mean", "std", "interpolation", "resize_mode")
    told = {
        "model_cfg": config,
        "preprocess_cfg": {key: pixels[key] for key in kept if key in pixels},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(told), "utf-8")
    if config["text_cfg"].get("hf_tokenizer_name"):
        write_vocabulary(folder, config["text_cfg"])
    return int(count)


def moved(name: str, tensor: Tensor) -> Tensor:
    """Numbers beside what a tensor holds; variances stay above zero."""
    if not tensor.is_floating_point() or name in ("logit_scale", "logit_bias"):
        return tensor.clone()
    other = tensor + MOVED * torch.randn_like(tensor)
    return (other.abs() + 0.5 if name.endswith("running_var") else other).contiguous()


def write_vocabulary(folder: Path, text: dict[str, Any]) -> None:
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
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}), "utf-8")


if __name__ == "__main__":
    main()
