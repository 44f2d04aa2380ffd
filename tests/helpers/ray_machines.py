"""Ray machines in network namespaces of this one: a head and others, each with a cable to one bridge.

They share the file system and the CPUs, as machines with a shared folder would; a machine is lost when all
its processes are killed.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("ip", "nsenter", "unshare")
PORT = 6379
BRIDGE = "10.213.0.1"


def why_not():
    """Why this machine cannot have such machines; empty if it can."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "tried", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""


class RayMachines:
    """Machines by number; 0 is the head, at which commands run."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder, self._stack = folder, stack
        self.name = f"dgl{secrets.token_hex(3)}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.nodes = {}

    def address(self, number=0):
        return f"10.213.0.{number + 10}"

    def connect(self, number):
        """Make a machine: a namespace with a cable to the others."""
        space, cable = f"{self.name}n{number}", f"{self.name}v{number}"
        ip("netns", "add", space)
        self._stack.callback(ip, "netns", "del", space, is_sure=False)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._stack.callback(ip, "link", "del", cable, is_sure=False)
        ip("link", "set", cable, "master", self.name, "up")
        ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")

    def start(self, number, cpus):
        """Start Ray on a machine, also after it was lost."""
        role = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"]
            if number == 0
            else [f"--address={self.address()}:{PORT}"]
        )
        log = self._stack.enter_context((self.folder / f"node{number}.log").open("ab"))
        self.nodes[number] = subprocess.Popen(
            self._inside(number, [
                str(Path(sys.executable).parent / "ray"), "start", *role, "--block",
                f"--node-ip-address={self.address(number)}", f"--num-cpus={cpus}", "--num-gpus=0",
                f"--object-store-memory={256 * 2**20}",
                *([f"--temp-dir={self.folder}/head"] if number == 0 else []),
            ]),
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def await_all(self):
        """Wait until all of them are of the cluster."""
        asks = "import ray; ray.init(address='auto', log_to_driver=False, logging_level='ERROR'); "
        asks += "print(sum(node['Alive'] for node in ray.nodes()))"
        for _ in range(60):
            asked = self.run([sys.executable, "-c", asks])
            if asked.returncode == 0 and int(asked.stdout.split()[-1]) == len(self.nodes):
                return
            time.sleep(0.5)
        logs = [path.read_text() for path in self.folder.glob("*.log")]
        raise AssertionError("\n".join([asked.stdout, asked.stderr, *logs]))

    def _inside(self, number, command):
        return ["ip", "netns", "exec", f"{self.name}n{number}", *command]

    def begin(self, command, **more):
        """Start a command at the head."""
        return subprocess.Popen(
            self._inside(0, command),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, command, timeout=300):
        """Run a command at the head."""
        running = self.begin(command)
        try:
            out, err = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            running.kill()
            out, err = running.communicate()
            raise AssertionError(out + err) from None
        return subprocess.CompletedProcess(command, running.returncode, out, err)

    def kill(self, number):
        """Lose a machine: no process of it says good-bye."""
        space = f"{self.name}n{number}"
        listed = subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
        )
        for process in map(int, listed.stdout.split()):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.nodes[number].wait()


@contextmanager
def ray_machines(folder, cpus):
    """Machines with so many CPUs each, as Ray counts them."""
    with ExitStack() as stack:
        machines = RayMachines(folder, stack)
        ip("link", "add", machines.name, "type", "bridge")
        stack.callback(ip, "link", "del", machines.name, is_sure=False)
        ip("addr", "add", f"{BRIDGE}/24", "dev", machines.name)
        ip("link", "set", machines.name, "up")
        for number, count in enumerate(cpus):
            machines.connect(number)
            stack.callback(machines.kill, number)
            machines.start(number, count)
        machines.await_all()
        yield machines


def ip(*arguments, is_sure=True):
    told = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == 0 or not is_sure, told.stderr
