"""One graph becomes a plan, by TensorRT or TensorRT-RTX: the same calls on either module.

Networks are strongly typed: the precision is in the graph, and no flag changes it. TensorRT 11
knows nothing else, 10.13 and later do the same with the network flag.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cris_deploy.bundle.manifest import GraphName, GraphSpec, Precision
from cris_deploy.bundle.plans import Profile, RuntimeName, ShapeRange
from cris_deploy.errors import BackendError
from cris_export.errors import ExportError
from cris_export.plans.choose import Builder
from cris_export.plans.graph import readable
from cris_export.plans.options import PlanOptions
from cris_export.plans.types import TypeCount, count_kernels, count_types, type_name
from cris_export.plans.watch import (
    BuildLog,
    TimingCache,
    in_short,
    interruptible,
    make_logger,
    make_monitor,
)

_MIB = 2**20

IMAGES = "images"
"""Name of the mask decoder's free dimension that counts images, 1 or as many as expressions."""


@dataclass(frozen=True)
class Source:
    """A graph to build from.

    Attributes:
        path: The ONNX file, whose weights lie beside it.
        graph: Its name.
        spec: Its interface; the network's has to be the same.
        precision: What the bundle stores; the network has to show it.
    """

    path: Path
    graph: GraphName
    spec: GraphSpec
    precision: Precision


@dataclass(frozen=True)
class Built:
    """A plan in memory, and what it was built from."""

    plan: memoryview
    profiles: tuple[Profile, ...]
    types: TypeCount
    kernels: Mapping[str, int]


def profiles_of(source: Source, max_batch: int, max_expressions: int) -> tuple[Profile, ...]:
    """Give a graph's optimisation profiles.

    Kernels are chosen for one image or expression, which is what a request brings. The mask decoder
    has two profiles: any number of expressions on one image, and pairs, chosen for the most of them
    (pairs come from streams, in full batches).
    """
    spec, graph = source.spec, source.graph
    batch, expressions = (1, 1, max_batch), (1, 1, max_expressions)
    if graph is GraphName.TEXT_ENCODER:
        return (_profile(spec, expressions, expressions),)
    if graph is not GraphName.MASK_DECODER:
        return (_profile(spec, batch, batch),)
    one_image = _profile(spec, (1, 1, 1), expressions)
    if max_batch == 1:
        return (one_image,)
    pairs = (1, max_batch, max_batch)
    return one_image, _profile(spec, pairs, pairs)


def _profile(
    spec: GraphSpec, images: tuple[int, int, int], others: tuple[int, int, int]
) -> Profile:
    def shape(dimensions: tuple[int | str, ...], which: int) -> tuple[int, ...]:
        return tuple(
            size if isinstance(size, int) else (images if size == IMAGES else others)[which]
            for size in dimensions
        )

    return Profile(
        {
            value.name: ShapeRange(*(shape(value.shape, which) for which in range(3)))
            for value in spec.inputs
        }
    )


def build_plan(
    chosen: Builder,
    source: Source,
    options: PlanOptions,
    log: BuildLog,
    cache: TimingCache | None,
    say: Callable[[str], None],
) -> Built:
    """Build the plan of one graph.

    Args:
        chosen: What builds it, and for which GPUs.
        source: The graph.
        options: What holds for all graphs.
        log: Gets every message of the builder.
        cache: Timings, for TensorRT.
        say: Called with a line every few seconds of a long build.

    Raises:
        BackendError: the builder does not start.
        ExportError: the graph is refused, the build failed, or it is not typed as the bundle says.
    """
    trt: Any = chosen.module
    logger = make_logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # it got no CUDA: pybind11 calls that a TypeError
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot start its builder: {log.errors()} ({error}): "
            "update the NVIDIA driver, or free the GPU"
        ) from None
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    # The path tells where the weights lie.
    if not parser.parse(readable(source.path), str(source.path)):
        problems = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"{trt.__name__} cannot parse {source.path.name}: {in_short(problems)}")
    _check_interface(trt, network, source)
    types = count_types(network)
    _check_types(types, source)
    config = _config(chosen, builder, options)
    profiles = profiles_of(source, options.max_batch, options.max_expressions)
    for profile in profiles:
        _add_profile(builder, config, source.graph, profile)
    if cache is not None:
        cache.attach(config, log)
    stop = threading.Event()
    monitor = make_monitor(trt, stop, lambda line: say(f"{source.graph}: {line}"))
    config.progress_monitor = monitor
    try:
        plan = interruptible(lambda: builder.build_serialized_network(network, config), stop)
    except (RuntimeError, MemoryError) as error:
        log.add("ERROR", f"{type(error).__name__}: {error}")
        plan = None
    if monitor.error is not None:
        raise monitor.error
    if plan is None or plan.nbytes == 0:
        raise ExportError(_failure(trt, source.graph, log))
    if cache is not None:
        cache.collect(config)
    kernels = count_kernels(log)
    _check_kernels(kernels, types, source)
    built = Built(memoryview(plan), profiles, types, kernels)
    check_plan(chosen, logger, built, source, options, log)
    return built


def _check_kernels(kernels: Mapping[str, int], types: TypeCount, source: Source) -> None:
    """What the network asks for, and the plan has not, was dropped without a word."""
    for dtype in ("int8", "float16"):
        if kernels and types.products.get(dtype) and not kernels.get(dtype):
            raise ExportError(
                f"the plan of {source.graph} computes nothing in {dtype}, its network "
                f"{types.products[dtype]} products: see the builder's log"
            )


def _check_interface(trt: Any, network: Any, source: Source) -> None:
    for kind, specs, count, get in (
        ("input", source.spec.inputs, network.num_inputs, network.get_input),
        ("output", source.spec.outputs, network.num_outputs, network.get_output),
    ):
        found = {get(i).name: type_name(get(i).dtype) for i in range(count)}
        expected = {value.name: str(value.dtype) for value in specs}
        if found != expected:
            raise ExportError(
                f"{trt.__name__} reads {source.graph} with {kind}s {found}, the manifest says "
                f"{expected}: export the bundle again"
            )


def _check_types(types: TypeCount, source: Source) -> None:
    """A network of another type than the bundle's would build, and run, and be silently slow."""
    graph, precision = source.graph, source.precision
    if precision is Precision.FP16 and types.products and not types.products.get("float16"):
        raise ExportError(
            f"{graph} of an fp16 bundle has no float16 product, but {dict(types.products)}: "
            "export the bundle again with --fp16"
        )
    if precision is Precision.INT8 and graph is GraphName.FULL and not types.layers.get("int8"):
        raise ExportError(
            f"{graph} of an int8 bundle has no int8 layer, but {dict(types.layers)}: export the "
            "bundle again with --int8"
        )


def _config(chosen: Builder, builder: Any, options: PlanOptions) -> Any:
    trt: Any = chosen.module
    config = builder.create_builder_config()
    # On by default: float32 products of 10-bit mantissas, of which the graph says nothing.
    config.clear_flag(trt.BuilderFlag.TF32)
    # Types and shapes of the layers, for the inspector; costs nothing at run time.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if chosen.runtime is RuntimeName.TENSORRT_RTX:
        # What takes memory of its own cannot be captured.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(chosen.targets)
        for index, target in enumerate(chosen.targets):
            capability = trt.ComputeCapability.__members__[target.upper()]
            config.set_compute_capability(capability, index)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.workspace_mib is not None:
        workspace = options.workspace_mib * _MIB
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    return config


def _add_profile(builder: Any, config: Any, graph: GraphName, profile: Profile) -> None:
    wanted = builder.create_optimization_profile()
    for name, shapes in profile.inputs.items():
        wanted.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(wanted) < 0:
        raise ExportError(f"{graph}: the builder refuses the profile {profile}: see its log")


def check_plan(
    chosen: Builder,
    logger: Any,
    built: Built,
    source: Source,
    options: PlanOptions,
    log: BuildLog,
) -> None:
    """Look at what came out, as far as this machine can.

    Loading needs a GPU of the plan's kind. Without a driver TensorRT-RTX still reads the plan's
    header, which finds what is no plan at all.
    """
    trt: Any = chosen.module
    graph, spec, plan = source.graph, source.spec, built.plan
    runtime = trt.Runtime(logger)
    if not chosen.runs_here:
        if hasattr(runtime, "get_engine_validity"):
            _, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
            if int(diagnostics) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE):
                raise ExportError(f"{trt.__name__} does not know the plan of {graph} as its own")
        return
    if options.version_compatible:
        runtime.engine_host_code_allowed = True  # the lean runtime in a plan that was built here
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ExportError(_failure(trt, graph, log))
    for value in (*spec.inputs, *spec.outputs):
        found = type_name(engine.get_tensor_dtype(value.name))
        if found != value.dtype:
            raise ExportError(f"plan of {graph}: {value.name} is {found}, expected {value.dtype}")
    if engine.num_optimization_profiles != len(built.profiles):
        raise ExportError(
            f"plan of {graph} has {engine.num_optimization_profiles} profiles, expected "
            f"{len(built.profiles)}"
        )
    inspector = engine.create_engine_inspector()
    log.add("LAYERS", inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _failure(trt: Any, graph: GraphName, log: BuildLog) -> str:
    said = log.errors()
    if log.ran_out_of_memory():
        return (
            f"{trt.__name__} {trt.__version__} ran out of memory while it built {graph} ({said}): "
            "free the GPU, or lower --max-batch, --max-expressions or --workspace"
        )
    return f"{trt.__name__} {trt.__version__} cannot build {graph}: {said}"
