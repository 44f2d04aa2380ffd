"""What demo.sh made, as one table: ``python examples/demo_table.py demo``."""

import json
import statistics
import sys
import time
from pathlib import Path

import click

from dgl_runtime import Retriever

ROWS = {"zero-shot": "zero_shot.json", "tuned": "tuned.json", "exported": "exported.json"}
QUERY = "a red circle moves left over a dark background"
ROUNDS, WARM_UP = 50, 3


def main(folder: Path) -> None:
    """Print recall before and after tuning, parity, and the median time from text to hits."""
    click.echo(f"{'T2V on test':12}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'order':>8}")
    for name, file in ROWS.items():
        try:
            report = json.loads((folder / file).read_text(encoding="utf-8"))
            recall = report["text_to_video"]
            figures = (recall["r1"], recall["r5"], recall["r10"], report["direction_score"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            sys.exit(f"{folder / file} is not a report of dgl-eval --json: {error}. Run ./demo.sh.")
        click.echo(f"{name:12}" + "".join(f"{number:>8.1f}" for number in figures))
    with Retriever(folder / "bundle", folder / "gallery") as retriever:
        parity = retriever.bundle.manifest.parity
        times_ms = []
        for _ in range(WARM_UP + ROUNDS):
            started = time.perf_counter()
            retriever.search(QUERY, top_k=3)
            times_ms.append(1000 * (time.perf_counter() - started))
        size = len(retriever.gallery)
    click.echo(f"parity       largest difference {parity.max_abs:.1e} from the trained model")
    median_ms = statistics.median(times_ms[WARM_UP:])
    click.echo(
        f"query        {median_ms:.1f} ms, text to hits among {size} clips (median of {ROUNDS})"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
