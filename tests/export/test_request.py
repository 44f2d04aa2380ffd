"""What is exported, where it came from, and the defaults that docs/export.md names."""

import json
from dataclasses import replace
from hashlib import sha256

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dgl_export.request import tuned_request, untuned_request
from dgl_runtime.bundle.input_spec import clip_texts
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import FAMILIES, load_backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.methods import ModelSettings, build_model, trained_parameters
from dgl_train.model.prompts import PromptCounts
from tests.helpers import toy_encoder
from tests.helpers.tiny import config, tiny_backbone, tiny_clip, write_tiny_backbone
from tests.helpers.tiny_models import NUM_FRAMES

WORDS = 20


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    return write_tiny_backbone(tmp_path_factory.mktemp("request") / "backbone")


@pytest.fixture(scope="module")
def run(backbone_folder):
    """A run of LoRA, which changes what its backbone computes."""
    backbone = load_backbone(BackboneSource(str(backbone_folder)))
    tuned = build_model(backbone, ModelSettings("lora", PromptCounts(), NUM_FRAMES, WORDS))
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in trained_parameters(tuned.model).values():
            tensor.normal_()
    save_checkpoint(backbone_folder.parent / "best.safetensors", tuned)
    return backbone_folder.parent


def embedding(model):
    with torch.no_grad():
        return model.encode_captions(torch.tensor([[49406, 320, 49407]]))


def with_context(folder, context):
    """A tiny backbone folder that reads captions of another length."""
    write_tiny_backbone(folder)
    published = json.loads((folder / "open_clip_config.json").read_text())
    published["model_cfg"]["text_cfg"]["context_length"] = context
    (folder / "open_clip_config.json").write_text(json.dumps(published))
    tensors = tiny_clip().state_dict()
    tensors["positional_embedding"] = torch.randn(context, 32)
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("context", [77, 24])
def test_a_backbone_alone_sees_12_frames_and_reads_all_that_it_can(tmp_path, context):
    name = str(with_context(tmp_path / "backbone", context))
    request = untuned_request(name, "")
    assert (request.num_frames, request.max_tokens) == (12, context)
    assert (request.method, request.checkpoint) == ("zero-shot", name)
    assert isinstance(request.model, FrameMeanModel)
    backbone = load_backbone(BackboneSource(name))
    assert request.checkpoint_sha256 == backbone.digest()
    assert torch.equal(embedding(request.model), embedding(FrameMeanModel(backbone)))


@pytest.mark.parametrize("pad_to", [64, None])
def test_a_backbone_alone_pads_as_it_was_trained(tmp_path, monkeypatch, pad_to):
    monkeypatch.setitem(FAMILIES, "toy", toy_encoder.FAMILY)
    monkeypatch.setattr(toy_encoder, "LENGTH", 64)
    texts = replace(toy_encoder.TEXTS, max_tokens=64, pad_to=pad_to)
    monkeypatch.setattr(toy_encoder, "TEXTS", texts)
    name = str(toy_encoder.write_toy(tmp_path / "backbone", ["elk"]))
    assert untuned_request(name, "").inputs.texts == texts


def test_a_backbone_is_read_with_the_weights_that_are_named(tmp_path):
    (tmp_path / "named-for-tests.json").write_text(json.dumps(config()))
    open_clip.add_model_config(tmp_path)
    weights = write_tiny_backbone(tmp_path / "folder", seed=5) / "open_clip_model.safetensors"
    request = untuned_request("named-for-tests", str(weights))
    assert torch.equal(embedding(request.model), embedding(FrameMeanModel(tiny_backbone(seed=5))))


@pytest.mark.parametrize("zero_shot", [False, True])
def test_a_run_is_exported_as_it_was_trained_or_its_untuned_backbone_is(
    run, backbone_folder, zero_shot
):
    request = tuned_request(run, zero_shot=zero_shot)
    assert request.method == ("zero-shot" if zero_shot else "lora")
    assert (request.num_frames, request.max_tokens) == (NUM_FRAMES, WORDS)
    assert request.checkpoint == str(run)
    digest = sha256((run / "best.safetensors").read_bytes()).hexdigest()
    assert request.checkpoint_sha256 == digest
    untuned = FrameMeanModel(load_backbone(BackboneSource(str(backbone_folder))))
    assert torch.equal(embedding(request.model), embedding(untuned)) == zero_shot


def test_a_run_is_exported_tuned_unless_said_otherwise(run):
    assert tuned_request(run).method == "lora"


def test_calibration_looks_at_clips_as_the_bundle_will(run):
    request = tuned_request(run)
    frames = request.inputs.frames
    assert (frames.num_frames, frames.size) == (NUM_FRAMES, 16)
    assert request.tokenizer.spec == request.inputs.texts == clip_texts(WORDS)
