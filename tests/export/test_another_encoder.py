"""A dual encoder that is no CLIP trains, exports, verifies, indexes and searches: only its file knows it.

``tests/helpers/toy_encoder.py`` is that file, and one line registers it.
"""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from dgl_export.cli import export
from dgl_export.request import tuned_request
from dgl_runtime import Retriever
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from dgl_runtime.commands.verify import verify
from dgl_train.commands.evaluate import evaluate
from dgl_train.commands.train import train
from dgl_train.model.backbones.registry import FAMILIES
from dgl_train.shapes.clips import write_mp4
from dgl_train.training.step import TrainingStep
from tests.helpers import toy_encoder
from tests.helpers.tiny import WORDS

SETTINGS = {"num_frames": 2, "max_tokens": toy_encoder.LENGTH, "batch_size": 8, "num_workers": 0}
SETTINGS |= {"epochs": 30, "learning_rate": 0.02, "save_every_steps": 10}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", toy_encoder.FAMILY)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The backbone, and eight wide videos, each of a colour of its own."""
    folder = tmp_path_factory.mktemp("toy")
    toy_encoder.write_toy(folder / "backbone", ["the", *WORDS])
    (folder / "videos").mkdir()
    rows = []
    for number, word in enumerate(WORDS):
        colour = [255 * (number >> bit & 1) for bit in range(3)]
        write_mp4(folder / f"videos/{word}.mp4", np.full((8, 16, 32, 3), colour, np.uint8))
        rows += [f"videos/{word}.mp4,The {word}!,{split}" for split in ("train", "val")]
    (folder / "clips.csv").write_text("\n".join(["video,caption,split", *rows, ""]))
    return folder


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def train_toy(folder, out, *more, **settings):
    given = [
        x for pair in ({**SETTINGS, **settings}).items() for x in ("--set", "{}={}".format(*pair))
    ]
    where = (
        "--dataset",
        folder / "clips.csv",
        "--backbone",
        folder / "backbone",
        "--device",
        "cpu",
    )
    return run(train, *where, *given, "--out", out, *more)


@pytest.fixture(scope="module")
def trained(folder):
    done = train_toy(folder, folder / "run", "--method", "full")
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(folder, trained):
    done = run(export, "--ckpt", trained, "--out", folder / "bundle")
    assert done.exit_code == 0, done.output
    return folder / "bundle"


def test_its_own_loss_falls_and_its_own_captions_are_learned(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[-1]["validation"]["text_to_video"]["r1"] == 100
    kept = load_file(trained / "last.safetensors")
    assert kept["backbone.logit_bias"] != -3  # the sigmoid loss alone has a use for it


def test_a_stopped_run_resumes_exactly(folder, trained, monkeypatch):
    take = TrainingStep.take

    def stopped(self, number, batch):
        if number == 25:
            raise KeyboardInterrupt
        return take(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", stopped)
        assert train_toy(folder, folder / "again", "--method", "full").exit_code != 0
    assert train_toy(folder, folder / "again", "--method", "full", "--resume").exit_code == 0
    ours, gold = (load_file(run / "last.safetensors") for run in (folder / "again", trained))
    for name, tensor in gold.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_the_bundle_says_what_it_wants_and_passes_its_checks(bundle):
    manifest = Bundle(bundle).manifest
    assert manifest.inputs.frames == toy_encoder.FRAMES
    assert manifest.inputs.texts == toy_encoder.TEXTS
    assert manifest.text_encoder.inputs[0].shape == ("batch", toy_encoder.LENGTH)
    assert manifest.parity.max_abs < 1e-6
    done = run(verify, bundle)
    assert done.exit_code == 0, done.output
    assert "Texts and pictures become the tokens and pixels" in done.output


def test_raw_texts_and_pictures_get_the_trained_model_s_embeddings(bundle, trained):
    """The reference is made of the model's parts alone: words by hand, pixels by Pillow."""
    model = tuned_request(trained).model
    numbers = dict(zip(["the", *WORDS], range(3, 12), strict=True))
    texts = {"The ELK!": ["the", "elk"], "gnu, unheard": ["gnu", None], "": []}
    rows = [[numbers.get(word, toy_encoder.UNKNOWN) for word in words] for words in texts.values()]
    rows = [[*row, toy_encoder.END, *[toy_encoder.PAD] * (5 - len(row))] for row in rows]
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    size = (toy_encoder.SIZE,) * 2
    pixels = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    frames = torch.from_numpy(pixels.copy()).permute(2, 0, 1).expand(1, 2, -1, -1, -1)
    with torch.no_grad():
        captions, clips = model.encode_captions(torch.tensor(rows)), model.encode_clips(frames)
    retriever = Retriever(bundle, threads=1)
    ours = retriever.embed_texts(list(texts))
    np.testing.assert_allclose(ours, captions, rtol=0, atol=1e-6)
    found = retriever.encoder.embed_pictures([picture])
    np.testing.assert_allclose(found, clips, rtol=0, atol=1e-6)


def test_videos_are_indexed_and_found(bundle, folder, tmp_path):
    gallery = tmp_path / "gallery"
    done = run(index, bundle, folder / "videos", "--gallery", gallery)
    assert done.exit_code == 0, done.output
    for word in WORDS:
        found = run(search, gallery, f"the {word}", "--top", 1, "--json")
        assert f"{word}.mp4" in found.stdout, found.output


def test_the_bundle_s_recall_is_the_run_s(bundle, folder):
    asked = ("--dataset", folder / "clips.csv", "--split", "val", "--device", "cpu", "--json")
    report = json.loads(run(evaluate, bundle, *asked).stdout)
    assert report["text_to_video"]["r1"] == 100


def test_it_is_exported_untuned(folder, tmp_path):
    done = run(
        export, "--zero-shot", "--backbone", folder / "backbone", "--out", tmp_path / "bundle"
    )
    assert done.exit_code == 0, done.output
    assert Bundle(tmp_path / "bundle").manifest.inputs.texts == toy_encoder.TEXTS


@pytest.mark.parametrize("method", ["lora", "bias"])
def test_what_changes_weights_alone_tunes_it_and_folds_away(folder, tmp_path, method):
    done = train_toy(folder, tmp_path / "run", "--method", method, epochs=2)
    assert done.exit_code == 0, done.output
    kept = load_file(tmp_path / "run/last.safetensors")
    parts = {"lora": ("down", "up"), "bias": ("bias",)}[method]
    assert all(name.endswith(parts) for name in kept)
    assert "backbone.logit_bias" not in kept
    if method == "lora":
        done = run(export, "--ckpt", tmp_path / "run", "--out", tmp_path / "bundle")
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("asked", "needs", "instead"),
    [
        (("--method", "dgl-linear"), "a prompt", "full, bias or lora"),
        (("--method", "adapter-mlp"), "an adapter", "full, bias or lora"),
        (
            ("--method", "full", "--set", "recompute_blocks=true"),
            "recompute_blocks",
            "recompute_blocks = false",
        ),
    ],
)
def test_what_needs_blocks_is_refused_by_the_level_of_support(
    folder, tmp_path, asked, needs, instead
):
    done = train_toy(folder, tmp_path / "run", *asked)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        f"Error: {needs} needs a backbone of the level 'prompted', but {str(folder / 'backbone')!r} is of "
        "the level 'dual encoder': the blocks of its image and text encoder cannot be attended in. Take "
        f"{instead}, or a backbone such as ViT-B-32-quickgelu."
    )
