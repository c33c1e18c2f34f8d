// Thin bindings of the CUDA operations.
#include <optional>

#include "../cuda/ops.h"
#include "device_array.h"

namespace cris {
namespace {

using Arrays = std::vector<DeviceArray>;

// Everything an operation touches must be on one device.
int common_device(const std::vector<std::pair<const char*, const Arrays*>>& groups) {
  int device = -1;
  for (const auto& [name, arrays] : groups) {
    for (const DeviceArray& array : *arrays) {
      int found = -1;
      if (const char* error = find_device(array.data(), found))
        throw DeviceError(std::string(name) + " cannot be used on a CUDA device: " + error);
      if (device >= 0 && found != device)
        throw InputError(std::string(name) + " is on device " + std::to_string(found) +
                         ", another argument on " + std::to_string(device) + ": use one device");
      device = found;
    }
  }
  return device;
}

void throw_if(const char* error) {
  if (error) throw DeviceError(std::string("CUDA reports: ") + error);
}

Arrays outputs(const std::optional<py::sequence>& objects, const char* name,
               const std::vector<Frame>& frames, const char* wanted,
               std::initializer_list<std::pair<char, int>> types, bool packed, uintptr_t stream) {
  Arrays arrays;
  if (!objects) return arrays;
  if (objects->size() != frames.size())
    throw InputError(std::string(name) + " has " + std::to_string(objects->size()) +
                     " arrays for " + std::to_string(frames.size()) + " frames: give one for each");
  for (size_t i = 0; i < frames.size(); ++i) {
    const int64_t width = packed ? (frames[i].width + 7) / 8 : frames[i].width;
    DeviceArray& array = arrays.emplace_back((*objects)[i], name, stream);
    array.expect_type(wanted, types);
    array.expect_shape({frames[i].height, width});
    array.expect_contiguous();
    array.expect_writable();
  }
  return arrays;
}

std::vector<CudaMaskItem> make_items(const std::vector<Frame>& frames, int64_t source_height,
                                     int64_t source_width, int64_t input_size, bool direct) {
  std::vector<CudaMaskItem> items(frames.size());
  const int height = static_cast<int>(source_height), width = static_cast<int>(source_width);
  const int square = static_cast<int>(input_size);
  for (size_t i = 0; i < frames.size(); ++i) {
    const Frame& frame = frames[i];
    items[i].y = {frame.scale_y, frame.offset_y, height, square, direct};
    items[i].x = {frame.scale_x, frame.offset_x, width, square, direct};
    items[i].height = frame.height;
    items[i].width = frame.width;
  }
  return items;
}

size_t workspace_bytes_cuda(const std::vector<Frame>& frames, int64_t source_height,
                            int64_t source_width) {
  check_source(static_cast<int64_t>(frames.size()), source_height, source_width, frames.size(), 1,
               true);
  const auto items = make_items(frames, source_height, source_width, 1, true);
  return workspace_bytes(items.data(), static_cast<int>(items.size()));
}

void upsample_on_device(const py::object& logits_object, const std::vector<Frame>& frames,
                        const std::vector<double>& thresholds, int64_t input_size,
                        const py::object& workspace_object,
                        const std::optional<py::sequence>& mask_objects,
                        const std::optional<py::sequence>& packed_objects,
                        const std::optional<py::sequence>& probability_objects,
                        const py::object& stats_object, bool direct, uintptr_t stream) {
  Arrays logits, workspace, stats;
  DeviceArray& source = logits.emplace_back(logits_object, "logits", stream);
  source.expect_type("float32 or float16", {{'f', 4}, {'f', 2}});
  source.expect_rank(3, "(items, height, width)");
  source.expect_contiguous();
  const auto& shape = source.shape();
  check_source(shape[0], shape[1], shape[2], frames.size(), input_size, direct);
  const std::vector<float> limits = check_thresholds(thresholds, frames.size());
  std::vector<CudaMaskItem> items = make_items(frames, shape[1], shape[2], input_size, direct);
  const int64_t count = shape[0];
  if (count == 0) return;

  DeviceArray& scratch = workspace.emplace_back(workspace_object, "workspace", stream);
  scratch.expect_type("uint8", {{'u', 1}});
  scratch.expect_rank(1, "one dimension");
  scratch.expect_contiguous();
  scratch.expect_writable();
  scratch.expect_aligned(256);
  const size_t needed = workspace_bytes(items.data(), static_cast<int>(count));
  if (static_cast<size_t>(scratch.shape()[0]) < needed)
    throw InputError("workspace has " + std::to_string(scratch.shape()[0]) +
                     " bytes: " + std::to_string(needed) + " are needed (cuda_workspace_bytes)");
  const Arrays masks =
      outputs(mask_objects, "masks", frames, "bool or uint8", {{'b', 1}, {'u', 1}}, false, stream);
  const Arrays packed =
      outputs(packed_objects, "packed", frames, "uint8", {{'u', 1}}, true, stream);
  const Arrays floats = outputs(probability_objects, "probabilities", frames, "float32",
                                {{'f', 4}}, false, stream);
  if (!stats_object.is_none()) {
    DeviceArray& array = stats.emplace_back(stats_object, "stats", stream);
    array.expect_type("int64", {{'i', 8}});
    array.expect_shape({count, 5});
    array.expect_contiguous();
    array.expect_writable();
  }
  const bool half = source.bytes() == 2;
  for (size_t i = 0; i < items.size(); ++i) {
    CudaMaskItem& item = items[i];
    item.logits = static_cast<const char*>(source.data()) +
                  static_cast<int64_t>(i) * shape[1] * shape[2] * source.bytes();
    item.mask = masks.empty() ? nullptr : static_cast<uint8_t*>(masks[i].data());
    item.packed = packed.empty() ? nullptr : static_cast<uint8_t*>(packed[i].data());
    item.probabilities = floats.empty() ? nullptr : static_cast<float*>(floats[i].data());
    item.stats = stats.empty() ? nullptr : static_cast<long long*>(stats[0].data()) + 5 * i;
    item.threshold = limits[i];
  }
  const DeviceGuard guard(common_device({{"logits", &logits},
                                         {"workspace", &workspace},
                                         {"masks", &masks},
                                         {"packed", &packed},
                                         {"probabilities", &floats},
                                         {"stats", &stats}}));
  throw_if(upsample_cuda(items.data(), static_cast<int>(count), half, scratch.data(),
                         reinterpret_cast<CudaStream>(stream)));
}

void letterbox_on_device(const py::object& rgb_object, const Frame& frame,
                         const py::object& out_object, uintptr_t stream) {
  Arrays rgb, out;
  DeviceArray& image = rgb.emplace_back(rgb_object, "rgb", stream);
  image.expect_type("uint8", {{'u', 1}});
  image.expect_shape({frame.height, frame.width, kChannels});
  image.expect_contiguous();
  DeviceArray& planes = out.emplace_back(out_object, "out", stream);
  planes.expect_type("float32 or float16", {{'f', 4}, {'f', 2}});
  planes.expect_rank(3, "(3, size, size)");
  const int64_t side = planes.shape()[1];
  if (side < 1 || side > kMaxSource * 4)
    throw InputError("out has a side of " + std::to_string(side));
  planes.expect_shape({kChannels, side, side});
  planes.expect_contiguous();
  planes.expect_writable();
  const DeviceGuard guard(common_device({{"rgb", &rgb}, {"out", &out}}));
  throw_if(letterbox_cuda(static_cast<const uint8_t*>(image.data()), planes.data(),
                          planes.bytes() == 2, inverse(frame, static_cast<int>(side)),
                          reinterpret_cast<CudaStream>(stream)));
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("cuda_workspace_bytes", &workspace_bytes_cuda, py::arg("frames"),
             py::arg("source_height"), py::arg("source_width"));
  module.def("cuda_upsample", &upsample_on_device, py::arg("logits"), py::arg("frames"),
             py::arg("thresholds"), py::arg("input_size"), py::arg("workspace"), py::kw_only(),
             py::arg("masks") = py::none(), py::arg("packed") = py::none(),
             py::arg("probabilities") = py::none(), py::arg("stats") = py::none(),
             py::arg("direct") = false, py::arg("stream") = 0);
  module.def("cuda_letterbox", &letterbox_on_device, py::arg("rgb"), py::arg("frame"),
             py::arg("out"), py::kw_only(), py::arg("stream") = 0);
}

}  // namespace cris
