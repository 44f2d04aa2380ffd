"""--host in every way it is written: what is listened at, what is printed, and which Host is then known."""

import socket
import urllib.request

import pytest

from dgl_runtime.errors import ConfigError
from dgl_runtime.serve.address import Address, host_name, listen
from tests.helpers.served import serving


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "is_local", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:8"),
        ("127.1", True, "http://127.1:8"),
        ("localhost", True, "http://localhost:8"),
        ("::1", True, "http://[::1]:8"),
        ("[::1]", True, "http://[::1]:8"),
        ("[0:0:0:0:0:0:0:1]", True, "http://[0:0:0:0:0:0:0:1]:8"),
        ("0.0.0.0", False, "http://127.0.0.1:8"),
        ("0", False, "http://127.0.0.1:8"),
        ("::", False, "http://[::1]:8"),
        ("[::]", False, "http://[::1]:8"),
        ("192.0.2.1", False, "http://192.0.2.1:8"),
        ("2001:db8::1", False, "http://[2001:db8::1]:8"),
    ],
)
def test_an_address_is_local_or_not_and_printed_as_a_browser_opens_it(host, is_local, url):
    address = Address.of(host, 8)
    assert (address.is_local, address.url(8)) == (is_local, url)


def test_of_the_addresses_of_a_name_ipv4_counts_first(monkeypatch):
    found = [
        (socket.AF_INET6, 1, 6, "", ("::1", 8, 0, 0)),
        (socket.AF_INET, 1, 6, "", ("1.2.3.4", 8)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert Address.of("a.b", 8) == Address("a.b", socket.AF_INET, ("1.2.3.4", 8))
    assert Address.of("a.b", 8).names == ("a.b", "1.2.3.4")
    found.pop()
    assert Address.of("a.b", 8).is_local  # by what it is, not by what it is called
    assert Address.of("a.b", 8).names == ("a.b", "::1")


@pytest.mark.parametrize(
    "host", ["", "[]", "[::1", "::1]", "[127.0.0.1]", "1.2.3.4:80", "http://a", "a b", "ü" * 99]
)
def test_what_is_no_address_is_said_on_one_line(host):
    with pytest.raises(
        ConfigError, match="is not an address or a name that can be looked up"
    ) as said:
        Address.of(host, 8)
    assert "\n" not in str(said.value)
    assert "None" not in str(said.value)


def test_an_address_that_cannot_be_had_is_said(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"cannot listen at 192\.0\.2\.1 port 8: .*--port.*--host"
    ):
        listen(Address.of("192.0.2.1", 8))
    with listen(Address.of("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use"):
            listen(Address.of("127.0.0.1", port))
    unsupported = OSError(97, "Address family not supported by protocol")
    monkeypatch.setattr(socket, "socket", lambda *_: (_ for _ in ()).throw(unsupported))
    with pytest.raises(ConfigError, match="Address family not supported"):
        listen(Address.of("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("LOCALHOST:8000", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("[0:0::0001]:80", "::1"),
        ("[FD00::A]", "fd00::a"),
        ("2001:db8::80", "2001:db8::80"),
        ("a.b:c", "a.b:c"),
        (":80", ":80"),
        ("[a]", "[a]"),
        ("[::1]x:80", "[::1]x:80"),
    ],
)
def test_a_host_has_one_way_to_be_written(written, name):
    assert host_name(written) == name


def get(url, host=None):
    request = urllib.request.Request(f"{url}/health", headers={"host": host} if host else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status


@pytest.mark.parametrize(
    "host",
    [pytest.param("[::1]", marks=ipv6), pytest.param("::", marks=ipv6), "0.0.0.0", "localhost"],
)
def test_what_is_printed_can_be_opened(library, host):
    token = "import os; os.environ['DGL_TOKEN'] = 'a-token-of-some-length'"
    command = (
        library / "gallery",
        "--host",
        host,
        "--allow-host",
        "[FD00::1]",
        "--allow-host",
        "A.b",
    )
    with serving(*command, before=token) as (process, port):
        url = process.said.split()[-1]
        assert url.endswith(f":{port}")
        assert get(url) == 200
        for name in ("[::1]", f"[::1]:{port}", "127.0.0.1", "localhost", "[fd00::1]:80", "a.B:1"):
            assert get(url, name) == 200
        for name in ("[::2]", "fd00::2", "b"):
            with pytest.raises(urllib.request.HTTPError, match="421"):
                get(url, name)
