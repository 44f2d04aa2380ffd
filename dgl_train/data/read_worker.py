"""The process that reads clips for training and evaluation. It imports no torch.

It speaks as ``decode_worker.py`` of the runtime does:

    parent: {"path", "span": [start_s, end_s], "seeds", "form"}     a clip, see ``clip_frames.py``
    worker: {"frames": true} and their pixels

    worker: {"warning"}                         for the person who waits
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dgl_runtime.decoding.decode_worker import Line, main
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.windows import Span
from dgl_train.data.clip_frames import FrameFormat, Look, read_frames
from dgl_train.data.frame_cache import FrameCache


@dataclass
class Reader:
    """Does the jobs of one process; a frame cache knows from clip to clip whether it has room."""

    caches: dict[tuple[str, float], FrameCache] = field(default_factory=dict)

    def look_into(self, line: Line, job: dict[str, Any]) -> None:
        """Do one job."""
        seeds = job["seeds"]
        look = Look(Path(job["path"]), Span(*job["span"]), None if seeds is None else tuple(seeds))
        frames = read_frames(look, self._form(line, job["form"]))
        line.send({"frames": True})
        line.send_bytes(frames.data.cast("B"))

    def _form(self, line: Line, told: dict[str, Any]) -> FrameFormat:
        form = FrameFormat(FrameSpec.from_json(told["frames"]), told["seed"])
        if told["cache"] is None:
            return form
        folder, limit_gb = told["cache"]
        if (folder, limit_gb) not in self.caches:
            kept = FrameCache(
                Path(folder), limit_gb, tell=lambda text: line.send({"warning": text})
            )
            self.caches[folder, limit_gb] = kept
        return replace(form, cache=self.caches[folder, limit_gb])


if __name__ == "__main__":
    main(Reader().look_into)
