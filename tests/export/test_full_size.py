"""Folded against unfolded at the full ViT-B/32 shape: 12 blocks, 12 frames, random weights."""

import numpy as np
import pytest
import torch

from dgl_export.fold import fold
from dgl_export.parity import run_captions, run_clips
from dgl_export.to_onnx import write_clip_encoder, write_text_encoder
from dgl_runtime.engines.opening import open_engine
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.dgl import DglModel
from dgl_train.model.methods import ModelSettings, make_prompts
from dgl_train.model.prompts import PromptCounts

METHODS = ("dgl-linear", "dgl-transformer")
NUM_FRAMES = 12


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(BackboneSource("ViT-B-32-quickgelu"))


def make_model(backbone, method):
    torch.manual_seed(1)
    settings = ModelSettings(method, PromptCounts(), NUM_FRAMES, max_tokens=32)
    return DglModel(backbone, make_prompts(backbone, settings)).eval()


def random_captions(count):
    rng = np.random.default_rng(2)
    words = "dog cat man woman red runs jumps lake street guitar cooks slowly two car night".split()
    texts = [" ".join(rng.choice(words, rng.integers(1, 28))) for _ in range(count)]
    return clip_tokenizer(32)(texts).ids


def random_clips(count):
    """Pictures of a few coarse colours, so that embeddings spread as real ones do."""
    rng = np.random.default_rng(3)
    for _ in range(count):
        coarse = rng.integers(0, 256, (NUM_FRAMES, 3, 7, 7), dtype=np.uint8)
        yield np.repeat(np.repeat(coarse, 32, axis=2), 32, axis=3)[None]


def encode_both(backbone, method, folder, count):
    """Unfolded in torch, folded in ONNX Runtime: captions and clips of each."""
    model = make_model(backbone, method)
    tokens, example = (
        random_captions(count),
        torch.from_numpy(np.concatenate(list(random_clips(2)))),
    )
    folded = fold(model)
    captions = write_text_encoder(folded.text_encoder, torch.from_numpy(tokens[:2]), folder)
    clips = write_clip_encoder(
        folded.clip_encoder, example, folder, any_frames=method == "dgl-linear"
    )
    text_engine = open_engine(folder / captions.file, device="cpu", threads=2)
    clip_engine = open_engine(folder / clips.file, device="cpu", threads=2)
    with torch.no_grad():
        gold = [model.encode_captions(torch.from_numpy(tokens).long()).numpy()]
        gold += [
            np.concatenate(
                [model.encode_clips(torch.from_numpy(c)).numpy() for c in random_clips(count)]
            )
        ]
    ours = [run_captions(text_engine, tokens)]
    ours += [np.concatenate([run_clips(clip_engine, clip)[0] for clip in random_clips(count)])]
    return ours, gold


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_folded_encoders_equal_the_trained_model(backbone, method):
    model = make_model(backbone, method)
    folded = fold(model)
    tokens = torch.from_numpy(random_captions(8))
    clips = torch.from_numpy(np.concatenate(list(random_clips(3))))
    captions_off = folded.text_encoder(tokens) - model.encode_captions(tokens.long())
    clips_off = folded.clip_encoder(clips)[0] - model.encode_clips(clips)
    assert max(captions_off.abs().max(), clips_off.abs().max()) <= 2e-6


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_same_top_10_on_200_random_pairs(backbone, method, tmp_path):
    (captions, clips), (gold_captions, gold_clips) = encode_both(
        backbone, method, tmp_path, count=200
    )
    worst = max(np.abs(captions - gold_captions).max(), np.abs(clips - gold_clips).max())
    found = np.argsort(-captions @ clips.T, axis=1, kind="stable")[:, :10]
    wanted = np.argsort(-gold_captions @ gold_clips.T, axis=1, kind="stable")[:, :10]
    assert worst <= 2e-6
    assert (found == wanted).all()


def test_trained_parameters_are_the_papers_less_the_dead_half(backbone):
    linear, transformer = (make_model(backbone, method).prompts for method in METHODS)
    assert sum(p.numel() for p in linear.parameters()) == 433_664
    assert sum(p.numel() for p in transformer.parameters()) == 9_575_168
