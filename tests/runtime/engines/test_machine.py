import platform
import socket
from pathlib import Path

import pytest

from dgl_runtime.engines.machine import Machine, describe_machine


def made(cpu):
    return Machine(cpu, 2, 16.0, "Linux x86_64", "3.11.7", {"numpy": "2.0"})


@pytest.mark.parametrize(
    ("cpu", "slug"),
    [
        ("AMD EPYC 9B45", "amd-epyc-9b45"),
        ("AMD EPYC (family 25, model 17)", "amd-epyc"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c-cpu-2-70ghz"),
        ("Apple M2 Pro", "apple-m2-pro"),
    ],
)
def test_slug_is_the_cpu_model_as_a_file_name(cpu, slug):
    assert made(cpu).slug == slug


def test_this_machine_has_a_name_without_its_host_name():
    here = describe_machine(["numpy", "no-such-package"])
    assert here.cpu
    assert here.slug
    assert here.cores >= 1
    assert set(here.versions) == {"numpy"}
    assert platform.python_version() in here.describe()
    host = socket.gethostname()
    assert len(host) < 4 or host not in here.describe()
    assert str(Path.home()) not in here.describe()
