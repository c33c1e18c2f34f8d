"""A plan of TensorRT or TensorRT-RTX, loaded, and what they say and compile while it runs."""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import PlanRecord
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, CrisError
from cris_deploy.execution.backends import CACHE_VARIABLE, one_line
from cris_deploy.execution.cuda.api import load_cuda
from cris_deploy.execution.cuda.memory import Pool
from cris_deploy.files import write_atomically

_log = logging.getLogger("cris_deploy")


class Plan:
    """A plan, loaded; and loaded again if the device was lost meanwhile."""

    def __init__(self, module: Any, log: Any, bundle: Bundle, record: PlanRecord) -> None:
        self.module: Final = module
        self.log: Final = log
        self.record: Final = record
        self._bundle = bundle
        self._lock = threading.Lock()
        self._loaded: tuple[Pool, Any, Any] | None = None
        self._cache: Any = None  # outlives all contexts that compile into it
        place = os.environ.get(CACHE_VARIABLE)
        self._cache_file = (
            Path(place) / record.runtime / f"{record.plan_sha256[:32]}.cache" if place else None
        )

    def check(self, inputs: Mapping[str, np.dtype[Any]]) -> None:
        """Refuse a plan whose sidecar tells of other inputs than the bundle's graph."""
        for profile in self.record.profiles:
            if set(profile.inputs) != set(inputs):
                raise BackendError(
                    f"{self.record.file} has the inputs {sorted(profile.inputs)}, the bundle's "
                    f"graph {sorted(inputs)}: {plans.rebuild_command(self._bundle, self.record)}"
                )

    def engine(self, pool: Pool) -> Any:
        """Give the engine; BackendError if TensorRT refuses the plan, with what it says of it."""
        with self._lock:
            if self._loaded is None or self._loaded[0] is not pool:
                self._loaded = None
                self._loaded = (pool, *self._load())
            return self._loaded[2]

    def _load(self) -> tuple[Any, Any]:
        content = plans.read_plan(self._bundle, self.record)
        record = self.record
        with self.guarded("cannot be loaded"):
            runtime = self.module.Runtime(self.log)
            if record.version_compatible:  # without this it is refused; see `_TensorRt.load`
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            built_on = f" ({record.gpu})" if record.gpu else ""
            raise BackendError(
                f"{record.runtime} {self.module.__version__} refuses {record.file}, built with "
                f"{record.version} for {', '.join(record.targets)}{built_on}: "
                f"{self.log.said() or 'no reason given'}: "
                + plans.rebuild_command(self._bundle, record)
            )
        return runtime, engine

    def configure(self, engine: Any) -> Any:
        """Say how TensorRT-RTX is to run a context; kernels compiled before come from the file."""
        module = self.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # Each context keeps its shapes: compile for them at once, not beside the first runs.
        strategies = module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # captured here
        if self._cache_file is not None:
            with self._lock:
                if self._cache is None:
                    self._cache = self._read_cache(config, self._cache_file)
            config.set_runtime_cache(self._cache)
        return config

    def _read_cache(self, config: Any, file: Path) -> Any:
        cache = config.create_runtime_cache()
        try:
            if not cache.deserialize(file.read_bytes()):
                _log.info("%s is of another GPU, driver or release: made anew", file)
        except FileNotFoundError:
            pass
        except Exception as error:  # kernels are compiled, then, as without a cache
            _log.warning("%s cannot be read (%s): made anew", file, one_line(error))
        return cache

    def keep_kernels(self) -> None:
        """Write what was compiled to the file. Never needed: what fails is said, and no more."""
        if self._cache is None or self._cache_file is None:
            return
        with self._lock:
            try:
                self._cache_file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._cache_file, memoryview(self._cache.serialize()))
            except Exception as error:
                _log.warning("%s cannot be written (%s)", self._cache_file, one_line(error))

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Make what TensorRT raises ours; most of its calls give False or None, some raise."""
        self.log.clear()
        try:
            yield
        except CrisError:
            raise
        except Exception as error:
            raise self.failure(what, one_line(error)) from None

    def failure(self, what: str, raised: str = "") -> BackendError:
        """Make the error for a call that failed, from what TensorRT said meanwhile."""
        said = "; ".join(filter(None, (self.log.said(), raised)))
        if "out of memory" in said.lower() or "OutOfMemory" in said:
            return load_cuda().out_of_memory()
        record = self.record
        return BackendError(
            f"{record.runtime} {self.module.__version__}: {record.file} {what}"
            + (f": {said}" if said else "")
        )


def make_log(module: Any) -> Any:
    """TensorRT's logger: keeps the errors of the call in hand, which returns no reason itself."""

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._here = threading.local()  # TensorRT reports in the thread that calls it

        @property
        def _lines(self) -> deque[str]:
            lines: deque[str] = self._here.__dict__.setdefault("lines", deque(maxlen=8))
            return lines

        def log(self, severity: Any, text: str) -> None:
            levels = module.ILogger.Severity
            if severity in (levels.INTERNAL_ERROR, levels.ERROR):
                self._lines.append(" ".join(text.split()))
                _log.debug("%s: %s", module.__name__, text)

        def clear(self) -> None:
            self._lines.clear()

        def said(self) -> str:
            return "; ".join(self._lines)

    return Log()
