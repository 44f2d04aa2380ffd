"""The process that reads clips for training and evaluation, and examines videos. It imports no torch.

It speaks as ``decode_worker.py`` of the runtime does:

    parent: {"path", "span": [start_s, end_s], "seeds", "form"}     a clip, see ``clip_frames.py``
    worker: {"frames": true} and their pixels

    parent: {"path", "is_file"}                 a video to examine
    worker: {"content"}                         its sha256
    parent: [duration_s, fault]                 what is known of that; null: nothing
    worker: {"found": [content, duration_s, fault]}

    worker: {"warning"}                         for the person who waits
"""

from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from dgl_runtime.decoding.decode_worker import Line, main
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.windows import Span
from dgl_train.data.clip_frames import FrameFormat, Look, read_frames
from dgl_train.data.frame_cache import FrameCache
from dgl_train.data.verify import examine
from dgl_train.data.verify_cache import Finding


@dataclass
class Reader:
    """Does the jobs of one process; a frame cache knows from clip to clip whether it has room."""

    caches: dict[tuple[str, float], FrameCache] = field(default_factory=dict)

    def look_into(self, line: Line, job: dict[str, Any]) -> None:
        """Do one job."""
        path = Path(job["path"])
        if "is_file" in job:
            content, finding = examine(path, job["is_file"], lambda c: _ask(line, c), line.sign)
            line.say({"found": [content, *astuple(finding)]})
            return
        seeds = job["seeds"]
        look = Look(path, Span(*job["span"]), None if seeds is None else tuple(seeds))
        frames = read_frames(look, self._form(line, job["form"]))
        line.say({"frames": True})
        line.pour(frames.data.cast("B"))

    def _form(self, line: Line, told: dict[str, Any]) -> FrameFormat:
        form = FrameFormat(FrameSpec.from_json(told["frames"]), told["seed"])
        if told["cache"] is None:
            return form
        folder, limit_gb = told["cache"]
        if (folder, limit_gb) not in self.caches:
            kept = FrameCache(Path(folder), limit_gb, tell=lambda text: line.say({"warning": text}))
            self.caches[folder, limit_gb] = kept
        return replace(form, cache=self.caches[folder, limit_gb])


def _ask(line: Line, content: str) -> Finding | None:
    line.say({"content": content})
    known = line.hear()
    return known and Finding(*known)


if __name__ == "__main__":
    main(Reader().look_into)
