"""/openapi.json is true: what it says of every address is what comes, and a client made from it works."""

import importlib
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from dgl_runtime.serve import app
from dgl_runtime.serve.batching import QueueFullError
from tests.helpers.described_client import serve
from tests.helpers.served import serving

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
AT = "/api/galleries/holiday"
TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("token", "examples"),
    [
        ("", 10),
        (TOKEN, 5),
        *(pytest.param(one, 300, marks=pytest.mark.soak) for one in ("", TOKEN)),
    ],
)
def test_a_fuzzer_finds_nothing_that_is_not_described(library, tmp_path, token, examples):
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file"]
    command += [HERE / "schemathesis.toml", "run", "--checks", "all", "--generation-deterministic"]
    command += ["--no-color", "--max-examples", str(examples)]
    command += ["--header", f"Authorization: Bearer {token}"] if token else []
    with serving(library / "gallery", before=f"import os; os.environ['DGL_TOKEN'] = {token!r}") as (
        process,
        port,
    ):
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/openapi.json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60 + 20 * examples,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py")},
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert "Tested: 11" in done.stdout
        process.terminate()
        assert "Traceback" not in process.stderr.read()


def test_a_client_made_from_it_works(library, tmp_path, monkeypatch):
    with serving(library / "gallery") as (_, port):
        at = f"http://127.0.0.1:{port}"
        (tmp_path / "config.yml").write_text(
            "post_hooks: []\n"
            "content_type_overrides:\n  image/jpeg: application/octet-stream\n"
            "  video/mp4: application/octet-stream\n"
        )
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--url"]
        command += [f"{at}/openapi.json", "--output-path", tmp_path / "made_client", "--meta=none"]
        command += ["--config", tmp_path / "config.yml"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        monkeypatch.syspath_prepend(tmp_path)

        def part(name):
            return importlib.import_module(f"made_client.{name}")

        models, types = part("models"), part("types")
        with part("client").Client(at) as client:
            asked = models.TextSearch(query="a red circle", top=3, where="duration_s > 1")
            found = part("api.default.search").sync("gallery", client=client, body=asked)
            assert len(found.moments) == 3
            one = found.moments[0]
            with (library / "videos" / one.title).open("rb") as file:
                upload = types.File(file, file_name="x.mp4")
                example = models.BodyLike(upload, top=2, group=models.BodyLikeGroup.VIDEO)
                alike = part("api.default.like").sync("gallery", client=client, body=example)
            assert isinstance(alike, models.Moments), alike
            assert len({found.title for found in alike.moments}) == 2
            frame = part("api.default.thumbnail").sync("gallery", one.clip, client=client, side=64)
            assert frame.payload.read().startswith(b"\xff\xd8")
            preview = part("api.default.preview").sync(
                "gallery", one.clip, client=client, start_s=0, end_s=1
            )
            assert b"ftyp" in preview.payload.read()[:12]
            wrong = part("api.default.search").sync("x", client=client, body=asked)
            assert wrong == models.Refusal("no gallery 'x'; there are: gallery")
            wrong = models.TextSearch(query="x", top=0)
            refused = part("api.default.search").sync("gallery", client=client, body=wrong)
            assert refused.detail[0].loc == ["body", "top"]


def test_every_get_address_answers_head(library):
    """Of a real server, which is what leaves the body out."""
    with serving(library / "gallery") as (_, port):
        for path, headers, status in (
            ("/", {}, 200),
            ("/assets/app.js", {}, 200),
            ("/health", {}, 200),
            ("/ready", {}, 200),
            ("/metrics", {}, 200),
            ("/openapi.json", {}, 200),
            ("/api/galleries", {}, 200),
            ("/api/galleries/gallery/clips/0/thumbnail", {}, 200),
            ("/api/galleries/gallery/clips/0/preview?start_s=0&end_s=1", {}, 200),
            ("/api/galleries/gallery/videos/1", {}, 200),
            ("/api/galleries/gallery/videos/1", {"range": "bytes=10-19"}, 206),
            ("/api/galleries/gallery/videos/1", {"range": "bytes=99999999-"}, 416),
            ("/api/galleries/gallery/videos/1", {"range": "x"}, 400),
            ("/api/galleries/gallery/videos/99", {}, 404),
            ("/nothing", {}, 404),
        ):
            answers = [asked(port, method, path, headers) for method in ("HEAD", "GET")]
            for one in answers:
                one[1].pop("date")
                if path == "/metrics":  # it counts this very request
                    one[1].pop("content-length")
            assert answers[0][:2] == answers[1][:2]
            assert answers[0][0] == status, path
            assert answers[0][2] == b""
        status, headers, _ = asked(port, "POST", "/health", {})
        assert (status, set(headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


def asked(port, method, path, headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers=headers, method=method
    )
    opener = urllib.request.OpenerDirector()  # raises nothing
    opener.add_handler(urllib.request.HTTPHandler())
    with opener.open(request) as answer:
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, told, answer.read()


def refuse(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


def test_what_takes_too_long_or_does_not_fit_is_refused_as_described(bundle, library, monkeypatch):
    """The client of these tests compares every answer with the description."""
    body = {"query": "a dog"}
    with serve(bundle, library / "gallery", answer_s=1e-9, upload_s=1e-9) as client:
        answer = client.post(f"{AT}/search", json=body)
        assert (answer.status_code, answer.json()["detail"]) == (504, "no answer within 1e-09 s")
        answer = client.post(f"{AT}/like", files={"file": ("x", b"x")})
        assert (answer.status_code, answer.json()["detail"]) == (
            504,
            "the upload takes too long to decode",
        )
    with serve(bundle, library / "gallery") as client:
        with monkeypatch.context() as patch:
            patch.setattr("dgl_runtime.serve.batching.Batcher.submit", refuse(QueueFullError(7)))
            answer = client.post(f"{AT}/search", json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
            assert answer.json()["detail"] == "the queue is full, try again in 7 s"
        with monkeypatch.context() as patch:
            patch.setattr(app, "_listed_file", refuse(OSError(24, "Too many open files")))
            answer = client.get(f"{AT}/clips/0/thumbnail")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["detail"] == "the machine has no room left: Too many open files"
            patch.setattr(app, "_listed_file", refuse(OSError(5, "Input/output error")))
            with pytest.raises(OSError, match="Input/output"):
                client.get(f"{AT}/clips/0/thumbnail")
        for given, status in (("bytes=x", 400), ("bytes=0-1,4-5", 206), ("bytes=999999999-", 416)):
            answer = client.get(f"{AT}/videos/1", headers={"range": given})
            assert answer.status_code == status
        assert client.get("/", headers={"range": "bytes=0-1"}).status_code == 206


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"top": 5.0}, True),
        ({"top": "5"}, False),
        ({"top": True}, False),
        ({"top": 5.5}, False),
        ({"hubs": 1}, False),
        ({"hubs": "yes"}, False),
        ({"where": ""}, True),
        ({"where": None}, True),
        ({"where": 1}, False),
        ({"query": "\x1c"}, False),
        ({"query": "\ufeff"}, False),
        ({"query": "\x85 \u2003"}, False),
        ({"query": " x"}, True),
        ({"group": None}, False),
    ],
)
def test_the_types_are_those_described(client, body, fits):
    body = {"query": "a dog", **body}
    answer = client.post(f"{AT}/search", json=body)
    assert answer.status_code == (200 if fits else 422)
    assert client.describes(f"{AT}/search", body) == fits


def test_the_description_says_what_is_asked_for(bundle, library):
    with serve(bundle, library / "gallery") as client:
        open_one = client.get("/openapi.json").json()
    assert "securitySchemes" not in open_one["components"]
    for path, item in open_one["paths"].items():
        for operation in item.values():
            assert ("403" in operation["responses"]) == path.startswith("/api/")
            assert ("401" in operation["responses"]) == (path == "/api/session")
    ready = open_one["paths"]["/ready"]["get"]["responses"]["200"]["content"]["application/json"]
    assert ready["schema"] == {"$ref": "#/components/schemas/Readiness"}
    files = ("/", "/metrics", "thumbnail", "preview", "{video}")
    for path, item in open_one["paths"].items():
        content = item.get("get", item.get("post"))["responses"].get("200", {}).get("content", {})
        assert ("application/json" in content) != (path.endswith(files) or path == "/api/session")
