"""Ctrl-C reaches the tests and what they start, also where a shell has its background jobs ignore it."""

import os
import signal
import subprocess
import sys

import pytest

from tests import ROOT


def test_ctrl_c_is_heard():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    itself = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    started = subprocess.run([sys.executable, "-c", itself], capture_output=True, check=False)
    assert started.returncode == -signal.SIGINT


def test_ctrl_c_is_heard_in_the_background():
    code = (
        "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"sys.exit(pytest.main(['-q', {__file__ + '::test_ctrl_c_is_heard'!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
