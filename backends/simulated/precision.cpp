// SPDX-License-Identifier: Apache-2.0
// Precision on the simulated accelerator: TF32 by rounding; autocast by torch's own lists of
// operators, by the boxed convention.
#include "device.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace simulated {

at::Tensor rounded(const at::Tensor& host) {
  if (host.scalar_type() != at::kFloat) return host;
  at::Tensor out = host.clone(at::MemoryFormat::Contiguous);
  auto* bits = static_cast<uint32_t*>(out.data_ptr());
  for (int64_t i = 0; i < out.numel(); ++i)
    if ((bits[i] & 0x7f800000u) != 0x7f800000u)
      bits[i] = (bits[i] + 0xfffu + ((bits[i] >> 13) & 1u)) & ~0x1fffu;
  return out;
}

namespace {

using c10::IValue;
using torch::jit::Stack;

enum class Cast { lower, fp32, widest };

template <Cast policy>
void cast(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastPrivateUse1);
  const size_t first = stack->size() - op.schema().arguments().size();
  auto to = policy == Cast::fp32 ? at::kFloat : at::autocast::get_autocast_dtype(kType);
  if (policy == Cast::widest)
    for (size_t i = first; i < stack->size(); ++i)
      if ((*stack)[i].isTensor())
        to = at::autocast::prioritize(to, (*stack)[i].toTensor(), kType);
  for (size_t i = first; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = at::autocast::cached_cast(to, value.toTensor(), kType);
    } else if (value.isTensorList()) {
      value = at::autocast::cached_cast(to, at::ITensorListRef(value.toTensorVector()), kType);
    }
  }
  op.callBoxed(stack);
}

template <Cast policy>
void register_cast(torch::Library& library, const std::string& name, const std::string& overload) {
  library.impl((overload.empty() ? name : name + "." + overload).c_str(),
               torch::CppFunction::makeFromBoxedFunction<&cast<policy>>());
}

}  // namespace

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, library) {
#define SIMULATED_LOWER(name, ...) register_cast<Cast::lower>(library, #name, #__VA_ARGS__);
#define SIMULATED_FP32(name, ...) register_cast<Cast::fp32>(library, #name, #__VA_ARGS__);
#define SIMULATED_WIDEST(name, ...) register_cast<Cast::widest>(library, #name, #__VA_ARGS__);
  AT_FORALL_LOWER_PRECISION_FP(SIMULATED_LOWER)
  AT_FORALL_FP32(SIMULATED_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(SIMULATED_FP32)
  register_cast<Cast::fp32>(library, "norm", "Scalar");
  register_cast<Cast::fp32>(library, "norm", "ScalarOpt_dim");
  AT_FORALL_PROMOTE(SIMULATED_WIDEST)
}

}  // namespace simulated
