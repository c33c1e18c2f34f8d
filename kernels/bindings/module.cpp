// The extension module cris_deploy._kernels.
#include "arguments.h"

PYBIND11_MODULE(_kernels, module, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  py::register_exception_translator([](std::exception_ptr pointer) {
    const auto raise = [](const char* type, const std::exception& error) {
      const py::object object = py::module_::import("cris_deploy.errors").attr(type);
      PyErr_SetString(object.ptr(), error.what());
    };
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const cris::InputError& error) {
      raise("InputError", error);
    } catch (const cris::DeviceError& error) {
      raise("BackendError", error);
    }
  });
  // Raised with every change of a signature here, so that a stale build is told from a good one.
  module.attr("INTERFACE") = 1;
  module.attr("CUDA_ARCHITECTURES") = CRIS_CUDA_ARCHITECTURES;
  cris::bind_cpu(module);
#if defined(CRIS_CUDA)
  cris::bind_cuda(module);
#endif
}
