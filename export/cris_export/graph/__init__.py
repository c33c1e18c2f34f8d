"""The full CRIS graph: three stages, folded, traced to ONNX, with their weights."""
