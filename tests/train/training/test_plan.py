"""--dry-run: what it counts is what training has."""

from dataclasses import replace

import pytest
import torch

from dgl_train.model.methods import METHODS
from dgl_train.training.plan import describe_plan, kept_bytes, memory_estimate
from dgl_train.training.step import make_model
from tests.helpers.tiny import tiny_backbone, tiny_recipe


@pytest.mark.parametrize("method", METHODS)
def test_memory_grows_with_the_clips_by_the_same_amount(method):
    recipe = tiny_recipe(method=method)
    model = make_model(recipe, tiny_backbone()).model
    one, two, three = (kept_bytes(recipe, model, clips) for clips in (1, 2, 3))
    assert one > 0
    assert three - two == pytest.approx(two - one, rel=0.05)


def test_frozen_weights_keep_less_and_recomputed_blocks_least():
    def kept(**changes):
        recipe = tiny_recipe(num_frames=4, **changes)
        return kept_bytes(recipe, make_model(recipe, tiny_backbone()).model, 4)

    prompts, everything = kept(method="dgl-linear"), kept(method="full")
    assert prompts < everything / 1.5
    assert kept(method="dgl-linear", recompute_blocks=True) < prompts / 2


def test_parts_of_a_batch_need_less_memory():
    recipe = tiny_recipe(batch_size=64)
    model = make_model(recipe, tiny_backbone()).model
    whole = memory_estimate(recipe, model)
    parts = memory_estimate(replace(recipe, micro_batch_size=8), model)
    assert whole["weights"] == parts["weights"]
    assert 6 < whole["kept for 64 clips"] / parts["kept for 8 clips"] < 9


def test_the_plan_shows_settings_parameters_and_steps(clips):
    recipe = tiny_recipe(method="dgl-linear", batch_size=3)
    backbone = tiny_backbone()
    text = describe_plan(recipe, backbone, clips_train=clips, clips_val=clips[:2])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "method = 'dgl-linear'" in lines
    assert "global_prompts 128" in lines
    assert "latent 256" in lines
    assert "to_caption 1,056" in lines
    assert "8 captioned clips to train on, 2 to validate on" in lines
    assert "2 steps an epoch, 4 in all" in lines
    assert any(line.startswith("kept for 3 clips 0.00 GiB") for line in lines)
    assert torch.is_grad_enabled()
