"""The process that looks into videos: it hashes, cuts and decodes them, and makes pictures and previews.

Apart, because a damaged video may crash a decoder, hang it, or make it take all memory. It talks with
its parent over one socket, in JSON and raw bytes: nothing it says can make the parent run anything.

    parent: {"path", "content", "cutting", "frames"}    a video; content null: hash it
    worker: {"content", "duration_s", "spans", "remarks"} what it holds
    parent: [0, 1, 5]                                   which of the spans to read
    worker: {"clips": [0, 1]} and their pixels          again and again

    parent: {"path", "picture": {"second", "side"}}     the frame on display then
    worker: {"bytes": true} and a JPEG

    parent: {"path", "preview": {"start_s", "end_s", "out"}}
            written to the file "out"

    worker: {"alive": true}                             now and then, in between
            {"done": null, or "what is wrong with it", "unreadable": whether that is the file's own fault}
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgl_runtime.errors import DglError, MediaError
from dgl_runtime.media.content_hash import content_hash
from dgl_runtime.media.cutting import Cutting
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.preview import picture, write_preview
from dgl_runtime.media.stills import MOST_PIXELS
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.windows import Span

CLIPS_AT_ONCE = 8
_SIGN_EVERY_S = 1.0
_GIVE_UP = 32  # stretches of one video that do not decode


@dataclass
class Line:
    """The worker's end of the socket."""

    connection: Connection
    last: float = 0.0

    def say(self, message: dict[str, object]) -> None:
        """Send one message."""
        self.connection.send_bytes(json.dumps(message).encode())
        self.last = time.monotonic()

    def pour(self, data: memoryview) -> None:
        """Send bytes as they are; the parent knows how many come."""
        while data:
            data = data[os.write(self.connection.fileno(), data) :]

    def sign(self) -> None:
        """Show that work goes on, but not all the time."""
        if time.monotonic() - self.last > _SIGN_EVERY_S:
            self.say({"alive": True})

    def hear(self) -> Any:  # noqa: ANN401 - JSON
        """Wait for the parent.

        Raises:
            EOFError: It has gone.
        """
        return json.loads(self.connection.recv_bytes())


LookInto = Callable[[Line, dict[str, Any]], str | None]
"""Does one job and says what comes of it; returns what is wrong with the video."""


def work(line: Line, look_into: LookInto) -> None:
    """Look into one video after another, until the parent hangs up."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job, is_unreadable = line.hear(), False
            try:
                fault = look_into(line, job)
            except MediaError as error:
                fault, is_unreadable = str(error), True
            except DglError as error:
                fault = f"{job['path']}: {error}"
            except MemoryError:
                fault = f"{job['path']} needs more memory than a decoder is given. Re-encode it."
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:  # of whatever library: the video's fault, not the run's
                fault = f"{job['path']} cannot be read ({type(error).__name__}: {error})."
            line.say({"done": fault and " ".join(fault.split()), "unreadable": is_unreadable})


def _look_into(line: Line, job: dict[str, Any]) -> str | None:
    path = Path(job["path"])
    if "picture" in job:
        made = picture(path, **job["picture"])
        line.say({"bytes": True})
        line.connection.send_bytes(made)
        return None
    if "preview" in job:
        write_preview(path, **job["preview"], sign=line.sign)
        return None
    return _cut(line, path, job)


def _cut(line: Line, path: Path, job: dict[str, Any]) -> str | None:
    cutting = Cutting.from_text(job["cutting"])
    duration_s, spans = cutting.spans(path, line.sign)
    content = job["content"] or content_hash(path, line.sign)
    times = [[span.start_s, span.end_s] for span in spans]
    index = read_index(path)  # kept from the first look
    seen = {"content": content, "duration_s": duration_s, "spans": times}
    line.say({**seen, "remarks": index.remarks})
    wanted = line.hear()
    spec = FrameSpec.from_json(job["frames"])
    fault = _send_clips(line, path, {number: spans[number] for number in wanted}, spec)
    missing = index.missing
    return fault or (missing and f"{path} {missing}")


def _send_clips(line: Line, path: Path, spans: dict[int, Span], spec: FrameSpec) -> str | None:
    """Send clips in batches; stretches that do not decode are left out and the last one is told."""
    fault, lost = None, 0
    numbers = list(spans)
    batch: list[tuple[int, NDArray[np.uint8]]] = []
    while numbers and lost < _GIVE_UP:
        clips = read_clips(path, [spans[number] for number in numbers], spec)
        try:
            for clip in clips:
                batch.append((numbers.pop(0), clip))
                line.sign()
                if len(batch) == CLIPS_AT_ONCE:
                    _send_batch(line, batch)
        except MediaError as error:
            fault, lost = str(error), lost + 1
            numbers = numbers[1:]
    _send_batch(line, batch)
    if fault is None:
        return None
    sent = len(spans) - lost - len(numbers)
    return fault if len(spans) == 1 else f"{fault} {sent} of {len(spans)} clips of it were read."


def _send_batch(line: Line, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
    """Send and empty a batch."""
    if batch:
        line.say({"clips": [number for number, _ in batch]})
        line.connection.send_bytes(np.stack([pixels for _, pixels in batch]).data.cast("B"))
        batch.clear()


def main(look_into: LookInto = _look_into) -> None:
    """Run as a process: the socket's number and the most memory in bytes are its arguments."""
    socket, most_bytes = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow warns of more, and refuses twice as many
    work(Line(Connection(socket)), look_into)


if __name__ == "__main__":
    main()
