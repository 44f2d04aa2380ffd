"""The house: folders that say what they own, arrows that point down, no circle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests import ROOT

# From the top down: a folder, or a file beside the folders, imports what stands below it alone.
FLOORS = {
    "dgl_runtime": (
        "commands",
        "serve",
        "retriever",
        "indexing",
        "search",
        "gallery",
        "encoder",
        "bundle",
        "engines",
        "decoding",
        "media",
        "tables",
        "command",
        "names",
        "times",
        "typed_fields",
        "cache_folder",
        "plain_path",
        "telemetry",
        "errors",
    ),
    "dgl_train": (
        "commands",
        "training",
        "evaluation",
        "data",
        "shapes",
        "recipes",
        "model",
    ),
}


def modules(package):
    """Each file's module name and its tree."""
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree, known):
    """Modules of ours that a file imports: anywhere in it, and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def arrows(package):
    trees = dict(modules(package))
    return {
        name: {one for one in imported(tree, trees) if one in trees} for name, tree in trees.items()
    }


def room(module):
    return module.split(".")[1]


@pytest.mark.parametrize("package", FLOORS)
def test_folders_import_what_stands_below_them_alone(package):
    floors = list(reversed(FLOORS[package]))
    faces = {package, f"{package}.__main__"}
    wrong = [
        f"{file} -> {other}"
        for file, others in arrows(package).items()
        for other in others
        if file not in faces and other not in faces and room(file) != room(other)
        if floors.index(room(other)) > floors.index(room(file))
    ]
    assert wrong == []


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_its_floor(package):
    rooms = {room(name) for name in arrows(package) if name not in (package, f"{package}.__main__")}
    assert rooms == set(FLOORS[package])


@pytest.mark.parametrize("package", ["dgl_runtime", "dgl_train", "dgl_export"])
def test_no_files_import_each_other_in_a_circle(package):
    try:
        tuple(TopologicalSorter(arrows(package)).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_each_folder_says_in_one_sentence_what_it_owns():
    for package in ("dgl_runtime", "dgl_train", "dgl_export"):
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        for folder in folders - {ROOT / package}:
            text = (folder / "__init__.py").read_text(encoding="utf-8")
            said = ast.get_docstring(ast.parse(text))
            assert said, folder
            assert said.endswith("."), folder
            assert "\n" not in said, folder
            assert len(ast.parse(text).body) == 1, (
                f"{folder}/__init__.py holds more than its sentence"
            )
