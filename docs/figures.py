"""Figures of README and docs in sentences: which report each comes from, or who says so.

``passages`` are texts with fields, ``{}``, and what the reports give for them. ``STATED``, of stated.toml, are
texts whose figures no report of ours measured. Tables name their report where they stand.
"""

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MACHINES = ("amd-epyc", "intel-xeon-processor")  # whose reports there are, as file names have them
Row = dict[str, Any]


@dataclass(frozen=True)
class Passage:
    """Text of a document, with a value for each field."""

    document: str
    text: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stated:
    """Text of a document, or the heading of a section, with figures that others give or nobody measures."""

    document: str
    text: str
    source: str
    values: tuple[str, ...] = ()


def newest(name: str, suffix: str = "json") -> Path:
    """The newest report, or picture, of a name.

    Raises:
        LookupError: There is none.
    """
    found = [
        path
        for machine in MACHINES
        for path in RESULTS.glob(f"{name}-{machine}-????-??-??.{suffix}")
    ]
    if not found:
        raise LookupError(f"benchmarks/results holds no {name}-MACHINE-DATE.{suffix}")
    return max(found, key=lambda path: path.stem[-10:])


def machine_of(name: str) -> str:
    """Who made the processor, and what it is called: ``AMD EPYC``; nothing where no time was taken."""
    if (RESULTS / name).is_dir():
        return ""
    document = json.loads(newest(name).read_text(encoding="utf-8"))
    if not document.get("is_timed", True):
        return ""
    return " ".join(document["machine"]["cpu"].replace("(R)", "").split()[:2])


@cache
def report(name: str) -> dict[str, list[Row]]:
    """Tables of the newest report; of a folder, what dgl-eval said of each model in it.

    Raises:
        LookupError: There is none, or the machine did other work meanwhile.
    """
    if (RESULTS / name).is_dir():
        return {name: [_evaluated(path) for path in sorted((RESULTS / name).glob("*.json"))]}
    path = newest(name)
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["is_quiet"] is False:
        raise LookupError(f"{path.name} was taken beside other work. Measure again.")
    return dict(document["tables"])


def _evaluated(path: Path) -> Row:
    said = json.loads(path.read_text(encoding="utf-8"))
    row: Row = {"model": path.stem.replace("_", " ")}
    row |= {f"T2V R@{k}": said["text_to_video"][f"r{k}"] for k in (1, 5, 10)}
    row["V2T R@1"] = said["video_to_text"]["r1"]
    return row | {"direction, %": said["direction_score"]}


def rows(name: str, table: str = "", **wanted: object) -> list[Row]:
    """Rows of a report's table, by the beginning of its title, that have these values."""
    (held,) = [one for title, one in report(name).items() if title.startswith(table)]
    return [row for row in held if all(row.get(key) == one for key, one in wanted.items())]


def value(row: Row, column: str) -> float:
    """A number, or the median of a spread."""
    held = row[column]
    return float(held["median"] if isinstance(held, dict) else held)


@cache
def passages() -> list[Passage]:
    """Every sentence with figures of ours."""
    return [*_encoding(), *_searching(), *_decoding(), *_training()]


def _encoding() -> list[Passage]:
    found = [one for kind in ("Queries", "Clips") for one in rows("encode-2-threads", kind)]
    timed = [one for one in found if one.get("cosine") is not None]

    def least(precision: str) -> str:
        lowest = min(one["cosine"] for one in timed if one["precision"] == precision)
        return f"{int(1e4 * lowest) / 1e4:.4f}"

    off = max(one["off by"] for one in timed if one["precision"] == "fp32")
    settings = json.loads(newest("encode-2-threads").read_text(encoding="utf-8"))["settings"]
    rates = [word.strip(",") for word in settings["peaks"].split() if word[0].isdigit()]
    clip = [
        f"{value(one, 'ms'):.0f}"
        for variant in ("torch, unfolded", "OpenVINO bf16", "OpenVINO int8")
        for one in rows(
            "encode-2-threads", "Clips", batch=1, method="dgl-transformer", variant=variant
        )
    ]
    return [
        Passage(
            "README.md",
            "DGL-transformer: {} ms unfolded, {} in OpenVINO bf16, {} in int8.",
            tuple(clip),
        ),
        Passage(
            "README.md",
            "fp32 equals the unfolded model to {}; bf16 keeps a cosine of {}, int8 of {} at least.",
            (f"{off:.0e}".replace("e-0", "e-"), least("bf16"), least("int8")),
        ),
        Passage(
            "docs/performance.md",
            "torch reaches {} GFLOP/s in fp32, {} in bf16 and {} GOP/s in int8 here, on two threads, "
            "and reads or copies {} GB/s.",
            tuple(rates),
        ),
    ]


def _searching() -> list[Passage]:
    found = {row["search"]: row for row in rows("search-libraries", "One query", clips=1_000_000)}
    (said,) = [
        note.split()[-2]
        for note in json.loads(newest("search-libraries").read_text(encoding="utf-8"))["notes"]
        if note.startswith("One thread moves")
    ]
    return [
        Passage(
            "docs/performance.md",
            "At a million clips ours takes {} times as long as FAISS HNSW and {} times as long as hnswlib "
            "in turns with the others, {} and {} times alone.",
            tuple(
                f"{found['ours approximate'][column] / found[one][column]:.2f}"
                for column in ("p50 ms", "median ms")
                for one in ("FAISS HNSW", "hnswlib")
            ),
        ),
        Passage(
            "docs/performance.md",
            "numpy's, at {} % of what one thread of torch reads or copies ({} GB/s); FAISS reaches {} %.",
            tuple(
                said if one is None else f"{found[one]['of bandwidth, %']:.0f}"
                for one in ("ours exact", None, "FAISS flat")
            ),
        ),
    ]


_FORMS = ("pictures", "made small")


def _faster(name: str, rivals: tuple[str, ...]) -> dict[str, list[float]]:
    """Of each clip: the fastest of some rivals' median time divided by ours, in both forms."""
    found: dict[str, list[float]] = {}
    for form in _FORMS:
        for clip in dict.fromkeys(row["clip"] for row in rows(name, "12 frames")):
            row = {one["decoder"]: one for one in rows(name, "12 frames", clip=clip)}
            best = min(
                value(one, f"{form} ms")
                for decoder, one in row.items()
                if decoder.startswith(rivals) and one.get(f"{form} ms") is not None
            )
            found.setdefault(clip, []).append(best / value(row["dgl_runtime"], f"{form} ms"))
    return found


def _decoding() -> list[Passage]:
    torch_free = ("decord2", "OpenCV")
    one = _faster("decode-libraries-1-thread", torch_free)
    made = [ratio for clip, both in one.items() if "gop" in clip for ratio in both]
    real = [ratio for clip, both in one.items() if "gop" not in clip for ratio in both]
    ends = [f"{end:.1f}" for some in (made, real) for end in (min(some), max(some))]
    return [
        Passage(
            "docs/performance.md",
            "that is {} to {} times as fast on made clips, {} to {} times on the three real ones.",
            tuple(ends),
        ),
    ]


def _training() -> list[Passage]:
    paper = {row["variant"]: row for row in rows("experiments-paper", "shapes")}

    def mean(variant: str, figure: str = "T2V R@1") -> str:
        return str(paper[variant][figure].split()[0])

    linear, positions, negatives = (
        "DGL-linear",
        "DGL-linear + frame positions",
        "... + reversed negatives",
    )
    alike = [
        mean(one)
        for one in (
            *(linear, "projection text to visual", "without global-local attention"),
            *(f"output: {one}" for one in ("mean of globals", "mean of frames", "mean of both")),
            "output: global and local",
        )
    ]
    trained = {row["method"]: row for row in rows("train")}
    full, dgl = trained["full"], trained["dgl-linear"]
    demo = {row["model"]: row for row in rows("demo")}
    ends = (demo["zero shot"], demo["tuned"])
    lifted = [f"{one[key]:.1f}" for key in ("T2V R@1", "direction, %") for one in ends]
    page = "docs/experiments.md"
    return [
        Passage(
            "README.md",
            "R@1 from {} to {}, and direction, the share of clips nearer to their own caption than to "
            "that of the reversed event, from {} to {} %.",
            tuple(lifted),
        ),
        Passage(
            page,
            "in every seed: R@1 from {} to {} (linear) and {} (transformer).",
            (mean("zero-shot"), mean(linear), mean("DGL-transformer")),
        ),
        Passage(
            page,
            "against frame attention and a mean: {} to {}.",
            (min(alike, key=float), max(alike, key=float)),
        ),
        Passage(
            page,
            "prompts that differ from frame to frame ({} %).",
            (mean("DGL-transformer", "direction"),),
        ),
        Passage(
            page,
            "direction from {} to {} %, R@1 from {} to {}. **Reversed negatives** with them: {} % and {}, for",
            (
                mean(linear, "direction"),
                mean(positions, "direction"),
                mean(linear),
                mean(positions),
                mean(negatives, "direction"),
                mean(negatives),
            ),
        ),
        Passage(
            page,
            "positions give the best direction score, {} %,",
            (mean("DGL-transformer + frame positions", "direction"),),
        ),
        Passage(
            page,
            "DGL-linear needs {} % of full fine-tuning's memory and {} % of its time.",
            tuple(
                f"{100 * value(dgl, one) / value(full, one):.0f}"
                for one in ("memory GB", "s a step")
            ),
        ),
    ]


STATED = [
    Stated(document, text, source)
    for document, texts in tomllib.loads(
        (ROOT / "docs" / "stated.toml").read_text(encoding="utf-8")
    ).items()
    for text, source in texts.items()
]
