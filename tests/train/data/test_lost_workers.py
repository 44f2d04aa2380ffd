"""Processes that read videos, killed, crashed and without shared memory: one line, no hang, and on again."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import dgl_train.training.fit as fit_module
from dgl_runtime.decoding.workers import Workers
from dgl_runtime.errors import MediaError
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.data.verify import find_faults
from dgl_train.training.fit import fit
from tests.helpers.reading_commands import await_readers, command, ended, readers, run, started
from tests.helpers.runs import write_csv
from tests.helpers.specs import frame_spec
from tests.helpers.tiny import tiny_recipe, write_tiny_clips

pytestmark = pytest.mark.slow

SETTINGS = {
    "num_frames": 64,
    "max_tokens": 24,
    "batch_size": 32,
    "epochs": 3,
    "num_workers": 2,
    "frame_cache_gb": 0,
}
KILLS = [2, pytest.param(10, marks=pytest.mark.soak)]


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
        assert err[0].endswith("resume with the same command and --resume.")
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


@pytest.fixture
def struck(monkeypatch, no_hang):
    """Makes processes that are given a task which ``is_it`` fits get a signal, so many times."""

    def strike(is_it, how, times):
        left = [times]
        begin = Workers.begin

        def begin_and_strike(workers, task, asked):
            begin(workers, task, asked)
            if left[0] and is_it(task):
                left[0] -= 1
                os.kill(workers._busy[-1].process.process.pid, how)

        monkeypatch.setattr(Workers, "begin", begin_and_strike)

    return strike


@pytest.mark.parametrize(("times", "faults"), [(1, 0), (2, 1)])
def test_a_video_that_crashes_its_decoder_twice_is_left_out(
    tmp_path, monkeypatch, struck, times, faults
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clips = write_tiny_clips(tmp_path, 33)
    struck(lambda look: look.job.path == clips[7].video, signal.SIGSEGV, times)
    verified = find_faults(clips, jobs=2, progress=False)
    assert len(verified.clips) == 33 - faults
    assert list(verified.faults) == [clips[7].video][:faults]
    for told in verified.faults.values():
        assert told.startswith("this video crashed the decoder (SIGSEGV). Play it to check")
    assert not find_faults(clips, jobs=2, progress=False).faults  # it is no property of its content


def test_a_clip_that_crashes_its_decoder_is_named(clips, struck):
    struck(lambda place: place[0].numbers[place[1]] == 5, signal.SIGSEGV, 1)
    batches = read_batches(
        clips, FrameFormat(frame_spec(2, 16)), evaluation_batches(8, 2), num_workers=2
    )
    with pytest.raises(MediaError, match=r"train5\.mp4 crashed the decoder \(SIGSEGV\)\. Play it"):
        list(batches)


@pytest.mark.usefixtures("no_hang")
def test_a_run_that_fails_in_its_validation_validates_when_it_goes_on(
    tmp_path, clips, backbone, monkeypatch
):
    def fit_to(folder, **more):
        return fit(
            tiny_recipe(),
            clips,
            clips,
            tmp_path / folder,
            backbone=backbone,
            device=torch.device("cpu"),
            progress_bar=False,
            **more,
        )

    whole = fit_to("whole")

    def fail(*_, **__):
        raise MediaError("a process is lost.")

    for resume in (False, True):  # in the first step of a run that goes on, too
        with monkeypatch.context() as patch:
            patch.setattr(fit_module, "evaluate", fail)
            with pytest.raises(MediaError) as caught:
                fit_to("broken", resume=resume)
        assert str(caught.value) == (
            "a process is lost. What was learned is saved, after step 2 of 4: resume with the same "
            "command and --resume."
        )
    assert fit_to("broken", resume=True) == replace(whole, run=tmp_path / "broken")
    assert trained(tmp_path / "broken") == trained(tmp_path / "whole")
