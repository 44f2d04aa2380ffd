"""Indexing on a Ray cluster: its machines read and encode videos, this process alone writes the gallery.

A video is the unit: it is taken into the gallery when all of it is there. So what a lost machine was at is
done again by another, and a run that was stopped goes on where the gallery ends, as on one machine.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dgl_runtime.decoding.decode_pool import DecodePool
from dgl_runtime.decoding.read_video import Clips, Done, Job
from dgl_runtime.encoder.encoder import ClipEmbeddings, Encoder
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.indexing.index import IndexReport, report_of
from dgl_runtime.indexing.ledger import Ledger, clips_of
from dgl_runtime.indexing.ray_cluster import Machines, connected, cores_and_gpus, require_all_see
from dgl_runtime.indexing.sought import Sought
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.segmentation import Segmentation

# Of the CPUs that Ray counts, not of those that are used: whole ones for some and parts for others can leave
# a cluster waiting for itself when a machine is lost.
_CPUS_EACH = 0.5
_LOOKED_AT = (
    8  # videos that each machine looks for: a folder may be there, and nothing mounted at it
)
_BLOCK_BYTES = 16 * 2**20  # of frames that travel together

Batch = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """Where and with what videos are read and encoded.

    Attributes:
        address: ``auto`` (the cluster this machine is of), ``local`` (this machine alone) or ``HOST:PORT``.
        decoders: Processes that decode; 0: one for each core that no encoder takes.
        encoders: 0: one for each GPU, or one for each machine.
    """

    address: str
    decoders: int = 0
    encoders: int = 0


def index_on_ray(
    encoder: Encoder,
    gallery: AnyGallery,
    sought: Sought,
    segmentation: Segmentation,
    cluster: Cluster,
    *,
    batch: int,
    show_progress: bool = False,
) -> IndexReport:
    """Add videos to a gallery, as ``index_videos`` does.

    Args:
        encoder: Encoders like it are opened on the cluster, whose machines all see its bundle.
        gallery: Open for writing; of the encoder's bundle.
        sought: The videos, which every machine sees under these paths.
        segmentation: How they are cut into clips.
        cluster: Where.
        batch: Clips that are encoded together.
        show_progress: Draw a progress bar on stderr.

    Raises:
        ClusterError: There is no such cluster, a machine of it sees not all, or all are lost.
        GalleryError: The gallery cannot be written.
    """
    from tqdm import tqdm

    videos = sought.found.videos
    waiting_s = 0.0
    with (
        connected(cluster.address),
        Ledger(gallery, segmentation) as ledger,
        tqdm(total=len(videos), unit="video", disable=None if show_progress else True) as bar,
    ):
        unknown = ledger.plan(videos)
        bar.update(len(videos) - len(unknown))
        if unknown:
            some = [job.path for job in unknown[:: -(-len(unknown) // _LOOKED_AT)]]
            require_all_see([encoder.bundle.folder, *sought.paths, *some])
        machines = Machines()
        started = since = time.perf_counter()
        for done, encoded in _encoded_videos(encoder, unknown, segmentation, cluster, batch):
            begun = time.perf_counter()
            waiting_s += begun - since
            _take_in(ledger, done, encoded)
            bar.update()
            machines.tell_lost()
            rate = ledger.added / (time.perf_counter() - started)
            bar.set_postfix(
                {"clips": ledger.added, "clips/s": f"{rate:.1f}", "broken": len(ledger.broken)}
            )
            since = time.perf_counter()
        dropped = ledger.close_run(sought)
    return report_of(ledger, sought, dropped, encoding_s=0.0, waiting_s=waiting_s)


def _take_in(ledger: Ledger, done: Done, encoded: dict[int, tuple[Any, Any]]) -> None:
    """A video that is through: its clips, those that are not there yet, and then that it is."""
    if (seen := done.seen) is not None:
        numbers = [number for number in ledger.choose(seen) if number in encoded]
        if numbers:
            embeddings, weights = zip(*(encoded[number] for number in numbers), strict=True)
            found = ClipEmbeddings(np.stack(embeddings), np.stack(weights))
            ledger.ingest(clips_of(seen, numbers), found)
    ledger.finish(done)


# ---- on the cluster ---------------------------------------------------------------------------------


class _Read:
    """An actor that reads videos: a row for each clip, then one for the video itself."""

    def __init__(self, segmentation: str, frame_spec: FrameSpec) -> None:
        # In a process of its own: one that crashes or hangs costs a video, not the actor.
        self._pool = DecodePool(Segmentation.from_text(segmentation), frame_spec, jobs=1)

    def __call__(self, row: Batch) -> Iterator[Batch]:
        path, count = row["path"], 0
        for found in self._pool.read([Job(Path(path), row["content"])]):
            if isinstance(found, Clips):
                for number, frames in zip(found.numbers, found.frames, strict=True):
                    count += 1
                    yield {"path": path, "number": number, "frames": frames.tobytes(), "done": b""}
            elif isinstance(found, Done):
                told = pickle.dumps((found, count))
                yield {"path": path, "number": -1, "frames": b"", "done": told}


class _Encode:
    """An actor that encodes clips; rows of videos pass through."""

    def __init__(self, arguments: Batch) -> None:
        self._encoder = Encoder(**arguments)

    def __call__(self, batch: Batch) -> Batch:
        spec, frames = self._encoder.input_spec.frames, batch.pop("frames")
        shape = (spec.num_frames, 3, spec.size, spec.size)
        chosen = [row for row, held in enumerate(frames) if held]
        batch["embedding"] = np.zeros((len(frames), self._encoder.embed_dim), np.float32)
        batch["weights"] = np.zeros((len(frames), spec.num_frames), np.float32)
        if chosen:
            pixels = [np.frombuffer(frames[row], np.uint8).reshape(shape) for row in chosen]
            encoded = self._encoder.embed_clips(np.stack(pixels))
            batch["embedding"][chosen] = encoded.embeddings
            batch["weights"][chosen] = encoded.frame_weights
        return batch


def _sizes(cluster: Cluster, device: str, num_videos: int) -> tuple[int, int, int]:
    """Decoders, encoders, and GPUs for each encoder."""
    cores, gpus, machines = cores_and_gpus()
    uses_gpus = device != "cpu" and gpus > 0
    encoders = cluster.encoders or (gpus if uses_gpus else machines)
    decoders = cluster.decoders or max(1, cores - (0 if uses_gpus else encoders))
    # Ray starts decoders first: they must leave its share to each encoder.
    most = max(1, int(cores / _CPUS_EACH) - encoders)
    return min(decoders, num_videos, most), encoders, int(uses_gpus)


def _encoded_videos(
    encoder: Encoder,
    jobs: Sequence[Job],
    segmentation: Segmentation,
    cluster: Cluster,
    batch: int,
) -> Iterator[tuple[Done, dict[int, tuple[Any, Any]]]]:
    """Videos as they are through, each with its clips: number of the span -> embedding, frame weights."""
    if not jobs:
        return
    import ray

    ray.data.DataContext.get_current().target_max_block_size = _BLOCK_BYTES
    arguments = encoder.arguments
    decoders, encoders, gpus = _sizes(cluster, arguments["device"], len(jobs))
    rows = (
        ray.data.from_items(
            [{"path": str(job.path.absolute()), "content": job.content} for job in jobs],
            override_num_blocks=len(jobs),
        )
        .flat_map(
            _Read,
            fn_constructor_args=(str(segmentation), encoder.input_spec.frames),
            compute=ray.data.ActorPoolStrategy(size=decoders),
            num_cpus=_CPUS_EACH,
        )
        .map_batches(
            _Encode,
            fn_constructor_args=(arguments,),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=encoders),
            num_cpus=_CPUS_EACH,
            num_gpus=gpus or None,
        )
        .iter_rows()
    )
    names = {str(job.path.absolute()): job.path for job in jobs}  # theirs -> ours
    waiting: dict[str, dict[int, tuple[Any, Any]]] = {}
    through: dict[str, tuple[Done, int]] = {}
    for row in rows:
        path = row["path"]
        clips = waiting.setdefault(path, {})
        if row["done"]:
            through[path] = pickle.loads(row["done"])
        else:
            clips[int(row["number"])] = row["embedding"], row["weights"]
        if path in through and len(clips) >= through[path][1]:
            done, clips = through.pop(path)[0], waiting.pop(path)
            seen = done.seen and replace(done.seen, path=names[path])
            yield replace(done, path=names[path], seen=seen), clips
