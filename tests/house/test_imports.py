import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dgl_runtime
import tests

# Where the packages are, installed or not; the declarations are read from the checkout.
ROOT = Path(dgl_runtime.__file__).parents[1]
PYPROJECT = tests.ROOT / "pyproject.toml"

OURS = ("dgl_runtime", "dgl_train", "dgl_export", "dgl_bench")
BENCH = ROOT / "benchmarks"  # in a checkout: dgl_bench, and the studies
MAY_IMPORT = {
    "dgl_runtime": {"dgl_runtime"},
    "dgl_train": {"dgl_runtime", "dgl_train"},
    "dgl_export": {"dgl_runtime", "dgl_train", "dgl_export"},
    "dgl_bench": set(OURS),
}
# Package -> the extras whose distributions it may import, beside the base.
EXTRAS = {
    "dgl_runtime": (
        "cpu",
        "heic",
        "large",
        "openvino",
        "postgres",
        "pycuda",
        "ray",
        "serve",
        "shots",
        "triton",
        "trt",
        "trt-rtx",
        "watch",
    ),
    "dgl_train": ("train",),
    "dgl_export": ("export", "openvino", "trt", "trt-rtx"),
    "dgl_bench": ("bench",),
}
DISTRIBUTIONS = {  # where the names differ
    "PIL": "pillow",
    "cuda": "cuda-python",
    "cv2": "opencv-python",  # or its build without windows
    "decord": "decord2",
    "faiss": "faiss-cpu",
    "open_clip": "open-clip-torch",
}
TYPING_ONLY = {"_typeshed"}

HEAVY = (
    "torch torchvision onnx onnxruntime openvino tensorrt av tokenizers PIL usearch ftfy tqdm "
    "psycopg pgvector sqlglot ray tritonclient"
)


def imports_of(path):
    """Every module a file imports, inside functions too, and those that only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module, node.lineno
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield from ((name, node.lineno) for name in arguments if isinstance(name, str))


def folder_of(package):
    return BENCH if package == "dgl_bench" and BENCH.is_dir() else ROOT / package


def imported_by(package):
    return [
        (name.partition(".")[0], f"{path.relative_to(ROOT)}:{line}")
        for path in sorted(folder_of(package).rglob("*.py"))
        for name, line in imports_of(path)
    ]


def declared(*extras):
    """Names of the distributions of the base and of some extras, and of the extras these name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    found, waiting = set(), list(project["dependencies"])
    waiting += [line for extra in extras for line in project["optional-dependencies"][extra]]
    while waiting:
        name, more = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", waiting.pop()).groups()
        if name == project["name"]:
            for extra in more.split(","):
                waiting += project["optional-dependencies"][extra]
        found.add(name.replace("_", "-"))
    return found


def is_declared(module, names):
    name = distribution(module)
    return name in names or f"{name}-headless" in names


def distribution(module):
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


@pytest.mark.parametrize(
    "statement",
    [
        "import dgl_runtime",
        "from dgl_runtime import Retriever, bundle, engines, gallery, indexing, media, search",
        "from dgl_runtime.commands.index import index; index(['--help'], standalone_mode=False)",
    ],
)
def test_importing_the_runtime_loads_nothing_heavy(statement):
    code = f"import sys\n{statement}\nimport json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert ("dgl_runtime.retriever" in loaded) == ("Retriever" in statement)  # when it is asked for
    assert "numpy" not in loaded or statement != "import dgl_runtime"
    assert loaded & set(HEAVY.split()) == set()
    assert not {name for name in loaded if name.startswith(("dgl_train", "dgl_export"))}


@pytest.mark.parametrize("package", OURS)
def test_imports_point_one_way(package):
    wrong = [
        f"{where} imports {name}"
        for name, where in imported_by(package)
        if name in OURS and name not in MAY_IMPORT[package]
    ]
    assert wrong == []


def test_the_wheel_installs_our_packages_and_none_of_a_common_name():
    wheel = tomllib.loads(PYPROJECT.read_text("utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert [Path(folder).name for folder in wheel["packages"]] == list(OURS)


def test_the_check_itself_sees_every_kind_of_import(tmp_path):
    text = "import a.b\ndef f():\n    from c import d\n    importlib.import_module('e')\n"
    (tmp_path / "x.py").write_text(text)
    assert {name for name, _ in imports_of(tmp_path / "x.py")} == {"a.b", "c", "e"}


@pytest.mark.parametrize("package", OURS)
def test_every_import_is_declared(package):
    known = {*sys.stdlib_module_names, *OURS, *TYPING_ONLY}
    names = declared(*EXTRAS[package])
    wrong = [
        f"{where} imports {name}"
        for name, where in imported_by(package)
        if name not in known and not is_declared(name, names)
    ]
    assert wrong == []


def test_everything_declared_for_the_runtime_is_imported():
    imported = {distribution(name) for name, _ in imported_by("dgl_runtime")}
    assert declared("cpu") - imported == set()
