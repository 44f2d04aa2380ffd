"""What dgl-bench decode tells: the tables, their notes and the JSON document."""

import datetime
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.decode import FORMS, SAME, SLOW, WARM_UP, ClipResult, DecodeResult
from benchmarks.decoders import DECODERS, FRAME_SIZE, NUM_FRAMES, OURS
from benchmarks.machine import PACKAGES, describe_machine
from benchmarks.report import Report, Table, spread_cells, with_threads

VERSIONS = ("av", "pillow", "decord2", "torchcodec", "opencv-python-headless")
TITLES = {
    "frames": f"{NUM_FRAMES} frames, ms",
    "clip": f"{NUM_FRAMES} frames made small ({FRAME_SIZE} pixels), ms",
}


def make_report(result: DecodeResult) -> Report:
    """Tables for people, every raw number for programs."""
    return Report(
        name=with_threads("decode", result.threads),
        title=f"Reading {NUM_FRAMES} frames of a clip",
        date=datetime.date.today().isoformat(),
        machine=describe_machine((*PACKAGES, *VERSIONS)),
        settings={
            "frames": NUM_FRAMES,
            "frame_size": FRAME_SIZE,
            "threads": result.threads,
            "rounds": result.rounds,
            "warm_up": WARM_UP,
        },
        tables=[
            *(_time_table(form, result.clips) for form in FORMS),
            _sight_table(result),
            _work_table(result.clips),
        ],
        notes=_notes(result),
        data={
            "load_before": result.load_before,
            "clips": [_numbers(clip) for clip in result.clips],
            "missing": {one.name: one.install for one in result.missing},
        },
    )


def _time_table(form: str, clips: Sequence[ClipResult]) -> Table:
    names = [one.name for one in DECODERS if one.is_installed]
    rows = []
    for clip in clips:
        speedup, rival = clip.speedup(form), clip.rival(form)
        faster = spread_cells(speedup, 2) if speedup else ["", "", ""]
        rows.append([clip.name, *(_cell(clip, form, name) for name in names), rival or "", *faster])
    columns = ["clip", *names, "rival", "faster", "p10", "p90"]
    return Table(TITLES[form], columns, rows)


def _cell(clip: ClipResult, form: str, name: str) -> str:
    if name in clip.paired[form].times_ms:
        return f"{clip.paired[form].spread_ms(name).median:.0f}"
    once = clip.once_ms[form].get(name)
    return "failed" if once is None else f"{once:.0f} (once)"


def _sight_table(result: DecodeResult) -> Table:
    rows = []
    for one in DECODERS:
        if not one.is_installed:
            rows.append([f"{one.name}: not installed ({one.install})", *[""] * 4])
            continue
        sights = {
            clip.name: clip.sights[one.name] for clip in result.clips if one.name in clip.sights
        }
        off = [sight.pixels_off for sight in sights.values()]
        others = sum(sight.other_frames for sight in sights.values())
        rows.append(
            [
                one.name,
                "yes" if one.needs_torch else "no",
                one.resizer,
                f"{others} of {NUM_FRAMES * len(sights)}",
                f"{max(off):.2f}" if off else "",
            ]
        )
    columns = ["decoder", "needs torch", "made small by", "other frames", "pixels off"]
    return Table("What they return", columns, rows, text_columns=3)


def _work_table(clips: Sequence[ClipResult]) -> Table:
    rows = [
        [
            clip.name,
            str(clip.work.num_frames),
            str(clip.work.keyframes),
            str(clip.work.packets_read),
            str(clip.work.frames_decoded),
            f"{clip.work.open_ms:.1f}",
            f"{clip.work.index_ms:.1f}",
            f"{clip.work.frames_ms:.1f}",
            f"{clip.work.resize_ms:.1f}",
        ]
        for clip in clips
    ]
    columns = [
        "clip",
        "frames",
        "keyframes",
        "read",
        "decoded",
        "open",
        "index",
        "frames ms",
        "resize",
    ]
    return Table(f"Where the time of {OURS} goes, one thread, ms", columns, rows)


def _notes(result: DecodeResult) -> list[str]:
    failed = {
        name: f"{clip.name}: {why}" for clip in result.clips for name, why in clip.failures.items()
    }
    return [
        "Every call opens the file anew; files are in the page cache. Every round runs every decoder once, "
        "in rotating order; times are wall clock, medians over rounds.",
        "Rival: the fastest decoder without torch. Faster: its time divided by ours, median, p10 and p90 "
        "over rounds.",
        f"(once): a call took over {SLOW} times ours, and it was not timed further.",
        "Other frames: of all clips, those that show another moment than the centre of their segment, by "
        f"matching with a plain pass over the video (more than {SAME} grey levels nearer to another frame). "
        f"The frames of {OURS} are equal to the plain pass, or there would be no report.",
        f"Pixels off: mean absolute difference of the small frames from those of {OURS}, which are bit-equal "
        "to the bicubic resize CLIP was trained with; the largest of all clips.",
        f"read: packets given to the decoder of {OURS}; decoded: frames that came out, the others were "
        "skipped or dropped at a seek. open: part of index and of frames. index: read once a file.",
        *(f"{name} failed on {why}." for name, why in failed.items()),
        f"Load average before the run: {result.load_before}.",
    ]


def _numbers(clip: ClipResult) -> dict[str, object]:
    """A clip's numbers as JSON types."""
    forms: dict[str, object] = {}
    for form in FORMS:
        speedup, paired = clip.speedup(form), clip.paired[form]
        forms[form] = {
            "rival": clip.rival(form),
            "speedup": asdict(speedup) if speedup else None,
            "ms": {name: asdict(paired.spread_ms(name)) for name in paired.times_ms},
            "times_ms": paired.times_ms,
            "once_ms": clip.once_ms[form],
        }
    return {
        "clip": clip.name,
        "work": asdict(clip.work),
        **forms,
        "sights": {name: asdict(sight) for name, sight in clip.sights.items()},
        "failures": clip.failures,
    }
