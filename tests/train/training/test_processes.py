"""Several processes give the numbers of one, and a run killed anywhere those of an undisturbed one."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import ROOT
from tests.helpers.gradients_of_share import gradients_of_share

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def launch(*command):
    """Run a Python file or module in two processes with torch's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-addr", "127.0.0.1", "--master-port", str(port)),
            *map(str, command),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def run_arguments(captions, backbone_folder, out, **changes):
    settings = {
        "num_frames": 2,
        "max_tokens": 24,
        "batch_size": 4,
        "epochs": 3,
        "learning_rate": 0.01,
        "num_workers": 0,
        "save_every_steps": 1,
        **changes,
    }
    return [
        *("--dataset", str(captions), "--backbone", str(backbone_folder), "--out", str(out)),
        *("--device", "cpu", "--method", "dgl-transformer"),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]


@pytest.fixture(scope="module")
def captions(tmp_path_factory, clips):
    path = tmp_path_factory.mktemp("captions") / "clips.csv"
    rows = [
        f"{clip.video},{clip.caption},{'val' if i > 5 else 'train'}" for i, clip in enumerate(clips)
    ]
    path.write_text("\n".join(["video,caption,split", *rows, ""]))
    return path


def trained(run):
    return load_file(run / "last.safetensors")


def processes_of(run):
    """How many processes the run itself says it had."""
    return json.loads((run / "environment.json").read_text())["processes"]


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer", "full"])
def test_two_processes_give_the_gradients_of_one(method, two_processes):
    _, whole = gradients_of_share(method, micro_batch_size=0)
    shared = torch.load(two_processes / f"{method}.pt")
    assert shared.pop("processes") == 2
    assert shared.keys() == whole.keys()
    for name, gradient in whole.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(
            shared[name], gradient, rtol=0, atol=1e-6 * largest + 1e-12, msg=name
        )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    launch(ROOT / "tests/helpers" / "gradients_of_share.py", folder)
    return folder


def test_a_run_of_two_processes_ends_where_that_of_one_does(tmp_path, captions, backbone_folder):
    lines = captions.read_text().splitlines()
    noted = captions.with_name("noted.csv")
    noted.write_text("\n".join([f"{lines[0]},url", *(f"{line}," for line in lines[1:])]))
    done = launch("-m", "dgl_train", *run_arguments(noted, backbone_folder, tmp_path / "two"))
    assert done.stderr.count("columns that are not read: 'url'") == 1  # one of them speaks for both
    alone = [sys.executable, "-m", "dgl_train"]
    subprocess.run(
        [*alone, *run_arguments(captions, backbone_folder, tmp_path / "one")],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    assert [processes_of(tmp_path / name) for name in ("one", "two")] == [1, 2]
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    for name in one:  # float32: Adam turns rounding of tiny gradients into small steps
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-3, err_msg=name)


ENDS_EARLY = """
import os, torch
from dgl_train.training.processes import Processes
processes = Processes()
processes.wait()
if not processes.is_main:
    os._exit(1)
try:
    processes.gather(torch.ones(2, 2))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_process_that_has_ended_is_told_to_those_who_wait_for_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS_EARLY],
            env={**ENVIRONMENT, **place, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = both[0].communicate(timeout=120)[0]
    finally:
        for process in both:
            process.kill()
            process.wait()
            process.stdout.close()
    assert told.startswith("ConfigError another process of this run has ended: ")
    assert told.endswith("then resume with the same command and --resume.\n")
    assert told.count("\n") == 1


def test_killed_at_five_moments_and_resumed_a_run_equals_an_undisturbed_one(
    tmp_path, captions, backbone_folder
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "dgl_train"]
    changes = {"epochs": 80, "batch_size": 2}
    subprocess.run(
        [*command, *run_arguments(captions, backbone_folder, whole, **changes)],
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    moments = random.Random(0)
    kills = 0
    while kills < 5:
        resume = ["--resume"] if (broken / "resume.pt").exists() else []
        if not resume and broken.exists():
            raise AssertionError("killed before the first step was saved: nothing to resume")
        process = subprocess.Popen(
            [*command, *run_arguments(captions, backbone_folder, broken, **changes), *resume],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = state_of(broken)
        while state_of(broken) == before:  # it has gone on by a step at least
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills += 1
    subprocess.run(
        [*command, *run_arguments(captions, backbone_folder, broken, **changes), "--resume"],
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    )
    assert metrics(whole) == metrics(broken)
    for file in ("last.safetensors", "best.safetensors"):  # their headers come in no fixed order
        one, other = load_file(whole / file), load_file(broken / file)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), (file, name)


def metrics(run):
    """Lines of metrics.jsonl without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "_s" not in k} for line in lines]


def state_of(run):
    state = run / "resume.pt"
    return state.stat().st_mtime_ns if state.exists() else 0
