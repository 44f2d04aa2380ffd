"""Every setting of a recipe is read somewhere; a setting nobody reads is deleted."""

import ast

from tests import ROOT


def test_every_setting_is_read_outside_of_its_definition():
    config = ROOT / "dgl_train/recipes/recipe.py"
    classes = [n for n in ast.walk(ast.parse(config.read_text())) if isinstance(n, ast.ClassDef)]
    (recipe,) = [node for node in classes if node.name == "Recipe"]
    settings = {node.target.id for node in recipe.body if isinstance(node, ast.AnnAssign)}
    read = set()
    for path in (ROOT / "dgl_train").rglob("*.py"):
        if path != config:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert settings
    assert settings - read == set()
