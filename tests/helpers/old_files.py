"""Files as commit e8f5187 wrote them; tests/old/README.md says how they were made."""

import shutil
import tarfile

from tests import ROOT

ARCHIVE = ROOT / "tests" / "old" / "e8f5187.tar.xz"
MADE_IN = "/tmp/made-by-e8f5187"  # where they were made, as the files themselves say it


def unpack(folder):
    """Put all of them into a folder, as they were but for the place; returns it."""
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(folder, filter="data")
    recipe = folder / "old" / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace(MADE_IN, str(folder / "old")), "utf-8")
    return folder / "old"


def copy_of(path, folder):
    """A copy of one of them that a test may change."""
    return shutil.copytree(path, folder / path.name)
