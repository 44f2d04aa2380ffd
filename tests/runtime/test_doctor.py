"""dgl-doctor: what works is tried, what does not says why and what to install."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import dgl_runtime
from dgl_runtime.commands.doctor import doctor
from dgl_runtime.encoder import diagnosis
from dgl_runtime.engines import installed, tiny_graph
from dgl_runtime.engines.hardware import NvidiaGpu, nvidia_gpus
from tests.helpers.engine_files import require_on_gpu
