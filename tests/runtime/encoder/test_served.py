"""A bundle on a real Triton server, over gRPC, through everything that embeds."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.error import HTTPError

import numpy as np
import pytest

from dgl_runtime import Encoder, Retriever
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from dgl_runtime.commands.verify import verify
from dgl_runtime.encoder.served import served_name
from dgl_runtime.encoder.triton_config import Placed
from dgl_runtime.encoder.triton_repository import write_repository
from dgl_runtime.engines.candidates import check_names
from dgl_runtime.engines.triton_address import TritonAddress
from dgl_runtime.errors import BundleError, EngineError
from tests.helpers.commands import failure, invoke
from tests.helpers.served import serving

TEXTS = [" ".join(["dog"] * (1 + number % 20)) for number in range(70)]
FRAMES = np.random.default_rng(0).integers(0, 256, (40, 4, 3, 32, 32), np.uint8)
ASKING = 16
AGAIN = r"Write the server's repository again with: dgl-bundle triton \S+ REPOSITORY$"


@pytest.fixture
def served(bundle, triton):
    return Encoder(bundle, engine=f"triton:{triton.address}")


def statistics(triton, bundle, name):
    """What the server counts; it counts a request a moment after it answered."""
    from tritonclient.grpc import InferenceServerClient

    model, before = served_name(Bundle(bundle), name), None
    with InferenceServerClient(triton.address) as client:
        while True:
            (found,) = client.get_inference_statistics(model).model_stats
            if before == found:
                return found
            before = found
            time.sleep(0.2)


# ---- what it gives ---------------------------------------------------------------------------


def test_a_server_gives_the_local_engines_embeddings(bundle, served):
    local = Encoder(bundle, engine="onnx", threads=1)
    np.testing.assert_allclose(
        served.embed_texts(TEXTS), local.embed_texts(TEXTS), rtol=0, atol=1e-5
    )
    ours, theirs = served.embed_clips(FRAMES), local.embed_clips(FRAMES)
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.frame_weights, theirs.frame_weights, rtol=0, atol=1e-5)
    picture = FRAMES[0, 0].transpose(1, 2, 0)
    np.testing.assert_allclose(
        served.embed_pictures([picture]), local.embed_pictures([picture]), rtol=0, atol=1e-5
    )
    assert ours.embeddings.flags.writeable


def test_who_runs_it_is_said(served, triton):
    said = str(served.chosen("text_encoder"))
    assert said == f"Triton 2.51.0 at {triton.address} (onnxruntime), asked for by name"
    assert served.chosen("text_encoder").candidate.device == "server"
    assert served.check().captions_max_abs < 1e-4


def test_a_batch_larger_than_the_models_is_several_requests(bundle, served, triton):
    served.embed_clips(FRAMES[:1])
    before = statistics(triton, bundle, "clip_encoder")
    served.embed_clips(FRAMES)
    after = statistics(triton, bundle, "clip_encoder")
    assert after.inference_count - before.inference_count == len(FRAMES)
    assert after.execution_count - before.execution_count == 3  # 16, 16 and 8


def test_requests_that_wait_together_are_run_together_also_of_several_lengths(
    bundle, served, triton
):
    alone = served.embed_texts(TEXTS[:7])
    before = statistics(triton, bundle, "text_encoder")
    together = Barrier(ASKING)

    def ask(number):
        found = []
        for turn in range(20):
            together.wait(60)
            row = (number + turn) % 7
            found.append((row, served.embed_texts([TEXTS[row]])[0]))
        return found

    with ThreadPoolExecutor(ASKING) as pool:
        asked = [one for found in pool.map(ask, range(ASKING)) for one in found]
    for row, embedding in asked:
        np.testing.assert_allclose(embedding, alone[row], rtol=0, atol=1e-5)
    after = statistics(triton, bundle, "text_encoder")
    requests = after.inference_count - before.inference_count
    assert requests == len(asked) == 20 * ASKING
    # How many are joined depends on what else the machine does; without joining it is none.
    assert after.execution_count - before.execution_count < requests


def test_the_machine_that_asks_needs_no_graphs(bundle, triton, tmp_path):
    light = shutil.copytree(bundle, tmp_path / "light", ignore=shutil.ignore_patterns("*.onnx*"))
    found = Encoder(light, engine=f"triton:{triton.address}").embed_texts(["a dog"])
    np.testing.assert_allclose(found, Encoder(bundle).embed_texts(["a dog"]), rtol=0, atol=1e-5)


# ---- what uses it ----------------------------------------------------------------------------


def test_a_gallery_indexed_through_a_server_is_the_local_one(bundle, triton, videos, tmp_path):
    engine = ("--engine", f"triton:{triton.address}")
    window = ("--window", "1s", "--stride", "500ms")
    invoke(index, bundle, videos, "--gallery", tmp_path / "there", *window, *engine)
    invoke(index, bundle, videos, "--gallery", tmp_path / "here", *window)

    def found(gallery, *more):
        rows = json.loads(invoke(search, gallery, "a dog", "--top", 20, "--json", *more))
        return [(hit["video"], hit["start_s"]) for hit in rows[0]["hits"]], [
            hit["similarity"] for hit in rows[0]["hits"]
        ]

    here, there = found(tmp_path / "here"), found(tmp_path / "there", *engine)
    assert sorted(there[0]) == sorted(here[0])
    np.testing.assert_allclose(there[1], here[1], rtol=0, atol=2e-5)


def test_a_bundle_is_verified_on_a_server(bundle, triton):
    said = invoke(verify, bundle, "--engine", f"triton:{triton.address}")
    assert f"clip_encoder in Triton 2.51.0 at {triton.address} (onnxruntime)" in said


def ask(port, text):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/galleries/gallery/search",
        json.dumps({"query": text, "top": 5}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [moment["similarity"] for moment in json.load(answer)["moments"]]


def test_a_service_under_load_outlives_the_death_of_its_server(
    bundle, gallery, new_triton, repository
):
    pytest.importorskip("fastapi")
    with Retriever(bundle, gallery, threads=1) as local:
        expected = {text: [hit.similarity for hit in local.search(text, 5)] for text in TEXTS[:20]}
    with new_triton(repository) as own:
        arguments = (gallery, "--engine", f"triton:{own.address}")
        with serving(*arguments) as (process, port):

            def all_are_answered():
                with ThreadPoolExecutor(ASKING) as pool:
                    answers = list(pool.map(lambda text: ask(port, text), [*expected] * 10))
                for answer, similarity in zip(answers, [*expected.values()] * 10, strict=True):
                    np.testing.assert_allclose(answer, similarity, rtol=0, atol=2e-5)

            all_are_answered()
            own.kill()
            with pytest.raises(HTTPError) as refused:
                ask(port, "a dog")
            assert (refused.value.code, refused.value.headers["retry-after"]) == (503, "1")
            told = json.load(refused.value)["detail"]
            assert told.startswith("the model does not run at the moment")
            assert str(own.port) not in told
            own.start()
            until_answered(port)
            all_are_answered()
            process.terminate()
            said = process.stderr.read()
    assert f"WARNING: the Triton server at {own.address} does not run text_encoder-" in said
    assert "Traceback" not in said


def until_answered(port):
    for _ in range(200):
        try:
            return ask(port, "a dog")
        except HTTPError:
            time.sleep(0.05)
    raise AssertionError("no answer after the restart")


# ---- what it refuses -------------------------------------------------------------------------


def test_an_encoder_finds_its_server_again(bundle, new_triton, repository):
    server = new_triton(repository).start()
    try:
        encoder = Encoder(bundle, engine=f"triton:{server.address}")
        before = encoder.embed_texts(TEXTS)
        server.kill()
        with pytest.raises(EngineError) as away:
            encoder.embed_texts(TEXTS)
        assert re.match(
            rf"the Triton server at {server.address} does not run text_encoder-\w+ on tokens \[32, \d+\]: ",
            str(away.value),
        )
        assert "\n" not in str(away.value)
        server.start()
        time.sleep(1.1)  # gRPC looks for it once a second
        np.testing.assert_array_equal(encoder.embed_texts(TEXTS), before)
    finally:
        server.kill()


def test_a_server_that_is_away_is_one_line(bundle, new_triton, repository):
    absent = new_triton(repository)
    line, out = failure("verify", bundle, "--engine", f"triton:{absent.address}")
    assert line.startswith(f"the Triton server at {absent.address} does not say what it has: ")
    assert line.endswith(
        ". Start it, wait until it is ready, or correct the address: it is that of its gRPC port, by default "
        "8001, and tritons: over TLS."
    )
    assert out == ""


def test_a_server_of_another_bundle_is_refused(other_bundle, bundle, triton):
    mine, theirs = Bundle(other_bundle), Bundle(bundle)
    with pytest.raises(EngineError) as caught:
        Encoder(other_bundle, engine=f"triton:{triton.address}").embed_texts(["a dog"])
    there = ", ".join(
        sorted(served_name(theirs, name) for name in ("text_encoder", "clip_encoder"))
    )
    assert str(caught.value) == (
        f"the Triton server at {triton.address} has no model {served_name(mine, 'text_encoder')}; it has: "
        f"{there}. Add it to the server's repository with: dgl-bundle triton BUNDLE REPOSITORY"
    )


@pytest.fixture
def disguised(bundle, other_bundle, tmp_path):
    """A repository of another bundle whose models have this one's names."""
    write_repository(Bundle(other_bundle), tmp_path / "repository", Placed("cpu", 1, 1))
    for name in ("text_encoder", "clip_encoder"):
        folder = tmp_path / "repository" / served_name(Bundle(other_bundle), name)
        config = folder / "config.pbtxt"
        told = config.read_text().replace(
            f'name: "{folder.name}"', f'name: "{served_name(Bundle(bundle), name)}"'
        )
        config.write_text(told)
        folder.rename(folder.with_name(served_name(Bundle(bundle), name)))
    return tmp_path / "repository"


def test_a_model_that_says_it_is_of_another_bundle_is_refused(
    bundle, other_bundle, disguised, new_triton
):
    with new_triton(disguised) as server, pytest.raises(EngineError) as caught:
        Encoder(bundle, engine=f"triton:{server.address}").embed_texts(["a dog"])
    assert re.match(
        rf"model text_encoder-\w+ of the Triton server at {server.address} is of bundle "
        rf"{Bundle(other_bundle).id}, expected {Bundle(bundle).id}\. {AGAIN}",
        str(caught.value),
    )


@pytest.mark.parametrize("method", ["embed_texts", "embed_clips"])
def test_other_weights_under_the_right_name_fail_the_self_check(
    bundle, other_bundle, disguised, new_triton, method
):
    for config in disguised.glob("*/config.pbtxt"):
        told = config.read_text().replace(Bundle(other_bundle).id, Bundle(bundle).id)
        config.write_text(told)
    given = ["a dog"] if method == "embed_texts" else FRAMES[:1]
    with new_triton(disguised) as server, pytest.raises(BundleError) as caught:
        getattr(Encoder(bundle, engine=f"triton:{server.address}"), method)(given)
    assert f"fails its self-check: in Triton 2.51.0 at {server.address}" in str(caught.value)
    assert re.search(AGAIN, str(caught.value))


def test_without_the_package_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(
        EngineError, match=r"'tritonclient', which is not installed: .*\. Install"
    ) as e:
        Encoder(bundle, engine="triton:localhost:8001").embed_texts(["a dog"])
    assert str(e.value).endswith("pip install 'dgl-retrieval[triton]'")


# ---- where it is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "target", "is_encrypted"),
    [
        ("triton:localhost:8001", "localhost:8001", False),
        ("tritons:triton.example-1.org:443", "triton.example-1.org:443", True),
        ("triton:10.0.0.7:1", "10.0.0.7:1", False),
        ("triton:[::1]:65535", "[::1]:65535", False),
    ],
)
def test_a_server_is_named_by_host_and_port(engine, target, is_encrypted):
    assert TritonAddress.of(engine) == TritonAddress(target, is_encrypted)
    check_names("cpu", engine)


@pytest.mark.parametrize(
    "engine",
    "triton triton: triton:localhost triton::8001 triton:localhost: triton:localhost:0 "
    "triton:localhost:65536 triton:http://localhost:8000 triton:a:b:8001 triton:localhost:٣ "
    "tritons:localhost:8001/x".split(),
)
def test_an_address_that_is_none_is_refused_in_a_line(bundle, engine):
    with pytest.raises(EngineError) as caught:
        Encoder(bundle, engine=engine)
    assert str(caught.value) == (
        f"engine is {engine!r}; a Triton server is named triton:HOST:PORT, or tritons:HOST:PORT over TLS, by "
        "its gRPC port. Write one such as triton:localhost:8001."
    )


def test_other_engines_are_no_addresses():
    assert TritonAddress.of("onnx") is None
    with pytest.raises(EngineError, match=r"one of auto, onnx, .*, trt-rtx, triton:HOST:PORT\.$"):
        check_names("cpu", "triton-server")


def test_the_device_is_the_servers_business(bundle):
    with pytest.raises(
        EngineError, match=r"^device is 'cuda', but triton:a:1 runs its graphs where"
    ):
        Encoder(bundle, device="cuda", engine="triton:a:1")
    Encoder(bundle, device="auto", engine="triton:a:1")


def test_a_server_over_tls_is_asked_over_tls(bundle, new_triton, repository, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*made.split(), *files], check=True, capture_output=True)
    options = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate}",
        f"--grpc-server-key={key}",
    ]
    with new_triton(repository, *options) as server:
        untrusted, _ = failure("verify", bundle, "--engine", f"tritons:{server.address}")
        plain, _ = failure("verify", bundle, "--engine", f"triton:{server.address}")
        for line in (untrusted, plain):
            assert line.startswith(
                f"the Triton server at {server.address} does not say what it has"
            )
        monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(certificate))
        code = (
            "import sys; from dgl_runtime import Encoder; "
            "print(Encoder(sys.argv[1], engine=sys.argv[2]).check().captions_max_abs)"
        )
        asked = [sys.executable, "-c", code, bundle, f"tritons:{server.address}"]
        root = Path(__file__).parents[3]
        done = subprocess.run(asked, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4
