// qkernels._C.lut_linear: the CPU's kernel on tensors that nothing but the kernel looks at. The way through torch's dispatcher, and
// what Python asks before it, take their part of one row's product: none of it is in the caches when a weight has gone through them. Tensors are read by DLPack's C exchange API, which torch 2.10 and later have.
#include <ATen/dlpack.h>
#include <Python.h>
#include <pybind11/pybind11.h>
#include <array>
#include <exception>
#include <initializer_list>
#include "lut_linear_direct.h"

namespace {

namespace py = pybind11;

// What there is of torch and Python. Never freed: at exit Python may be gone.
struct Outside {
  const DLPackExchangeAPI* dlpack = nullptr;
  PyTypeObject *tensor, *parameter;
  std::array<PyObject*, 5> quiet;  // functions that return 0 or False while nothing looks on: modes, transforms, autocast, tracing
  PyObject *grad_enabled, *requires_grad;
  PyObject *is_neg, *new_empty;  // methods of Tensor
  PyObject *os, *environ_name, *environ, *environment, *backend_name;  // the dict behind os.environ, as long as that is it
  PyObject *forward_ad, *level_name, *profiler, *profiling_name;  // dicts of modules, and what to read there
};
Outside torch_;

// Throws where this torch has not what it takes.
void find_outside() {
  const auto own = [](py::object o) { return o.release().ptr(); };
  const auto import = [](const char* name) { return py::module_::import(name); };
  const py::object torch = import("torch"), c = torch.attr("_C"), tensor = torch.attr("Tensor");
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* dlpack = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!dlpack) throw py::error_already_set();
  if (dlpack->header.version.major != DLPACK_MAJOR_VERSION || !dlpack->dltensor_from_py_object_no_sync) throw py::type_error("another DLPack");
  torch_.tensor = reinterpret_cast<PyTypeObject*>(own(tensor));
  torch_.parameter = reinterpret_cast<PyTypeObject*>(own(torch.attr("nn").attr("Parameter")));
  const char* quiet[] = {"_len_torch_dispatch_stack", "_len_torch_function_stack", "_are_functorch_transforms_active",
                         "_is_any_autocast_enabled", "_is_tracing"};
  for (size_t i = 0; i < torch_.quiet.size(); i++) torch_.quiet[i] = own(c.attr(quiet[i]));
  torch_.grad_enabled = own(torch.attr("is_grad_enabled"));
  torch_.requires_grad = own(py::str("requires_grad"));
  torch_.is_neg = own(tensor.attr("is_neg")), torch_.new_empty = own(tensor.attr("new_empty"));
  const py::object os = import("os"), environ = os.attr("environ"), environment = environ.attr("_data");
  if (!PyDict_CheckExact(environment.ptr())) throw py::type_error("another environment");
  torch_.os = own(os.attr("__dict__")), torch_.environ_name = own(py::str("environ")), torch_.environ = own(environ);
  torch_.environment = own(environment), torch_.backend_name = own(py::bytes("QKERNELS_BACKEND"));
  torch_.forward_ad = own(import("torch.autograd.forward_ad").attr("__dict__")), torch_.level_name = own(py::str("_current_level"));
  torch_.profiler = own(import("torch.autograd.profiler").attr("__dict__")), torch_.profiling_name = own(py::str("_is_profiler_enabled"));
  torch_.dlpack = dlpack;
}

// Whether what a call returned is 0 or False; takes it.
bool is_zero(PyObject* returned) {
  if (!returned) return PyErr_Clear(), false;
  const bool zero = returned == Py_False || (PyLong_CheckExact(returned) && PyObject_IsTrue(returned) == 0);
  Py_DECREF(returned);
  return zero;
}

// Whether no mode, transform, autocast, trace, derivative, profiler of torch.profiler or environment variable asks for this call. Of
// other profilers nothing can be read here: the kernel shows itself to them.
bool is_quiet() {
  for (PyObject* f : torch_.quiet)
    if (!is_zero(PyObject_CallNoArgs(f))) return false;
  PyObject* const level = PyDict_GetItem(torch_.forward_ad, torch_.level_name);
  return level && PyLong_CheckExact(level) && PyLong_AsLong(level) < 0 &&
         PyDict_GetItem(torch_.profiler, torch_.profiling_name) == Py_False &&
         PyDict_GetItem(torch_.os, torch_.environ_name) == torch_.environ &&
         !PyDict_GetItem(torch_.environment, torch_.backend_name);
}

// The values of a plain tensor on a CPU, if they are contiguous, of a dtype that Given names, and in memory: of a freed storage the
// address is an offset from 0, and no process has memory below 64 KiB.
bool values_of(PyObject* o, qk::Given* v, DLTensor* t) {
  if (Py_TYPE(o) != torch_.tensor && Py_TYPE(o) != torch_.parameter) return false;
  if (torch_.dlpack->dltensor_from_py_object_no_sync(o, t)) return PyErr_Clear(), false;
  int64_t numel = 1;
  for (int i = t->ndim; i-- > 0; numel *= t->shape[i])
    if (t->shape[i] != 1 && t->strides && t->strides[i] != numel) return false;
  const auto is = [&](int code, int bits) { return t->dtype.code == code && t->dtype.bits == bits && t->dtype.lanes == 1; };
  const int dtype = is(kDLFloat, 32) ? 0 : is(kDLFloat, 16) ? 1 : is(kDLBfloat, 16) ? 2 : is(kDLUInt, 8) ? 3 : -1;
  *v = {static_cast<const char*>(t->data) + t->byte_offset, numel, dtype};
  return t->device.device_type == kDLCPU && reinterpret_cast<uintptr_t>(v->data) >= 65536 && dtype >= 0 && is_zero(PyObject_CallOneArg(torch_.is_neg, o));
}

bool trains(PyObject* o) { return !is_zero(PyObject_GetAttr(o, torch_.requires_grad)); }

bool integer(PyObject* o, int64_t* to) {
  if (!PyLong_CheckExact(o)) return false;
  *to = PyLong_AsLongLong(o);
  return *to != -1 || !PyErr_Occurred() || (PyErr_Clear(), false);
}

constexpr int kMostDims = 8;

// x.new_empty(*x.shape[:-1], n)
PyObject* empty_like(PyObject* x, const DLTensor& shape, PyObject* n) {
  PyObject* args[1 + kMostDims] = {x};
  PyObject* y = nullptr;
  int count = 1;
  for (; count < shape.ndim; count++)
    if (!(args[count] = PyLong_FromLongLong(shape.shape[count - 1]))) break;
  if (count == shape.ndim) {
    args[count] = n;
    y = PyObject_Vectorcall(torch_.new_empty, args, count + 1, nullptr);
  }
  while (--count > 0) Py_DECREF(args[count]);
  return y;
}

// (x, codes, levels, scale, bias or None, bits, group_size, n, k, rows) -> y, or None where another way is to be taken: as for `rows`
// rows of x and more.
PyObject* lut_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  enum { kX, kCodes, kLevels, kScale, kBias, kBits, kGroup, kN, kK, kRows, kCount };
  if (count != kCount || !is_quiet()) Py_RETURN_NONE;
  qk::LutLinearCall a{};
  int64_t rows = 0;
  qk::Given* const values[] = {&a.x, &a.codes, &a.levels, &a.scale, &a.bias};
  int64_t* const integers[] = {&a.bits, &a.group_size, &a.n, &a.k, &rows};
  const int tensors = args[kBias] == Py_None ? kBias : kBits;
  DLTensor x, other;
  for (int i = 0; i < tensors; i++)
    if (!values_of(args[i], values[i], i == kX ? &x : &other)) Py_RETURN_NONE;
  for (int i = kBits; i < kCount; i++)
    if (!integer(args[i], integers[i - kBits])) Py_RETURN_NONE;
  if (!is_zero(PyObject_CallNoArgs(torch_.grad_enabled)))
    for (int i : {kX, kLevels, kScale, kBias})
      if (i < tensors && trains(args[i])) Py_RETURN_NONE;
  if (a.k <= 0 || a.n <= 0 || x.ndim < 1 || x.ndim > kMostDims || x.shape[x.ndim - 1] != a.k || a.x.numel / a.k >= rows ||
      (tensors > kBias && other.ndim != 1) || !qk_lut_linear(&a))
    Py_RETURN_NONE;
  PyObject* const y = empty_like(args[kX], x, args[kN]);
  if (!y) return PyErr_Clear(), Py_NewRef(Py_None);  // which says so again
  int done = 0;
  if (qk::Given to; values_of(y, &to, &other) && to.dtype == a.x.dtype && to.numel == a.x.numel / a.k * a.n) {
    a.y = const_cast<void*>(to.data);
    Py_BEGIN_ALLOW_THREADS
    done = qk_lut_linear(&a);
    Py_END_ALLOW_THREADS
  }
  if (done) return y;
  Py_DECREF(y);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"lut_linear", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(lut_linear)), METH_FASTCALL,
     "lut_linear(x, codes, levels, scale, bias, bits, group_size, n, k, rows): y, or None where torch.ops is to be asked."},
    {}};

}  // namespace

// Adds nothing where torch does not have what it takes.
void add_lut_linear(py::module_& m) {
  try {
    find_outside();
  } catch (const std::exception&) {  // Python's own too
    return;
  }
  if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
}
