"""A service in this process, every answer of which is held against its description and has its headers."""

import re

import jsonschema_rs
from fastapi.testclient import TestClient

from dgl_runtime import Encoder
from dgl_runtime.serve.app import ServeSettings, create_app
from dgl_runtime.serve.galleries import ServedGallery
from dgl_runtime.serve.guard import GuardSettings

HOSTS = frozenset({"localhost", "127.0.0.1"})
# What every answer says, whatever it is.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class DescribedClient(TestClient):
    """Holds every answer against the description of the service, and against ``HEADERS``."""

    def __init__(self, app, description):
        super().__init__(app, base_url="http://localhost")
        self._told = description
        self._paths = {
            re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))): item
            for path, item in description["paths"].items()
        }

    def _operation(self, path, method):
        for pattern, item in self._paths.items():
            if pattern.fullmatch(path):
                return item.get(method.lower())
        return None

    def _fits(self, schema, value):
        whole = {**schema, "components": self._told["components"]}
        return jsonschema_rs.validator_for(whole).is_valid(value)

    def describes(self, path, body):
        """Whether a JSON body is one that the description allows."""
        operation = self._operation(path, "post")
        return self._fits(operation["requestBody"]["content"]["application/json"]["schema"], body)

    def request(self, method, url, **settings):
        answer = super().request(method, url, **settings)
        assert {name: answer.headers.get_list(name) for name in HEADERS} == {
            name: [value] for name, value in HEADERS.items()
        }
        assert not any(name.startswith("access-control-") for name in answer.headers)
        operation = self._operation(answer.request.url.path, method)
        if operation is None:
            return answer
        said = operation["responses"][str(answer.status_code)]
        for name, header in said.get("headers", {}).items():
            assert not header.get("required") or name in answer.headers
        if answer.status_code == 204:
            assert not answer.content
            return answer
        kind = answer.headers["content-type"].partition(";")[0]
        schema = said["content"][kind]["schema"]
        if kind == "application/json":
            assert self._fits(schema, answer.json()), (schema, answer.text)
        return answer


def serve(bundle, folder, **settings):
    served = ServedGallery("holiday", folder, Encoder(bundle, threads=1))
    guard = settings.pop("guard", GuardSettings(HOSTS))
    app = create_app([served], ServeSettings(guard, **settings))
    bearer = {"authorization": f"Bearer {guard.token}"}
    description = TestClient(app, "http://localhost").get("/openapi.json", headers=bearer).json()
    return DescribedClient(app, description)
