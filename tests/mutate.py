"""Put single mistakes into modules, run the tests that should notice, and tell which mistakes none noticed.

    python tests/mutate.py dgl_runtime/gallery/nearest.py --most 60 --seed 0
    python tests/mutate.py --all

Work is done in a temporary copy of the tree. A mistake that changes nothing anybody can see is listed in
``tests/mutation/unseen.toml`` with its reason, by the text of its line, and does not count.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from mutation.mistakes import Mistake, mistakes
from mutation.suite import ROOT, Suite, warm_up

GALLERY = ("tests/runtime/gallery/*.py", "tests/runtime/indexing/*.py")
RECORDS = (
    "tests/runtime/gallery/test_damage.py",
    "tests/runtime/gallery/test_gallery.py",
    "tests/runtime/gallery/test_metadata.py",
    "tests/runtime/gallery/test_mistakes.py",
)
INDEXING = (*GALLERY, "tests/runtime/test_retriever.py", "tests/runtime/indexing/test_watch.py")
VIDEO = ("tests/runtime/media/*.py",)
PREVIEW = ("tests/runtime/media/test_preview.py", "tests/runtime/serve/test_media.py")
SERVE = ("tests/runtime/serve/*.py",)
BUNDLE = ("tests/runtime/bundle/test_bundle.py", "tests/runtime/encoder/test_self_check.py")
FOLD = ("tests/export/test_fold.py", "tests/export/test_fold_families.py")
DOCUMENTED = "tests/export/test_documented_bounds.py"
TABLES = ("tests/runtime/tables/test_tables.py", "tests/runtime/gallery/test_metadata.py")
DATASETS = (
    "tests/train/data/test_captions.py",
    "tests/train/data/test_datasets.py",
    "tests/train/data/test_published.py",
    "tests/train/data/test_data_faults.py",
    "tests/train/commands/test_data.py",
)
TESTS_OF = {
    "dgl_runtime/serve/guard.py": ("tests/runtime/serve/test_guard*.py", *SERVE),
    "dgl_runtime/serve/app.py": SERVE,
    "dgl_runtime/serve/batching.py": SERVE,
    "dgl_runtime/serve/connections.py": SERVE,
    "dgl_runtime/serve/galleries.py": SERVE,
    "dgl_runtime/serve/lane.py": SERVE,
    "dgl_runtime/serve/media.py": ("tests/runtime/serve/test_media.py",),
    "dgl_runtime/gallery/filters.py": (*GALLERY, "tests/runtime/commands/test_search_cli.py"),
    "dgl_runtime/gallery/nearest.py": (
        "tests/runtime/gallery/test_search.py",
        "tests/runtime/gallery/test_nearest.py",
    ),
    "dgl_runtime/gallery/local_vector_store.py": (
        "tests/runtime/gallery/test_damage.py",
        "tests/runtime/gallery/test_nearest.py",
        "tests/runtime/gallery/test_search.py",
        "tests/runtime/gallery/test_local_vector_store.py",
        "tests/runtime/gallery/test_vector_stores.py",
    ),
    "dgl_runtime/bundle/manifest.py": ("tests/runtime/bundle/test_manifest.py", *BUNDLE),
    "dgl_runtime/bundle/cleaning.py": (
        "tests/runtime/bundle/test_cleaning.py",
        "tests/runtime/bundle/test_tokenizer.py",
    ),
    "dgl_runtime/bundle/golden.py": (*BUNDLE, "tests/runtime/encoder/test_input_check.py"),
    "dgl_runtime/bundle/folder.py": BUNDLE,
    "dgl_runtime/encoder/self_check.py": BUNDLE,
    "dgl_runtime/encoder/input_check.py": (
        "tests/runtime/encoder/test_input_check.py",
        "tests/export/test_parity.py",
    ),
    "dgl_runtime/search/metrics.py": ("tests/runtime/search/test_metrics.py",),
    "dgl_runtime/search/querybank.py": ("tests/runtime/search/test_querybank.py",),
    "dgl_runtime/bundle/tokenizer.py": (
        "tests/runtime/bundle/test_tokenizer.py",
        "tests/train/data/test_vocabulary.py",
    ),
    "dgl_runtime/decoding/read_video.py": ("tests/runtime/decoding/test_read_video.py",),
    "dgl_runtime/media/windows.py": ("tests/runtime/media/test_windows.py",),
    "dgl_runtime/media/boxes.py": VIDEO,
    "dgl_runtime/media/clock.py": VIDEO,
    "dgl_runtime/media/container.py": VIDEO,
    "dgl_runtime/media/segmentation.py": (
        *VIDEO,
        "tests/runtime/decoding/test_decode_pool.py",
        *GALLERY,
        "tests/runtime/indexing/test_shots.py",
    ),
    "dgl_runtime/media/encryption.py": ("tests/runtime/media/test_encryption.py",),
    "dgl_runtime/media/frame_reader.py": VIDEO,
    "dgl_runtime/media/packet_index_cache.py": VIDEO,
    "dgl_runtime/media/orientation.py": VIDEO,
    "dgl_runtime/media/packet_index.py": VIDEO,
    "dgl_runtime/media/packet_pass.py": VIDEO,
    "dgl_runtime/media/pixels.py": ("tests/runtime/media/test_pixels.py",),
    "dgl_runtime/media/preview.py": PREVIEW,
    "dgl_runtime/media/preview_sound.py": PREVIEW,
    "dgl_runtime/media/truncation.py": VIDEO,
    "dgl_runtime/media/shots.py": ("tests/runtime/media/test_shots.py",),
    "dgl_runtime/media/stills.py": ("tests/runtime/media/test_stills.py",),
    "dgl_runtime/gallery/gallery.py": (*RECORDS, "tests/runtime/gallery/test_vector_stores.py"),
    "dgl_runtime/gallery/records.py": RECORDS,
    "dgl_runtime/gallery/metadata.py": (
        "tests/runtime/gallery/test_metadata.py",
        "tests/runtime/gallery/test_filters.py",
    ),
    "dgl_runtime/tables/csv_cells.py": TABLES,
    "dgl_runtime/tables/table.py": TABLES,
    "dgl_runtime/tables/text_files.py": TABLES,
    "dgl_runtime/names.py": ("tests/runtime/test_names.py",),
    "dgl_runtime/media/video_files.py": (
        "tests/runtime/media/test_video_files.py",
        "tests/runtime/indexing/test_exclusions.py",
    ),
    "dgl_runtime/indexing/index.py": (
        "tests/runtime/indexing/test_index.py",
        "tests/runtime/indexing/test_ledger.py",
    ),
    "dgl_runtime/indexing/ledger.py": (
        "tests/runtime/indexing/test_ledger.py",
        "tests/runtime/indexing/test_changes.py",
    ),
    "dgl_runtime/indexing/sought.py": INDEXING,
    "dgl_export/parity.py": ("tests/export/test_parity.py",),
    "dgl_export/quality.py": (
        "tests/export/test_quality*.py",
        "tests/export/test_halves.py",
        DOCUMENTED,
    ),
    "dgl_export/request.py": ("tests/export/test_request.py", DOCUMENTED),
    "dgl_export/bundle_writer.py": (
        "tests/export/test_bundle_writer.py",
        "tests/export/test_lower_precision.py",
    ),
    "dgl_export/fold.py": FOLD,
    "dgl_export/folded_block.py": FOLD,
    "dgl_export/folded_text_encoder.py": FOLD,
    "dgl_export/folded_clip_encoder.py": FOLD,
    "dgl_export/folded_ends.py": FOLD,
    "dgl_export/plain.py": FOLD,
    "dgl_export/lower_precision.py": (
        "tests/export/test_halves.py",
        "tests/export/test_lower_precision*.py",
        "tests/export/test_smooth.py",
        DOCUMENTED,
    ),
    "dgl_train/training/gradient_cache.py": (
        "tests/train/training/test_gradient_cache.py",
        "tests/train/training/test_losses.py",
    ),
    "dgl_train/training/losses.py": (
        "tests/train/training/test_gradient_cache.py",
        "tests/train/training/test_losses.py",
    ),
    "dgl_train/evaluation/evaluate.py": ("tests/train/evaluation/test_evaluate.py",),
    "dgl_train/data/datasets.py": DATASETS,
    "dgl_train/data/published.py": ("tests/train/data/test_published.py",),
    "dgl_train/data/annotation_files.py": DATASETS,
    "dgl_train/evaluation/post_process.py": ("tests/train/evaluation/test_post_process.py",),
}
SLOW_OR_FETCHING = ("test_real_clips", "test_mutated_videos", "test_browser", "test_full_size")
UNSEEN = Path(__file__).parent / "mutation" / "unseen.toml"


@dataclass
class Count:
    """What became of a module's mistakes."""

    module: str
    tried: int = 0
    noticed: int = 0
    unseen: int = 0

    def __str__(self) -> str:
        share = f"{100 * self.noticed / self.tried:.0f} %" if self.tried else "-"
        return f"| {self.module} | {self.tried} | {self.noticed} | {share} | {self.unseen} |"


@click.command()
@click.argument("modules", nargs=-1)
@click.option("--all", "all_modules", is_flag=True, help="All modules of the table.")
@click.option("--most", default=60, help="Mistakes tried in each module, drawn by chance; 0: all.")
@click.option("--seed", default=0)
@click.option("--tests", multiple=True, help="Test files to run in place of the table's.")
@click.option("--line", "lines", multiple=True, type=int, help="Mistakes on these lines alone.")
@click.option("--verbose", is_flag=True, help="Tell of each mistake which test noticed it.")
def mutate(modules, all_modules, most, seed, tests, lines, verbose):
    """Tell which single mistakes in MODULES no test notices."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # then what is temporary goes, too
    modules = tuple(TESTS_OF) if all_modules else modules
    for module in modules:
        if module not in TESTS_OF and not tests:
            raise click.UsageError(f"no tests are known of {module}; give --tests.")
    with _fixtures():
        counts = [_try(module, most, seed, tests, lines, verbose) for module in modules]
    click.echo(
        "\n| module | mistakes | noticed | share | unseen, with a reason |\n|---|---|---|---|---|"
    )
    for count in counts:
        click.echo(count)


def _try(module, most, seed, tests, lines, verbose) -> Count:
    count = Count(module)
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as folder:
        suite = Suite(module, tests or TESTS_OF[module], Path(folder))
        suite.files = [f for f in suite.files if not any(name in f for name in SLOW_OR_FETCHING)]
        warm_up(suite.files)
        started = time.monotonic()
        baseline = suite.baseline()
        click.echo(
            f"{module}: {len(baseline.durations)} tests in {time.monotonic() - started:.0f} s",
            err=True,
        )
        for test in baseline.failing:
            click.echo(f"  fails without a mistake, left out: {test}", err=True)
        unseen = _unseen(module, suite.source)
        for mistake in _drawn(module, suite.source, most, seed, lines):
            before, after = mistake.lines(suite.source)
            if reason := unseen.get((before, after), unseen.get((before, ""))):
                count.unseen += 1
                click.echo(f"{module}:{mistake.line} unseen: {reason}\n  - {before}\n  + {after}")
                continue
            count.tried += 1
            end = mistake.line + suite.source[mistake.start : mistake.end].count("\n")
            chosen = baseline.tests_of(range(mistake.line, end + 1))
            who = suite.notices(mistake.changed(suite.source), chosen, baseline)
            count.noticed += who is not None
            if who is None or verbose:
                told = f"noticed by {who}" if who else f"survives {len(chosen)} tests"
                click.echo(
                    f"{module}:{mistake.line} {mistake.kind}, {told}\n  - {before}\n  + {after}"
                )
            sys.stdout.flush()
    click.echo(count, err=True)
    return count


def _drawn(module, source, most, seed, lines) -> list[Mistake]:
    found = [one for one in mistakes(source) if not lines or one.line in lines]
    if most and len(found) > most:
        found = random.Random(f"{seed} {module}").sample(found, most)
    return sorted(found, key=lambda one: (one.start, one.end, one.text))


def _unseen(module: str, source: str) -> dict[tuple[str, str], str]:
    """Reasons, by the line before and after; after is empty where every mistake of the line is meant."""
    listed = tomllib.loads(UNSEEN.read_text(encoding="utf-8")).get(module, [])
    present = {one.lines(source) for one in mistakes(source)}
    present |= {(before, "") for before, _ in present}
    found = {(one["line"], one.get("becomes", "")): one["reason"] for one in listed}
    for before, after in found.keys() - present:
        click.echo(
            f"{UNSEEN.name}: {module} has no such line any more: {before} -> {after}", err=True
        )
    return found


@contextmanager
def _fixtures() -> Iterator[None]:
    """The bundles and gallery that many tests begin with, made once of what has no mistake."""
    if "DGL_TEST_FIXTURES" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        made = Path(folder) / "fixtures"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, ROOT / "tests" / "make_fixtures.py", made], check=True, env=environment
        )
        os.environ["DGL_TEST_FIXTURES"] = str(made)
        yield


if __name__ == "__main__":
    mutate()
