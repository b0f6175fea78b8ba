"""`datapipe serve`: read the settings, start the server, say where it listens."""

from __future__ import annotations

import logging
from pathlib import Path  # noqa: TC003 - typer reads it from the signature
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from datapipe.shown import show_values


def serve_command(  # noqa: PLR0913, PLR0917 - an option each
    model: Annotated[
        list[str] | None,
        Option(help="SOURCE or NAME=SOURCE, then ,task=T and the like; may be repeated. Default: the embedded models."),
    ] = None,
    host: Annotated[str | None, Option(help="Default 127.0.0.1; an address that others reach needs a key.")] = None,
    port: Annotated[int | None, Option(help="Default 8000; 0 takes a free one and says which.")] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda (every one), cuda:0,cuda:1.")] = None,
    api_key_file: Annotated[
        Path | None, Option(help="Bearer keys, one a line; any of them opens, as does DATAPIPE_API_KEY.")
    ] = None,
    allow_public: Annotated[
        bool | None, Option("--allow-public", help="Listen where others reach it although no key is set.")
    ] = None,
    max_body_bytes: Annotated[int | None, Option(help="Larger JSON bodies get 413; default 8 MiB.")] = None,
    max_task_bytes: Annotated[int | None, Option(help="Larger Arrow bodies get 413; default 256 MiB.")] = None,
    max_header_bytes: Annotated[int | None, Option(help="Longer heads of a request get 431; default 64 KiB.")] = None,
    max_texts: Annotated[int | None, Option(help="More texts in a request get 413; default 2,048.")] = None,
    max_characters: Annotated[int | None, Option(help="Longer texts get 413; default 1,000,000.")] = None,
    max_tokens: Annotated[int | None, Option(help="More tokens in an online request get 413; default 2^20.")] = None,
    max_requests: Annotated[int | None, Option(help="More requests at a time get 429; default 1,024.")] = None,
    max_pending_bytes: Annotated[int | None, Option(help="More bytes of bodies held get 429; default 1 GiB.")] = None,
    queue_items: Annotated[int | None, Option(help="More online items in the worker get 429; default 4,096.")] = None,
    timeout_seconds: Annotated[float | None, Option(help="Requests that take longer get 504; default 30.")] = None,
    body_seconds: Annotated[float | None, Option(help="Bodies that take longer to arrive get 408; default 30.")] = None,
    health_seconds: Annotated[float | None, Option(help="What /health waits for the worker; default 5.")] = None,
    stuck_seconds: Annotated[
        float | None, Option(help="A batch running longer turns /health red; default 120.")
    ] = None,
    drain_seconds: Annotated[float | None, Option(help="What running requests get at the end; default 30.")] = None,
    memory_bytes: Annotated[int | None, Option(help="Memory of the models on a device; default 8 GiB.")] = None,
    log_level: Annotated[str | None, Option(help="info logs each request (never its text), warning does not.")] = None,
) -> None:
    """Serve models over HTTP: embeddings, reranking, and what installed packages add; /docs lists the routes.

    Every option is also an environment variable: --max-texts is DATAPIPE_SERVE__MAX_TEXTS.
    """
    given = {name: value for name, value in locals().items() if value is not None}

    from datapipe.workers.http.serve import Server, read_settings

    settings = read_settings(given)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = Server(settings)
    show_values(server.effective, as_json=False, console=Console(stderr=True))
    server.run(listening=lambda url: typer.echo(f"listening on {url}"))
