// What the checks of arguments name of pybind11: no Python is needed to fuzz them.
#pragma once
#include <cstdint>

namespace pybind11 {
class module_;
}
