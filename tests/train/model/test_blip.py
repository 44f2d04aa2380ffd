"""BLIP: what we make of raw pictures and texts is what transformers makes of them."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from dgl_export.cli import export
from dgl_runtime.errors import ConfigError
from dgl_runtime.media.pixels import preprocess
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.methods import ModelSettings, build_model
from dgl_train.model.prompts import PromptCounts
from tests.helpers.blip_folders import (
    TINY_TEXT,
    changed_tensors,
    embedded_by_transformers,
    write_authors_file,
    write_blip,
    write_vocabulary,
)
from tests.helpers.open_clip_folders import SENTENCES, write_open_clip

PICTURE = np.random.default_rng(0).integers(0, 256, (97, 150, 3), dtype=np.uint8)
TEXTS = [
    *SENTENCES, "", "A Bee (two)! & THE lake's; edge:  isn't it?~", "#1 \"bee\" ... caf\u00e9 * 12",
    " ".join(SENTENCES * 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_blip(tmp_path_factory.mktemp("blip") / "folder")


def assert_is_that_of_transformers(folder, ours, tolerance=2e-6):
    theirs = embedded_by_transformers(folder, PICTURE, TEXTS)
    frames = torch.from_numpy(preprocess(PICTURE, ours.facts.inputs.frames))[None]
    together = torch.from_numpy(ours.facts.tokenizer(TEXTS).ids).long()
    assert torch.equal(together, theirs.ids)
    with torch.no_grad():
        picture = F.normalize(ours.vision(ours.normalize(frames)))
        texts = F.normalize(ours.text(together))
        torch.testing.assert_close(picture, theirs.picture, rtol=0, atol=tolerance)
        torch.testing.assert_close(texts, theirs.texts, rtol=0, atol=tolerance)
        for text, wanted in zip(TEXTS, theirs.texts, strict=True):  # each as long as it is
            tokens = torch.from_numpy(ours.facts.tokenizer([text]).ids).long()
            alone = F.normalize(ours.text(tokens))[0]
            torch.testing.assert_close(alone, wanted, rtol=0, atol=tolerance)


def test_raw_pictures_and_texts_become_what_transformers_makes_of_them(folder):
    ours = load_backbone(BackboneSource(str(folder)))
    assert_is_that_of_transformers(folder, ours)
    texts, frames = ours.facts.inputs.texts, ours.facts.inputs.frames
    assert (texts.clean, texts.read, texts.max_tokens, texts.pad_to) == ("blip", "first", 35, None)
    assert (frames.size, frames.resize, frames.interpolation) == (32, "squash", "bicubic")
    assert ours.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert (ours.facts.max_logit_scale, ours.facts.no_prompts) == (1000.0, "")


def test_the_authors_file_of_the_same_weights_is_the_same_model(folder, tmp_path):
    path = write_authors_file(folder, tmp_path / "model_base.pth", temperature=0.05)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    ours = load_backbone(BackboneSource(str(path)))
    assert_is_that_of_transformers(folder, ours)
    assert ours.logit_scale.item() == pytest.approx(math.log(1 / 0.05))
    same = load_backbone(BackboneSource(str(folder))).state_dict()
    for name, tensor in ours.state_dict().items():
        assert name == "logit_scale" or torch.equal(tensor, same[name]), name


def test_older_files_are_read(folder, tmp_path):
    """Pickled weights in half precision, with positions that were saved as tensors, and a vocab.txt."""
    from safetensors.torch import load_file

    old = tmp_path / "old"
    old.mkdir()
    state = {name: one.half() for name, one in load_file(folder / "model.safetensors").items()}
    state["text_encoder.embeddings.position_ids"] = torch.arange(60)[None]
    torch.save(state, old / "pytorch_model.bin")
    shutil.copy(folder / "config.json", old)
    write_vocabulary(folder, old)
    found, wanted = (load_backbone(BackboneSource(str(one))) for one in (old, folder))
    assert np.array_equal(found.facts.tokenizer(TEXTS).ids, wanted.facts.tokenizer(TEXTS).ids)
    for name, tensor in found.state_dict().items():
        expected = wanted.state_dict()[name]
        assert tensor.dtype == torch.float32
        assert name == "logit_scale" or torch.equal(tensor, expected.half().float()), name


def test_how_text_is_cut_and_which_licence_it_has(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    facts = load_backbone(BackboneSource(str(copied))).facts
    assert facts.licence == "bsd-3-clause"
    assert facts.tokenizer(["bee " * 90]).ids.shape == (1, 35)
    assert load_backbone(BackboneSource(str(folder))).facts.licence == "unknown"


@pytest.mark.slow
def test_a_blip_of_real_size_is_that_of_transformers(tmp_path):
    """The sizes of blip-itm-base; random numbers and a small vocabulary, because none can be fetched."""
    vision = {"image_size": 384, "layer_norm_eps": 1e-6}
    text = {"num_attention_heads": 12, "vocab_size": 30524}
    folder = write_blip(tmp_path / "base", vision=vision, text=text, embed_dim=256)
    ours = load_backbone(BackboneSource(str(folder)))
    assert (ours.facts.inputs.frames.size, ours.facts.embed_dim) == (384, 256)
    assert_is_that_of_transformers(folder, ours, tolerance=5e-6)
    path = write_authors_file(folder, folder / "model_base.pth")
    same = load_backbone(BackboneSource(str(path))).state_dict()
    for name, tensor in ours.state_dict().items():
        assert name == "logit_scale" or torch.equal(tensor, same[name]), name


def edited(part, name, value):
    """A change to a config.json; a value of None takes the entry out."""

    def change(path):
        config = json.loads((path / "config.json").read_text())
        if value is None:
            del config[part][name]
        else:
            config[part][name] = value
        (path / "config.json").write_text(json.dumps(config))

    return change


def without(file):
    return lambda path: (path / file).unlink()


def cut(file):
    return lambda path: (path / file).write_bytes((path / file).read_bytes()[:999])


def tensors(change):
    return lambda path: changed_tensors(path / "model.safetensors", change)


HEADS = "says None for text_config.num_attention_heads, .* into it: 12 for BLIP; 8, "
FAULTS = {
    "no heads": (edited("text_config", "num_attention_heads", None), HEADS),
    "no heads of frames": (
        edited("vision_config", "num_attention_heads", None),
        "None for vision_config.num_attention_heads",
    ),
    "no eps": (
        edited("vision_config", "layer_norm_eps", None),
        "None for vision_config.layer_norm_eps, .* 1e-6 for BLIP",
    ),
    "heads that do not divide": (
        edited("text_config", "num_attention_heads", 5),
        "its text encoder has 5 heads, which do not divide its width, 192",
    ),
    "another activation": (
        edited("text_config", "hidden_act", "relu"),
        "'relu' for text_config.hidden_act; BLIP has 'gelu'",
    ),
    "another size": (
        edited("vision_config", "image_size", 224),
        "image_size 224, its positions are those of 32 pixels",
    ),
    "no tokenizer": (
        without("tokenizer.json"),
        "its vocabulary, tokenizer.json or vocab.txt, is not",
    ),
    "a cut tokenizer": (cut("tokenizer.json"), "its tokenizer, .*tokenizer.json, cannot be read"),
    "no weights": (without("model.safetensors"), "model.safetensors or pytorch_model.bin, are not"),
    "cut weights": (
        cut("model.safetensors"),
        "model.safetensors is not a readable safetensors file",
    ),
    "a cut config": (cut("config.json"), "config.json cannot be read as JSON"),
    "a tensor too many": (
        tensors(lambda state: state.update({"text_encoder.gate": torch.ones(1)})),
        "has tensors that no BLIP has, 1 in all, 'text_encoder.gate' first",
    ),
    "a tensor too few": (
        tensors(lambda state: state.pop("text_proj.bias")),
        "'text_proj.bias' is not there. Give a BLIP for retrieval",
    ),
    "a tensor of another shape": (
        tensors(lambda state: state.update({"text_proj.bias": torch.ones(7)})),
        "size mismatch for projection_bias",
    ),
    "a vocabulary of more tokens": (
        tensors(
            lambda state: state.update(
                {
                    "text_encoder.embeddings.word_embeddings.weight": torch.ones(
                        9, TINY_TEXT["hidden_size"]
                    )
                }
            )
        ),
        "tokens, .*safetensors embeds 9; give the weights' own",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_told_in_a_line(folder, tmp_path, fault):
    change, told = FAULTS[fault]
    broken = shutil.copytree(folder, tmp_path / "broken")
    change(broken)
    with pytest.raises(ConfigError, match=told) as error:
        load_backbone(BackboneSource(str(broken)))
    assert "\n" not in str(error.value)


def captioner(folder, tmp_path):
    """A BLIP of another task: no space for both."""
    broken = shutil.copytree(folder, tmp_path / "captioner")
    changed_tensors(
        broken / "model.safetensors",
        lambda state: [
            state.pop(name) for name in list(state) if not name.startswith("vision_model")
        ],
    )
    return broken


def of_open_clip(folder, tmp_path):
    """A folder whose weights are those of another kind of model."""
    other = write_open_clip(tmp_path / "other", "clip")
    broken = shutil.copytree(folder, tmp_path / "mixed")
    shutil.copy(other / "open_clip_model.safetensors", broken / "model.safetensors")
    return broken


def another_type(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "another")
    edited_type = json.loads((broken / "config.json").read_text()) | {"model_type": "clip"}
    (broken / "config.json").write_text(json.dumps(edited_type))
    return broken


def empty(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def file_alone(folder, tmp_path):
    return write_authors_file(folder, tmp_path / "alone.pth")


def other_file(folder, tmp_path):
    torch.save({"weights": {}}, tmp_path / "other.pth")
    return tmp_path / "other.pth"


def damaged_file(folder, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and then nothing")
    return tmp_path / "damaged.pth"


def no_file(folder, tmp_path):
    return tmp_path / "nowhere.pth"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            captioner,
            "tensors of a BLIP's dual encoder; '.*' is not there. Give a BLIP for retrieval",
        ),
        (of_open_clip, "has 0 of the .* tensors of a BLIP's dual encoder"),
        (another_type, "a folder in open_clip's format"),
        (empty, "a folder in open_clip's format"),
        (file_alone, "vocab.txt, is not beside .*alone.pth; put bert-base-uncased's there"),
        (other_file, "other.pth holds no 'model'"),
        (damaged_file, "damaged.pth is not a torch checkpoint that loads safely"),
        (no_file, "there is no such file"),
    ],
)
def test_dgl_export_tells_in_a_line_what_is_no_blip(folder, tmp_path, make, told):
    path = make(folder, tmp_path)
    arguments = ["--zero-shot", "--backbone", str(path), "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert re.search(told, result.stderr), result.stderr


def test_weights_of_another_file_are_refused(folder):
    with pytest.raises(
        ConfigError, match="pretrained is 'openai', but a BLIP holds its own weights"
    ):
        load_backbone(BackboneSource(str(folder), "openai"))


def test_the_order_of_heads_counts(folder, tmp_path):
    """Shapes cannot tell the heads: another number loads, and gives something else."""
    other = shutil.copytree(folder, tmp_path / "other")
    edited("text_config", "num_attention_heads", 4)(other)
    tokens = torch.tensor([[2, 9, 10, 3]])
    with torch.no_grad():
        found, wanted = (
            load_backbone(BackboneSource(str(one))).text(tokens) for one in (other, folder)
        )
    assert not torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer", "unshared"])
def test_caption_prompts_are_as_large_as_the_tokens_beside_which_they_are_read(folder, method):
    backbone = load_backbone(BackboneSource(str(folder)))
    model = build_model(backbone, ModelSettings(method, PromptCounts(), 2, 20))
    with torch.no_grad():
        captions = model.model.prompts().captions
        tokens = backbone.text.embed(torch.tensor([[2, 7, 9, 3]]))
    spread = captions.std(dim=-1, correction=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0.05, atol=0)
    assert 0.5 < tokens.std(dim=-1).mean() < 2
