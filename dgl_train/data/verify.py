"""Videos are verified before they are used: each is really decoded, and one that fails is left out by name."""

import csv
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from dgl_runtime.decoding.decode_pool import DecodePool
from dgl_runtime.decoding.read_video import Done, Job, Reader, ReadHere, read_video
from dgl_runtime.errors import ConfigError, MediaError
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.names import form_hint, similar_path
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.read_processes import lost_at
from dgl_train.data.verify_cache import FileState, Finding, open_cache, state_of

_REASONS_NAMED = 3
_IT = "this video"  # in place of the path, which may be another when a finding is read again
_FEW = 32  # videos that are examined sooner than processes start
_NO_CONTENT = "none"  # in place of a hash that nobody asks for


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

    Findings are stored as they come: an interrupted run resumes where it stopped.

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


def examine_video(path: Path) -> Finding:
    """Decode a whole video, here."""
    *_, done = read_video(path, Segmentation(), None, content=_NO_CONTENT)
    assert isinstance(done, Done)
    return _finding(done)


def _finding(done: Done) -> Finding:
    """Where a video ends and what is odd about it, or its fault."""
    if done.fault is not None:
        return Finding(0.0, done.fault.replace(str(done.path), _IT))
    assert done.seen is not None
    return Finding(done.seen.duration_s, None, "; ".join(done.seen.remarks) or None)


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
            for done in examined:
                finding = _known(done, findings) or _finding(done)
                state = states[done.path]
                is_of_content = done.fault is None or done.is_unreadable
                if state is not None and done.content is not None and is_of_content:
                    cache.store(state, done.content, finding)
                    findings[done.content] = finding
                found[done.path] = finding
                bar.update()
    return found


def _known(done: Done, findings: Mapping[str, Finding]) -> Finding | None:
    """What was known of a video that was not opened."""
    was_opened = done.seen is not None or done.fault is not None
    return None if was_opened or done.content is None else findings[done.content]


def _examined(
    states: Mapping[Path, FileState | None], findings: Mapping[str, Finding], jobs: int
) -> Generator[Done, None, None]:
    """Examine videos in this process or several, in any order; ``findings`` may grow meanwhile."""
    # What is no regular file has no content, and may not even be read.
    wanted = [Job(video, _NO_CONTENT if state is None else None) for video, state in states.items()]
    with ExitStack() as opened:
        reader: Reader = ReadHere(Segmentation(), None)
        if jobs > 1 and len(wanted) >= _FEW:
            reader = opened.enter_context(
                DecodePool(Segmentation(), None, jobs=min(jobs, len(wanted)))
            )
        crashed: list[Job] = []
        for is_last in (False, True):  # a crash may be chance once
            for found in reader.read(
                crashed if is_last else wanted, is_known=findings.__contains__
            ):
                if not isinstance(found, Done):
                    continue
                if found.loss is not None and not found.loss.is_videos_fault:
                    fault = lost_at(found.path, found.loss, "--jobs of dgl-data check")
                    raise MediaError(
                        f"{fault} Run it again: what was verified is kept."
                    ) from found.loss
                if found.loss is not None and not is_last:
                    crashed.append(Job(found.path, found.content))
                else:
                    yield found
