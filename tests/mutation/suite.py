"""The tests of one module, run again and again in a copy of the tree: each time in a fork of a warm process."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from . import lines_hit

ROOT = Path(__file__).parents[2]
MOST_BYTES = 16 * 2**30  # of address space: a mistake may ask for all there is
# A run may take so long and so many times what it takes without a mistake: of the processor's time, so that
# an endless loop ends soon also where the machine has other work; and in all.
CPU_S, CPU_TIMES = 20, 3
WALL_S, WALL_TIMES = 60, 8
WARM = (
    "anyio._backends._asyncio",
    "numpy",
    "av",
    "PIL.Image",
    "click",
    "ftfy",
    "tokenizers",
    "usearch.index",
)
WARM_SERVE = ("httpx2", "fastapi", "uvicorn")
WARM_TORCH = ("torch", "open_clip", "onnx")


def warm_up(test_files: list[str]) -> None:
    """Import what tests of these folders import of others, nothing of ours; forks then have it."""
    folders = [Path(file).parts[1:-1] for file in test_files]
    wanted = WARM + (WARM_SERVE if any("serve" in parts for parts in folders) else ())
    wanted += WARM_TORCH if any(parts[0] not in ("runtime", "house") for parts in folders) else ()
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(dict.fromkeys(threads, "1"))
    for name in wanted:
        with suppress(ImportError):
            import_module(name)
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        raise SystemExit(f"importing {', '.join(wanted)} started threads; a fork would lose them.")


@dataclass
class Baseline:
    """What the tests do without a mistake."""

    contexts: dict[int, set[str]]
    durations: dict[str, float] = field(default_factory=dict)
    fixtures: dict[str, set[str]] = field(default_factory=dict)
    failing: list[str] = field(default_factory=list)

    def tests_of(self, lines: range) -> list[str]:
        """Tests that could notice a change of these lines."""
        contexts = set().union(*(self.contexts.get(line, set()) for line in lines))
        if not contexts or "import" in contexts:
            return [test for test in self.durations if test not in self.failing]
        found = set()
        for context in contexts:
            in_process = context.startswith("process ")
            kind, _, name = context.removeprefix("process ").partition(" ")
            if kind == "fixture":
                found |= {test for test, used in self.fixtures.items() if name in used}
            elif kind == "test" and in_process:  # the process may outlive its test
                file = name.partition("::")[0]
                found |= {test for test in self.durations if test.partition("::")[0] == file}
            elif kind == "test":
                found.add(name)
            else:
                return [test for test in self.durations if test not in self.failing]
        return sorted(found - set(self.failing))


def _quick_hypothesis() -> None:
    """The same examples in every run; a failing one is not made smaller."""
    phases = [Phase.explicit, Phase.generate]
    settings.register_profile("mutate", derandomize=True, database=None, phases=phases)
    settings.load_profile("mutate")


class Chosen:
    """Run the chosen tests only: files that take least first, and so their tests."""

    def __init__(self, tests: list[str], durations: dict[str, float], noticed: Path) -> None:
        self.tests, self.durations, self.noticed = set(tests), durations, noticed

    def pytest_configure(self):
        _quick_hypothesis()

    def pytest_collection_modifyitems(self, config, items):
        chosen = [item for item in items if item.nodeid in self.tests]
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in self.tests])
        of_file: dict[Path, float] = {}
        for item in chosen:
            took = self.durations.get(item.nodeid, 0)
            of_file[item.path] = of_file.get(item.path, 0) + took
        chosen.sort(key=lambda i: (of_file[i.path], str(i.path), self.durations.get(i.nodeid, 0)))
        items[:] = chosen

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.noticed.exists():
            self.noticed.write_text(report.nodeid, encoding="utf-8")


def _forget() -> None:
    """Empty our caches, so that who reads a cached value counts as who runs its lines."""
    for name, module in list(sys.modules.items()):
        if name.startswith("dgl_"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


class Traced:
    """Note who runs which line, how long each test takes and what it uses."""

    def __init__(self, notes: Path) -> None:
        # A test may have put something in the place of Path.open.
        self.notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.hit = lines_hit.LinesHit(is_child=False)

    def _note(self, *parts: object) -> None:
        os.write(self.notes, ("\t".join(map(str, parts)) + "\n").encode())

    def pytest_configure(self):
        _quick_hypothesis()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        os.environ[lines_hit.CONTEXT] = f"test {item.nodeid}"
        self._note("uses", item.nodeid, *item.fixturenames)
        _forget()
        self.hit.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before = os.environ[lines_hit.CONTEXT]
        if fixturedef.scope != "function":
            os.environ[lines_hit.CONTEXT] = f"fixture {fixturedef.argname}"
        yield
        os.environ[lines_hit.CONTEXT] = before

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and not report.skipped:
            self._note("took", report.nodeid, report.duration)
        if report.failed:
            self._note("fails", report.nodeid)


class Suite:
    """Test files in a copy of the tree, in which one module is changed."""

    def __init__(self, module: str, test_files: list[str], folder: Path) -> None:
        self.module, self.tree, self.scratch = module, folder / "tree", folder / "scratch"
        self.scratch.mkdir()
        _copy_tree(self.tree)
        self.files = sorted(
            {str(p.relative_to(self.tree)) for f in test_files for p in self.tree.glob(f)}
        )
        if not self.files:
            raise SystemExit(f"no test files {', '.join(test_files)}")
        self.path = self.tree / module
        self.source = self.path.read_text(encoding="utf-8")

    def baseline(self) -> Baseline:
        """Run all the tests without a mistake."""
        trace, notes = self.scratch / "trace", self.scratch / "notes"
        shutil.copy(lines_hit.__file__, self.tree / "sitecustomize.py")
        environment = {lines_hit.FILE: str(self.path), lines_hit.OUT: str(trace)}
        code = self._forked(self.files, lambda: Traced(notes), environment, 600)
        (self.tree / "sitecustomize.py").unlink()
        found = Baseline(lines_hit.contexts_of_lines(trace))
        for row in notes.read_text(encoding="utf-8").splitlines() if notes.exists() else ():
            kind, test, *rest = row.split("\t")
            if kind == "uses":
                found.fixtures[test] = set(rest)
            elif kind == "took":
                found.durations[test] = float(rest[0])
            else:
                found.failing.append(test)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not found.durations:
            raise SystemExit((self.scratch / "said").read_text(encoding="utf-8", errors="replace"))
        return found

    def notices(self, changed: str, tests: list[str], baseline: Baseline) -> str | None:
        """Run tests with the module changed; return which one failed first, or None."""
        noticed = self.scratch / "noticed"
        noticed.unlink(missing_ok=True)
        files = sorted({test.partition("::")[0] for test in tests})
        usual_s = sum(baseline.durations.get(test, 0) for test in tests)
        self.path.write_text(changed, encoding="utf-8")
        for cached in (self.path.parent / "__pycache__").glob(f"{self.path.stem}.*.pyc"):
            cached.unlink()
        try:
            code = self._forked(
                files, lambda: Chosen(tests, baseline.durations, noticed), {}, usual_s
            )
        finally:
            self.path.write_text(self.source, encoding="utf-8")
        if code in (None, -signal.SIGXCPU):
            return f"a time-out: without the mistake it takes {usual_s:.1f} s"
        if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return None
        return noticed.read_text(encoding="utf-8") if noticed.exists() else "the start of the tests"

    def _forked(
        self,
        files: list[str],
        plugin: Callable[[], object],
        environment: dict[str, str],
        usual_s: float,
    ) -> int | None:
        """Run pytest in a fork of this process; None: it took much longer than usual."""
        sys.stdout.flush()
        child = os.fork()
        if not child:
            code = 70
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                _, hard = resource.getrlimit(resource.RLIMIT_CPU)
                resource.setrlimit(resource.RLIMIT_CPU, (int(CPU_S + CPU_TIMES * usual_s), hard))
                code = self._in_fork(files, plugin, environment)
            finally:
                os._exit(code)
        end = time.monotonic() + WALL_S + WALL_TIMES * usual_s
        status = None
        try:
            while status is None and time.monotonic() < end:
                done, raw = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(raw) if done else None
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and what the tests left running
            if status is None:
                os.waitpid(child, 0)
            shutil.rmtree(self.scratch / "temporary", ignore_errors=True)
        return status

    def _in_fork(
        self, files: list[str], plugin: Callable[[], object], environment: dict[str, str]
    ) -> int:
        os.setsid()
        said = os.open(self.scratch / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(self.tree)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, hard))
        os.environ.update(environment, PYTHONPATH=str(self.tree))
        if (
            not environment
        ):  # one file changes within a second: only what was compiled before is read
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
        # multiprocessing's children would begin with the command line of this process.
        vars(sys.modules["__main__"]).pop("__file__", None)
        here = {str(ROOT), str(ROOT / "tests"), ""}
        sys.path[:] = [str(self.tree), *(part for part in sys.path if part not in here)]
        temporary = self.scratch / "temporary"
        options = ["-x"] if not environment else []
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of modules that are warm
        options += ["-q", "--tb=short", "--no-header", f"--basetemp={temporary}"]
        return int(pytest.main([*options, *files], plugins=[plugin()]))


def _copy_tree(folder: Path) -> None:
    """What git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
