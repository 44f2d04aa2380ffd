"""The self-check of inputs: a manifest with one rule changed is found, and the rule is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from dgl_runtime.bundle.folder import MANIFEST, TOKENIZER, Bundle, sha256_of
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.commands.verify import verify
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.encoder.input_check import input_faults
from dgl_runtime.errors import BundleError
from tests.helpers.changed_bundles import changed_bundle
from tests.helpers.old_files import unpack

END = 49407
PIXELS, TOKENS = "a picture becomes other pixels", "texts become other tokens"


def with_rule(bundle, folder, part, **rules):
    """A copy whose manifest has other rules for its inputs."""
    inputs = json.loads((bundle / MANIFEST).read_text())["inputs"]
    inputs[part].update(rules)
    return changed_bundle(bundle, folder, inputs=inputs)


@pytest.mark.parametrize(
    ("part", "rules", "told"),
    [
        ("frames", {"resize": "squash"}, "resize is 'squash', the model's is 'shortest'"),
        ("frames", {"resize": "longest"}, "resize is 'longest', the model's is 'shortest'"),
        (
            "frames",
            {"interpolation": "bilinear"},
            "interpolation is 'bilinear', the model's is 'bicubic'",
        ),
        ("frames", {"resize": "squash", "interpolation": "bilinear"}, "no single rule explains it"),
        ("texts", {"clean": "whitespace"}, "clean is 'whitespace', the model's is 'clip'"),
        ("texts", {"clean": "canonicalize"}, "clean is 'canonicalize', the model's is 'clip'"),
        ("texts", {"clean": "blip"}, "clean is 'blip', the model's is 'clip'"),
        ("texts", {"pad_id": END}, f"pad_id is {END}, the model's is 0"),
        ("texts", {"pad_to": 32}, "pad_to is 32, the model's is None"),
        ("texts", {"pad_to": 77}, "pad_to is 77, the model's is None"),
        ("texts", {"end_id": 5}, f"end_id is 5, the model's is {END}"),
        ("texts", {"end_id": None, "read": "last"}, f"end_id is None, the model's is {END}"),
        ("texts", {"start_id": None}, "start_id is None, the model's is 49406"),
        ("texts", {"max_tokens": 31}, "max_tokens is 31, the model's is 32"),
        *(
            ("texts", {"max_tokens": number}, f"max_tokens is {number}, the model's is 32")
            for number in (33, 40, 77)
        ),
    ],
)
def test_another_rule_fails_and_is_named_in_one_line(bundle, tmp_path, part, rules, told):
    folder = with_rule(bundle, tmp_path / "other", part, **rules)
    result = CliRunner().invoke(verify, [str(folder)])
    what = PIXELS if part == "frames" else TOKENS
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: bundle {folder} fails its self-check: {what} than the model's: {told}. Export it "
        "again, or take the manifest.json that was exported.\n"
    )
    with pytest.raises(BundleError, match=what):
        Encoder(folder).check()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("texts", "read", "last"),
        ("frames", "mean", [0.5, 0.5, 0.5]),
        ("frames", "std", [0.5, 0.5, 0.5]),
    ],
)
def test_a_rule_that_no_token_and_no_pixel_shows_is_compared_with_the_export_s(
    bundle, tmp_path, part, name, value
):
    folder = with_rule(bundle, tmp_path / "other", part, **{name: value})
    ours, theirs = (
        getattr(getattr(Bundle(one).manifest.inputs, part), name) for one in (folder, bundle)
    )
    result = CliRunner().invoke(verify, [str(folder)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: bundle {folder} fails its self-check: inputs.{part}.{name} is {ours!r}, the model's is "
        f"{theirs!r}. Export it again, or take the manifest.json that was exported.\n"
    )


def test_sampling_is_compared_with_the_export_s(bundle):
    """No manifest has another one yet: there is no other."""
    opened = Bundle(bundle)
    inputs = opened.manifest.inputs
    tokenizer = Tokenizer.load(bundle / TOKENIZER, inputs.texts)
    frames = replace(inputs.frames, sampling="ends")
    assert list(input_faults(opened.golden, frames, tokenizer)) == [
        "inputs.frames.sampling is 'ends', the model's is 'centers'"
    ]


def test_golden_inputs_of_before_are_checked_by_tokens_and_pixels_alone(bundle, tmp_path):
    inputs = json.loads((bundle / MANIFEST).read_text())["inputs"]
    inputs["texts"]["read"] = "last"
    older = changed_bundle(
        bundle, tmp_path / "older", golden=lambda golden: golden.pop("inputs"), inputs=inputs
    )
    assert Bundle(older).golden.inputs is None
    result = CliRunner().invoke(verify, [str(older)])
    assert result.exit_code == 0, result.output
    resized = with_rule(older, tmp_path / "resized", "frames", resize="squash")
    with pytest.raises(BundleError, match="resize is 'squash', the model's is 'shortest'"):
        Encoder(resized).check()


@pytest.mark.parametrize("told", ["{", "[]", '"a"', "{}", '{"frames": 1}', "[" * 100_000])
def test_rules_in_golden_inputs_that_are_none_are_the_bundle_s_fault(bundle, tmp_path, told):
    def spoil(golden):
        golden["inputs"] = np.array(told)

    folder = changed_bundle(bundle, tmp_path / "other", golden=spoil)
    with pytest.raises(BundleError, match="does not hold the golden inputs: "):
        Bundle(folder).golden  # noqa: B018


def test_no_text_is_fed_by_rules_that_cannot_be(bundle):
    """Rows of one token, as no manifest with a start and an end token can have them."""
    opened = Bundle(bundle)
    golden, inputs = opened.golden, opened.manifest.inputs
    golden = replace(golden, tokens=golden.tokens[:, :1], lengths=np.ones_like(golden.lengths))
    tokenizer = Tokenizer.load(bundle / TOKENIZER, replace(inputs.texts, pad_to=32))
    assert next(input_faults(golden, inputs.frames, tokenizer)).endswith("is another one")


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"pad_to": 40}, "pad_to is None, the model's is 40"),
        ({"pad_to": 32}, "pad_to is None, the model's is 32"),
        ({"pad_to": 32, "pad_id": 5}, "tokenizer.json is another one"),  # two rules
        ({"pad_id": 5}, "pad_id is 0, the model's is 5"),
        ({"start_id": None}, "start_id is 49406, the model's is None"),
        ({"start_id": 7}, "start_id is 49406, the model's is 7"),
        ({"end_id": None, "read": "last"}, f"end_id is {END}, the model's is None"),
        ({"max_tokens": 20}, "max_tokens is 32, the model's is 20"),
        ({"max_tokens": 40, "pad_to": 40}, "tokenizer.json is another one"),
    ],
)
def test_a_rule_is_named_whatever_the_model_was_trained_with(bundle, rules, told):
    opened = Bundle(bundle)
    frames, texts = opened.manifest.inputs.frames, opened.manifest.inputs.texts
    tokenizer = Tokenizer.load(bundle / TOKENIZER, texts)
    right = tokenizer.fed_as(replace(texts, **rules))(opened.golden.raw.texts.tolist())
    golden = replace(opened.golden, tokens=right.ids, lengths=right.lengths)
    assert list(input_faults(golden, frames, tokenizer)) == [f"{TOKENS} than the model's: {told}"]


def test_the_padding_is_named_whatever_the_order_of_the_texts(bundle):
    opened = Bundle(bundle)
    golden, raw = opened.golden, opened.golden.raw
    rows = np.argsort(-golden.lengths)[[0, -2]]  # the longest first, the shortest but the empty one
    assert raw.texts[rows[0]] < raw.texts[rows[1]]  # first by the alphabet, too
    golden = replace(
        golden,
        tokens=golden.tokens[rows],
        lengths=golden.lengths[rows],
        raw=replace(raw, texts=raw.texts[rows]),
    )
    inputs = opened.manifest.inputs
    tokenizer = Tokenizer.load(bundle / TOKENIZER, replace(inputs.texts, pad_id=5))
    (fault,) = input_faults(golden, inputs.frames, tokenizer)
    assert fault.endswith("pad_id is 5, the model's is 0")


def test_another_vocabulary_is_found_where_no_rule_explains_it(bundle, tmp_path):
    folder = changed_bundle(bundle, tmp_path / "other")
    told = json.loads((folder / TOKENIZER).read_text())
    del told["model"]["merges"][:50]
    (folder / TOKENIZER).unlink()
    (folder / TOKENIZER).write_text(json.dumps(told))
    fields = json.loads((folder / MANIFEST).read_text())
    fields["files"][TOKENIZER] = sha256_of(folder / TOKENIZER)
    (folder / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(BundleError, match=r"than the model's: tokenizer\.json is another one\."):
        Encoder(folder).check()


@pytest.mark.parametrize(("levels", "passes"), [(1, True), (2, False)])
def test_a_level_is_rounding_and_two_are_not(bundle, tmp_path, levels, passes):
    def spoil(golden):
        dark = np.unravel_index(golden["pixels"].argmin(), golden["pixels"].shape)
        golden["pixels"][dark] += levels

    folder = changed_bundle(bundle, tmp_path / "other", golden=spoil)
    result = CliRunner().invoke(verify, [str(folder)])
    assert (result.exit_code == 0) == passes, result.output


def test_a_whole_bundle_says_that_its_inputs_were_checked(bundle):
    told = CliRunner().invoke(verify, [str(bundle)]).stdout.splitlines()
    assert told[1] == "Texts and pictures become the tokens and pixels the model was exported with."


def test_a_bundle_of_schema_2_is_checked_as_before_and_says_so(tmp_path):
    folder = unpack(tmp_path) / "bundle"
    assert Bundle(folder).golden.raw is None
    result = CliRunner().invoke(verify, [str(folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].startswith("Exported before texts and pictures could be")


@pytest.mark.parametrize("name", ["texts", "picture", "pixels", "lengths"])
def test_golden_inputs_without_what_they_came_from_are_refused(bundle, tmp_path, name):
    folder = changed_bundle(bundle, tmp_path / "other", golden=lambda golden: golden.pop(name))
    with pytest.raises(BundleError, match=f"does not hold the golden inputs: .*{name}"):
        Bundle(folder).golden  # noqa: B018


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("texts", lambda array: array[1:], r"texts is <U\d+ \[8\], expected"),
        ("texts", lambda array: np.arange(9), r"texts is int64 \[9\], expected"),
        (
            "picture",
            lambda array: array[..., :1],
            r"picture is uint8 \[29, 41, 1\], expected uint8",
        ),
        (
            "pixels",
            lambda array: array[:, 1:],
            r"pixels is uint8 \[3, 31, 32\], expected uint8 \[3, 32",
        ),
    ],
)
def test_raw_inputs_that_do_not_fit_are_the_bundles_fault(bundle, tmp_path, name, change, message):
    def spoil(golden):
        golden[name] = change(golden[name])

    folder = changed_bundle(bundle, tmp_path / "other", golden=spoil)
    with pytest.raises(BundleError, match=f"does not hold the golden inputs: {message}"):
        Bundle(folder).golden  # noqa: B018
