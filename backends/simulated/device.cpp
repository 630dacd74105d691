// SPDX-License-Identifier: Apache-2.0
// An accelerator that does not exist: memory, queue, streams, events, generators and the hooks by
// which torch finds them. The operators are in kernels.cpp; README.md says what is modelled.
#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <unordered_map>
#include <unordered_set>

namespace simulated {

using c10::DeviceIndex;

State& state() {
  static State* leaked = new State;  // tensors may be freed after static destructors have run
  return *leaked;
}

namespace {

struct Device {
  std::atomic<int64_t> used{0}, peak{0}, busy_until{0}, busy_ns{0};
};

std::array<Device, kMaxDevices>& devices() {
  static auto* leaked = new std::array<Device, kMaxDevices>;
  return *leaked;
}

Device& device(DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < state().device_count, "invalid device ordinal ", int(index),
              ": there are ", state().device_count.load());
  return devices()[index];
}

thread_local DeviceIndex current = 0;
thread_local std::array<c10::StreamId, kMaxDevices> current_stream{};
std::atomic<c10::StreamId> streams{0};

// -- memory -------------------------------------------------------------------------------------

void take(DeviceIndex index, int64_t bytes) {
  auto& d = device(index);
  const int64_t limit = state().memory_bytes, after = state().oom_after;
  const int64_t nth = bytes ? ++state().allocations : 0;
  const int64_t used = d.used += bytes;
  if (used > limit || (after >= 0 && nth > after)) {
    d.used -= bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "Out of memory on simulated device ", int(index),
                     ": tried to allocate ", bytes, " bytes; ", used - bytes, " of ", limit,
                     " bytes are in use");
  }
  for (int64_t peak = d.peak; used > peak && !d.peak.compare_exchange_weak(peak, used);) {
  }
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  devices()[block->device].used -= block->bytes;
  delete block;
}

struct Memory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* cpu = c10::GetAllocator(c10::kCPU);
    take(current, static_cast<int64_t>(bytes));  // before the host is asked for as much
    auto* block = new Block{c10::Storage(), current, static_cast<int64_t>(bytes)};
    c10::DataPtr held(nullptr, block, &release, c10::Device(kType, current));
    block->host = c10::Storage({}, bytes, cpu->allocate(bytes), cpu, /*resizable=*/true);
    held.release_context();
    return {disguise(block->host.data()), block, &release, c10::Device(kType, current)};
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex index) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* stat : {&stats.allocated_bytes[0], &stats.reserved_bytes[0]}) {
      stat->current = device(index).used;
      stat->peak = device(index).peak;
    }
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex index) override {
    device(index).peak = device(index).used.load();
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex index) {  // newer than the oldest torch
    const size_t total = state().memory_bytes;
    return {total - device(index).used, total};
  }
};
Memory memory;

}  // namespace

c10::Allocator* allocator() { return &memory; }

c10::DataPtr own(const c10::Storage& host, DeviceIndex index) {
  take(index, static_cast<int64_t>(host.nbytes()));
  auto* block = new Block{host, index, static_cast<int64_t>(host.nbytes())};
  return {disguise(host.data()), block, &release, c10::Device(kType, index)};
}

Block& block_of(const c10::Storage& storage) {
  const auto& data = storage.data_ptr();
  TORCH_CHECK(data.get_deleter() == &release, "memory that this device did not allocate");
  return *static_cast<Block*>(data.get_context());
}

void resize(c10::StorageImpl& storage, size_t bytes) {
  c10::DeviceIndex before = std::exchange(current, storage.device().index());
  c10::DataPtr fresh = memory.allocate(bytes);
  current = before;
  auto* from = static_cast<Block*>(storage.data_ptr().get_context());
  auto* to = static_cast<Block*>(fresh.get_context());
  if (const size_t count = std::min(bytes, storage.nbytes()))
    std::memcpy(to->host.mutable_data(), from->host.data(), count);
  storage.set_data_ptr_noswap(std::move(fresh));
  storage.set_nbytes(bytes);
}

// -- the queue ----------------------------------------------------------------------------------

int64_t now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

void enqueue(DeviceIndex index, int64_t duration) {
  auto& d = device(index);
  const int64_t idle_since = now_ns() - duration;  // the host did the work just now
  const int64_t total = duration + state().latency_ns;
  int64_t until = d.busy_until;
  while (!d.busy_until.compare_exchange_weak(until, std::max(until, idle_since) + total)) {
  }
  d.busy_ns += total;
}

namespace {
void wait_until(int64_t time) {
  for (int64_t left; (left = time - now_ns()) > 0;)
    if (left > 200'000) std::this_thread::sleep_for(std::chrono::nanoseconds(left - 100'000));
}
int64_t end_of_queue(DeviceIndex index) {
  return std::max(device(index).busy_until.load(), now_ns());
}
}  // namespace

void wait(DeviceIndex index) { wait_until(device(index).busy_until); }
DeviceIndex current_device() { return current; }

// -- random numbers -----------------------------------------------------------------------------

namespace {
// The host's Mersenne Twister under the device's name; kernels.cpp lends it to the CPU's kernels.
struct DeviceGenerator final : at::CPUGeneratorImpl {
  explicit DeviceGenerator(DeviceIndex index) : at::CPUGeneratorImpl() {
    device_ = c10::Device(kType, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
  DeviceGenerator* clone_impl() const override {
    auto* copy = new DeviceGenerator(device_.index());
    copy->set_state(*get_state());
    return copy;
  }
};
}  // namespace

const at::Generator& default_generator(DeviceIndex index) {
  static auto* all = [] {
    auto* made = new std::vector<at::Generator>;
    for (int i = 0; i < kMaxDevices; ++i) made->push_back(at::make_generator<DeviceGenerator>(i));
    return made;
  }();
  return (*all)[index < 0 ? current : index];
}

// -- what torch asks for ------------------------------------------------------------------------

namespace {

// Page-locked memory is ordinary memory that remembers its name.
struct Pinned final : c10::Allocator {
  std::mutex mutex;
  std::unordered_map<const void*, size_t> live;
  c10::DataPtr allocate(size_t bytes) override;
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
  bool holds(const void* data) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [start, size] : live)
      if (data >= start && data < static_cast<const char*>(start) + size) return true;
    return false;
  }
};
Pinned* pinned = new Pinned;

c10::DataPtr Pinned::allocate(size_t bytes) {
  void* data = std::malloc(bytes ? bytes : 1);
  const std::lock_guard<std::mutex> lock(mutex);
  live[data] = bytes;
  auto free = [](void* p) {
    const std::lock_guard<std::mutex> inner(pinned->mutex);
    pinned->live.erase(p);
    std::free(p);
  };
  return {data, data, free, c10::Device(c10::kCPU)};
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return state().device_count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void init() const override {}
  DeviceIndex deviceCount() const override { return state().device_count; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex index) const override { exchangeDevice(index); }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    device(index);
    return std::exchange(current, index);
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current : exchangeDevice(index);
  }
  bool isPinnedPtr(const void* data) const override { return pinned->holds(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned; }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(DeviceIndex index) const override {
    return at::make_generator<DeviceGenerator>(index < 0 ? current : index);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize(*storage.unsafeGetStorageImpl(), bytes);
  }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device to) const override {
    const auto before = current;
    setDevice(to);
    return {kType, before};
  }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device to) const override {
    device(to.index());
    current = to.index();
  }
  void uncheckedSetDevice(c10::Device to) const noexcept override { current = to.index(); }
  c10::Stream getStream(c10::Device d) const override {
    const DeviceIndex index = d.index() < 0 ? current : d.index();
    return c10::Stream(c10::Stream::UNSAFE, {kType, index}, current_stream[index]);
  }
  c10::Stream getDefaultStream(c10::Device d) const override {
    return c10::Stream(c10::Stream::UNSAFE, d, 0);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override {
    return getNewStream(d);
  }
  c10::Stream getNewStream(c10::Device d, int = 0) const override {
    const DeviceIndex index = d.index() < 0 ? current : d.index();
    return c10::Stream(c10::Stream::UNSAFE, {kType, index}, ++streams);
  }
  c10::Stream exchangeStream(c10::Stream to) const override {
    const auto before = getStream(to.device());
    current_stream[to.device_index()] = to.id();
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return state().device_count; }

  // An event is the time at which the queue will have reached it. All streams share one queue.
  void record(void** event, const c10::Stream& stream, const DeviceIndex, const c10::EventFlag)
      const override {
    if (!*event) *event = new int64_t;
    ++state().events;
    *static_cast<int64_t*>(*event) = end_of_queue(stream.device_index());
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<int64_t*>(event);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void* event) const override {
    return !event || *static_cast<int64_t*>(event) <= now_ns();
  }
  void synchronizeEvent(void* event) const override {
    ++state().synchronize;
    if (event) wait_until(*static_cast<int64_t*>(event));
  }
  double elapsedTime(void* begin, void* end, const DeviceIndex) const override {
    TORCH_CHECK(begin && end, "both events must be recorded before their time is asked for");
    TORCH_CHECK(queryEvent(begin) && queryEvent(end),
                "the device has not reached both events: synchronize before elapsed_time");
    return double(*static_cast<int64_t*>(end) - *static_cast<int64_t*>(begin)) / 1e6;
  }
  bool queryStream(const c10::Stream& stream) const override {
    return device(stream.device_index()).busy_until <= now_ns();
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    synchronizeDevice(stream.device_index());
  }
  void synchronizeDevice(const DeviceIndex index) const override {
    ++state().synchronize;
    wait(index < 0 ? current : index);
  }
};

const bool registered = [] {
  c10::SetAllocator(kType, &memory);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::impl::registerDeviceGuard(kType, new Guard);
  return true;
}();

std::atomic<int64_t>* named(const std::string& name) {
  auto& s = state();
  const std::unordered_map<std::string, std::atomic<int64_t>*> all{
      {"device_count", &s.device_count}, {"memory_bytes", &s.memory_bytes},
      {"oom_after", &s.oom_after}, {"latency_ns", &s.latency_ns}, {"tf32", &s.tf32},
      {"int64_narrow", &s.narrow}, {"gelu_tanh", &s.gelu_tanh}, {"allocations", &s.allocations},
      {"launches", &s.launches}, {"synchronize", &s.synchronize}, {"events", &s.events},
      {"host_to_device", &s.host_to_device}, {"device_to_host", &s.device_to_host},
      {"device_to_device", &s.device_to_device}};
  const auto found = all.find(name);
  return found == all.end() ? nullptr : found->second;
}

}  // namespace
}  // namespace simulated

// For ctypes: no header of Python is needed to build this file.
extern "C" {

// Set a number by name; -1 if there is none of that name.
int simulated_set(const char* name, int64_t value) {
  auto* found = simulated::named(name);
  return found ? (found->store(value), 0) : -1;
}

// A number by name, or of one device: used, peak, busy_ns. -1 if there is none of that name.
int64_t simulated_get(const char* name, int device) {
  if (auto* found = simulated::named(name)) return found->load();
  auto& d = simulated::devices()[device];
  const std::string asked(name);
  return asked == "used" ? d.used.load() : asked == "peak" ? d.peak.load()
         : asked == "busy_ns" ? d.busy_ns.load() : -1;
}

// The host computes this operator from now on, e.g. "aten::gelu".
void simulated_fall_back(const char* op) {
  const std::lock_guard<std::mutex> lock(simulated::state().mutex);
  simulated::state().designated.insert(op);
}

// "op count" lines of the operators that the host computed, as far as they fit.
void simulated_fallbacks(char* out, size_t size) {
  const std::lock_guard<std::mutex> lock(simulated::state().mutex);
  std::string text;
  for (const auto& [op, count] : simulated::state().fallbacks)
    text += op + " " + std::to_string(count) + "\n";
  std::strncpy(out, text.c_str(), size - 1);
  out[size - 1] = 0;
}
}
