"""Copies of a bundle with other golden outputs or another manifest, whole by their hashes."""

import json
import shutil

import numpy as np

from dgl_runtime.bundle.folder import GOLDEN, MANIFEST, sha256_of


def changed_bundle(bundle, folder, *, golden=None, precision=None, **manifest):
    """Copy a bundle; ``golden`` gets its arrays to change, the rest are fields of the manifest."""
    copy = shutil.copytree(bundle, folder)
    fields = {**json.loads((copy / MANIFEST).read_text()), **manifest}
    if golden is not None:
        with np.load(copy / GOLDEN) as arrays:
            kept = dict(arrays)
        golden(kept)
        (copy / GOLDEN).unlink()
        np.savez_compressed(copy / GOLDEN, **kept)
        fields["files"][GOLDEN] = sha256_of(copy / GOLDEN)
    if precision is not None:
        fields["precision"] = precision
        for graph in ("text_encoder", "clip_encoder"):
            fields[graph]["precision"] = precision
    (copy / MANIFEST).write_text(json.dumps(fields))
    return copy
