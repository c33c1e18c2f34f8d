#include "device_array.h"

namespace cris {
namespace {

// DLPack's binary interface (https://dmlc.github.io/dlpack), as far as it is needed.
constexpr int32_t kDlCuda = 2, kDlCudaManaged = 13;
// The legacy default stream in `__dlpack__(stream=)`, where 0 would be ambiguous.
constexpr uintptr_t kDlLegacyStream = 1;

struct DlTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t rank;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + ")";
}

}  // namespace

DeviceArray::DeviceArray(const py::handle& object, std::string name, uintptr_t stream)
    : name_(std::move(name)) {
  if (py::hasattr(object, "__dlpack_device__")) {
    const py::tuple device = object.attr("__dlpack_device__")();
    const auto type = device[0].cast<int32_t>();
    if (type != kDlCuda && type != kDlCudaManaged)
      refuse("is not on a CUDA device: move it there, or use the CPU operation");
    read_dlpack(object, stream);
  } else if (py::hasattr(object, "__cuda_array_interface__")) {
    read_interface(object);
  } else {
    refuse("is a " + std::string(py::str(py::type::handle_of(object).attr("__name__"))) +
           ": give an array on a CUDA device (DLPack or __cuda_array_interface__)");
  }
  for (const int64_t side : shape_)
    if (side < 0) refuse("has shape " + text(shape_));
}

DeviceArray::~DeviceArray() {
  auto* managed = static_cast<DlManagedTensor*>(managed_);
  if (managed && managed->deleter) managed->deleter(managed);
}

DeviceArray::DeviceArray(DeviceArray&& other) noexcept
    : name_(std::move(other.name_)),
      data_(other.data_),
      kind_(other.kind_),
      bytes_(other.bytes_),
      read_only_(other.read_only_),
      shape_(std::move(other.shape_)),
      strides_(std::move(other.strides_)),
      managed_(other.managed_) {
  other.managed_ = nullptr;
}

void DeviceArray::read_dlpack(const py::handle& object, uintptr_t stream) {
  // Whoever made the array lets this stream wait for what it queued on its own.
  const uintptr_t consumer = stream == 0 ? kDlLegacyStream : stream;
  const py::object capsule = object.attr("__dlpack__")(py::arg("stream") = consumer);
  auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  managed_ = managed;
  const DlTensor& tensor = managed->tensor;
  constexpr char kKinds[] = {'i', 'u', 'f', '?', '?', '?', 'b'};  // by DLPack's type code
  kind_ = tensor.code < sizeof kKinds && tensor.lanes == 1 ? kKinds[tensor.code] : '?';
  bytes_ = tensor.bits / 8;
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  shape_.assign(tensor.shape, tensor.shape + tensor.rank);
  if (tensor.strides) strides_.assign(tensor.strides, tensor.strides + tensor.rank);
}

void DeviceArray::read_interface(const py::handle& object) {
  const py::dict interface = object.attr("__cuda_array_interface__");
  const std::string type = py::cast<std::string>(interface["typestr"]);
  if (type.size() < 3 || type[0] == '>') refuse("has type " + type + ": give native byte order");
  kind_ = type[1];
  bytes_ = std::stoi(type.substr(2));
  const py::tuple data = interface["data"];
  data_ = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
  read_only_ = data[1].cast<bool>();
  for (const auto& side : interface["shape"]) shape_.push_back(side.cast<int64_t>());
  if (interface.contains("strides") && !interface["strides"].is_none())
    for (const auto& stride : interface["strides"]) {
      const auto bytes = stride.cast<int64_t>();
      // A stride between elements is no contiguous one: 0 makes the check below say so.
      strides_.push_back(bytes_ > 0 && bytes % bytes_ == 0 ? bytes / bytes_ : 0);
    }
  if (!strides_.empty() && strides_.size() != shape_.size()) refuse("has strides of another rank");
}

void DeviceArray::expect_type(const char* wanted,
                              std::initializer_list<std::pair<char, int>> types) const {
  for (const auto& [kind, bytes] : types)
    if (kind == kind_ && bytes == bytes_) return;
  refuse("has element type " + std::string(1, kind_) + std::to_string(bytes_) + ": it must be " +
         wanted);
}

void DeviceArray::expect_rank(size_t rank, const char* wanted) const {
  if (shape_.size() != rank) refuse("has shape " + text(shape_) + ": give " + wanted);
}

void DeviceArray::expect_shape(const std::vector<int64_t>& shape) const {
  if (shape_ != shape) refuse("has shape " + text(shape_) + ": it must be " + text(shape));
}

void DeviceArray::expect_contiguous() const {
  int64_t expected = 1;
  for (size_t i = strides_.size(); i-- > 0;) {
    if (shape_[i] != 1 && strides_[i] != expected) refuse("is not C-contiguous: copy it first");
    expected *= shape_[i];
  }
}

void DeviceArray::expect_writable() const {
  if (read_only_) refuse("is read-only: give a writable array");
}

void DeviceArray::expect_aligned(size_t bytes) const {
  if (reinterpret_cast<uintptr_t>(data_) % bytes != 0)
    refuse("starts at an address that is no multiple of " + std::to_string(bytes) +
           ": allocate it on its own, not as a slice");
}

void DeviceArray::refuse(const std::string& what) const { throw InputError(name_ + " " + what); }

}  // namespace cris
