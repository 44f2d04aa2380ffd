"""Frames that lie on the GPU already, as a hardware decoder leaves them: embedded without a copy to the host.

Needs an NVIDIA GPU, dgl-retrieval[trt-rtx,pycuda] (or [trt,pycuda]) and a bundle with engines for this
machine (dgl-bundle rebuild BUNDLE):

    python examples/pycuda_frames.py BUNDLE trt-rtx
"""

import sys
from pathlib import Path

import numpy as np
import pycuda.autoprimaryctx  # noqa: F401  the context that CUDA's runtime uses too
from pycuda import gpuarray

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.engines.opening import open_engine


def main(folder: Path, engine_name: str) -> None:
    """Embed four made-up clips twice, from the host and from the GPU, and compare."""
    bundle = Bundle(folder)
    manifest = bundle.manifest
    engine = open_engine(
        bundle.graph_path(manifest.clip_encoder), device="cuda", threads=0, engine=engine_name
    )
    spec = manifest.inputs.frames
    shape = (4, spec.num_frames, 3, spec.size, spec.size)
    on_host = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    on_gpu = gpuarray.to_gpu(on_host)  # stands for what a decoder or a resize kernel has written
    gold = engine.run({"frames": on_host})["embedding"]
    ours = engine.run({"frames": on_gpu})["embedding"]
    difference = np.abs(ours - gold).max()
    sys.stdout.write(f"{engine.description}: largest difference {difference:.1e}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
