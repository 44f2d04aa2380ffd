"""What dgl-bench operators tells: a table for each graph and engine, and the JSON document."""

import datetime
from dataclasses import asdict
from pathlib import Path

from benchmarks.encode_variants import CLIP
from benchmarks.machine import describe_machine
from benchmarks.operators import Operators, Profile
from benchmarks.report import Report, Table, with_threads

LEAST = 0.01  # of a call; operators that take less share a row


def make_report(result: Operators) -> Report:
    """Tables for people, every raw number for programs."""
    settings = result.settings
    return Report(
        name=with_threads("operators", settings.threads),
        title="Where an engine's time goes",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings={
            "backbone": Path(settings.backbone).name,
            "pretrained": Path(settings.pretrained).name or "none (random weights)",
            "num_frames": settings.num_frames,
            "threads": settings.threads,
            "rounds": settings.rounds,
        },
        tables=[_table(profile, result) for profile in result.profiles],
        notes=[
            "Operators as the engine names them after its own fusions, and their milliseconds in one "
            "query or clip by its own profile, mean over rounds.",
            "Outside operators: the median call without profiling, less all operators; below zero, "
            "profiling itself cost time.",
            "At the matrix peak: the time of the graph's matrix products if they ran as fast as one "
            "large product of the same precision in torch.",
        ],
        data={
            "peaks": asdict(result.peaks),
            "profiles": [asdict(one) | {"outside_ms": one.outside} for one in result.profiles],
        },
    )


def _table(one: Profile, result: Operators) -> Table:
    frames, tokens = result.settings.num_frames, result.inputs.tokens.shape[1]
    subject = f"{frames} frames" if one.task == CLIP else f"{tokens} tokens"
    peak = result.peaks.flop_per_s.get(one.precision)
    least = f", at the matrix peak {1000 * one.work.flop / peak:.2f}" if peak else ""
    large = [share for share in one.shares if share.ms >= LEAST * one.ms]
    small = one.shares[len(large) :]
    rows = [(share.operator, str(share.nodes), share.ms) for share in large]
    if small:
        nodes = str(sum(share.nodes for share in small))
        rows.append((f"{len(small)} others", nodes, sum(share.ms for share in small)))
    rows.append(("outside operators", "", one.outside))
    return Table(
        f"{one.method}, {one.task} ({subject}), {one.variant}: {one.ms:.2f} ms{least}",
        ["operator", "nodes", "ms", "share"],
        [[name, nodes, f"{ms:.2f}", f"{ms / one.ms:.1%}"] for name, nodes, ms in rows],
    )
