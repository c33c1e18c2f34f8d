"""Throughput: threads that each ask for the next mask as soon as they have the last one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeAlias

from cris_bench.contestants.contestant import Identity
from cris_bench.record.rows import Clients
from cris_bench.scopes.energy import Meter
from cris_bench.scopes.inputs import Fresh
from cris_deploy.pixels.image import Pixels

Segment: TypeAlias = Callable[[Pixels, str], object]


def measure_clients(
    who: Identity,
    segment: Segment,
    *,
    threads: int,
    calls: int,
    seconds: float = 0.0,
    meter: Meter,
    height: int,
    width: int,
    tick: Callable[[], object],
) -> Clients:
    """Let threads call a segmenter at once, each with pictures and expressions of its own.

    Args:
        who: For the record.
        segment: From a decoded image (H, W, 3) and an expression to a mask.
        threads: Clients.
        calls: Timed calls of each client at least, after an untimed one.
        seconds: That they go on calling at least.
        meter: Of the energy that it takes.
        height: Of the pictures, pixels.
        width: Likewise.
        tick: Called after every call.
    """
    begun: list[tuple[float, tuple[int, ...]]] = []
    barrier = Barrier(threads, lambda: begun.append((time.perf_counter(), meter.read())))

    def client(number: int) -> list[tuple[float, float]]:
        fresh = Fresh(height, width, seed=number + 1)
        try:
            segment(fresh.picture(), fresh.expression())
        except BaseException:
            barrier.abort()  # the others would wait for ever
            raise
        barrier.wait()
        times: list[tuple[float, float]] = []
        while len(times) < calls or time.perf_counter() < begun[0][0] + seconds:
            picture, words = fresh.picture(), fresh.expression()
            start = time.perf_counter()
            segment(picture, words)
            times.append((start, time.perf_counter()))
            tick()
        return times

    with ThreadPoolExecutor(threads, thread_name_prefix="cris-client") as pool:
        futures = [pool.submit(client, number) for number in range(threads)]
    # The first error that is not the broken barrier is the one to know of.
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, BrokenBarrierError):
            raise error
    joules = meter.since(begun[0][1])
    times = [pair for future in futures for pair in future.result()]
    return Clients(
        name=who.name,
        device=str(who.place),
        compute=who.compute,
        threads=threads,
        seconds=max(end for _, end in times) - min(start for start, _ in times),
        images=len(times),
        latencies=tuple(end - start for start, end in times),
        joules=joules,
    )
