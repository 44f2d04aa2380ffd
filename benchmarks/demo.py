"""dgl-bench demo: what demo.sh made, as one table."""

import json
import statistics
import time
from pathlib import Path

from dgl_runtime import Retriever
from dgl_runtime.errors import ConfigError

ROWS = {"zero-shot": "zero_shot.json", "tuned": "tuned.json", "exported": "exported.json"}
QUERY = "a red circle moves left over a dark background"
ROUNDS = 50


def demo_table(folder: Path) -> str:
    """The demo's results for people.

    Args:
        folder: What demo.sh filled: reports of dgl-eval, ``bundle`` and ``gallery``.

    Raises:
        ConfigError: A report is missing.
    """
    lines = [f"{'T2V on test':12}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'order':>8}"]
    for name, file in ROWS.items():
        report = _read(folder / file)
        lines.append(f"{name:12}" + "".join(f"{number:>8.1f}" for number in report))
    with Retriever(folder / "bundle", folder / "gallery") as retriever:
        parity = retriever.bundle.manifest.parity
        latency_ms = median_latency_ms(retriever)
        size = len(retriever.gallery)
    lines.append(f"parity       largest difference {parity.max_abs:.1e} from the trained model")
    lines.append(
        f"query        {latency_ms:.1f} ms, text to hits among {size} clips (median of {ROUNDS})"
    )
    return "\n".join(lines)


def median_latency_ms(retriever: Retriever) -> float:
    """Median time of one search, from text to hits, after a warm-up."""
    times = []
    for _ in range(ROUNDS + 3):
        start = time.perf_counter()
        retriever.search(QUERY, top_k=3)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def _read(path: Path) -> tuple[float, float, float, float]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        recall = report["text_to_video"]
        return recall["r1"], recall["r5"], recall["r10"], float(report["direction_score"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a report of dgl-eval --json on shapes: {error}. Run ./demo.sh."
        ) from error
