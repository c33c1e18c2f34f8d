"""The config.pbtxt of each model, as messages of Triton's schema ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from cris_deploy.bundle.manifest import STAGES, DType, GraphName, GraphSpec, TensorSpec
from cris_deploy.serving.triton import INPUTS, MODEL, OUTPUTS, STRINGS, TensorConfig
from cris_export.triton.options import RepositoryOptions
from cris_export.triton.text import Message, Value, Word, entries

ENSEMBLE: Final = f"{MODEL}_network"
_TYPES: Final = {
    DType.FLOAT32: "TYPE_FP32",
    DType.FLOAT16: "TYPE_FP16",
    DType.INT64: "TYPE_INT64",
    DType.BOOL: "TYPE_BOOL",
}
# On a GPU a batch costs less than its parts, so company is worth waiting for; on a CPU it is not.
_DELAY_ON_GPU: Final = 2000  # microseconds


@dataclass(frozen=True)
class StageFiles:
    """What lies in the folder of a stage's version, and what Triton has to know of it.

    Attributes:
        platform: Triton's name of what runs it.
        max_batch: Most rows in a run.
        by_capability: Compute capability -> file of a plan, such as "8.6"; {} for ONNX.
        profile: Number of the plan's optimisation profile; None for ONNX.
        basic: Whether ONNX Runtime is to leave out all but basic optimisations.
    """

    platform: str
    max_batch: int
    by_capability: Mapping[str, str]
    profile: int | None
    basic: bool = False


def stage_model(graph: GraphName) -> str:
    """Name the model of a stage."""
    return f"{MODEL}_{graph}"


def python_model(options: RepositoryOptions) -> Message:
    """Give the config of `cris`: pictures and expressions in, masks out."""
    inputs = {**INPUTS, **(STRINGS if options.strings else {})}
    timeout = int(1e6 * options.settings.timeout)
    return {
        "name": MODEL,
        "backend": "python",
        "max_batch_size": options.max_batch,
        "input": [_python_input(name, config) for name, config in inputs.items()],
        "output": [
            {"name": name, "data_type": Word(config.data_type), "dims": config.dims}
            for name, config in OUTPUTS.items()
        ],
        "instance_group": [_instances(options)],
        # Requests that wait are handed over together; the batcher inside finds what they share.
        "dynamic_batching": {
            "default_queue_policy": {
                "timeout_action": Word("REJECT"),
                "default_timeout_microseconds": timeout,
                "max_queue_size": options.waiting,
            },
        },
        # An answer for each request: a stub that is killed then fails what it had, and leaves
        # nobody without an answer.
        "model_transaction_policy": {"decoupled": False},
        "parameters": entries(
            {name: {"string_value": str(value)} for name, value in asdict(options.settings).items()}
        ),
    }


def stage(
    graph: GraphName, spec: GraphSpec, files: StageFiles, options: RepositoryOptions
) -> Message:
    """Give the config of a stage; its tensors are the graph's, their first axis the batch."""
    group: dict[str, Value] = dict(_instances(options))
    if files.profile is not None:
        group["profile"] = [str(files.profile)]
    message: dict[str, Value] = {
        "name": stage_model(graph),
        "platform": files.platform,
        "max_batch_size": files.max_batch,
        "input": [_tensor(value) for value in spec.inputs],
        "output": [_tensor(value) for value in spec.outputs],
        "instance_group": [group],
        "dynamic_batching": {
            "max_queue_delay_microseconds": _DELAY_ON_GPU if options.gpus else 0,
            "default_queue_policy": {"max_queue_size": options.waiting},
        },
        "model_warmup": [
            {
                "name": f"batch of {rows}",
                "batch_size": rows,
                "inputs": entries(
                    {value.name: {**_shape(value), "zero_data": True} for value in spec.inputs}
                ),
            }
            for rows in sorted({1, files.max_batch})
        ],
    }
    if files.basic:
        message["optimization"] = {"graph": {"level": -1}}
    if files.by_capability:
        message["default_model_filename"] = next(iter(files.by_capability.values()))
        message["cc_model_filenames"] = entries(files.by_capability)
    if not options.gpus and options.settings.threads:
        threads = {"string_value": str(options.settings.threads)}
        message["parameters"] = entries({"intra_op_thread_count": threads})
    return message


def ensemble(specs: Mapping[GraphName, GraphSpec], max_batch: int) -> Message:
    """Give the config of the three stages in a row: a normalised picture and tokens, logits."""
    made = {value.name for graph in STAGES for value in specs[graph].outputs}
    inputs = [value for graph in STAGES for value in specs[graph].inputs if value.name not in made]
    return {
        "name": ENSEMBLE,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "input": [_tensor(value) for value in inputs],
        "output": [_tensor(value) for value in specs[STAGES[-1]].outputs],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": stage_model(graph),
                    "model_version": -1,
                    "input_map": _same(specs[graph].inputs),
                    "output_map": _same(specs[graph].outputs),
                }
                for graph in STAGES
            ]
        },
    }


def _python_input(name: str, config: TensorConfig) -> Message:
    return {
        "name": name,
        "data_type": Word(config.data_type),
        "dims": config.dims,
        # Pictures and texts of all lengths are handed over side by side.
        "allow_ragged_batch": True,
        "optional": config.optional,
    }


def _instances(options: RepositoryOptions) -> Message:
    if options.gpus:
        return {"count": options.instances, "kind": Word("KIND_GPU"), "gpus": options.gpus}
    return {"count": options.instances, "kind": Word("KIND_CPU")}


def _tensor(value: TensorSpec) -> Message:
    return {"name": value.name, **_shape(value)}


def _shape(value: TensorSpec) -> Message:
    dims = [size if isinstance(size, int) else -1 for size in value.shape[1:]]
    return {"data_type": Word(_TYPES[value.dtype]), "dims": dims}


def _same(values: Sequence[TensorSpec]) -> list[Message]:
    # Tensors have the same name in every stage.
    return entries({value.name: value.name for value in values})
