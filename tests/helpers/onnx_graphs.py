"""ONNX graphs of a few nodes, made by hand and checked."""

import onnx
from onnx import TensorProto, helper, numpy_helper

F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
node = helper.make_node


def graph(nodes, inputs, outputs, weights) -> onnx.ModelProto:
    for made in nodes:
        made.name = made.name or made.output[0]
    body = helper.make_graph(
        nodes, "test", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(proto)


def value(name, shape, dtype=F32):
    return helper.make_tensor_value_info(name, dtype, shape)
