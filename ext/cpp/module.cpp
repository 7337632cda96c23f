// The module postmill._C: CPU kernels. One op a file; this file only gathers them.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, module) { module.doc() = "CPU kernels of Postmill."; }
