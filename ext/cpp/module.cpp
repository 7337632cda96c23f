// The module postmill._C: CPU kernels. One op a file; this file only gathers them.
#include <pybind11/pybind11.h>

void bind_loss_scale_ce(pybind11::module_& module);
void bind_packed_linear(pybind11::module_& module);
void bind_paged_attention(pybind11::module_& module);

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of Postmill.";
  bind_loss_scale_ce(module);
  bind_packed_linear(module);
  bind_paged_attention(module);
}
