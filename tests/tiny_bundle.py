"""A bundle of hand-built graphs that obey the interface of a real one, in 2 MB and milliseconds.

The "model" has no training: its logits are the product of a few image averages with a few token
numbers, so that every input changes every output, and a mistake in the plumbing shows.
"""

from pathlib import Path

import cv2
import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from cris_deploy.bundle import (
    TOKENIZER,
    WEIGHTS,
    BundleWriter,
    DType,
    GraphName,
    GraphSpec,
    Manifest,
    ModelFacts,
    Parity,
    Precision,
    Sample,
    TensorSpec,
)
from cris_deploy.text import END, START, byte_pair_model

SIZE = 64
WORD_LEN = 7
WIDTH = 4  # channels of f3 and f4; f5 has twice as many
FEATURES = 6  # channels of words and sentence
VOCABULARY = 514

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_DTYPES = {F32: DType.FLOAT32, I64: DType.INT64, BOOL: DType.BOOL}

IMAGE = ("image", F32, ("batch", 3, SIZE, SIZE))
TOKENS = ("tokens", I64, ("batch", WORD_LEN))
FINE = SIZE // 16
LOGITS = ("logits", F32, ("batch", 1, SIZE // 4, SIZE // 4))


def scene_features(batch: str):
    return (
        ("f3", F32, (batch, WIDTH, FINE, FINE)),
        ("f4", F32, (batch, WIDTH, FINE, FINE)),
        ("f5", F32, (batch, 2 * WIDTH, FINE // 2, FINE // 2)),
    )


def text_features(batch: str):
    return (
        ("words", F32, (batch, WORD_LEN, FEATURES)),
        ("sentence", F32, (batch, FEATURES)),
        ("padding", BOOL, (batch, WORD_LEN)),
    )


INTERFACES = {
    GraphName.FULL: ((IMAGE, TOKENS), (LOGITS,)),
    GraphName.IMAGE_ENCODER: ((IMAGE,), scene_features("batch")),
    GraphName.TEXT_ENCODER: ((TOKENS,), text_features("batch")),
    GraphName.MASK_DECODER: (
        (*text_features("n"), *scene_features("images")),
        (("logits", F32, ("n", 1, SIZE // 4, SIZE // 4)),),
    ),
}


def image_nodes():
    node = helper.make_node
    return [
        node("Conv", ["image", "mix3"], ["c3"]),
        node("AveragePool", ["c3"], ["f3"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Conv", ["image", "mix4"], ["c4"]),
        node("AveragePool", ["c4"], ["f4"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Conv", ["image", "mix5"], ["c5"]),
        node("AveragePool", ["c5"], ["f5"], kernel_shape=[32, 32], strides=[32, 32]),
    ]


def text_nodes():
    node = helper.make_node
    return [
        node("Gather", ["embedding", "tokens"], ["words"]),
        node("ReduceMean", ["words", "axis1"], ["sentence"], keepdims=0),
        node("Equal", ["tokens", "zero"], ["padding"]),
    ]


def decoder_nodes():
    node = helper.make_node
    return [
        node("Resize", ["f5", "", "double"], ["f5up"], mode="nearest"),
        node("Concat", ["f3", "f4", "f5up"], ["scene"], axis=1),  # (images, 4 * WIDTH, ..)
        node("Cast", ["padding"], ["padded"], to=F32),
        node("Sub", ["one", "padded"], ["kept"]),
        node("Unsqueeze", ["kept", "axis2"], ["kept3"]),
        node("Mul", ["words", "kept3"], ["seen"]),
        node("ReduceSum", ["seen", "axis1"], ["seen1"], keepdims=0),
        node("Add", ["seen1", "sentence"], ["query"]),
        node("MatMul", ["query", "project"], ["kernel"]),  # (n, 4 * WIDTH)
        node("Unsqueeze", ["kernel", "axes23"], ["kernel4"]),
        node("Mul", ["scene", "kernel4"], ["product"]),  # images 1 broadcasts to n
        node("ReduceSum", ["product", "axis1"], ["coarse"], keepdims=1),
        node("Resize", ["coarse", "", "quadruple"], ["logits"], mode="linear"),
    ]


def constants():
    rng = np.random.default_rng(7)
    small = {
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "axes23": np.array([2, 3], np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.float32),
        "double": np.array([1, 1, 2, 2], np.float32),
        "quadruple": np.array([1, 1, 4, 4], np.float32),
    }
    large = {
        "mix3": rng.normal(size=(WIDTH, 3, 1, 1)),
        "mix4": rng.normal(size=(WIDTH, 3, 1, 1)),
        "mix5": rng.normal(size=(2 * WIDTH, 3, 1, 1)),
        "embedding": rng.normal(size=(VOCABULARY, FEATURES)),
        "project": 0.3 * rng.normal(size=(FEATURES, 4 * WIDTH)),
    }
    return small, {name: value.astype(np.float32) for name, value in large.items()}


NODES = {
    GraphName.FULL: lambda: [*image_nodes(), *text_nodes(), *decoder_nodes()],
    GraphName.IMAGE_ENCODER: image_nodes,
    GraphName.TEXT_ENCODER: text_nodes,
    GraphName.MASK_DECODER: decoder_nodes,
}


def write_tokenizer(path: Path) -> None:
    """The byte alphabet of CLIP and no merges: one token per byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), START, END]
    assert len(tokens) == VOCABULARY
    vocabulary = {token: index for index, token in enumerate(tokens)}
    result = tokenizers.Tokenizer(byte_pair_model(vocabulary, []))
    result.add_special_tokens([START, END])
    result.save(str(path))


def write_graphs(directory: Path) -> dict[GraphName, GraphSpec]:
    small, large = constants()
    offsets, offset = {}, 0
    with (directory / WEIGHTS).open("wb") as stream:
        for name, value in large.items():
            offsets[name] = offset
            offset += stream.write(value.tobytes())
    specs = {}
    for graph_name, (inputs, outputs) in INTERFACES.items():
        nodes = NODES[graph_name]()
        used = {name for node in nodes for name in node.input}
        initializers = [numpy_helper.from_array(v, n) for n, v in small.items() if n in used]
        for name in sorted(used & large.keys()):
            value = large[name]
            tensor = TensorProto(name=name, data_type=F32, dims=value.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (
                ("location", WEIGHTS),
                ("offset", str(offsets[name])),
                ("length", str(value.nbytes)),
            ):
                tensor.external_data.add(key=key, value=entry)
            initializers.append(tensor)
        graph = helper.make_graph(
            nodes,
            str(graph_name),
            [helper.make_tensor_value_info(*spec) for spec in inputs],
            [helper.make_tensor_value_info(*spec) for spec in outputs],
            initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = directory / f"{graph_name}.onnx"
        onnx.save(model, path)
        onnx.checker.check_model(path)
        specs[graph_name] = GraphSpec(
            path.name,
            tuple(TensorSpec(n, _DTYPES[t], s) for n, t, s in inputs),
            tuple(TensorSpec(n, _DTYPES[t], s) for n, t, s in outputs),
        )
    return specs


def manifest(graphs: dict[GraphName, GraphSpec]) -> Manifest:
    return Manifest(
        model=ModelFacts(
            architecture="tiny",
            input_size=SIZE,
            mask_size=SIZE // 4,
            word_len=WORD_LEN,
            context_length=77,
            threshold=0.35,
            decoder_layers=0,
            contrastive=True,
            parameters=sum(value.size for value in constants()[1].values()),
            checkpoint_sha256="0" * 64,
        ),
        precision=Precision.FP32,
        opset=20,
        graphs=graphs,
        versions={"onnx": onnx.__version__},
        samples=(Sample("samples/0.png", "a cat", "samples/0.npy", 5, 9),),
        parity=Parity(0.99, 1.0, 1.0, 0.0, True),
        created="2026-11-22T00:00:00Z",
        files={},
    )


def fill(directory: Path) -> Manifest:
    """Write all files of the bundle but the manifest."""
    write_tokenizer(directory / TOKENIZER)
    samples = directory / "samples"
    samples.mkdir()
    cv2.imwrite(str(samples / "0.png"), np.zeros((5, 9, 3), np.uint8))
    np.save(samples / "0.npy", np.zeros((SIZE // 4, SIZE // 4), np.float32))
    return manifest(write_graphs(directory))


def write_bundle(path: Path) -> Path:
    """Write the whole bundle at `path`."""
    with BundleWriter(path) as writer:
        writer.write_manifest(fill(writer.directory))
        writer.commit()
    return path
