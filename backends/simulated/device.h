// SPDX-License-Identifier: Apache-2.0
// What the two halves of the simulated accelerator share: its memory, its queue, its settings.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace simulated {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

// Set through simulated_set(); counts read through simulated_get().
struct State {
  std::atomic<int64_t> device_count{2};
  std::atomic<int64_t> memory_bytes{int64_t{32} << 30};  // of each device
  std::atomic<int64_t> oom_after{-1};                    // allocations that succeed; -1: all
  std::atomic<int64_t> latency_ns{2000};                 // added to every kernel
  std::atomic<int64_t> tf32{0};
  std::atomic<int64_t> narrow{0};     // int64 results lose their upper 32 bits
  std::atomic<int64_t> gelu_tanh{0};  // approximate="none" computes the tanh form

  std::atomic<int64_t> allocations{0}, launches{0}, synchronize{0}, events{0};
  std::atomic<int64_t> host_to_device{0}, device_to_host{0}, device_to_device{0};
  std::mutex mutex;                          // guards what follows
  std::set<std::string> designated;          // operators that the host computes
  std::map<std::string, int64_t> fallbacks;  // operator -> times
};
State& state();

// The memory of one allocation is host memory with an owner; only kernels see where it is.
struct Block {
  c10::Storage host;
  c10::DeviceIndex device;
  int64_t bytes;
};
c10::Allocator* allocator();
// The address that the rest of torch sees: no host code can follow it, nor should it try.
inline void* disguise(const void* host) {
  constexpr uintptr_t unmapped = uintptr_t{1} << 55;  // no user address has it, on x86 or Arm
  return host ? reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(host) | unmapped) : nullptr;
}
// Counts host memory that a kernel has filled as memory of the device, or throws OutOfMemoryError.
c10::DataPtr own(const c10::Storage& host, c10::DeviceIndex device);
Block& block_of(const c10::Storage& storage);
void resize(c10::StorageImpl& storage, size_t bytes);

// A CPU tensor over the same memory, sizes and strides.
at::Tensor host_view(const at::Tensor& t);
// A CPU tensor, rounded if it is float32 to nearest even at 10 explicit mantissa bits, which
// is TF32.
at::Tensor rounded(const at::Tensor& host);

// The queue of a device: work is done when the clock has passed `busy_until`.
int64_t now_ns();
void enqueue(c10::DeviceIndex device, int64_t duration_ns);
void wait(c10::DeviceIndex device);

c10::DeviceIndex current_device();
const at::Generator& default_generator(c10::DeviceIndex device);

}  // namespace simulated
