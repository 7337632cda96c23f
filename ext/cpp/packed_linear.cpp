// y = x W^T with float32 sums, W packed in panels of 32 outputs: w[n / 32][k][n % 32], bfloat16 or float32.
//
// Every output is one chain of fused multiply-adds over k = 0 .. K-1. So its bits depend on nothing else: not on how many
// rows are multiplied at once, on threads (they split the panels), or on the width of the CPU's vectors. x is (M, K) and
// y (M, N), contiguous float32; nothing may alias. The last panel is padded with zeros. Pointers come from Python as
// integers; that they point at enough memory is Python's duty.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_CPU_LEVELS 1
#else
#define HAS_CPU_LEVELS 0
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t kPanel = 32;

struct Problem {
  const float* x;
  const void* w;
  float* y;
  int64_t num_rows, num_outputs, depth;
};

namespace plain {
constexpr int kLanes = 4, kMostRows = 2, kVectors = 4;
#include "packed_linear_tiles.h"
}  // namespace plain

#if HAS_CPU_LEVELS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int kLanes = 8, kMostRows = 6, kVectors = 2;
#include "packed_linear_tiles.h"
}  // namespace v3
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
constexpr int kLanes = 16, kMostRows = 12, kVectors = 2;
#include "packed_linear_tiles.h"
}  // namespace v4
#pragma GCC pop_options
#endif

using Run = void (*)(const Problem&, int64_t, int64_t);

// level: 3 or 4 of x86-64, or 0 for what every CPU has; the best there is up to `most`.
int best_level([[maybe_unused]] int most) {
#if HAS_CPU_LEVELS
  if (most >= 4 && __builtin_cpu_supports("x86-64-v4")) return 4;
  if (most >= 3 && __builtin_cpu_supports("x86-64-v3")) return 3;
#endif
  return 0;
}

template <typename Weight>
Run choose([[maybe_unused]] int level) {
#if HAS_CPU_LEVELS
  if (level == 4) return &v4::run<Weight>;
  if (level == 3) return &v3::run<Weight>;
#endif
  return &plain::run<Weight>;
}

void packed_linear(uintptr_t x, uintptr_t w, uintptr_t y, int64_t num_rows, int64_t num_outputs, int64_t depth,
                   bool is_bfloat16, int num_threads, int most_level) {
  const Problem job{reinterpret_cast<const float*>(x), reinterpret_cast<const void*>(w), reinterpret_cast<float*>(y),
                    num_rows, num_outputs, depth};
  const int level = best_level(most_level);
  const Run run = is_bfloat16 ? choose<uint16_t>(level) : choose<float>(level);
  const int64_t num_panels = (num_outputs + kPanel - 1) / kPanel;
  const int64_t share = (num_panels + num_threads - 1) / num_threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(num_threads) schedule(static)
#endif
  for (int64_t p = 0; p < num_panels; p += share) run(job, p, std::min(p + share, num_panels));
}

}  // namespace

void bind_packed_linear(pybind11::module_& module) {
  module.def("packed_linear", &packed_linear, pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("cpu_level", &best_level);
}
