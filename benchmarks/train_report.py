"""What dgl-bench train tells: the table, its notes and the JSON document."""

import datetime
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.report import Report, Table, spread_cells
from benchmarks.train_memory import WARM_UP, TrainResult


def make_report(result: TrainResult) -> Report:
    """A table for people, every raw number for programs."""
    spec = next(iter(result.specs.values()))
    device = next(iter(result.measured.values()))[0].device
    recipe = spec.recipe
    return Report(
        name="train",
        title="Time and memory of a training step",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings={
            "backbone": Path(recipe.backbone).name,
            "pretrained": Path(recipe.pretrained).name or "none (random weights)",
            "batch_size": recipe.batch_size,
            "num_frames": recipe.num_frames,
            "max_words": recipe.max_words,
            "steps": spec.steps,
            "warm_up": WARM_UP,
            "rounds": result.rounds,
            "threads": spec.threads,
            "device": device,
        },
        tables=[_table(result)],
        notes=_notes(result),
        data={
            "load_before": result.load_before,
            "methods": [_numbers(result, method) for method in result.specs],
        },
    )


def _table(result: TrainResult) -> Table:
    rows = []
    for method, measured in result.measured.items():
        added, whole = result.peak_bytes(method)
        rows.append(
            [
                method,
                f"{measured[0].trained_parameters / 1e6:.3f}",
                *spread_cells(result.step_s(method), 3),
                f"{added / 1e9:.2f}",
                f"{whole / 1e9:.2f}",
            ]
        )
    columns = ["method", "trained, M", "s a step", "p10", "p90", "memory GB", "process GB"]
    return Table("A training step", columns, rows)


def _notes(result: TrainResult) -> list[str]:
    return [
        "Every measurement has a fresh process; every round measures every method once, in rotating order.",
        "A step: forward, backward and optimizer on one random batch in memory, with captions of the "
        "full length. Reading videos and tokenizing are not part of it.",
        "Seconds: median, p10 and p90 over the steps of all rounds.",
        "Memory: the process's peak less its peak before the backbone was read; process: all of it. On a GPU "
        "both are the peak of torch's tensors. Medians over rounds, 1e9 bytes.",
        f"Load average before the run: {result.load_before}.",
    ]


def _numbers(result: TrainResult, method: str) -> dict[str, object]:
    """A method's numbers as JSON types."""
    added, whole = result.peak_bytes(method)
    return {
        "method": method,
        "trained_parameters": result.measured[method][0].trained_parameters,
        "step_s": asdict(result.step_s(method)),
        "memory_bytes": added,
        "process_bytes": whole,
        "measurements": [asdict(one) for one in result.measured[method]],
    }
