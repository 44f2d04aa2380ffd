"""Processes that read videos, killed, crashed and without shared memory: one line, no hang, and on again."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from reading_commands import await_readers, command, ended, readers, run, started
from runs import write_csv
from safetensors.torch import load_file
from tiny import write_tiny_clips

SETTINGS = {
    "num_frames": 64,
    "max_words": 24,
    "batch_size": 32,
    "epochs": 3,
    "num_workers": 2,
    "frame_cache_gb": 0,
}
KILLS = [3, pytest.param(10, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    clips = write_tiny_clips(folder, 64) + write_tiny_clips(folder, 16, "val")
    return write_csv(folder / "clips.csv", clips)


@pytest.fixture(scope="module")
def training(captions, backbone_folder):
    """The command line of a run into a folder."""

    def line(out, *more):
        settings = [part for pair in SETTINGS.items() for part in ("--set", "{}={}".format(*pair))]
        what = ["--dataset", captions, "--backbone", backbone_folder, "--method", "dgl-linear"]
        return command("train", *what, *settings, "--device", "cpu", "--out", out, *more)

    return line


@pytest.fixture(scope="module")
def undisturbed(training, tmp_path_factory):
    """A run to compare with, and how long it took, seconds."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    begun = time.monotonic()
    assert run(training(out))[::2] == (0, [])
    return out, time.monotonic() - begun


def trained(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if "_s" not in k} for line in lines]
    tensors = {
        file: {k: t.numpy().tobytes() for k, t in load_file(run_folder / file).items()}
        for file in ("last.safetensors", "best.safetensors")
    }
    return metrics, tensors


@pytest.fixture(scope="module")
def small_shm():
    """What starts a program that finds 512 kB of shared memory."""
    program = ("unshare", "--mount", "sh", "-c")
    mount = "mount -t tmpfs -o size=512k tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run([*program, mount], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small /dev/shm")
    return [*program, f'{mount} && exec "$@"', "sh"]


def test_training_needs_no_shared_memory(small_shm, training, undisturbed, tmp_path):
    assert run([*small_shm, *training(tmp_path / "run")])[::2] == (0, [])
    assert trained(tmp_path / "run") == trained(undisturbed[0])


def test_verification_needs_no_shared_memory(small_shm, captions, tmp_path):
    line = [*small_shm, *command("data", "check", captions, "--jobs", 2)]
    code, out, err = run(line, XDG_CACHE_HOME=str(tmp_path))
    assert (code, err) == (0, [])
    assert out.endswith("Everything is there.\n")


@pytest.mark.parametrize("num_kills", KILLS)
def test_training_that_loses_a_process_ends_in_one_line_and_goes_on_to_the_bit(
    training, undisturbed, tmp_path, num_kills
):
    whole, duration_s = undisturbed
    moments, killed, told, number = random.Random(5), 0, 0, 0
    out = tmp_path / "run0"
    while killed < num_kills:
        resume = ["--resume"] if (out / "resume.pt").exists() else []
        with started(training(out, *resume)) as process:
            await_readers(process)  # one kill in three meets them as they start
            if killed % 3:
                time.sleep(moments.uniform(0, 0.5 * duration_s))
            if not (reading := await_readers(process)):  # it has ended
                assert ended(process)[::2] == (0, [])
                assert trained(out) == trained(whole)
                number += 1
                out = tmp_path / f"run{number}"
                continue
            os.kill(moments.choice(reading), signal.SIGKILL)
            killed += 1
            code, _, err = ended(process)
        if code == 0:  # it was not at work: another has taken its place
            assert err == []
            assert trained(out) == trained(whole)
            number += 1
            out = tmp_path / f"run{number}"
            continue
        told += 1
        assert (code, len(err)) == (1, 1), err
        assert err[0].startswith("Error: ")
        assert "lost its decoder (SIGKILL)" in err[0]
        assert err[0].endswith("go on with the same command and --resume.")
    resume = ["--resume"] if (out / "resume.pt").exists() else []
    assert run(training(out, *resume))[::2] == (0, [])
    assert trained(out) == trained(whole)
    assert told >= num_kills // 2


@pytest.mark.parametrize("num_kills", KILLS)
def test_verification_that_loses_a_process_ends_in_one_line_and_goes_on(
    captions, tmp_path, num_kills
):
    line = command("data", "check", captions, "--jobs", 2)
    expected = run(line, XDG_CACHE_HOME=str(tmp_path / "undisturbed"))
    assert expected[::2] == (0, [])
    moments, told = random.Random(6), 0
    for number in range(num_kills):
        cache = str(tmp_path / str(number))
        with started(line, XDG_CACHE_HOME=cache) as process:
            await_readers(process)
            if number % 3:
                time.sleep(moments.uniform(0, 0.5))
            for pid in readers(process)[:1]:
                os.kill(pid, signal.SIGKILL)
            code, _, err = ended(process)
        if code:
            told += 1
            assert (code, len(err)) == (1, 1), err
            assert err[0].endswith("Run it again: what was verified is kept.")
        assert run(line, XDG_CACHE_HOME=cache) == expected
    assert told
