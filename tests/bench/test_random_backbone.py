"""Random numbers in an open_clip model of any name: a folder that loads, without the network."""

import open_clip
import pytest
import torch

from dgl_bench.random_backbone import count_parameters, write_random
from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone

TEXT = {"context_length": 20, "vocab_size": 70_000, "width": 32, "heads": 2, "layers": 2}
FAR = {**TEXT, "hf_tokenizer_name": "far/away", "pool_type": "eos", "eos_id": 7}
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}


@pytest.fixture
def named(monkeypatch):
    def name(text):
        config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-far", config)
        return "tiny-far"

    return name


def test_a_model_is_written_and_loads_with_a_small_vocabulary_beside_its_own_table(named, tmp_path):
    name = named(FAR)
    folder = write_random(name, tmp_path / "made")
    loaded = load_backbone(BackboneSource(str(folder)))
    assert loaded.text.token_embedding.num_embeddings == 70_000
    ids = loaded.facts.tokenizer(["a bee"]).ids
    assert (ids[0, 0], ids[0, -1]) == (1, 7)
    assert all(bool(one.any()) for one in loaded.parameters())  # no bias is zero
    model = open_clip.create_model(name)
    assert count_parameters(name) == sum(one.numel() for one in model.parameters())
    assert all(one.device == torch.device("cpu") for one in model.parameters())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "backbone 'tiny-far' is no model of open_clip.list_models\\(\\)"),
        ({**TEXT, "hf_model_name": "roberta"}, "its text encoder, roberta, is built by"),
    ],
)
def test_what_is_not_there_or_asks_the_network_is_refused(named, tmp_path, text, fault):
    name = named(text) if text else "tiny-far"
    for made in (lambda: count_parameters(name), lambda: write_random(name, tmp_path / "made")):
        with pytest.raises(ConfigError, match=fault):
            made()
    assert not (tmp_path / "made").exists()
