// SPDX-License-Identifier: Apache-2.0
// Lets autograd's engine run over CUDA tensors that have no memory and no device.
//
// The engine asks torch for the accelerator, its streams and its events. There is no device behind
// fake tensors, so the answers here are "none", and tensors take the engine's path without streams.
// The library has to be loaded with RTLD_GLOBAL before torch: the loader then binds torch's own
// calls of these two functions (ATen/DeviceAccelerator.h) to the definitions below.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <optional>

namespace at::accelerator {
__attribute__((visibility("default"))) std::optional<c10::DeviceType> getAccelerator(bool) {
  return std::nullopt;
}
__attribute__((visibility("default"))) bool isAccelerator(c10::DeviceType) {
  return false;
}
} // namespace at::accelerator

// Called once torch is loaded: every tensor needs a guard for its device, and a torch without CUDA
// has none, while the one of a torch with CUDA would look for a driver.
extern "C" void bertbench_register_guard() {
  static const c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
  constexpr auto slot = static_cast<size_t>(c10::DeviceType::CUDA);
  c10::impl::device_guard_impl_registry[slot].store(&guard);
}
