"""The self-check: a loaded graph against the bundle's golden results."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.manifest import MIN_COSINE, TEXT_ENCODER, Graph
from dgl_runtime.engines.engine import Engine
from dgl_runtime.errors import BundleError

# Another machine's float32 kernels round differently; a wrong graph is off by far more.
MAX_ABS = 1e-4
# Frame weights are a softmax, which stays in float32 in every precision.
WEIGHTS_SUM_ATOL = 1e-3
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """How far a graph's results are from the golden ones."""

    max_abs: float  # of any number of any embedding
    min_cosine: float  # of any embedding


def cosines(ours: Float32, golden: Float32) -> Float32:
    """Cosine of each row to the unit vector it stands for, float32 [N].

    By their distance, so that a row that is no unit vector counts as turned away; NaN stays NaN.
    """
    found: Float32 = 1 - np.square(ours - golden).sum(axis=1) / 2
    return found


def graph_of(bundle: Bundle, name: str) -> Graph:
    """The manifest's entry of one of ``GRAPHS``."""
    return bundle.manifest.text_encoder if name == TEXT_ENCODER else bundle.manifest.clip_encoder


def golden_inputs(bundle: Bundle, name: str) -> dict[str, NDArray[np.generic]]:
    """What the self-check gives one of ``GRAPHS``."""
    golden = bundle.golden
    return {"tokens": golden.tokens} if name == TEXT_ENCODER else {"frames": golden.frames}


def check_graph(
    engine: Engine, bundle: Bundle, name: str, *, remedy: str = "Export it again."
) -> Difference:
    """Run the golden inputs through one of ``GRAPHS`` and compare.

    A float32 graph has to give the golden numbers up to rounding, any other precision their directions
    up to ``MIN_COSINE``.

    Raises:
        BundleError: The results are further off than that, or no numbers.
        EngineError: The engine does not run the graph.
    """
    golden = bundle.golden
    found = engine.run(golden_inputs(bundle, name))
    expected = golden.caption_embeddings if name == TEXT_ENCODER else golden.clip_embeddings
    ours = np.asarray(found["embedding"], np.float32)
    difference = Difference(
        float(np.abs(ours - expected).max()), float(cosines(ours, expected).min())
    )
    precision = graph_of(bundle, name).precision
    weights = np.asarray(found.get("frame_weights", golden.frame_weights), np.float32)
    if precision == "fp32":
        # np.max, because Python's max passes over a NaN
        worst = np.max([difference.max_abs, np.abs(weights - golden.frame_weights).max()])
        fault = f"results differ by {worst:.2e}, at most {MAX_ABS:.0e} is rounding"
        passes = worst <= MAX_ABS
    else:
        bound = MIN_COSINE[precision]
        off = np.abs(weights.sum(axis=1) - 1).max()
        fault = (
            f"an embedding has cosine {difference.min_cosine:.4f} to the golden one, "
            f"{precision} must keep {bound}; frame weights sum to 1 within {off:.0e}"
        )
        passes = difference.min_cosine >= bound and off <= WEIGHTS_SUM_ATOL
    if not passes:
        raise BundleError(
            f"bundle {bundle.folder} fails its self-check: in {engine.description}, {name} "
            f"{fault}. {remedy}"
        )
    return difference
