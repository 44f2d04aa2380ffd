"""One cold start, in a process that has done nothing else: its times as JSON on stdout.

Run as ``python -m benchmarks.startup_probe BUNDLE ENGINE DEVICE THREADS``. A fault of ours (an engine
that is not installed, a bundle that does not fit) is JSON too: {"fault": "..."}.
"""

import json
import sys
import time
from pathlib import Path

QUERY = "a man is playing the guitar on a stage"


def cold_start(bundle_folder: Path, engine: str, device: str, threads: int) -> dict[str, object]:
    """Seconds of each step; later steps find the modules of earlier ones loaded.

    Raises:
        DglError: The bundle does not fit, or the engine does not run here.
        ModuleNotFoundError: The engine is not installed.
    """
    began = time.perf_counter()
    import numpy as np

    from dgl_runtime import Retriever
    from dgl_runtime.bundle.manifest import Graph
    from dgl_runtime.engines.engine import Engine
    from dgl_runtime.engines.opening import open_engine

    imported = time.perf_counter()
    retriever = Retriever(bundle_folder)
    opened = time.perf_counter()
    bundle, manifest = retriever.bundle, retriever.bundle.manifest

    def load(graph: Graph) -> Engine:
        file, precision = bundle.graph_path(graph), graph.precision
        return open_engine(file, device=device, threads=threads, engine=engine, precision=precision)

    tokens = retriever.tokenizer([QUERY]).ids
    caption_engine = load(manifest.captions)
    caption_engine.run({"tokens": tokens})
    answered = time.perf_counter()
    frames = manifest.inputs.frames
    size = (1, frames.num_frames, 3, frames.size, frames.size)
    load(manifest.clips).run({"frames": np.zeros(size, np.uint8)})
    embedded = time.perf_counter()
    return {
        "engine": caption_engine.description,
        "import_s": imported - began,
        "open_s": opened - imported,
        "query_s": answered - opened,
        "clip_s": embedded - answered,
    }


def main(arguments: list[str]) -> str:
    """The times, or the fault, as JSON."""
    bundle, engine, device, threads = arguments
    try:
        return json.dumps(cold_start(Path(bundle), engine, device, int(threads)))
    except ModuleNotFoundError as error:
        return json.dumps({"fault": f"the package {error.name!r} is not installed"})
    except Exception as error:
        from dgl_runtime.errors import DglError

        if not isinstance(error, DglError):
            raise
        return json.dumps({"fault": " ".join(str(error).split())})


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
