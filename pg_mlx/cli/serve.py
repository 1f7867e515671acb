"""pg-mlx serve: a model over HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from functools import partial
from pathlib import Path

from ..errors import InputError
from ..limits import MAX_PIXELS
from .options import Parser, add_model_options, add_service_options, bounded, load_options, memory_size
from .ranks import add_parallel_options, with_ranks

DESCRIPTION = "Serve a model over HTTP: OpenAI's chat completions, boxes and masks as JSON, and a page to try it on."

EPILOG = """\
examples:
  %(prog)s                                                     the bundled demo, on http://127.0.0.1:8080
  %(prog)s --model google/paligemma2-3b-mix-448 --port 9000
  PG_MLX_API_KEY=... %(prog)s --model ./pg2-4bit --host 0.0.0.0
  %(prog)s --model ./pg2-4bit --uds /run/user/501/pg.sock

Everybody on this machine may ask; other hosts only with a key, web pages of other origins only with --allow-origin.
docs/server.md describes every address, limit and status. It speaks no TLS: put a proxy before it.

exit code: 0 after SIGTERM, once what was accepted is answered; 1 if the model failed, 2 for a wrong input, 130 after
Ctrl-C.
"""

KEY = "PG_MLX_API_KEY"


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    p.add_argument("--model-name", metavar="N", help="what clients call it (default: by its folder or repository)")
    where = p.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    where.add_argument(
        "--port", type=bounded(0, 65535), default=8080, metavar="N", help="0 for any free one (default: 8080)"
    )
    where.add_argument("--uds", metavar="FILE", help="listen on a Unix socket instead, for this user only")
    who = p.add_argument_group("who")
    who.add_argument("--api-key", metavar="K", help=f"what clients must show (better: ${KEY}, which ps does not show)")
    who.add_argument(
        "--allow-origin", action="append", default=[], metavar="O", help="web page that may ask (repeatable; * is any)"
    )
    who.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name for this machine, such as host.docker.internal (repeatable)",
    )
    what = p.add_argument_group("what")
    what.add_argument("--allow-urls", action="store_true", help="fetch pictures from public addresses")
    what.add_argument("--allow-files", action="append", default=[], metavar="DIR", help="read pictures from a folder")
    much = p.add_argument_group("how much")
    add_service_options(much)
    much.add_argument(
        "--max-body", type=memory_size, default="32M", metavar="SIZE", help="of one request (default: 32M)"
    )
    much.add_argument(
        "--max-pixels",
        type=bounded(1, MAX_PIXELS),
        default=64_000_000,
        metavar="N",
        help="of one picture (default: 64 M)",
    )
    seconds = partial(bounded, number=float)
    much.add_argument(
        "--timeout", type=seconds(0.001, 1e6), default=300, metavar="S", help="for one answer (default: 300)"
    )
    much.add_argument(
        "--drain", type=seconds(0, 1e6), default=30, metavar="S", help="for the last answers (default: 30)"
    )
    add_parallel_options(p)
    p.add_argument("--verbose", action="store_true", help="a line on stderr for each request")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Serve until a signal ends it; returns the exit code. Raises PgMlxError."""
    args = parser(program).parse_args(argv)
    return with_ranks(args, partial(_serve, args))


def _serve(args: argparse.Namespace) -> int:
    key = os.environ.get(KEY) if args.api_key is None else args.api_key
    _check(args, key)
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is missing: python -m pip install 'pg_mlx[serve]'") from None

    from ..serving.http.server import listen, listen_at, serve
    from ..serving.http.settings import LOOPBACK, Settings

    listener = listen_at(Path(args.uds)) if args.uds else listen(args.host, args.port)
    try:
        from ..demo import CHECKPOINT
        from ..serving.service.limits import Limits

        options = load_options(args)
        if args.model is None:
            print("no --model: the bundled demo, which knows only coloured shapes and short words", file=sys.stderr)
        settings = Settings(
            model_name=args.model_name or _name(args.model),
            api_key=key,
            hosts=None if key is not None or args.uds else LOOPBACK | _hosts(args),
            origins=tuple(args.allow_origin),
            urls=args.allow_urls,
            folders=tuple(Path(folder).resolve() for folder in args.allow_files),
            body_bytes=args.max_body,
            bodies_bytes=max(Settings.bodies_bytes, args.max_body),
            request_s=args.timeout,
            verbose=args.verbose,
        )
        limits = Limits(
            batch_size=args.batch_size, queue=args.queue, memory_bytes=args.memory_limit, pixels=args.max_pixels,
            prefix_tokens=args.max_prefix,
        )  # fmt: skip
        print(f"listening on {_address(args, listener.getsockname())}", file=sys.stderr, flush=True)
        return serve(listener, args.model or CHECKPOINT, options, limits, settings, args.drain)
    finally:
        listener.close()
        if args.uds:
            Path(args.uds).unlink(missing_ok=True)


def _check(args: argparse.Namespace, key: str | None) -> None:
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise InputError("the API key must be letters, digits and signs of ASCII, without spaces")
    if key is None and not args.uds and not _is_loopback(args.host):
        raise InputError(f"--host {args.host} is open to other machines, so a key is needed: --api-key, or ${KEY}")
    if key is None and "*" in args.allow_origin:
        raise InputError(f"--allow-origin * lets every web page ask, so a key is needed: --api-key, or ${KEY}")
    for origin in args.allow_origin:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
            raise InputError(f"--allow-origin {origin} is not an origin, such as https://example.com")
    for host in args.allow_host:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+", host):
            raise InputError(f"--allow-host {host} is not the name of a host, such as host.docker.internal")
    for folder in args.allow_files:
        if not Path(folder).is_dir():
            raise InputError(f"--allow-files {folder} is not a folder")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(args: argparse.Namespace) -> set[str]:
    return {f"[{host}]" if ":" in host else host.lower() for host in (args.host, *args.allow_host)}


def _name(model: str | None) -> str:
    if model is None:
        return "demo"
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _address(args: argparse.Namespace, bound: tuple[str, int] | str) -> str:
    if args.uds:
        return f"the socket {args.uds}"
    host, port = bound[0], bound[1]
    return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"
