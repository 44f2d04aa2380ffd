"""One gallery in a folder and in PostgreSQL: the same hits, recall of the indexes, latency, time and size.

    python benchmarks/studies/gallery_engines.py --server postgresql://postgres@localhost/postgres

The galleries are made, and dropped in the end.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import psycopg

from dgl_bench.command import benchmark, say
from dgl_bench.report import Report, Row, Table
from dgl_bench.search_vectors import BLOCK, CLIPS_OF_A_VIDEO, MadeEmbeddings
from dgl_bench.timing import time_paired
from dgl_runtime.gallery.address import Place, open_gallery, open_or_create, read_place
from dgl_runtime.gallery.clips import Clip
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.gallery.postgres.schema import schema_of
from dgl_runtime.gallery.vector_store import Float32

WIDTH, NUM_FRAMES, TOP_K = 512, 12, 10
NAME = "dgl_bench_engines"
ALL = "1"  # a condition that every clip fulfils: what fulfils a condition is compared one by one
Keys = list[tuple[str, float, float]]


def fill(gallery: AnyGallery, made: MadeEmbeddings, count: int) -> Row:
    """Add clips, and build the index; seconds of both."""
    weights = np.full((BLOCK, NUM_FRAMES), 1 / NUM_FRAMES, np.float32)
    started = time.perf_counter()
    for block, embeddings in enumerate(made.clips(count)):
        clips = [made_clip(block * BLOCK + number) for number in range(len(embeddings))]
        for first in range(0, len(clips), 1_000):
            part = slice(first, first + 1_000)
            gallery.ingest(clips[part], embeddings[part], weights[part])
    filled = time.perf_counter()
    gallery.compact()
    return {"added, s": filled - started, "index, s": time.perf_counter() - filled}


def made_clip(number: int) -> Clip:
    """Ten clips of 10 s are a video."""
    video, place = divmod(number, CLIPS_OF_A_VIDEO)
    return Clip(f"/made/{video}.mp4", f"{video:064x}", 10.0 * place, 10.0 * place + 10, 100.0)


def found(gallery: AnyGallery, queries: Float32, where: object) -> tuple[list[Keys], Float32]:
    """The clips each query finds, one after another as a service asks, and their similarities."""
    keys, similarities = [], []
    for query in queries:
        rows, values = gallery.search(query[None], TOP_K, where)
        clips = gallery.look_up(rows[0].tolist())
        keys.append([clips[row].clip.key for row in rows[0].tolist()])
        similarities.append(values[0])
    return keys, np.stack(similarities)


def recall(theirs: list[Keys], exact: list[Keys]) -> float:
    """The share of the exact hits that are among theirs."""
    shares = [
        len(set(one) & set(other)) / len(other) for one, other in zip(theirs, exact, strict=True)
    ]
    return float(np.mean(shares))


def next_of(gallery: AnyGallery, queries: Float32, where: object) -> Callable[[], object]:
    """A search by the next query in each call."""
    turn = itertools.cycle(range(len(queries)))
    return lambda: gallery.search(queries[next(turn)][None], TOP_K, where)


@benchmark
def engines(
    server: Annotated[str, "Of PostgreSQL with pgvector, without a gallery."],
    clips: Annotated[int, "How many."] = 200_000,
    queries: Annotated[int, "How many."] = 200,
    rounds: Annotated[int, "Queries timed."] = 200,
) -> Report:
    """A gallery in a folder beside the same in PostgreSQL.

    Example: python benchmarks/studies/gallery_engines.py --server postgresql://postgres@localhost/postgres
    """
    made = MadeEmbeddings.of_width(WIDTH)
    sample = np.concatenate(
        [block[: max(1, queries * BLOCK // clips)] for block in made.clips(clips)]
    )
    texts = made.texts(sample[:queries])
    address = f"{server}?gallery={NAME}"
    with TemporaryDirectory() as folder, psycopg.connect(server, autocommit=True) as admin:
        drop = f'DROP SCHEMA IF EXISTS "{schema_of(NAME)}" CASCADE'
        admin.execute(drop)
        places = {"folder": read_place(Path(folder) / "gallery"), "PostgreSQL": read_place(address)}
        try:
            sizes = {}
            for name, place in places.items():
                say(f"{name}: {clips} clips")
                with open_or_create(
                    place,
                    bundle_id="made",
                    bundle_path="/made",
                    embed_dim=WIDTH,
                    num_frames=NUM_FRAMES,
                ) as gallery:
                    sizes[name] = {"gallery": name, **fill(gallery, made, clips)}
            sizes["folder"]["MB"] = _folder_mb(Path(folder))
            size = f"""SELECT sum(pg_total_relation_size(oid)) FROM pg_class
                WHERE relnamespace = '"{schema_of(NAME)}"'::regnamespace AND relkind = 'r'"""
            sizes["PostgreSQL"]["MB"] = float(admin.execute(size).fetchall()[0][0]) / 1e6
            rows, wrong = _searched(places, texts, rounds)
        finally:
            admin.execute(drop)
        version = "SELECT split_part(version(), ' ', 2), extversion FROM pg_extension WHERE extname = 'vector'"
        ((server_version, extension),) = admin.execute(version).fetchall()
    return Report(
        "gallery-engines",
        f"{clips:,} clips in a folder and in PostgreSQL",
        [Table("Searches", rows), Table("Adding", list(sizes.values()))],
        [
            f"PostgreSQL {server_version}, pgvector {extension}, on the same cores. {queries} texts, the best "
            f"{TOP_K} of each; recall against the exact search of the folder. exact: with a condition that all "
            "clips fulfil. One query after another, in one process, all ways in every round.",
        ],
        wrong=wrong,
    )


def _searched(places: dict[str, Place], texts: Float32, rounds: int) -> tuple[list[Row], list[str]]:
    """Hits, recall and latency of each way to search."""
    galleries = {name: open_gallery(place) for name, place in places.items()}
    ways = {
        f"{name}, {how}": (gallery, where)
        for name, gallery in galleries.items()
        for how, where in (("exact", gallery.select(ALL)), ("index", None))
    }
    say("comparing hits")
    hits = {way: found(gallery, texts, where) for way, (gallery, where) in ways.items()}
    (exact, similarities), (theirs, others) = hits["folder, exact"], hits["PostgreSQL, exact"]
    wrong = [] if exact == theirs else ["exact searches differ"]
    if not np.array_equal(similarities, others):
        wrong.append("exact similarities differ")
    calls = {way: next_of(gallery, texts, where) for way, (gallery, where) in ways.items()}
    paired = time_paired(calls, rounds=rounds, label="searches")
    rows = [
        {
            "way": way,
            "ms": paired.spread_ms(way),
            "recall@10": recall(hits[way][0], exact),
            "same hits, %": 100
            * float(np.mean([a == b for a, b in zip(hits[way][0], exact, strict=True)])),
        }
        for way in ways
    ]
    for gallery in galleries.values():
        gallery.close()
    return rows, wrong


def _folder_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    engines()
