// Arrays of other libraries on a CUDA device, without a copy: DLPack or __cuda_array_interface__.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"

namespace cris {

// A view of a device array; owns what its library handed out for it, not the memory.
class DeviceArray {
 public:
  // Ready in the order of `stream` (a cudaStream_t), if the object speaks DLPack. Throws InputError,
  // which names `name`, if the object is no device array.
  DeviceArray(const py::handle& object, std::string name, uintptr_t stream);
  ~DeviceArray();
  DeviceArray(DeviceArray&& other) noexcept;
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray& operator=(DeviceArray&&) = delete;

  char kind() const { return kind_; }   // NumPy's letter: f, i, u, b
  int bytes() const { return bytes_; }  // of one element
  const std::vector<int64_t>& shape() const { return shape_; }
  void* data() const { return data_; }

  // Each throws InputError unless the array is what it says.
  void expect_type(const char* wanted, std::initializer_list<std::pair<char, int>> types) const;
  void expect_shape(const std::vector<int64_t>& shape) const;
  void expect_rank(size_t rank, const char* wanted) const;
  void expect_contiguous() const;
  void expect_writable() const;
  void expect_aligned(size_t bytes) const;

 private:
  void read_dlpack(const py::handle& object, uintptr_t stream);
  void read_interface(const py::handle& object);
  [[noreturn]] void refuse(const std::string& what) const;

  std::string name_;
  void* data_ = nullptr;
  char kind_ = '?';
  int bytes_ = 0;
  bool read_only_ = false;
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;  // in elements; empty for contiguous
  void* managed_ = nullptr;       // DLManagedTensor
};

}  // namespace cris
