// qkernels._C: how this build was made, and a shorter way to a kernel. The kernels are a plain library beside it (no Python.h), loaded
// through torch.ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <map>
#include <string>

void add_lut_linear(pybind11::module_&);

PYBIND11_MODULE(_C, m) {
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"compiler", __VERSION__}, {"torch_target", QK_TORCH_TARGET}, {"cuda", QK_CUDA_VERSION}};
      },
      "How this library was built: compiler, torch_target (the oldest torch whose stable ABI it needs), cuda (\"\" without).");
  add_lut_linear(m);
}
