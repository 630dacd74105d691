// SPDX-License-Identifier: Apache-2.0
// Random numbers of a device, drawn by the CPU's kernels.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

namespace simulated {

// Lends a device generator's state to the host's, which is what the CPU's kernels draw from.
class Lend {
 public:
  explicit Lend(const at::Generator& from)
      : from_(static_cast<at::CPUGeneratorImpl*>(from.unsafeGetGeneratorImpl())),
        host_(static_cast<at::CPUGeneratorImpl*>(
            at::detail::getDefaultCPUGenerator().unsafeGetGeneratorImpl())),
        lock_(one_at_a_time()) {
    swap();
  }
  ~Lend() { swap(); }

 private:
  void swap() {
    const auto engine = host_->engine();
    const auto single = host_->next_float_normal_sample();
    const auto twice = host_->next_double_normal_sample();
    host_->set_engine(from_->engine());
    host_->set_next_float_normal_sample(from_->next_float_normal_sample());
    host_->set_next_double_normal_sample(from_->next_double_normal_sample());
    from_->set_engine(engine);
    from_->set_next_float_normal_sample(single);
    from_->set_next_double_normal_sample(twice);
  }
  static std::mutex& one_at_a_time() {  // a kernel takes the generator's own mutex
    static auto* leaked = new std::mutex;
    return *leaked;
  }
  at::CPUGeneratorImpl *from_, *host_;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace simulated
