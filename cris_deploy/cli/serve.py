"""cris-serve: a bundle behind HTTP."""

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cris_deploy.bundle.signature import key_text
from cris_deploy.cli import Parser, add_trust, guarded
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO, BackendName, Compute
from cris_deploy.serving.options import ServeOptions, to_environment

_INSTALL: Final = "cris-serve needs FastAPI and others: pip install 'cris-deploy[serve]'"
_LOCAL: Final = ("127.0.0.1", "::1", "localhost")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-serve", lambda: _serve(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-serve",
        description="Serve a bundle over HTTP: /v1/segment, the Open Inference Protocol under /v2, "
        "/live, /ready, /metrics, and /docs for all of them.",
        epilog="SIGTERM answers what was taken and ends. SIGHUP loads the bundle again, under "
        "the requests.",
        examples=(
            "cris-serve scenes.bundle",
            "curl -F image=@scene.png -F expression='the red star' 127.0.0.1:8000/v1/segment",
            "cris-serve scenes.bundle --workers 2 --haproxy > haproxy.cfg",
        ),
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address (127.0.0.1: this machine only)")
    where.add_argument("--port", type=int, default=8000, help="(8000)")
    where.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    where.add_argument(
        "--token-file", type=Path, metavar="FILE", help="clients have to send what is in it"
    )
    where.add_argument(
        "--haproxy",
        action="store_true",
        help="print the configuration of HAProxy before these workers, on the next port",
    )
    where.add_argument(
        "--traces", action="store_true", help="OpenTelemetry traces, as OTEL_* variables say where"
    )
    where.add_argument(
        "--page", metavar="DIR", help="what cris-export web wrote: the page at / computes, too"
    )
    where.add_argument("--openapi", action="store_true", help="print the OpenAPI document")
    where.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    engine = parser.add_argument_group("engine")
    engine.add_argument("--backend", default=AUTO, choices=[AUTO, *BackendName])
    engine.add_argument("--device", default=AUTO, metavar="NAME", help="auto, cpu, cuda, cuda:N")
    engine.add_argument("--precision", default=AUTO, choices=[AUTO, *Compute])
    engine.add_argument("--threads", type=int, metavar="N", help="CPU threads (all cores)")
    engine.add_argument("--streams", type=int, default=1, metavar="N", help="runs at once (1)")
    engine.add_argument("--no-self-test", action="store_true", help="do not run the samples first")
    add_trust(parser.add_argument_group("trust"))
    limits = parser.add_argument_group("limits")
    for name, kind, what in (
        ("batch_images", int, "images in a batch"),
        ("batch_pairs", int, "expressions in a batch"),
        ("batch_delay", float, "seconds that a batch waits for company"),
    ):
        limits.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            metavar="N",
            help=f"{what} (what suits the device)",
        )
    defaults = {field.name: field.default for field in dataclasses.fields(ServeOptions)}
    for name, what in (
        ("waiting", "requests unanswered in a worker"),
        ("timeout", "seconds to an answer"),
        ("read_timeout", "seconds for a request to arrive"),
        ("max_body", "bytes of a request"),
        ("max_pixels", "pixels of an image"),
        ("max_expressions", "of a request"),
        ("kept_images", "images that may be asked again by their id"),
        ("kept_seconds", "for how long"),
    ):
        default: Any = defaults[name]
        limits.add_argument(
            "--" + name.replace("_", "-"),
            type=type(default),
            default=default,
            metavar="N",
            help=f"{what} ({default:,})",
        )
    return parser


def _serve(args: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ImportError as error:
        raise InputError(f"{_INSTALL} ({error})") from error
    names = {field.name for field in dataclasses.fields(ServeOptions)} - {"bundle"}
    given = {name: value for name, value in vars(args).items() if name in names}
    if args.require_signature is not None:  # once: workers and reloads keep to this very key
        given["require_signature"] = key_text(args.require_signature)
    options = ServeOptions(str(args.bundle), **given, self_test=not args.no_self_test)
    if not 1 <= args.workers <= 256:
        raise InputError(f"--workers is {args.workers}: give 1 to 256")
    if args.haproxy:
        from cris_deploy.serving.haproxy import configuration

        front = args.port + 1
        print(
            configuration(
                args.port,
                args.workers,
                front=front,
                max_body=options.max_body,
                timeout=options.timeout,
            ),
            end="",
        )
        return 0
    if args.openapi:
        from cris_deploy.serving.app import openapi_text

        print(openapi_text(options))
        return 0
    options.open_bundle(verify=False)  # a wrong path is said here, once
    token = _token(args.token_file)
    if token is None and args.host not in _LOCAL:
        print(f"cris-serve: warning: {args.host} is served without a token", file=sys.stderr)
    to_environment(options, token)
    if args.traces:
        from cris_deploy.serving import traces

        traces.require()
        os.environ[traces.VARIABLE] = "1"
    from cris_deploy.serving.logs import configuration as logs

    settings: dict[str, Any] = {
        "factory": True,
        "host": args.host,
        "port": args.port,
        "workers": args.workers,
        "http": "cris_deploy.serving.protocol:BoundedProtocol",
        "ws": "none",
        "log_config": logs(args.log_level),
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": int(options.timeout) + 1,
        "timeout_keep_alive": 30,
    }
    with tempfile.TemporaryDirectory(prefix="cris-serve-") as folder:
        if args.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # uvicorn raises SIGTERM again when it has ended in order: that is no failure.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        uvicorn.run("cris_deploy.serving.app:worker", **settings)
    return 0


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("CRIS_SERVE_TOKEN") or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {path} cannot be read: {error}") from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise InputError(f"--token-file {path}: give one word of ASCII letters")
    return token


if __name__ == "__main__":
    sys.exit(main())
