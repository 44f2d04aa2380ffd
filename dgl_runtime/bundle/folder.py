"""The contract between export and serving: a folder with graphs, tokenizer, golden inputs and a manifest."""

import hashlib
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np

from dgl_runtime.bundle.golden import Golden
from dgl_runtime.bundle.manifest import Graph, Manifest
from dgl_runtime.errors import BundleError, reason_of

MANIFEST, GOLDEN, TOKENIZER = "manifest.json", "golden.npz", "tokenizer.json"


class Bundle:
    """An exported model on disk."""

    def __init__(self, folder: str | Path) -> None:
        """Open a bundle; files are checked against their hashes when they are first used.

        Raises:
            BundleError: No bundle there, or its manifest does not fit.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            if not path.is_file():
                raise BundleError(
                    f"{self.folder} is not a bundle: it has no {MANIFEST}. "
                    "Give the folder that dgl-export wrote."
                )
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{path} cannot be read: {error}. Check the path, or export the bundle again."
            ) from error
        self.manifest = Manifest.from_json(text, path)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._checked: set[str] = set()

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, checked against its hash.

        Raises:
            BundleError: Missing, or its bytes are not those that were exported.
        """
        path = self.folder / name
        if name in self._checked:
            return path
        expected = self.manifest.files.get(name)
        if expected is None or not path.is_file():
            raise BundleError(f"bundle {self.folder} has no file {name}. Export it again.")
        if (found := sha256_of(path)) != expected:
            raise BundleError(
                f"{path} has sha256 {found[:12]}, its manifest says {expected[:12]}: the file was "
                "damaged or changed. Copy the bundle again, or export it again."
            )
        self._checked.add(name)
        return path

    def graph_path(self, graph: Graph) -> Path:
        """Path of a graph whose own file and weights have been checked."""
        self.path(graph.weights)
        return self.path(graph.file)

    @cached_property
    def golden(self) -> Golden:
        """The inputs and outputs of the self-check.

        Raises:
            BundleError: Missing, damaged, or not made by dgl-export.
        """
        path = self.path(GOLDEN)
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return Golden.from_arrays(arrays, self.manifest)
        except (
            *(OSError, EOFError, ValueError, TypeError, KeyError, RecursionError),
            zipfile.BadZipFile,
        ) as error:
            raise BundleError(
                f"{path} does not hold the golden inputs: {reason_of(error)}. Export the bundle again."
            ) from error


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
