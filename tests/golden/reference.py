"""The golden cases as tensors: configs, frames, tokens, arrays, and the research checkpoint of each."""

import importlib.util
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DOCUMENT = json.loads((HERE / "cases.json").read_text())
CASES = DOCUMENT["cases"]
ATOL = {name: entry["atol"] for name, entry in DOCUMENT["tolerances"].items()}

_spec = importlib.util.spec_from_file_location("golden_weights", HERE / "weights.py")
weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(weights)


class Case:
    """One golden case."""

    def __init__(self, name):
        self.name = name
        self.entry = CASES[name]
        self.config = self.entry["config"]
        self.gold = np.load(HERE / f"{name}.npz")
        self.tokens = np.array(self.entry["token_ids"], dtype=np.int64)
        self.frames = weights.frames(name, self.config)

    def write_checkpoint(self, folder):
        path = folder / f"{self.name}.pth.tar"
        weights.save_official_checkpoint(str(path), self.config)
        return path


def assert_gold(name, ours, gold, kind):
    """Compare with the tolerance that cases.json states for this kind of array."""
    np.testing.assert_allclose(np.asarray(ours), gold, rtol=0, atol=ATOL[kind], err_msg=name)
