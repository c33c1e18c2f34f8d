"""The model.py of a stage where Triton has the Python backend alone: the graph, in ONNX Runtime."""

import ctypes
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

TAKEN = ctypes.c_char_p(b"used_dltensor")


def written(name, values):
    capsule = np.ascontiguousarray(values).__dlpack__()
    tensor = triton.Tensor.from_dlpack(name, capsule)
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), TAKEN)
    return tensor


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(path)

    def execute(self, requests):
        # Never as_numpy: a build from before NumPy 2 gives arrays of another layout.
        names = [value.name for value in self.session.get_outputs()]
        responses = []
        for request in requests:
            inputs = {each.name(): np.from_dlpack(each) for each in request.inputs()}
            found = zip(names, self.session.run(names, inputs), strict=True)
            responses.append(triton.InferenceResponse([written(*each) for each in found]))
        return responses
