"""The bounds of the self-check, on results near them; whole bundles are in test_retriever.py."""

from types import SimpleNamespace

import numpy as np
import pytest

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.encoder.self_check import check_graph, cosines, golden_inputs, graph_of
from dgl_runtime.errors import BundleError
from tests.helpers.changed_bundles import changed_bundle

PRECISIONS = {"fp32": None, "fp16": 0.999, "bf16": 0.999, "int8": 0.99, "fp8": 0.99}


@pytest.fixture(scope="module")
def bundles(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precisions")
    return {
        precision: Bundle(changed_bundle(bundle, folder / precision, precision=precision))
        for precision in PRECISIONS
    }


def results(bundle, name):
    """The golden results of a graph, to change."""
    golden = bundle.golden
    if name == "text_encoder":
        return {"embedding": golden.caption_embeddings.copy()}
    weights = golden.frame_weights.copy()
    return {"embedding": golden.clip_embeddings.copy(), "frame_weights": weights}


def check(bundle, name, found):
    """Check a graph whose results are these."""

    def run(inputs):
        assert inputs.keys() == golden_inputs(bundle, name).keys()
        return found

    return check_graph(SimpleNamespace(run=run, description="an engine"), bundle, name)


def turned(rows, cosine):
    """The last row of unit vectors, turned to have this cosine with what it was."""
    row = rows[-1].astype(np.float64)
    aside = np.roll(row, 1) - (np.roll(row, 1) @ row) * row
    rows[-1] = cosine * row + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)
    return rows


@pytest.mark.parametrize("name", ["text_encoder", "clip_encoder"])
def test_golden_results_pass_and_differ_by_nothing(bundles, name):
    for bundle in bundles.values():
        difference = check(bundle, name, results(bundle, name))
        assert (type(difference.max_abs), type(difference.min_cosine)) == (float, float)
        assert difference.max_abs == 0
        assert difference.min_cosine == 1


def test_each_graph_gets_its_inputs_and_its_entry_of_the_manifest(bundles):
    bundle = bundles["fp32"]
    assert graph_of(bundle, "text_encoder") is bundle.manifest.text_encoder
    assert graph_of(bundle, "clip_encoder") is bundle.manifest.clip_encoder
    assert golden_inputs(bundle, "text_encoder") == {"tokens": bundle.golden.tokens}
    assert golden_inputs(bundle, "clip_encoder") == {"frames": bundle.golden.frames}


@pytest.mark.parametrize("of", ["embedding", "frame_weights"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_float32_number_may_be_off_by_a_ten_thousandth(bundles, of, sign):
    found = results(bundles["fp32"], "clip_encoder")
    found[of][-1, -1] += sign * 0.9e-4
    difference = check(bundles["fp32"], "clip_encoder", found)
    assert difference.max_abs == pytest.approx(0.9e-4 * (of == "embedding"), rel=0.01)
    found[of][-1, -1] += sign * 0.2e-4
    with pytest.raises(
        BundleError, match=r"in an engine, clip_encoder results differ by 1\.10e-04, at most"
    ):
        check(bundles["fp32"], "clip_encoder", found)


@pytest.mark.parametrize("name", ["text_encoder", "clip_encoder"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_a_lower_precision_keeps_its_cosine(bundles, precision, name):
    bundle, bound = bundles[precision], PRECISIONS[precision]
    found = results(bundle, name)
    turned(found["embedding"], 0.1 + 0.9 * bound)  # a tenth of the way from the bound to 1
    assert check(bundle, name, found).min_cosine == pytest.approx(0.1 + 0.9 * bound, abs=1e-6)
    found = results(bundle, name)
    turned(found["embedding"], bound - 0.1 * (1 - bound))
    with pytest.raises(BundleError, match=rf"{name} an embedding has cosine .* must keep {bound};"):
        check(bundle, name, found)


def test_frame_weights_of_a_lower_precision_sum_to_one(bundles):
    found = results(bundles["int8"], "clip_encoder")
    found["frame_weights"][-1] *= 1.0009
    check(bundles["int8"], "clip_encoder", found)
    for factor in (1.0011, 0.9989, np.nan):
        found = results(bundles["int8"], "clip_encoder")
        found["frame_weights"][-1] *= factor
        with pytest.raises(BundleError, match="frame weights sum to 1 within"):
            check(bundles["int8"], "clip_encoder", found)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("of", ["embedding", "frame_weights"])
def test_what_is_no_number_does_not_pass(bundles, precision, of):
    found = results(bundles[precision], "clip_encoder")
    found[of][0, 0] = np.nan
    with pytest.raises(BundleError, match="fails its self-check"):
        check(bundles[precision], "clip_encoder", found)


def test_a_cosine_is_one_to_each_row_itself_and_less_to_one_that_is_no_unit_vector():
    rows = np.array([[0.6, 0.8], [0.6, 0.8], [1.2, 1.6], [-0.6, -0.8]], np.float32)
    golden = np.array([[0.6, 0.8], [0.8, 0.6], [0.6, 0.8], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(cosines(rows, golden), [1, 0.96, 0.5, -1], atol=1e-6)
