"""What Prometheus is told; over all worker processes if there are several."""

import os
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from cris_deploy.results.engine_info import CacheInfo

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
SHARED_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where worker processes leave their numbers for each other; set before this module is imported."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The numbers of a worker."""

    def __init__(self) -> None:
        # With several processes the values lie in files, and a registry reads them all.
        self._registry = CollectorRegistry()
        own = None if SHARED_FOLDER in os.environ else self._registry
        self.requests = Counter(
            "cris_requests", "Requests answered.", ("route", "status"), registry=own
        )
        self.request_seconds = Histogram(
            "cris_request_seconds",
            "From a request's first byte to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=own,
        )
        self.stage_seconds = Histogram(
            "cris_stage_seconds",
            "A run: of decode (one image), or of one of the network's stages.",
            ("stage",),
            buckets=_SECONDS,
            registry=own,
        )
        self.batch_size = Histogram(
            "cris_batch_size",
            "Images, expressions or pairs in a run.",
            ("stage",),
            buckets=_SIZES,
            registry=own,
        )
        self.waiting = Gauge(
            "cris_waiting_requests",
            "Requests taken and not answered yet.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.cache_hits = Counter(
            "cris_cache_hits", "Looked up and found.", ("cache",), registry=own
        )
        self.cache_misses = Counter(
            "cris_cache_misses", "Looked up and not found.", ("cache",), registry=own
        )
        self.truncated = Counter(
            "cris_truncated_expressions", "Longer than the model reads.", registry=own
        )
        if own is None:
            multiprocess.MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]

    def exposition(self) -> bytes:
        """Give the text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def observe_run(self, stage: str, seconds: float, size: int) -> None:
        """Count a run of a stage."""
        self.stage_seconds.labels(stage).observe(seconds)
        self.batch_size.labels(stage).observe(size)

    def lookup(self, cache: str, *, found: bool) -> None:
        """Count a lookup by the cache's name."""
        (self.cache_hits if found else self.cache_misses).labels(cache).inc()

    def caches(self, before: CacheInfo, now: CacheInfo) -> None:
        """Count what an engine's caches have found since `before`."""
        for name in ("images", "expressions"):
            earlier, found = getattr(before, name), getattr(now, name)
            self.cache_hits.labels(name).inc(found.hits - earlier.hits)
            self.cache_misses.labels(name).inc(found.misses - earlier.misses)
