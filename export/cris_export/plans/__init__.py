"""TensorRT plans of a bundle's graphs."""
