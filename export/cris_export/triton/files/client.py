"""Ask the model `cris` of one or more Triton servers, and ask again when one fails.

python client.py picture.jpg "the man in red" "blue car" --url 127.0.0.1:8000 --url 10.0.0.2:8000

Needs `pip install 'tritonclient[http]'`, for `--grpc` `tritonclient[grpc]`. A request changes
nothing on the server, so that asking again is safe.
"""

import argparse
import importlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_log = logging.getLogger("cris.triton")
OUTPUTS = ("rle", "boxes", "areas", "scores", "confidences")


class Client:
    """Asks servers in turn.

    Args:
        urls: host:port of each, without a scheme.
        protocol: The module tritonclient.http or tritonclient.grpc.
        attempts: How often a request is made before its error is raised.
        timeout: Seconds for one of them.
        pause: Seconds before the second, twice as many before each further one, up to a second.
    """

    def __init__(
        self,
        urls: Sequence[str],
        protocol: Any,
        *,
        attempts: int = 6,
        timeout: float = 30.0,
        pause: float = 0.05,
    ) -> None:
        self._protocol = protocol
        http = protocol.__name__.endswith("http")
        kept: dict[str, Any] = {"network_timeout": timeout} if http else {}
        self._given: dict[str, Any] = {} if http else {"client_timeout": timeout}
        self._servers = [protocol.InferenceServerClient(url, **kept) for url in urls]
        self._attempts, self._pause, self._next = attempts, pause, 0

    def segment(
        self, picture: bytes, expressions: Sequence[str], outputs: Sequence[str] = OUTPUTS
    ) -> dict[str, Any]:
        """Ask for what expressions refer to in an encoded picture.

        Raises what the server says of the request, and what it says the last time of itself.
        """
        inputs = [
            self._bytes("image", picture),
            self._bytes("text", "\n".join(expressions).encode()),
        ]
        wanted = [self._protocol.InferRequestedOutput(name) for name in outputs]
        for attempt in range(self._attempts):
            server = self._servers[self._next % len(self._servers)]
            try:
                answer = server.infer("cris", inputs, outputs=wanted, **self._given)
            except Exception as error:  # the transports have no common base
                if _is_ours(error) or attempt + 1 == self._attempts:
                    raise
                _log.info("attempt %d failed: %s", attempt + 1, error)
                self._next += 1
                time.sleep(min(1.0, self._pause * 2**attempt))
            else:
                # The first dimension is Triton's batch, always 1.
                return {name: answer.as_numpy(name)[0] for name in outputs}
        raise AssertionError("attempts is below 1")

    def _bytes(self, name: str, data: bytes) -> Any:
        tensor = self._protocol.InferInput(name, [1, len(data)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[np.newaxis])
        return tensor


def _is_ours(error: Exception) -> bool:
    """Whether the request is at fault: another server would refuse it, too."""
    status = getattr(error, "status", lambda: None)()
    return str(status) in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, and print a line for each expression."""
    parser = argparse.ArgumentParser(description="Ask the model cris of Triton servers.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("expression", nargs="+")
    parser.add_argument("--url", action="append", metavar="HOST:PORT", help="(127.0.0.1:8000)")
    parser.add_argument("--grpc", action="store_true", help="gRPC, whose usual port is 8001")
    args = parser.parse_args(argv)
    protocol = importlib.import_module(f"tritonclient.{'grpc' if args.grpc else 'http'}")
    urls = args.url or ["127.0.0.1:8001" if args.grpc else "127.0.0.1:8000"]
    found = Client(urls, protocol).segment(args.picture.read_bytes(), args.expression)
    runs = found["rle"].tobytes().decode().split("\n")
    for number, expression in enumerate(args.expression):
        x0, y0, x1, y1 = found["boxes"][number]
        print(
            f"{expression}: {found['areas'][number]} pixels in x {x0} to {x1}, y {y0} to {y1}, "
            f"score {found['scores'][number]:.3f}, run lengths {runs[number][:40]}"
        )


if __name__ == "__main__":
    main()
