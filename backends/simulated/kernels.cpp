// SPDX-License-Identifier: Apache-2.0
// The operators of the simulated accelerator: the CPU's kernels, run on the device's memory.
//
// Memory of the device is host memory under another name, so a kernel gets CPU tensors that alias
// it: nothing is copied, views and in-place updates are real. Memory that a kernel allocates for
// its results changes owner and counts as the device's from then on.
#include "device.h"
#include "lend.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <unordered_map>

namespace simulated {

at::Tensor host_view(const at::Tensor& t) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(block_of(t.storage()).host),
      c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  impl->set_storage_offset(t.storage_offset());
  impl->set_sizes_and_strides(t.sizes(), t.strides());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  at::Tensor host(std::move(impl));
  host._set_conj(t.is_conj());
  host._set_neg(t.is_neg());
  return host;
}

namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

bool is_ours(const Tensor& t) { return t.defined() && t.device().type() == kType; }

// Values as a device without 64-bit integers would have stored them.
void narrow(const Tensor& host) {
  if (state().narrow && host.defined() && host.scalar_type() == at::kLong && host.numel())
    host.copy_(host.to(at::kInt).to(at::kLong));
}

// What the boxed kernel must know of an operator; found once per thread.
struct Traits {
  bool launches = false, random = false, reads_back = false, mixes_devices = false;
  bool designated = false, resized_by_data = false;
  int gelu_form = -1;
  std::vector<int> products;  // positions of a product's factors
  bool linear = false;        // a product with one result, of its factors' type
  int norm = 0;               // LayerNorm: results of its input's type (its statistics are float32)
  std::vector<bool> written;
};

const Traits& traits(const c10::OperatorHandle& op) {
  static thread_local std::unordered_map<const c10::FunctionSchema*, Traits> known;
  const auto& schema = op.schema();
  const auto [entry, is_new] = known.try_emplace(&schema);
  Traits& t = entry->second;
  if (!is_new) return t;
  static const std::unordered_map<std::string, std::vector<int>> products{
      {"aten::mm", {0, 1}}, {"aten::bmm", {0, 1}}, {"aten::mv", {0, 1}}, {"aten::dot", {0, 1}},
      {"aten::addmm", {1, 2}}, {"aten::addmm_", {1, 2}}, {"aten::baddbmm", {1, 2}},
      {"aten::addmv", {1, 2}}, {"aten::_addmm_activation", {1, 2}},
      {"aten::_scaled_dot_product_flash_attention_for_cpu", {0, 1, 2}},
      {"aten::_scaled_dot_product_flash_attention_for_cpu_backward", {0, 1, 2, 3}}};
  const std::string& name = schema.name();
  bool gives_tensor = schema.returns().empty();
  for (const auto& result : schema.returns()) {
    const auto text = result.type()->str();
    gives_tensor |= text.find("Tensor") != std::string::npos;
    t.launches |= !result.alias_info() || result.alias_info()->isWrite();
  }
  t.launches |= schema.returns().empty();
  t.reads_back = !gives_tensor;
  t.resized_by_data = name == "aten::nonzero" || name == "aten::masked_select";
  t.random = op.hasTag(at::Tag::nondeterministic_seeded);
  t.mixes_devices = name.find("index") != std::string::npos;  // by indices on the host
  if (const auto found = products.find(name); found != products.end()) t.products = found->second;
  for (const auto& argument : schema.arguments()) {
    if (argument.name() == "approximate") t.gelu_form = int(t.written.size());
    t.written.push_back(argument.alias_info() && argument.alias_info()->isWrite());
  }
  t.linear = !t.products.empty() && schema.returns().size() == 1 &&
             !std::count(t.written.begin(), t.written.end(), true);
  if (name == "aten::native_layer_norm") t.norm = 1;
  if (name == "aten::native_layer_norm_backward") t.norm = 3;
  const std::lock_guard<std::mutex> lock(state().mutex);
  t.designated = state().designated.count(name) > 0;
  return t;
}

// One call: the device's tensors and the CPU tensors that stand for them.
struct Call {
  struct Pair {
    Tensor ours, host;
    bool written;
  };
  const Traits& about;
  c10::Device device{kType, -1};
  std::optional<at::ScalarType> widened;  // this type goes in, and comes out, as float32
  c10::SmallVector<Pair, 8> pairs;
  c10::SmallVector<std::pair<c10::StorageImpl*, c10::Storage>, 2> adopted;

  Tensor enter(const Tensor& t, bool written, bool factor) {
    if (!t.defined()) return t;
    if (!is_ours(t)) {
      TORCH_CHECK(!written && (t.dim() == 0 || about.mixes_devices),
                  "Expected all tensors to be on the same device, but found at least two "
                  "devices, ", c10::Device(kType, current_device()), " and ", t.device());
      return t;
    }
    TORCH_CHECK(device.index() < 0 || device == t.device() || (t.dim() == 0 && !written),
                "Expected all tensors to be on the same device, but found at least two devices, ",
                device, " and ", t.device());
    if (device.index() < 0) device = t.device();
    Tensor host = host_view(t);
    if (widened == host.scalar_type()) return host.to(at::kFloat);
    if (factor && state().tf32) return rounded(host);
    pairs.push_back({t, host, written});
    return host;
  }

  // Memory that a kernel has replaced (an `out` that it resized) becomes the device's.
  void settle() {
    for (auto& [ours, host, written] : pairs) {
      if (!written) continue;
      narrow(host);
      auto* storage = ours.storage().unsafeGetStorageImpl();
      const auto& now = host.storage();
      if (storage->data() != disguise(now.data()) || storage->nbytes() != now.nbytes()) {
        storage->set_data_ptr_noswap(own(now, ours.device().index()));
        storage->set_nbytes(now.nbytes());
      }
      if (ours.sizes() != host.sizes() || ours.strides() != host.strides())
        ours.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides());
    }
  }

  Tensor leave(const Tensor& host) {
    if (!host.defined() || is_ours(host)) return host;
    for (auto& pair : pairs)
      if (pair.host.is_same(host)) return pair.ours;
    auto* memory = host.storage().unsafeGetStorageImpl();
    c10::Storage storage;
    for (auto& pair : pairs)
      if (pair.host.storage().unsafeGetStorageImpl() == memory) storage = pair.ours.storage();
    for (auto& [from, to] : adopted)
      if (from == memory) storage = to;
    if (!storage) {
      narrow(host);
      storage = c10::Storage({}, host.storage().nbytes(), own(host.storage(), device.index()),
                             allocator(), /*resizable=*/true);
      adopted.emplace_back(memory, storage);
    }
    auto impl = c10::make_intrusive<c10::TensorImpl>(std::move(storage),
        c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), host.dtype());
    impl->set_storage_offset(host.storage_offset());
    impl->set_sizes_and_strides(host.sizes(), host.strides());
    return Tensor(std::move(impl));
  }
};

void fall_back(const c10::OperatorHandle& op, Stack* stack) {
  {
    const std::lock_guard<std::mutex> lock(state().mutex);
    ++state().fallbacks[op.schema().name()];
  }
  at::native::cpu_fallback(op, stack);
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Traits& about = traits(op);
  if (about.designated) return fall_back(op, stack);
  const at::AutoDispatchBelowADInplaceOrView below;
  const int64_t begin = now_ns();
  const size_t inputs = op.schema().arguments().size(), first = stack->size() - inputs;
  Call call{about};
  // Half products and LayerNorm in 16 bits add up in float32, as an accelerator's do. The CPU's own
  // half products are far slower; its LayerNorm sums gradients of gains and biases in the 16 bits.
  const auto type = [&](int i) {
    const IValue& value = (*stack)[first + i];
    return value.isTensor() && value.toTensor().defined() ? value.toTensor().scalar_type()
                                                          : at::kFloat;
  };
  if (about.norm && at::isReducedFloatingType(type(0))) call.widened = type(0);
  if (about.linear && std::all_of(about.products.begin(), about.products.end(),
                                  [&](int i) { return type(i) == at::kHalf; }))
    call.widened = at::kHalf;
  const size_t narrowed = call.widened ? first + std::max(about.norm, 1) : first;
  at::Generator generator;
  for (size_t i = 0; i < inputs; ++i) {
    IValue& value = (*stack)[first + i];
    const bool written = about.written[i];
    const bool factor = std::count(about.products.begin(), about.products.end(), int(i));
    if (value.isTensor()) {
      value = call.enter(value.toTensor(), written, factor);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(call.enter(t, written, false));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional<Tensor>(call.enter(*t, written, false)) : std::nullopt);
      value = std::move(list);
    } else if (value.isDevice()) {
      if (call.device.index() < 0) call.device = value.toDevice();
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator()) {
      generator = value.toGenerator();
      value = IValue();
    }
  }
  if (call.device.index() < 0) call.device = c10::Device(kType, current_device());
  if (about.gelu_form >= 0 && state().gelu_tanh) (*stack)[first + about.gelu_form] = "tanh";
  {
    std::optional<Lend> lent;
    if (about.random)
      lent.emplace(generator.defined() ? generator : default_generator(call.device.index()));
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  call.settle();
  for (size_t i = first; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      Tensor result = value.toTensor();
      const bool again = i < narrowed && result.defined();
      value = call.leave(again ? result.to(*call.widened) : result);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(call.leave(t));
      value = std::move(list);
    }
  }
  if (about.launches) {
    ++state().launches;
    enqueue(call.device.index(), now_ns() - begin);
  }
  if (about.reads_back || about.resized_by_data) {
    ++state().device_to_host;
    wait(call.device.index());
  }
}

// -- operators that are more than arithmetic ------------------------------------------------------

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<c10::Device> device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, allocator(),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                     std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<c10::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, allocator(),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const int64_t begin = now_ns();
  if (!is_ours(to)) {  // the host may read only what the device has finished
    ++state().device_to_host;
    wait(from.device().index());
    to.copy_(host_view(from));
    return to;
  }
  ++(is_ours(from) ? state().device_to_device : state().host_to_device);
  const Tensor host = host_view(to);
  host.copy_(is_ours(from) ? host_view(from) : from);
  narrow(host);
  ++state().launches;
  enqueue(to.device().index(), now_ns() - begin);
  return to;
}

const Tensor& resize_tensor(const Tensor& self, c10::IntArrayRef size,
                            std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size && !format) return self;
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format) impl->empty_tensor_restride(*format);
  const size_t bytes = at::detail::computeStorageNbytesContiguous(
      size, self.dtype().itemsize(), size_t(self.storage_offset()));
  if (bytes > self.storage().nbytes()) resize(*self.storage().unsafeGetStorageImpl(), bytes);
  return self;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  const int64_t count = int64_t(source.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, std::move(source), 0, {count}, {});
}

int64_t sdp_choice(const Tensor& q, const Tensor& k, const Tensor& v,
                   const std::optional<Tensor>& mask, double dropout, bool causal,
                   std::optional<double> scale, bool gqa) {
  auto host = [](const Tensor& t) { return host_view(t).set_requires_grad(t.requires_grad()); };
  std::optional<Tensor> host_mask;
  if (mask && mask->defined()) host_mask = host(*mask);
  return at::_fused_sdp_choice(host(q), host(k), host(v), host_mask, dropout, causal, scale, gqa);
}

// Operators that torch would take apart on an unknown device; the CPU has them whole.
void register_whole(torch::Library& library) {
  auto& dispatcher = c10::Dispatcher::singleton();
  using Key = c10::DispatchKey;
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0)) continue;
    const auto op = dispatcher.findOp(name);
    if (!op || op->hasKernelForDispatchKey(Key::CompositeImplicitAutograd)) continue;
    const bool apart =
        op->hasKernelForDispatchKey(Key::CompositeExplicitAutograd) ||
        op->hasKernelForDispatchKey(Key::CompositeExplicitAutogradNonFunctional);
    const bool whole = op->hasKernelForDispatchKey(Key::CPU) ||
                       (name.name.rfind("aten::_foreach_", 0) == 0 &&
                        name.name != "aten::_foreach_copy_");  // that one mixes devices
    if (apart && whole) {
      const auto full = name.name + (name.overload_name.empty() ? "" : ".") + name.overload_name;
      library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
    }
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run>());
}

// torch resolves conjugation and negation by copying, which ends in this operator.
#define SIMULATED_FALLTHROUGH(key) \
  TORCH_LIBRARY_IMPL(aten, key, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
SIMULATED_FALLTHROUGH(Conjugate)
SIMULATED_FALLTHROUGH(Negative)

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("resize_", &resize_tensor);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  library.impl("set_.source_Tensor", &at::native::set_tensor_);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("record_stream", +[](Tensor&, c10::Stream) {});
  register_whole(library);
}

}  // namespace simulated

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &simulated::sdp_choice)
}
