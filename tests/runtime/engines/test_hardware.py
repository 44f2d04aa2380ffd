"""What the machine is, as the systems' own files and commands tell it."""

import os

import pytest

from dgl_runtime.engines import hardware

FLAGS = "fpu avx2 avx512f avx512_vnni"


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Put a command of this name on the path that prints a text and exits with a code."""

    def install(text, code=0):
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_the_cpu_model_is_read_from_cpuinfo(cpuinfo):
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some  CPU 42\nprocessor\t: 1\n")
    assert hardware.cpu_model() == "Some CPU 42"
    cpuinfo.write_text("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n")
    assert hardware.cpu_model() == "AMD EPYC (family 25, model 17)"
    cpuinfo.write_text("processor\t: 0\n")  # as on many ARM boards
    assert hardware.cpu_model()


def test_abilities_are_the_flags_of_the_first_cpu(cpuinfo):
    cpuinfo.write_text(f"flags\t\t: {FLAGS}\nflags\t\t: {FLAGS} amx_tile\n")
    assert hardware.cpu_abilities() == {
        "avx2": True, "avx512": True, "vnni": True, "bf16": False, "amx": False
    }  # fmt: skip
    cpuinfo.write_text("Features\t: fp asimd asimddp bf16\n")
    abilities = hardware.cpu_abilities()
    assert (abilities["vnni"], abilities["bf16"], abilities["avx2"]) == (True, True, False)
    cpuinfo.unlink()
    assert hardware.cpu_abilities() is None


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_gpus_are_those_that_nvidia_smi_lists(nvidia_smi):
    nvidia_smi("NVIDIA L4, 580.1, 8.9\\nNVIDIA H100, 580.1, 9.0\\n")
    assert hardware.nvidia_gpus() == [
        hardware.NvidiaGpu("NVIDIA L4", "580.1", "8.9"),
        hardware.NvidiaGpu("NVIDIA H100", "580.1", "9.0"),
    ]


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("text", "code"), [("", 0), ("No devices were found\\n", 0), ("couldn't talk to it", 9)]
)
def test_a_driver_that_does_not_answer_has_no_gpus(nvidia_smi, text, code):
    nvidia_smi(text.replace("'", ""), code)
    assert hardware.nvidia_gpus() == []


def test_without_the_command_there_are_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.nvidia_gpus() == []
