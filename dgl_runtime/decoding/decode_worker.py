"""A decode process seen from inside: it hashes, cuts and decodes videos, and makes pictures and previews.

Apart, because a damaged video may crash a decoder, hang it, or make it take all memory. It talks with
its parent over one socket, in JSON and raw bytes: nothing it says can make the parent run anything.

    parent: {"path", "content", "segmentation", "frames", "asks"}
                                                        a video; content null: hash it; frames null: no
                                                        clips, but decode every frame
    worker: {"hashed"}                                  the content, if it is to ask before it opens the file
    parent: false                                       is it known? then that is all
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

from PIL import Image

from dgl_runtime.decoding.read_video import Clips, Seen, read_video
from dgl_runtime.errors import DglError, MediaError
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.preview import picture, write_preview
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.stills import MOST_PIXELS

_SIGN_EVERY_S = 1.0


@dataclass
class Line:
    """The worker's end of the socket."""

    connection: Connection
    last: float = 0.0

    def send(self, message: dict[str, object]) -> None:
        """Send one message."""
        self.connection.send_bytes(json.dumps(message).encode())
        self.last = time.monotonic()

    def send_bytes(self, data: memoryview) -> None:
        """Send bytes as they are; the parent knows how many come."""
        while data:
            data = data[os.write(self.connection.fileno(), data) :]

    def sign(self) -> None:
        """Show that work goes on, but not all the time."""
        if time.monotonic() - self.last > _SIGN_EVERY_S:
            self.send({"alive": True})

    def receive(self) -> Any:  # noqa: ANN401 - JSON
        """Wait for the parent.

        Raises:
            EOFError: It has gone.
        """
        return json.loads(self.connection.recv_bytes())


LookInto = Callable[[Line, dict[str, Any]], None]
"""Does one job and says what comes of it; raises what is wrong with the video."""


def work(line: Line, look_into: LookInto) -> None:
    """Look into one video after another, until the parent hangs up."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job, fault, is_unreadable = line.receive(), None, False
            try:
                look_into(line, job)
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
            line.send({"done": fault and " ".join(fault.split()), "unreadable": is_unreadable})


def _look_into(line: Line, job: dict[str, Any]) -> None:
    path = Path(job["path"])
    if "picture" in job:
        made = picture(path, **job["picture"])
        line.send({"bytes": True})
        line.connection.send_bytes(made)
    elif "preview" in job:
        write_preview(path, **job["preview"], sign=line.sign)
    else:
        _read(line, path, job)


def _read(line: Line, path: Path, job: dict[str, Any]) -> None:
    """Tell what a video holds, ask what to read, and send it."""

    def is_known(content: str) -> bool:
        line.send({"hashed": content})
        known: bool = line.receive()
        return known

    reading = read_video(
        path,
        Segmentation.from_text(job["segmentation"]),
        job["frames"] and FrameSpec.from_json(job["frames"]),
        lambda seen: line.receive(),
        content=job["content"],
        is_known=is_known if job["asks"] else None,
        sign=line.sign,
    )
    for found in reading:
        if isinstance(found, Seen):
            spans = [[span.start_s, span.end_s] for span in found.spans]
            seen = {"content": found.content, "duration_s": found.duration_s, "spans": spans}
            line.send({**seen, "remarks": found.remarks})
        elif isinstance(found, Clips):
            line.send({"clips": found.numbers})
            line.connection.send_bytes(found.frames.data.cast("B"))
        elif found.fault is not None:
            raise MediaError(found.fault)


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
