"""No command of ours asks the network for anything, or leaves a library's traces with the user.

Each runs where a name server counts questions and never answers, and nothing lies beyond loopback.
"""

import tomllib
from importlib.util import find_spec

import pytest

from tests import ROOT
from tests.helpers.tiny import SETTINGS, write_tiny_backbone, write_tiny_clips

pytestmark = pytest.mark.slow

PYPROJECT = ROOT / "pyproject.toml"
SCRIPTS = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["scripts"]

try:
    import cv2  # noqa: F401 - which shots need, and it libraries of the system
except ImportError:
    CUT = ""
else:
    CUT = "--shots"
BUILT = "--format trt-rtx" if find_spec("tensorrt_rtx") else ""
DATA = "--dataset clips.csv --data-root clips --device cpu"
LEARN = " ".join(f"--set {name}={value}" for name, value in SETTINGS.items())
# In the order in which each finds what it needs.
STEPS = {
    "shapes": "dgl-shapes shapes --clips-only",
    "data": "dgl-data check clips.csv --data-root clips",
    "train": f"dgl-train {DATA} --backbone backbone --out run {LEARN} --set num_workers=1",
    "onnx": "dgl-export --ckpt run --out bundle",
    "openvino": "dgl-export --ckpt run --format openvino --out vino",
    "eval": f"dgl-eval run bundle {DATA} --split val",
    "index": f"dgl-index bundle clips --gallery gallery {CUT}",
    "index openvino": "dgl-index vino clips --gallery other",
    "search": "dgl-search gallery ant",
    "search openvino": "dgl-search other ant --engine openvino",
    "verify": "dgl-verify bundle --engine auto",
    "serve": "dgl-serve gallery other",
    "rtx": f"dgl-export --ckpt run --out rtx {BUILT}",
    "rebuild": f"dgl-bundle rebuild {'rtx' if BUILT else '--help'}",
    "doctor": "dgl-doctor bundle",
    "bench": "dgl-bench index bundle --videos 1 --jobs 1 --out results",
}
FEWER_SHAPES = """import dgl_train.shapes.clips as made
made.make_shapes.__kwdefaults__ |= dict.fromkeys(("num_train", "num_val", "num_test"), 16)
"""
SERVE = """
import json, pathlib, urllib.request
from tests.helpers.served import serving
with serving(*(pathlib.Path(name).absolute() for name in {arguments!r})) as (process, port):
    query = urllib.request.Request(
        f"http://127.0.0.1:{{port}}/api/galleries/other/search",
        json.dumps({{"query": "ant"}}).encode(),
        {{"content-type": "application/json"}},
    )
    assert json.load(urllib.request.urlopen(query))["moments"]
    process.terminate()
    assert process.wait(30) == 0
"""


def code_of(step):
    """A step as Python code, and its arguments."""
    script, *arguments = STEPS[step].split()
    if script == "dgl-serve":
        return SERVE.format(arguments=arguments), []
    module, _, function = SCRIPTS[script].partition(":")
    begin = FEWER_SHAPES if script == "dgl-shapes" else ""
    return f"{begin}from {module} import {function}\n{function}(prog_name={script!r})", arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, and the home of a user who has run nothing yet."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "home").mkdir()
    write_tiny_backbone(folder / "backbone")
    clips = write_tiny_clips(folder / "clips")
    rows = [
        f"{one.video.name},{one.caption},{'val' if i > 5 else 'train'}"
        for i, one in enumerate(clips)
    ]
    (folder / "clips.csv").write_text("\n".join(["video,caption,split", *rows, ""]))
    return folder


@pytest.fixture(scope="module")
def outcomes(closed, place):
    return {step: closed.python(place, *code_of(step)) for step in STEPS}


def left_behind(place):
    """Files in the user's home that are not our caches."""
    home = place / "home"
    found = (str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    return [path for path in found if not path.startswith(".cache/dgl-retrieval/")]


@pytest.mark.parametrize("step", STEPS)
def test_no_command_asks_the_network(outcomes, step):
    outcomes[step].asked_nothing()


def test_every_command_is_among_them():
    assert {line.split()[0] for line in STEPS.values()} == set(SCRIPTS)


def test_no_command_leaves_an_identifier_with_the_user(outcomes, place):
    assert len(outcomes) == len(STEPS)
    assert left_behind(place) == []


def test_what_is_counted_here(closed, place):
    code = "import socket\nfor host in {hosts}:\n    socket.socket(type=2).connect_ex((host, 9))"
    outcome = closed.python(place, code.format(hosts=["127.0.0.1", "192.0.2.1", "198.51.100.1"]))
    assert (outcome.questions, outcome.strays) == ([], 2), outcome.output
    outcome = closed.python(place, code.format(hosts=["video.example"]))
    assert set(outcome.questions) == {"video.example"}, outcome.output


AS_A_LIBRARY = """
import subprocess, sys
from dgl_runtime import Retriever
with Retriever("vino", "other", engine="openvino") as retriever:
    assert retriever.search("ant")
subprocess.run([sys.executable, "-c", "import onnxruntime"], check=True)
import openvino
assert openvino.convert_model
"""


@pytest.mark.usefixtures("outcomes")
def test_the_library_and_processes_it_starts_are_as_silent(closed, place):
    closed.python(place, AS_A_LIBRARY).asked_nothing()
    assert left_behind(place) == []
