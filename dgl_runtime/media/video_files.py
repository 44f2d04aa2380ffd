"""Which files below a folder are videos: by name and, where a name says too little, by the first bytes.

What systems keep for themselves (bins, snapshots, thumbnails) is passed over, and what the user excludes.
Everything that looks for videos looks here.
"""

import codecs
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import one_line
from dgl_runtime.names import form_hint, nfc, similar_path

_ALWAYS_VIDEO = frozenset(
    ".3g2 .3gp .3gp2 .3gpp .amv .asf .avi .divx .f4v .flv .ismv .m2ts .m4v .mk3d .mkv .mov .mp4 .mp4v .mpeg "
    ".mpeg2 .mpg .mxf .ogm .ogv .rmvb .vob .vro .webm .wm .wmv .wtv .xvid .y4m".split()
)
_UNLESS_TEXT = frozenset(  # .ts and .mts are TypeScript, .qt and .rm are notes
    ".264 .265 .avc .dif .dv .dvr-ms .evo .gxf .h264 .h265 .hevc .insv .ivf .jsv .m1v .m2p .m2t .m2v .mj2 "
    ".mjpeg .mjpg .mp2v .mpe .mpegts .mpg2 .mpv .mts .nut .obu .pss .qt .rm .tod .tp .trp .ts".split()
)
_OGG_PICTURES = (b"\x80theora", b"OVP80", b"BBCD")  # Theora, VP8, Dirac
_IF_IT_BEGINS_WITH: Mapping[str, tuple[bytes, ...]] = {
    ".mod": (b"\0\0\1\xba",),  # a camcorder's MPEG; otherwise music, Fortran or Go
    ".ogg": _OGG_PICTURES,  # otherwise sound
    ".ogx": _OGG_PICTURES,
}
VIDEO_EXTENSIONS = _ALWAYS_VIDEO | _UNLESS_TEXT | _IF_IT_BEGINS_WITH.keys()
"""The extensions, lower case, of files that may be videos. ``packet_index.py`` opens each."""

# Names that begin with a dot are passed over in any case. Their letters' case differs between systems.
_SYSTEM_FOLDERS = (
    # Synology, TerraMaster; QNAP, Asustor; Buffalo, Thecus, ReadyNAS
    "#recycle", "#snapshot", "@eadir", "@tmp", "@sharebin", "@synodrive", "@synologydrive",
    "@recycle", "@recently-snapshot", "@snapshot", "@transcode", "network recycle bin*",
    "trashbox", "_nas_recycle_*", "network trash folder", "temporary items",
    # NetApp, Samba; Windows; macOS; Linux
    "~snapshot", "@gmt-*", "$recycle.bin", "recycler", "recycled", "system volume information",
    "$extend", "found.[0-9][0-9][0-9]", "__macosx", "lost+found",
)  # fmt: skip
_HEAD_BYTES = 65_536
_TEXT_PART = 0.01  # of control characters, at most
_CONTROLS = bytes(sorted({*range(32), 127} - set(b"\t\n\v\f\r\x1b")))
_SYNC, _PACKETS, _PACKET_SIZES = b"G", 8, (188, 192, 204)  # of MPEG transport streams
_MOST_NAMED = 20


@dataclass(frozen=True)
class FoundVideos:
    """What a search of files and folders found.

    Attributes:
        videos: In the order given, those of a folder sorted; each file once.
        passed_over: Extension, or name of a system folder and a slash -> how many are no videos.
    """

    videos: list[Path]
    passed_over: Mapping[str, int]


def find_videos(paths: Sequence[Path], exclude: Sequence[str] = ()) -> FoundVideos:
    """List the videos in files and folders.

    Args:
        paths: Files, kept whatever they are, and folders, searched with everything below them, links too.
            What begins with a dot and what systems keep for themselves is passed over there.
        exclude: Patterns of what is left out below the folders; see :func:`is_excluded`.

    Raises:
        MediaError: A path does not exist or cannot be read, or there is no video.
    """
    found: dict[Path, Path] = {}
    passed_over: Counter[str] = Counter()
    for path in paths:
        try:
            if not path.exists():
                hint = form_hint(similar_path(path))
                raise MediaError(f"{path} does not exist{hint}. Check the path.")
            here = videos_below(path, exclude, passed_over) if path.is_dir() else [path]
            for video in sorted(here):
                found.setdefault(video.resolve(), video)
        except (OSError, ValueError) as fault:
            raise MediaError(f"{path} cannot be read ({one_line(fault)}). Check it.") from fault
    if not found:
        searched = ", ".join(str(path) for path in paths) or "an empty list"
        told = f"; passed over: {tell(passed_over)}" if passed_over else ""
        raise MediaError(
            f"No video found in {searched}{told}. Name a file itself if it has another extension."
        )
    return FoundVideos(list(found.values()), passed_over)


def videos_below(
    folder: Path,
    exclude: Sequence[str] = (),
    passed_over: Counter[str] | None = None,
    *,
    follow_links: bool = True,
) -> Iterator[Path]:
    """Yield the videos below a folder: its own in alphabetical order, then those of each folder in it.

    Args:
        folder: Searched whatever its own name is.
        exclude: Patterns of what is left out; see :func:`is_excluded`.
        passed_over: Counts what is no video.
        follow_links: Enter folders that are links.
    """
    counted: Counter[str] = Counter() if passed_over is None else passed_over
    visited = set()
    for here, folders, names in os.walk(folder, followlinks=follow_links):
        state = Path(here).stat()
        if (state.st_dev, state.st_ino) in visited:  # a link leads back here
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        parts = Path(here).relative_to(folder).parts
        entered = []
        for name in sorted(folders):
            if name.startswith(".") or is_excluded(folder, (*parts, name), exclude, is_folder=True):
                continue
            if _is_system_folder(name):
                counted[f"{name}/"] += 1
            else:
                entered.append(name)
        folders[:] = entered
        for name in sorted(names):
            if name.startswith(".") or is_excluded(folder, (*parts, name), exclude):
                continue
            if is_video(path := Path(here, name)):
                yield path
            else:
                counted[path.suffix.lower() or "without extension"] += 1


def is_left_out(path: Path, folders: Sequence[Path], exclude: Sequence[str] = ()) -> bool:
    """Whether a path below some of the folders would be entered from none of them, whatever it holds.

    Args:
        path: Resolved.
        folders: As given by the user.
        exclude: Patterns.
    """
    roots = [(folder, folder.resolve()) for folder in folders]
    holding = [(folder, root) for folder, root in roots if root in path.parents]
    return bool(holding) and all(
        _is_left_out_of(folder, path.relative_to(root).parts, exclude) for folder, root in holding
    )


def _is_left_out_of(folder: Path, parts: tuple[str, ...], exclude: Sequence[str]) -> bool:
    *folders, _ = parts
    return (
        any(part.startswith(".") for part in parts)
        or any(map(_is_system_folder, folders))
        or any(
            is_excluded(folder, parts[:depth], exclude, is_folder=depth < len(parts))
            for depth in range(1, len(parts) + 1)
        )
    )


def is_excluded(
    folder: Path, parts: tuple[str, ...], exclude: Sequence[str], *, is_folder: bool = False
) -> bool:
    """Whether a file or folder fits a pattern itself; ``parts`` lead to it from the folder that is searched.

    A pattern without a slash is held against the name; one with a slash inside against the path from the
    folder on; one that begins with a slash against the whole path; one that ends with a slash means folders
    alone. ``*`` stands for any letters within a name, ``?`` for one, ``[ab]`` for one of some, ``**`` for any
    number of folders. A folder that fits is not entered. Case counts; how accents are composed does not.
    """
    for pattern in exclude:
        if pattern.endswith("/") and not is_folder:
            continue
        wanted = [part for part in pattern.split("/") if part not in ("", ".")]
        if pattern.startswith("/"):
            wholes = [folder.absolute().parts[1:], folder.resolve().parts[1:]]
            candidates = [(*whole, *parts) for whole in wholes]
        else:
            candidates = [parts if len(wanted) > 1 else parts[-1:]]
        if any(_fits(candidate, wanted) for candidate in candidates):
            return True
    return False


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_fits(parts[first:], wanted[1:]) for first in range(len(parts) + 1))
    return bool(parts) and _is_like(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _is_like(name: str, pattern: str) -> bool:
    return fnmatchcase(nfc(name), nfc(pattern))


def _is_system_folder(name: str) -> bool:
    return any(fnmatchcase(name.casefold(), pattern) for pattern in _SYSTEM_FOLDERS)


def may_be_video(path: Path) -> bool:
    """Whether a file's name is that of a video, as far as a name can say it."""
    return path.suffix.lower() in VIDEO_EXTENSIONS


def is_video(path: Path) -> bool:
    """Whether a file is to be read as a video; one that may be a damaged video is."""
    if not may_be_video(path) or not path.is_file():
        return False
    extension = path.suffix.lower()
    if extension in _ALWAYS_VIDEO:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # whoever reads it will say what is wrong
        return True
    if extension in _IF_IT_BEGINS_WITH:
        return _is_transport_stream(head) or any(
            mark in head for mark in _IF_IT_BEGINS_WITH[extension]
        )
    return _is_transport_stream(head) or not _is_text(head)


def _is_transport_stream(head: bytes) -> bool:
    return any(
        head[first::size][:_PACKETS] == _PACKETS * _SYNC
        for size in _PACKET_SIZES
        for first in range(size)
    )


def _is_text(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return 0 < len(head) and controls <= _TEXT_PART * len(head)


def tell(passed_over: Mapping[str, int]) -> str:
    """What was passed over, most first, on one line: ``12 .txt, 3 .jpg, 1 @eaDir/``."""
    ranked = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count} {' '.join(what.split())}" for what, count in ranked[:_MOST_NAMED]]
    if rest := sum(count for _, count in ranked[_MOST_NAMED:]):
        told.append(f"{rest} others")
    return ", ".join(told)
