"""A bundle of hand-built graphs that obey the interface of a real one, in 2 MB and milliseconds.

The "model" has no training: its logits are the product of a few image averages with a few token
numbers, so that every input changes every output, and a mistake in the plumbing shows.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from cris_deploy.bundle.fingerprints import fingerprint
from cris_deploy.bundle.manifest import (
    NumberType,
    Proof,
    Route,
    RouteParity,
    StageParity,
    TypeShare,
)
from cris_deploy.bundle.reading import (
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
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
from cris_deploy.pixels import image as images
from cris_deploy.words.cleaning import END, START
from cris_deploy.words.tokenizer import Tokenizer, byte_pair_model
from cris_export.write import BundleWriter

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
    """Words see those before them, and the sentence is looked up at the end, as exported."""
    node = helper.make_node
    return [
        node("Gather", ["embedding", "tokens"], ["embedded"]),
        node("MatMul", ["causal", "embedded"], ["words"]),
        node("Mul", ["tokens", "length"], ["shifted"]),
        node("Add", ["shifted", "backwards"], ["rank"]),
        node("ReduceMax", ["rank", "axis1"], ["last"], keepdims=1),
        node("Equal", ["rank", "last"], ["end"]),
        node("Unsqueeze", ["end", "axis1"], ["end3"]),
        node("Cast", ["end3"], ["at_end"], to=F32),
        node("MatMul", ["at_end", "words"], ["sentence3"]),
        node("Squeeze", ["sentence3", "axis1"], ["sentence"]),
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
        "length": np.array(WORD_LEN, np.int64),
        "backwards": np.arange(WORD_LEN - 1, -1, -1),
        "causal": (np.tri(WORD_LEN) / np.arange(1, WORD_LEN + 1)[:, None]).astype(np.float32),
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
        for node in nodes:
            node.name = f"node_{node.output[0]}"
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


TYPES = TypeShare({NumberType.FLOAT32: 7}, {NumberType.FLOAT32: 14000}, {}, 1, {"node": "range"})
PICTURE = "samples/0.png"
SAMPLES = (
    Sample(PICTURE, "a cat", "samples/0.npy", 45, 70, "samples/scene0.npz", "samples/text0.npz"),
    Sample(PICTURE, "the dog", "samples/1.npy", 45, 70),
)
PROOF = Proof(
    *("onnxruntime", "1.0", "cpu", "fp32", True),
    (RouteParity(Route.STAGES, 1.0, 1.0, 0.0), RouteParity(Route.FULL, 1.0, 1.0, None)),
    (StageParity(GraphName.TEXT_ENCODER, 0.0, 0.0, None),),
    None,
)


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
        types=dict.fromkeys(GraphName, TYPES),
        versions={"onnx": onnx.__version__},
        samples=SAMPLES,
        parity=Parity(0.99, 1.0, 1.0, 0.0, True, (PROOF,)),
        created="2026-11-22T00:00:00Z",
        files={},
    )


def fill(directory: Path) -> Manifest:
    """Write all files of the bundle but the manifest."""
    write_tokenizer(directory / TOKENIZER)
    (directory / "samples").mkdir()
    coarse = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    cv2.imwrite(str(directory / PICTURE), cv2.resize(coarse, (70, 45)))
    specs = write_graphs(directory)
    write_answers(directory)
    weights = fingerprint(directory, {name: spec.file for name, spec in specs.items()})
    return dataclasses.replace(manifest(specs), weights=weights)


def write_answers(directory: Path) -> None:
    """What the graphs themselves say about the samples takes the place of PyTorch's answers."""
    stages = {
        name: onnxruntime.InferenceSession(directory / f"{name}.onnx")
        for name in (GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER, GraphName.MASK_DECODER)
    }

    def run(name, inputs):
        names = [value.name for value in stages[name].get_outputs()]
        return dict(zip(names, stages[name].run(names, inputs), strict=True))

    tokenizer = Tokenizer.from_file(directory / TOKENIZER, WORD_LEN)
    for sample in SAMPLES:
        pixels = images.normalise(images.letterbox(images.decode(directory / sample.image), SIZE))
        scene = run(GraphName.IMAGE_ENCODER, {"image": pixels[None]})
        tokens = tokenizer.encode([sample.expression]).tokens
        text = run(GraphName.TEXT_ENCODER, {"tokens": tokens})
        logits = run(GraphName.MASK_DECODER, text | scene)["logits"]
        np.save(directory / sample.logits, logits[0, 0])
        if sample.scene is not None and sample.text is not None:
            np.savez(directory / sample.scene, **scene)
            np.savez(directory / sample.text, **text)


def change_weights(bundle: Path, name: str, change, *, recorded: bool = True) -> None:
    """Replace one tensor of weights.bin by `change(tensor)`, and write its hash where it belongs.

    As if the bundle had been exported with it: only running it shows the difference. Without
    `recorded` the file's hash is right and the weight's own is not.
    """
    offset = 0
    for key, value in constants()[1].items():
        if key == name:
            data = bytearray((bundle / WEIGHTS).read_bytes())
            data[offset : offset + value.nbytes] = change(value).astype(np.float32).tobytes()
            (bundle / WEIGHTS).write_bytes(data)
            rehash(bundle)
            if recorded:
                record_weights(bundle)
            return
        offset += value.nbytes
    raise KeyError(name)


def edit(bundle: Path, *keys: str | int, value: object) -> None:
    """Put a value where `keys` lead in the manifest; KeyError takes away what is there."""
    path = bundle / MANIFEST
    document = json.loads(path.read_text())
    target = document
    for key in keys[:-1]:
        target = target[key]
    if value is KeyError:
        del target[keys[-1]]
    else:
        target[keys[-1]] = value
    path.write_text(json.dumps(document))


def rehash(bundle: Path) -> None:
    """Bring the manifest's hashes and sizes up to date."""
    document = json.loads((bundle / MANIFEST).read_text())
    for name in document["files"]:
        data = (bundle / name).read_bytes()
        record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        document["files"][name] = record
    (bundle / MANIFEST).write_text(json.dumps(document))


def record_weights(bundle: Path) -> None:
    """Bring the hashes of the single weights up to date."""
    document = json.loads((bundle / MANIFEST).read_text())
    files = {GraphName(name): graph["file"] for name, graph in document["graphs"].items()}
    document["weights"] = fingerprint(bundle, files)
    (bundle / MANIFEST).write_text(json.dumps(document))


def write_bundle(path: Path) -> Path:
    """Write the whole bundle at `path`."""
    with BundleWriter(path) as writer:
        writer.write_manifest(fill(writer.directory))
        writer.commit()
    return path
