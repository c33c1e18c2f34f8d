// Thin bindings of the CPU mask step.
#include <optional>

#include "arguments.h"

namespace cris {
namespace {

struct Result {
  py::object mask, packed, probabilities, counts, box;
  int64_t area;
};

std::string shape_text(const py::array& array) { return py::str(array.attr("shape")); }

template <class T>
T* new_output(bool wanted, const char* type, int64_t height, int64_t width, py::object& keep) {
  if (!wanted) return nullptr;
  py::array array(py::dtype(type), std::vector<py::ssize_t>{height, width});
  keep = array;
  return static_cast<T*>(array.mutable_data());
}

uint8_t* given_output(const py::handle& out, const Frame& frame, py::object& keep) {
  if (!py::isinstance<py::array>(out))
    throw InputError("out holds something that is no NumPy array");
  py::array array = py::reinterpret_borrow<py::array>(out);
  if (array.dtype().kind() != 'b')
    throw InputError("out has dtype " + std::string(py::str(array.dtype())) + ": it must be bool");
  if (array.ndim() != 2 || array.shape(0) != frame.height || array.shape(1) != frame.width)
    throw InputError("out has shape " + shape_text(array) + " for an image of " +
                     std::to_string(frame.height) + " x " + std::to_string(frame.width));
  if (!(array.flags() & py::array::c_style) || !array.writeable())
    throw InputError("out must be C-contiguous and writeable");
  keep = array;
  return static_cast<uint8_t*>(array.mutable_data());
}

std::vector<Result> upsample_cpu(const py::array& logits, const std::vector<Frame>& frames,
                                 const std::vector<double>& thresholds, int64_t input_size,
                                 bool direct, bool mask, bool packed, bool probabilities, bool rle,
                                 const std::optional<py::sequence>& out, int threads) {
  const bool half = logits.dtype().kind() == 'f' && logits.itemsize() == 2;
  const bool single = logits.dtype().kind() == 'f' && logits.itemsize() == 4;
  const char order = logits.dtype().byteorder();
  if (!(half || single) || !(order == '=' || order == '<'))
    throw InputError("logits have dtype " + std::string(py::str(logits.dtype())) +
                     ": give float32 or float16 in native byte order");
  if (logits.ndim() != 3)
    throw InputError("logits have shape " + shape_text(logits) + ": give (items, height, width)");
  if (!(logits.flags() & py::array::c_style))
    throw InputError("logits are not C-contiguous: numpy.ascontiguousarray makes them so");
  check_source(logits.shape(0), logits.shape(1), logits.shape(2), frames.size(), input_size,
               direct);
  const std::vector<float> limits = check_thresholds(thresholds, frames.size());
  if (out && out->size() != frames.size())
    throw InputError("out has " + std::to_string(out->size()) + " arrays for " +
                     std::to_string(frames.size()) + " frames: give one for each");
  if (threads < 0) throw InputError("threads is negative: give 0 for all processors, or a count");

  const size_t count = frames.size();
  std::vector<Result> results(count);
  std::vector<MaskItem> items(count);
  std::vector<MaskResult> numbers(count);
  const int source_height = static_cast<int>(logits.shape(1));
  const int source_width = static_cast<int>(logits.shape(2));
  const int square = static_cast<int>(input_size);
  for (size_t i = 0; i < count; ++i) {
    const Frame& frame = frames[i];
    MaskItem& item = items[i];
    item.logits = logits.data(static_cast<py::ssize_t>(i));
    item.half = half;
    item.y = {frame.scale_y, frame.offset_y, source_height, square, direct};
    item.x = {frame.scale_x, frame.offset_x, source_width, square, direct};
    item.height = frame.height;
    item.width = frame.width;
    item.threshold = limits[i];
    item.rle = rle;
    if (out)
      item.mask = given_output((*out)[i], frame, results[i].mask);
    else
      item.mask = new_output<uint8_t>(mask, "?", frame.height, frame.width, results[i].mask);
    item.packed =
        new_output<uint8_t>(packed, "u1", frame.height, (frame.width + 7) / 8, results[i].packed);
    item.probabilities =
        new_output<float>(probabilities, "f4", frame.height, frame.width, results[i].probabilities);
  }
  {
    const py::gil_scoped_release release;
    upsample(items.data(), numbers.data(), static_cast<int>(count), threads);
  }
  for (size_t i = 0; i < count; ++i) {
    results[i].area = numbers[i].area;
    const int* box = numbers[i].box;
    results[i].box = py::none();
    if (numbers[i].area > 0) results[i].box = py::make_tuple(box[0], box[1], box[2], box[3]);
    if (rle) results[i].counts = py::str(numbers[i].counts);
    for (py::object* output :
         {&results[i].mask, &results[i].packed, &results[i].probabilities, &results[i].counts})
      if (!*output) *output = py::none();
  }
  return results;
}

std::string rle_cpu(const py::array& mask) {
  if (mask.dtype().kind() != 'b')
    throw InputError("mask has dtype " + std::string(py::str(mask.dtype())) + ": it must be bool");
  if (mask.ndim() != 2 || mask.size() == 0)
    throw InputError("mask has shape " + shape_text(mask) + ": give (height, width), neither 0");
  if (!(mask.flags() & py::array::c_style))
    throw InputError("mask is not C-contiguous: numpy.ascontiguousarray makes it so");
  make_frame(mask.shape(0), mask.shape(1), 1.0, 0.0, 1.0, 0.0);  // the limits on the size
  const auto* data = static_cast<const uint8_t*>(mask.data());
  const int height = static_cast<int>(mask.shape(0)), width = static_cast<int>(mask.shape(1));
  const py::gil_scoped_release release;
  return encode_mask(data, height, width);
}

py::array letterbox_cpu(const py::array& rgb, const Frame& frame, int64_t size) {
  if (rgb.dtype().kind() != 'u' || rgb.itemsize() != 1)
    throw InputError("rgb has dtype " + std::string(py::str(rgb.dtype())) + ": it must be uint8");
  if (rgb.ndim() != 3 || rgb.shape(0) != frame.height || rgb.shape(1) != frame.width ||
      rgb.shape(2) != kChannels)
    throw InputError("rgb has shape " + shape_text(rgb) + ": it must be (" +
                     std::to_string(frame.height) + ", " + std::to_string(frame.width) + ", 3)");
  if (!(rgb.flags() & py::array::c_style))
    throw InputError("rgb is not C-contiguous: numpy.ascontiguousarray makes it so");
  if (size < 1 || size > 4 * kMaxSource)
    throw InputError("size is " + std::to_string(size) + ": it must be 1 to " +
                     std::to_string(4 * kMaxSource));
  const Letterbox box = inverse(frame, static_cast<int>(size));
  py::array_t<float> out({int64_t{kChannels}, size, size});
  const auto* pixels = static_cast<const uint8_t*>(rgb.data());
  float* planes = out.mutable_data();
  const py::gil_scoped_release release;
  for (int y = 0; y < box.square; ++y) {
    for (int x = 0; x < box.square; ++x) {
      float value[kChannels];
      letterbox_pixel(pixels, box, x, y, value);
      for (int channel = 0; channel < kChannels; ++channel)
        planes[(channel * size + y) * size + x] = value[channel];
    }
  }
  return out;
}

}  // namespace

void bind_cpu(py::module_& module) {
  py::class_<Frame>(module, "Frame")
      .def(py::init(&make_frame), py::arg("height"), py::arg("width"), py::kw_only(),
           py::arg("scale_y"), py::arg("offset_y"), py::arg("scale_x"), py::arg("offset_x"))
      .def_readonly("height", &Frame::height)
      .def_readonly("width", &Frame::width)
      .def_readonly("scale_y", &Frame::scale_y)
      .def_readonly("offset_y", &Frame::offset_y)
      .def_readonly("scale_x", &Frame::scale_x)
      .def_readonly("offset_x", &Frame::offset_x);
  py::class_<Result>(module, "Result")
      .def_readonly("mask", &Result::mask)
      .def_readonly("packed", &Result::packed)
      .def_readonly("probabilities", &Result::probabilities)
      .def_readonly("counts", &Result::counts)
      .def_readonly("box", &Result::box)
      .def_readonly("area", &Result::area);
  module.def("upsample", &upsample_cpu, py::arg("logits"), py::arg("frames"), py::arg("thresholds"),
             py::arg("input_size"), py::kw_only(), py::arg("direct") = false,
             py::arg("mask") = true, py::arg("packed") = false, py::arg("probabilities") = false,
             py::arg("rle") = false, py::arg("out") = py::none(), py::arg("threads") = 0);
  module.def("letterbox", &letterbox_cpu, py::arg("rgb"), py::arg("frame"), py::arg("size"));
  module.def("rle", &rle_cpu, py::arg("mask"));
  module.def("simd", &simd_name);
  module.def(
      "select_simd",
      [](const std::string& name) {
        if (!select_simd(name.c_str()))
          throw InputError("name is '" + name + "': this machine has no such instruction set");
      },
      py::arg("name"));
}

}  // namespace cris
