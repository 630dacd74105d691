// SPDX-License-Identifier: Apache-2.0
// Operators that the Python half calls and torch does not have.
#include "device.h"

#include <torch/library.h>

namespace simulated {

TORCH_LIBRARY(bertbench_simulated, library) {
  // What a collective library does with device memory; nothing else may use it.
  library.def("host_view(Tensor self) -> Tensor", &host_view);
  library.def("rng_state(int device) -> Tensor", [](int64_t d) {
    return at::Tensor(default_generator(c10::DeviceIndex(d)).get_state());
  });
  library.def("set_rng_state(Tensor state, int device) -> ()", [](const at::Tensor& s, int64_t d) {
    at::Generator(default_generator(c10::DeviceIndex(d))).set_state(s);
  });
  library.def("seed(int seed, int device) -> ()", [](int64_t seed, int64_t d) {
    at::Generator(default_generator(c10::DeviceIndex(d))).set_current_seed(uint64_t(seed));
  });
}

}  // namespace simulated
