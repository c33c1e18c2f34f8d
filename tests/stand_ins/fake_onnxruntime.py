"""ONNX Runtime with a CUDA provider on the stand-in of `fake_cuda`; it computes on the CPU.

Sessions run in the order of the stream they are given, and demand what the CUDA provider does: a
CUDA graph belongs to one thread and to fixed addresses, and is captured while no one else uses
CUDA. A session has one for each number that a run gives, and none for a run with the number -1.
"""

import threading
from types import SimpleNamespace

import onnx
import onnxruntime

from tests.helpers.cuda_kernels import strangers
from tests.stand_ins.fake_cuda import FakeCuda

CUDA = "CUDAExecutionProvider"


class Options(onnxruntime.SessionOptions):
    """Keeps what a CPU session would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value
        if key != "session.disable_cpu_ep_fallback":
            super().add_session_config_entry(key, value)


class FakeOnnxRuntime:
    """The module `onnxruntime`."""

    __version__ = onnxruntime.__version__
    cuda_version = "13.0"
    SessionOptions = Options

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.sessions: list[Session] = []
        self.strangers = False  # a node on the CPU
        self.failure: str | None = None  # what the next run raises
        self.refused: str | None = None  # part of the name of a graph that does not load

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9: no such file")  # as the real one does

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def RunOptions(self) -> onnxruntime.RunOptions:
        return onnxruntime.RunOptions()

    def InferenceSession(
        self, path, options, providers, enable_fallback=1, disabled_optimizers=None
    ) -> "Session | onnxruntime.InferenceSession":
        if providers == ["CPUExecutionProvider"]:
            return onnxruntime.InferenceSession(path, options, providers)
        assert enable_fallback == 0
        assert options.entries["session.disable_cpu_ep_fallback"] == "1"
        # Else biases of quantised graphs get a node that has no CUDA kernel.
        assert options.entries["session.disable_quant_qdq"] == "1"
        if self.refused is not None and self.refused in path:
            raise RuntimeError("refused")
        session = Session(self, path, options, providers)
        self.sessions.append(session)
        return session


class Session:
    def __init__(self, module: FakeOnnxRuntime, path, options, providers) -> None:
        ((provider, settings),) = providers
        assert provider == CUDA
        self.module = module
        self.stream = int(settings["user_compute_stream"])
        self.graphs = settings["enable_cuda_graph"] == "1"
        self.settings = settings
        self.index = int(settings["device_id"])
        self.thread: int | None = None
        self.captured: dict[str, tuple] = {}  # number of the CUDA graph -> its addresses
        self.runs = 0
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        found = list(strangers(onnx.load(path, load_external_data=False)))
        if found:
            raise RuntimeError(
                "This session contains graph nodes that are assigned to the default CPU EP, but "
                "fallback to CPU EP has been explicitly disabled by the user."
            )
        self.shapes = {value.name: tuple(value.shape) for value in self.session.get_inputs()}

    def get_provider_graph_assignment_info(self):
        name = "CPUExecutionProvider" if self.module.strangers else CUDA
        node = SimpleNamespace(op_type="Shape", name="shape_1")
        return [SimpleNamespace(ep_name=name, get_nodes=lambda: [node])]

    def io_binding(self) -> "Binding":
        return Binding(self)

    def run_with_iobinding(self, binding: "Binding", options: onnxruntime.RunOptions) -> None:
        wanted = options.get_run_config_entry("disable_synchronize_execution_providers")
        assert wanted == "1"
        failure, self.module.failure = self.module.failure, None
        if failure is not None:
            raise RuntimeError(failure)
        cuda = self.module.cuda
        number = options.get_run_config_entry("gpu_graph_id")
        if self.graphs:
            self._check_graph(binding, number)
        binding.check()

        def work() -> None:
            self.session.run_with_iobinding(binding.real)
            self.runs += 1

        cuda.enqueue(self.stream, work)

    def _check_graph(self, binding: "Binding", number: str) -> None:
        cuda, me = self.module.cuda, threading.get_ident()
        self.thread = self.thread or me
        assert self.thread == me, "another thread would capture a graph of its own"
        if number == "-1":
            return
        if number not in self.captured:
            self.captured[number] = tuple(binding.places)
            cuda.alone = me
            # As long as a capture takes: whoever calls CUDA meanwhile is noted.
            threading.Event().wait(0.02)
            cuda.alone = None
        assert self.captured[number] == tuple(binding.places)


class Binding:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.real = session.session.io_binding()
        self.places: list[tuple[int, tuple[int, ...], object]] = []

    def bind_input(self, name, device, index, kind, shape, pointer) -> None:
        assert (device, index) == ("cuda", self.session.index)
        free = self.session.shapes[name]
        assert all(a == b or isinstance(b, str) for a, b in zip(shape, free, strict=True))
        self.places.append((pointer, shape, kind))
        self.real.bind_input(name, "cpu", 0, kind, shape, pointer)

    def bind_output(self, name, device, index, kind, shape, pointer) -> None:
        assert (device, index) == ("cuda", self.session.index)
        self.places.append((pointer, shape, kind))
        self.real.bind_output(name, "cpu", 0, kind, shape, pointer)

    def check(self) -> None:
        for pointer, shape, kind in self.places:
            self.session.module.cuda.view(pointer, shape, kind)
