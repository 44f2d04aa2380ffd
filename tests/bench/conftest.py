import json

import open_clip
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from dgl_bench import peaks
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone

CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16
    },
    "text_cfg": {
        "context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory):
    """A random CLIP as a folder that ``--backbone`` takes."""
    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**CONFIG)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def backbone(backbone_folder):
    return load_backbone(BackboneSource(str(backbone_folder)))


@pytest.fixture
def small_peaks(monkeypatch):
    """The machine's peaks in no time."""
    monkeypatch.setattr(peaks, "MATRIX_SIDE", 16)
    monkeypatch.setattr(peaks, "MEMORY_BYTES", 1024)


@pytest.fixture
def measured(tmp_path):
    """Run a benchmark that succeeds; its settings and the rows of its tables, in their order."""

    def run(command, *options):
        result = CliRunner().invoke(command, [*map(str, options), "--out", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / "out").glob("*.json")
        *page, last = result.stdout.splitlines()
        assert path.with_suffix(".md").read_text().splitlines() == page[:-1]
        document = json.loads(path.read_text())
        assert json.loads(last)["tables"].keys() == document["tables"].keys()
        return document["settings"], list(document["tables"].values())

    return run
