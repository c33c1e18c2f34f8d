// Checks of arguments, shared by the CPU and the CUDA bindings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../mask.h"

namespace cris {

namespace py = pybind11;

// Becomes cris_deploy.errors.InputError; the message names the argument and the remedy.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Becomes cris_deploy.errors.BackendError: the device cannot do what was asked.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How one image lies in the input square: square = scale * image + offset, on both axes.
struct Frame {
  int height, width;
  double scale_y, offset_y, scale_x, offset_x;
};

Frame make_frame(int64_t height, int64_t width, double scale_y, double offset_y, double scale_x,
                 double offset_x);

// The map of a frame from an input square of side `square` back to its image.
Letterbox inverse(const Frame& frame, int square);

// One threshold per frame.
std::vector<float> check_thresholds(const std::vector<double>& thresholds, size_t count);

// The logits' shape (n, h, w) against the frames and the input square.
void check_source(int64_t items, int64_t height, int64_t width, size_t frames, int64_t input_size,
                  bool direct);

void bind_cpu(py::module_& module);
#if defined(CRIS_CUDA)
void bind_cuda(py::module_& module);
#endif

}  // namespace cris
