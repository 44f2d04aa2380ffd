"""Videos are verified before they are used: each is really decoded, and one that fails is left out by name."""

import csv
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field
from pathlib import Path

from dgl_runtime.decoding.decode_process import LostWorkerError
from dgl_runtime.decoding.workers import Worker, Workers
from dgl_runtime.errors import ConfigError, MediaError
from dgl_runtime.media.container import media_faults, one_line
from dgl_runtime.media.content_hash import content_hash
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.names import form_hint, similar_path
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.read_processes import lost_at, read_workers
from dgl_train.data.verify_cache import FileState, Finding, open_cache, state_of

_REASONS_NAMED = 3
_IT = "this video"  # in place of the path, which may be another when a finding is read again
_FEW = 32  # videos that are examined sooner than processes start

Examined = tuple[Path, str | None, Finding]
"""A video, the hash of its content (None: it has none) and what was found."""


@dataclass(frozen=True)
class Verified:
    """What is left of a data set.

    Attributes:
        clips: Those that can be read, in the order given.
        faults: Video -> why it, or a clip of it, is left out.
        remarks: Video -> what is odd about it, although it can be used.
    """

    clips: list[CaptionedClip]
    faults: dict[Path, str]
    remarks: dict[Path, str] = field(default_factory=dict)


def verify_videos(
    clips: Sequence[CaptionedClip], *, jobs: int | None = None, progress: bool = True
) -> Verified:
    """Keep the clips that can be read; the arguments are those of ``find_faults``.

    Raises:
        ConfigError: Nothing is left of a split.
    """
    verified = find_faults(clips, jobs=jobs, progress=progress)
    left = {clip.split for clip in verified.clips}
    for split in dict.fromkeys(clip.split for clip in clips):
        if split not in left:
            videos = list(dict.fromkeys(clip.video for clip in clips if clip.split == split))
            raise ConfigError(_why_nothing_is_left(split, videos, verified.faults))
    return verified


def _why_nothing_is_left(split: str, videos: Sequence[Path], faults: Mapping[Path, str]) -> str:
    if not any(video.exists() for video in videos):
        return (
            f"no video of split {split} is there, of {len(videos)}; the first is looked for as "
            f"{videos[0]}{form_hint(similar_path(videos[0]))}. Check --data-root; docs/datasets.md "
            "says where videos lie."
        )
    reasons = " ".join(f"{video}: {faults[video]}" for video in videos[:_REASONS_NAMED])
    return (
        f"no clip of split {split} can be read, of {len(videos)} videos. The first: {reasons} "
        "See dgl-data check."
    )


def find_faults(
    clips: Sequence[CaptionedClip], *, jobs: int | None = None, progress: bool = True
) -> Verified:
    """Examine the video of every clip; a video that was examined before is not opened again.

    Findings are stored as they come: a run that is interrupted goes on where it was.

    Args:
        clips: The clips.
        jobs: Processes that decode; None: one for each core.
        progress: Draw a progress bar on stderr if it is a terminal.

    Raises:
        ConfigError: The cache of findings cannot be used.
        MediaError: A process that decodes was killed; what it looked into is not to blame.
    """
    videos = list(dict.fromkeys(clip.video for clip in clips))
    found = _examine_all(videos, jobs or os.cpu_count() or 1, progress=progress)
    kept: list[CaptionedClip] = []
    faults: dict[Path, str] = {}
    for clip in clips:
        fault = _fault_of(clip, found[clip.video])
        if fault is None:
            kept.append(clip)
        else:
            faults.setdefault(clip.video, fault)
    remarks = {video: found[video].remark for video in videos if video not in faults}
    return Verified(kept, faults, {video: said for video, said in remarks.items() if said})


def write_dropped(path: Path, faults: Mapping[Path, str]) -> None:
    """Write which videos are left out and why: a csv with the columns video and reason."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("video", "reason"), *faults.items()])


def examine(
    path: Path,
    is_file: bool,
    known: Callable[[str], Finding | None],
    sign: Callable[[], None] = lambda: None,
) -> tuple[str | None, Finding]:
    """Examine a video unless its content is known.

    Args:
        path: The video.
        is_file: Whether it is a regular file, which has a content.
        known: Content -> what was found in it before.
        sign: Called now and then, to show that work goes on.

    Returns:
        The sha256 of its content, if there is one, and what was found.
    """
    if not is_file:
        return None, examine_video(path, sign)
    try:
        content = content_hash(path, sign)
    except MediaError as error:
        return None, Finding(0.0, str(error).replace(str(path), _IT))
    return content, known(content) or examine_video(path, sign)


def examine_video(path: Path, sign: Callable[[], None] = lambda: None) -> Finding:
    """Decode a whole video; ``sign`` is called with every frame.

    Returns:
        Where it ends and what is odd about it, or its fault.
    """
    try:
        index = read_index(path)
        if index.is_still:
            return Finding(0.0, f"{_IT} is a picture, expected a video. Get it again.")
        # Every frame: training looks at any moment, and a damaged stretch may lie between any two.
        for _ in FrameReader(path, index).read(range(len(index.shown))):
            sign()
    except MediaError as error:
        return Finding(0.0, str(error).replace(str(path), _IT))
    except media_faults() as error:
        return Finding(0.0, f"{_IT} cannot be read ({one_line(error)}). Get it again.")
    if index.missing is not None:
        return Finding(index.end_s, f"{_IT} {index.missing}")
    return Finding(index.end_s, None, "; ".join(index.remarks) or None)


def _fault_of(clip: CaptionedClip, finding: Finding) -> str | None:
    """Why a clip cannot be read; its end is cut off at the video's, as ``read_clips`` does."""
    if finding.fault is None and (clip.start_s or 0.0) >= finding.end_s:
        return (
            f"its clip from {clip.start_s or 0:g} s on lies outside: {_IT} lasts "
            f"{finding.end_s:g} s. Check the times."
        )
    return finding.fault


def _examine_all(videos: Sequence[Path], jobs: int, *, progress: bool) -> dict[Path, Finding]:
    from tqdm import tqdm

    with open_cache() as cache:
        findings, contents = cache.findings(), cache.contents()
        states = {video: state_of(video) for video in videos}
        found = {
            video: findings[contents[state]]
            for video, state in states.items()
            if state is not None and state in contents
        }
        rest = {video: state for video, state in states.items() if video not in found}
        with (
            closing(_examined(rest, findings, jobs)) as examined,
            tqdm(
                desc="verify",
                total=len(videos),
                initial=len(found),
                unit="video",
                disable=None if progress else True,
            ) as bar,
        ):
            for video, content, finding in examined:
                state = states[video]
                if state is not None and content is not None:
                    cache.store(state, content, finding)
                    findings[content] = finding
                found[video] = finding
                bar.update()
    return found


def _examined(
    states: Mapping[Path, FileState | None], findings: Mapping[str, Finding], jobs: int
) -> Generator[Examined, None, None]:
    """Examine videos in this process or several, in any order; ``findings`` may grow meanwhile."""
    if jobs > 1 and len(states) >= _FEW:
        yield from _examined_apart(states, findings, min(jobs, len(states)))
        return
    for video, state in states.items():
        content, finding = examine(video, state is not None, findings.get)
        yield video, content, finding


def _examined_apart(
    states: Mapping[Path, FileState | None], findings: Mapping[str, Finding], jobs: int
) -> Generator[Examined, None, None]:
    waiting, crashed = deque(states), set[Path]()
    workers: Workers[Path] = read_workers(jobs)
    with workers:
        while waiting or workers.are_busy:
            while waiting and workers.have_room:
                video = waiting.popleft()
                workers.begin(video, {"path": str(video), "is_file": states[video] is not None})
            for worker in workers.speaking():
                video = worker.task
                try:
                    found, is_done = _hear(worker, findings)
                except LostWorkerError as loss:
                    workers.dismiss(worker)
                    fault = lost_at(video, loss, "--jobs of dgl-data check")
                    if not loss.is_videos_fault:
                        raise MediaError(
                            f"{fault} Run it again: what was verified is kept."
                        ) from loss
                    if video in crashed:
                        yield video, None, Finding(0.0, str(fault).replace(str(video), _IT))
                    else:  # once may be chance
                        waiting.append(video)
                        crashed.add(video)
                    continue
                if is_done:
                    workers.release(worker)
                if found is not None:
                    yield video, *found


def _hear(
    worker: Worker[Path], findings: Mapping[str, Finding]
) -> tuple[tuple[str | None, Finding] | None, bool]:
    """What a worker found, if anything, and whether it is done with its video."""
    message = worker.process.hear()
    if "content" in message:
        known = findings.get(message["content"])
        worker.process.say(known and astuple(known))
    if "found" in message:
        content, *finding = message["found"]
        return (content, Finding(*finding)), False
    if (fault := message.get("done")) is not None:  # of this machine, such as too little memory
        return (None, Finding(0.0, fault.replace(str(worker.task), _IT))), True
    return None, "done" in message
