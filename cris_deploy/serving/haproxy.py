"""The configuration of HAProxy before a server of several workers."""

from typing import Final

_BUFFER: Final = 2 * 2**20
"""Bytes of a request that the proxy keeps, so that it can send it again."""


def configuration(port: int, workers: int, *, front: int, max_body: int, timeout: float) -> str:
    """Give a file for `haproxy -f`.

    Inference changes nothing on the server, so a request whose worker died is sent again. For that
    the proxy has to hold it whole: longer ones than 2 MiB are passed on without.

    Args:
        port: Of the workers, which share it.
        workers: How many there are.
        front: Port of the proxy.
        max_body: Bytes of a request, of the server's options.
        timeout: Seconds to an answer, of the server's options.
    """
    buffer = min(max_body, _BUFFER) + 16384
    return f"""\
# Written by cris-serve --haproxy. A request changes nothing: if a worker is lost it is sent again.
global
    tune.bufsize {buffer}
    maxconn 1024

defaults
    mode http
    option http-buffer-request
    option redispatch
    retries 3
    retry-on conn-failure empty-response response-timeout junk-response
    timeout connect 2s
    timeout client 60s
    timeout server {timeout + 5:g}s
    timeout http-request 10s
    timeout queue {timeout:g}s
    timeout http-keep-alive 15s

frontend cris
    bind 127.0.0.1:{front}
    default_backend workers

backend workers
    http-reuse safe
    # Not checked: there is no other to turn to, and a worker is started again within seconds.
    server cris 127.0.0.1:{port} maxconn {64 * workers}
"""
