"""docs/export.md says what the code does: bounds, defaults, formats."""

import re

import click
import pytest

from dgl_export import lower, quality
from dgl_export.calibration import FEWEST
from dgl_export.cli import export
from dgl_export.formats import WRITTEN
from dgl_export.request import ZERO_SHOT_FRAMES, ZERO_SHOT_WORDS
from dgl_runtime.bundle.manifest import MIN_COSINE, PRECISIONS
from tests import ROOT
