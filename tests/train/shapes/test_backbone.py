import json

import numpy as np
import open_clip
import pytest
import torch

from dgl_runtime.errors import ConfigError
from dgl_train.shapes import backbone as stills_backbone
from dgl_train.shapes.backbone import (
    MODEL_CONFIG,
    PREPROCESS_CONFIG,
    make_backbone,
    stills_recall,
)
from dgl_train.shapes.clips import looks, read_made_from


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backbone(one_thread, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stills_backbone, "_BATCH", 4)
        folder = tmp_path_factory.mktemp("made") / "backbone"
        return make_backbone(folder, steps=2, progress=False)


def test_open_clip_reads_the_folder(backbone):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{backbone}")
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=0.05)
    assert model.visual.image_size == (64, 64)
    assert tuple(model.visual.image_mean) == PREPROCESS_CONFIG["mean"]
    assert tuple(preprocess.transforms[-1].std) == PREPROCESS_CONFIG["std"]
    assert isinstance(model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert [len(model.visual.transformer.resblocks), len(model.transformer.resblocks)] == [4, 4]
    tokens = open_clip.get_tokenizer(f"local-dir:{backbone}")(["a red circle"])
    assert tokens.shape == (1, 77)
    assert model.encode_text(tokens).shape == (1, 128)
    assert model.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 128)


def test_the_report_has_loss_and_recall(backbone):
    report = read_made_from(backbone)["report"]
    assert set(report) == {"loss", "R@1", "R@5"}
    assert 0 <= report["R@1"] <= report["R@5"] <= 100


def test_cut_captions_have_the_embeddings_of_padded_ones(backbone):
    model = open_clip.create_model(f"local-dir:{backbone}").eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a red circle", "a large blue ring at the top"])
    with torch.no_grad():
        cut = stills_backbone._ClipOfStills(model).embed_texts(tokens[:, :9])
        torch.testing.assert_close(
            cut, model.encode_text(tokens, normalize=True), atol=1e-6, rtol=0
        )


def test_recall_counts_ranks(backbone, monkeypatch):
    clip = open_clip.create_model(f"local-dir:{backbone}").eval()
    model = stills_backbone._ClipOfStills(clip)
    same = torch.nn.functional.normalize(torch.randn(320, 128), dim=1)
    monkeypatch.setattr(model, "embed_pictures", lambda pixels: same)
    monkeypatch.setattr(model, "embed_texts", lambda tokens: same)
    assert stills_recall(model) == {"R@1": 100.0, "R@5": 100.0}


def test_pretraining_sees_every_kind_of_still_and_no_word_for_motion(monkeypatch):
    seen = []
    monkeypatch.setattr(stills_backbone, "_stills", lambda kinds, rng: seen.extend(kinds))
    batches = stills_backbone._batches(seed=0)
    for _ in range(500):
        next(batches)
    assert set(seen) == set(stills_backbone.all_kinds("train", "val", "test"))
    words = " ".join([*stills_backbone.PLACES, *stills_backbone.RADII])
    assert not set(words.split()) & {"moves", "grows", "shrinks", "turns", "stays", "still"}


def test_the_same_seed_gives_the_same_stills():
    one, two, other = (next(stills_backbone._batches(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(one, two, atol=0, rtol=0)
    assert not torch.equal(one[1], other[1])


def test_a_second_call_does_not_train_and_the_global_seed_is_left_alone(backbone, monkeypatch):
    monkeypatch.setattr(stills_backbone, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    assert make_backbone(backbone, steps=2, progress=False) == backbone
    with pytest.raises(ConfigError, match=r'"steps": 2.*"steps": 3.*Give another folder'):
        make_backbone(backbone, steps=3, progress=False)


def test_training_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(stills_backbone, "_BATCH", 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**MODEL_CONFIG)
    kinds = [(look, "in the middle", "large") for look in looks("train")[:64:8]]
    fixed = stills_backbone._stills(kinds, np.random.default_rng(0))
    monkeypatch.setattr(stills_backbone, "_batches", lambda seed: iter([fixed] * 20))
    stills = stills_backbone._ClipOfStills(model)
    assert (
        stills_backbone.pretrain(stills, seed=0, steps=20, progress=False) < 1.5
    )  # chance: ln 8 = 2.08


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stills_backbone, "pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_backbone(tmp_path / "backbone", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_config_file_is_the_published_format(backbone):
    published = json.loads((backbone / "open_clip_config.json").read_text())
    assert published["model_cfg"] == MODEL_CONFIG
    assert set(published["preprocess_cfg"]) == {"mean", "std"}
