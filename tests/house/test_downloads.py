"""Backbones that are here are loaded from here; only weights that are named and missing are downloaded."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.blip_folders import write_blip
from tests.helpers.tiny import config, write_tiny_backbone

pytestmark = pytest.mark.slow

# A small model of open_clip under a name of its own, whose weight tags lie in repositories of the hub.
LOAD = """
import sys
import open_clip
from open_clip.pretrained import _PRETRAINED, _pcfg
from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
open_clip.add_model_config("configs")
_PRETRAINED["tiny"] = {
    tag: _pcfg(hf_hub=f"nobody/{tag}/{file}")
    for tag, file in {"safe": "", "pickled": "", "named": "a.bin", "absent": ""}.items()
}
for source in sys.argv[1:]:
    try:
        print(load_backbone(BackboneSource(*source.split("="))).digest())
    except ConfigError as error:
        print(error)
"""
SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone as a folder, the model's configuration, and a cache of repositories."""
    folder = tmp_path_factory.mktemp("downloads")
    backbone = write_tiny_backbone(folder / "backbone")
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny.json").write_text(json.dumps(config()))
    shutil.copy(backbone / SAFE, folder / "a.safetensors")
    torch.save(load_file(backbone / SAFE), folder / PICKLED)
    described = backbone / "open_clip_config.json"
    download(folder, "safe", backbone / SAFE)
    download(folder, "pickled", folder / PICKLED)
    download(folder, "named", folder / "a.safetensors")
    download(folder, "whole", backbone / SAFE, described)
    download(folder, "weightless", described)
    blip = write_blip(folder / "blip")
    described = blip / "config.json"
    download(
        folder,
        "blip",
        *(blip / name for name in (described, "model.safetensors", "tokenizer.json")),
    )
    download(folder, "bare-blip", described)
    for tower, key in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        foreign = config()
        foreign[tower][key] = "nobody/tower"
        (folder / key).mkdir()
        (folder / key / "open_clip_config.json").write_text(json.dumps({"model_cfg": foreign}))
    return folder


def download(folder, name, *files):
    """Put files where huggingface_hub keeps a repository that was downloaded."""
    repository, revision = (
        folder / "home/.cache/huggingface/hub" / f"models--nobody--{name}",
        "0" * 40,
    )
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    for file in files:
        shutil.copy(file, repository / "snapshots" / revision)


def test_what_is_here_is_loaded_without_a_question(closed, place):
    sources = [
        *("backbone", f"tiny=backbone/{SAFE}", "tiny=safe", "tiny=pickled", "tiny=named"),
        *("hf-hub:nobody/whole", "hf_model_name", "timm_model_name"),
    ]
    outcome = closed.python(place, LOAD, sources)
    outcome.asked_nothing()
    *digests, text, vision = outcome.output.splitlines()[-len(sources) :]
    assert len(digests[0]) == 64
    assert set(digests) == {digests[0]}
    assert "is not supported: its text encoder, nobody/tower, is built by the library" in text
    assert re.search(
        "does not load: .*nobody/tower", vision
    )  # in the words of the timm that is there


ENDS_WITH_THE_FIRST_QUESTION = """
import os, socket
socket.getaddrinfo = lambda host, *_, **__: os._exit(os.write(1, host.encode()))
"""


@pytest.mark.parametrize(
    "source",
    ["tiny=absent", "hf-hub:nobody/weightless", "hf-hub:nobody/bare-blip", "hf-hub:nobody/new"],
)
def test_weights_that_are_named_and_not_here_are_asked_for(closed, place, source):
    outcome = closed.python(place, ENDS_WITH_THE_FIRST_QUESTION + LOAD, [source])
    assert outcome.output.endswith("huggingface.co")


def test_a_repository_without_weights_is_no_backbone(closed, place):
    outcome = closed.python(place, LOAD, ["hf-hub:nobody/weightless"], HF_HUB_OFFLINE="1")
    outcome.asked_nothing()
    assert "does not load: Required pretrained weights" in outcome.output


def test_a_blip_that_is_here_is_loaded_without_a_question(closed, place):
    outcome = closed.python(place, LOAD, ["blip", "hf-hub:nobody/blip"])
    outcome.asked_nothing()
    folder, repository = outcome.output.splitlines()[-2:]
    assert len(folder) == 64
    assert folder == repository


EXPORT = "from dgl_export.cli import export; export()"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nobody/bare-blip", "is not here: the hub does not answer: "),
        ("nobody/new", "is not here: the hub does not answer: "),
    ],
)
def test_without_a_network_a_repository_that_is_not_here_is_told_in_a_line(
    closed, place, name, told
):
    arguments = ["--zero-shot", "--backbone", f"hf-hub:{name}", "--out", "bundle"]
    outcome = closed.python(place, EXPORT, arguments)
    assert outcome.exit_code == 1
    assert outcome.output.startswith(f"Error: backbone 'hf-hub:{name}'")
    assert told in outcome.output
    assert outcome.output.count("\n") == 1, outcome.output
