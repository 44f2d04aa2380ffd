"""Our builder and runtime on the real Python bindings of TensorRT 10 and 11; see with_real_bindings.py."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

HELPERS = ROOT / "tests/helpers"
# The oldest that we take, the last of 10, and 11: distribution, version, version of the libraries.
BINDINGS = [
    ("tensorrt-cu12-bindings", "10.12.0.36", 10),
    ("tensorrt-cu12-bindings", "10.16.1.11", 10),
    ("tensorrt-cu13-bindings", "11.4.0.106", 11),
]
# What NVIDIA's package of that name does.
FRONT_END = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A folder with libraries of TensorRT's names that give nothing."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux to make libraries that stand in for TensorRT's")
    folder = tmp_path_factory.mktemp("libraries")
    made = folder / "made.so"
    source = HELPERS / "stand_in_libraries.cpp"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source], check=True)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        for version in (10, 11):
            shutil.copy(made, folder / f"lib{name}.so.{version}")
    return folder


@pytest.fixture(scope="session", params=BINDINGS, ids=lambda param: param[1])
def bindings(request, pytestconfig, tmp_path_factory):
    """A folder to import the module ``tensorrt`` from; wheels are kept in pytest's cache."""
    name, version, _ = request.param
    cache = Path(pytestconfig.cache.mkdir("tensorrt_bindings"))
    pattern = f"{name.replace('-', '_')}-{version}-cp3{sys.version_info.minor}-*.whl"
    if not any(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--only-binary", ":all:", "--dest", cache, f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{name} cannot be downloaded here: {done.stderr.strip()[-200:]}")
    folder = tmp_path_factory.mktemp(f"tensorrt-{version}")
    (wheel,) = cache.glob(pattern)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt/__init__.py").write_text(FRONT_END)
    return folder


def call(bindings, folder, *, libraries=None):
    paths = [bindings, ROOT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment["LD_LIBRARY_PATH"] = str(libraries or "")
    script = [sys.executable, HELPERS / "with_real_bindings.py", folder]
    return subprocess.run(script, capture_output=True, text=True, check=False, env=environment)


def test_our_code_uses_only_what_the_real_modules_have(bindings, libraries, tmp_path, request):
    _, version, major = request.node.callspec.params["bindings"]
    done = call(bindings, tmp_path, libraries=libraries)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["unknown"]) == (version, [])
    assert found["no library"].startswith(f"tensorrt {version} does not start: ")
    assert found["built"] == {
        "engine": "engine",
        "strongly_typed_flag": major == 10,
        "shapes": [["tokens", [1, 2], [1, 4], [1, 32]], ["tokens", [1, 2], [8, 4], [16, 32]]],
        "profiles": 2,
        "cleared": ["BuilderFlag.TF32"],
    }
    assert found["refused"] == (
        f"tensorrt {version} cannot read text_encoder.onnx: node node_7 (Strange): Plugin not found."
    )
    assert found["ran"]


def test_bindings_without_their_libraries_say_what_to_install(bindings, tmp_path):
    done = call(bindings, tmp_path)
    assert done.returncode != 0
    assert (
        "EngineError: tensorrt needs the Python module tensorrt, which does not import: libnv"
        in (done.stderr)
    )
    assert done.stderr.strip().endswith("Install it with: pip install 'dgl-retrieval[trt]'")
