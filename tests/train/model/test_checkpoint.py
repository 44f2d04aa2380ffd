"""Our checkpoint: a round trip, what it holds, and every way it can be wrong."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import (
    load_checkpoint,
    read_research_checkpoint,
    replacing,
    save_checkpoint,
    untuned_model,
)
from dgl_train.model.methods import METHODS, ModelSettings, build_model, trained_parameters
from dgl_train.model.prompts import PromptCounts
from tests.helpers.tiny import tiny_backbone, write_tiny_backbone


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def tuned(method):
    backbone = tiny_backbone()
    settings = ModelSettings(method, PromptCounts(2, 3, 4), 5, 20)
    tuned = build_model(backbone, settings)
    for tensor in trained_parameters(tuned.model).values():
        torch.nn.init.normal_(tensor)
    return tuned


def test_save_then_load_is_the_identity(tuned, tmp_path):
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, tuned)
    loaded = load_checkpoint(tmp_path, tiny_backbone())
    assert loaded.settings == tuned.settings
    found = loaded.model.state_dict()
    for name, tensor in tuned.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_the_backbone_before_tuning_is_found_again(tmp_path, method):
    folder = write_tiny_backbone(tmp_path / "backbone")
    backbone = load_backbone(BackboneSource(str(folder)))
    before = backbone.digest()
    tuned = build_model(backbone, ModelSettings(method, PromptCounts(2, 3, 4), 5, 20))
    for tensor in trained_parameters(tuned.model).values():
        torch.nn.init.normal_(tensor)
    assert untuned_model(tuned).digest() == before


def test_it_holds_what_was_trained_and_nothing_else(tuned, tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tuned)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == trained_parameters(tuned.model).keys()
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_another_backbone_is_refused(tuned, tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tuned)
    with pytest.raises(
        ConfigError, match=r"was trained on a backbone with sha256 .*, but 'tiny' has"
    ):
        load_checkpoint(path, tiny_backbone(seed=1))


@pytest.mark.parametrize("header", [{}, {"format": "dgl-prompts-1"}, {"format": "2"}])
def test_a_file_without_our_header_is_refused(tmp_path, header):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={**header, "settings": json.dumps({"x": 1})})
    with pytest.raises(ConfigError, match=r"has format|has a damaged header"):
        load_checkpoint(path, tiny_backbone())


def test_a_file_that_cannot_be_written_keeps_the_old_one(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written: No space left.*Make room"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [{}, {"state_dict": {"visual.proj": torch.zeros(2, 2)}}])
def test_a_torch_file_that_is_no_research_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "ckpt.best.pth.tar"
    torch.save(content, path)
    with pytest.raises(ConfigError, match="has no tensor"):
        read_research_checkpoint(path)


def test_a_research_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    names = ("visual.proj", "text_projection", "visual.prompt_embeddings")
    path = tmp_path / "ckpt.best.pth.tar"
    torch.save(
        {"state_dict": {f"module.clip.{name}": torch.zeros(1, 2, 3) for name in names}}, path
    )
    with pytest.raises(
        ConfigError, match=r"does not fit a DGL model: '[\w.]+' is missing\. Expect"
    ):
        read_research_checkpoint(path)
