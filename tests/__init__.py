"""The tests: folders mirror the packages; what several of them use is in ``helpers``."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
