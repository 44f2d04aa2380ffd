"""dgl-serve: galleries over HTTP."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command
from dgl_runtime.commands.options import (
    GalleryPlace,
    Seconds,
    device_option,
    engine_option,
    threads_option,
)
from dgl_runtime.errors import ConfigError
from dgl_runtime.serve.address import LOCAL_NAMES, Address, host_name, listen

if TYPE_CHECKING:
    from dgl_runtime.gallery.address import Place

SHORTEST_TOKEN = 16
STOP_WITHIN_S = 30


@click.command(cls=Command)
@click.argument("galleries", nargs=-1, required=True, type=GalleryPlace())
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Default: the one that indexed each gallery."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Holds the token that requests must carry; or set DGL_TOKEN. Required beyond this machine.",
)
@click.option("--allow-host", multiple=True, help="A host name that clients use; repeatable.")
@click.option(
    "--querybank",
    type=click.Path(path_type=Path),
    help="A file of typical queries, one a line; clips that fit all of them rank lower.",
)
@click.option(
    "--max-upload",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Of one upload, MiB.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Most searches that wait.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Most searches answered together.",
)
@click.option(
    "--drain",
    type=Seconds(may_be_0=True),
    default="0",
    show_default=True,
    help="How long SIGTERM waits while /ready says no, so that a proxy sends no more requests.",
)
@device_option
@engine_option
@threads_option
def serve(
    galleries: tuple["Place", ...],
    bundle: Path | None,
    host: str,
    port: int,
    token_file: Path | None,
    allow_host: tuple[str, ...],
    querybank: Path | None,
    max_upload: int,
    queue: int,
    batch: int,
    drain: float,
    device: str,
    engine: str,
    threads: int,
) -> None:
    """Serve galleries: a page at / to search and watch in a browser, and an HTTP API.

    Listens on this machine only unless --host says otherwise; every request then needs the token.

    Example: dgl-serve gallery
    """
    import uvicorn

    from dgl_runtime.commands.search import bundle_of, read_queries
    from dgl_runtime.encoder.encoder import Encoder
    from dgl_runtime.serve import log
    from dgl_runtime.serve.app import ServeSettings, create_app
    from dgl_runtime.serve.batching import BatchSettings
    from dgl_runtime.serve.connections import Connection, Server, raise_file_limit, room_left
    from dgl_runtime.serve.drain import Drain
    from dgl_runtime.serve.galleries import ServedGallery, names_of
    from dgl_runtime.serve.guard import GuardSettings

    raise_file_limit()
    token = read_token(token_file)
    address = Address.of(host, port)
    if token is None and not address.is_local:
        raise ConfigError(
            f"--host {host} can be reached from other machines, so a token is needed. Make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe())' > token; then: --token-file token"
        )
    hosts = frozenset(host_name(one) for one in (*LOCAL_NAMES, *address.names, *allow_host))
    bank = tuple(read_queries(querybank)) if querybank else ()
    encoders: dict[Path, Encoder] = {}
    served = []
    for name, place in zip(names_of(galleries), galleries, strict=True):
        path = (bundle or bundle_of(place)).resolve()
        if path not in encoders:
            encoders[path] = Encoder(path, device=device, engine=engine, threads=threads)
        served.append(ServedGallery(name, place, encoders[path], bank))
        served[-1].refresh()
        _ = encoders[path].text_engine  # what is wrong with it shows now
    listener = listen(address)
    room = room_left()
    guard = GuardSettings(hosts, token, upload_bytes=max_upload * 2**20, requests=room.requests)
    draining = Drain(drain)
    settings = ServeSettings(guard, BatchSettings(most=batch, places=queue), drain=draining)
    click.echo(
        f"Serving {', '.join(one.name for one in served)} at {address.url(listener.getsockname()[1])}",
        err=True,
    )
    config = uvicorn.Config(
        create_app(served, settings),
        http=Connection,
        log_config=log.SETTINGS,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_WITHIN_S,
    )
    try:
        Server(config, room, draining).run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit) as end:  # raised once more when all has been answered
        if isinstance(end, SystemExit) and end.code != 128 + signal.SIGTERM:
            raise
    click.echo("Stopped; all accepted requests were answered.", err=True)


def read_token(path: Path | None) -> str | None:
    """The token from a file or ``$DGL_TOKEN``; None if neither is given.

    Raises:
        ConfigError: It is too short to keep anybody out.
        OSError: The file cannot be read.
    """
    token = path.read_text("utf-8").strip() if path else os.environ.get("DGL_TOKEN", "").strip()
    if not token and path is None:
        return None
    if len(token) < SHORTEST_TOKEN:
        where = str(path) if path else "DGL_TOKEN"
        raise ConfigError(
            f"the token in {where} has {len(token)} characters, at least {SHORTEST_TOKEN} are needed. Make "
            "one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token
