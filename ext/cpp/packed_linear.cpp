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

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

INLINE void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }

INLINE void load(const uint16_t* from, Floats& to) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof to);
}

struct Problem {
  const float* x;
  const void* w;
  float* y;
  int64_t num_rows, num_outputs, depth;
};

// kRows rows of x from row m against kPanels panels from panel p.
template <typename Weight, int kRows, int kPanels>
INLINE void tile(const Problem& job, int64_t m, int64_t p) {
  const float* x = job.x + m * job.depth;
  const Weight* w = static_cast<const Weight*>(job.w) + p * kPanel * job.depth;
  Floats sum[kRows][2 * kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < 2 * kPanels; ++j) sum[r][j] = Floats{};
  for (int64_t k = 0; k < job.depth; ++k) {
    Floats column[2 * kPanels];
    for (int q = 0; q < kPanels; ++q) {
      load(w + (q * job.depth + k) * kPanel, column[2 * q]);
      load(w + (q * job.depth + k) * kPanel + 16, column[2 * q + 1]);
    }
    for (int r = 0; r < kRows; ++r) {
      const float factor = x[r * job.depth + k];
      for (int j = 0; j < 2 * kPanels; ++j) sum[r][j] = factor * column[j] + sum[r][j];
    }
  }
  const int64_t n = p * kPanel;
  const int64_t count = std::min(kPanel * kPanels, job.num_outputs - n);
  for (int r = 0; r < kRows; ++r)
    std::memcpy(job.y + (m + r) * job.num_outputs + n, sum[r], static_cast<size_t>(count) * sizeof(float));
}

// Few rows are bound by the memory of W, so several panels are streamed at once; many rows by arithmetic, so that each
// loaded weight serves as many rows as the registers hold.
template <typename Weight, int kMany>
INLINE void panels(const Problem& job, int64_t p, int64_t end) {
  if (job.num_rows == 1) {
    for (; kMany > 4 && p + 4 <= end; p += 4) tile<Weight, 1, 4>(job, 0, p);
    for (; p < end; ++p) tile<Weight, 1, 1>(job, 0, p);
    return;
  }
  for (; p < end; ++p) {
    int64_t m = 0;
    for (; m + kMany <= job.num_rows; m += kMany) tile<Weight, kMany, 1>(job, m, p);
    if (kMany > 8)
      for (; m + 8 <= job.num_rows; m += 8) tile<Weight, 8, 1>(job, m, p);
    if (kMany > 4)
      for (; m + 4 <= job.num_rows; m += 4) tile<Weight, 4, 1>(job, m, p);
    for (; m + 2 <= job.num_rows; m += 2) tile<Weight, 2, 1>(job, m, p);
    for (; m < job.num_rows; ++m) tile<Weight, 1, 1>(job, m, p);
  }
}

using Run = void (*)(const Problem&, int64_t, int64_t);

template <typename Weight>
void run_plain(const Problem& job, int64_t p, int64_t end) {
  panels<Weight, 2>(job, p, end);
}

#if HAS_CPU_LEVELS
template <typename Weight>
__attribute__((target("arch=x86-64-v3"))) void run_v3(const Problem& job, int64_t p, int64_t end) {
  panels<Weight, 3>(job, p, end);
}

template <typename Weight>
__attribute__((target("arch=x86-64-v4"))) void run_v4(const Problem& job, int64_t p, int64_t end) {
  panels<Weight, 12>(job, p, end);
}
#endif

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
  if (level == 4) return &run_v4<Weight>;
  if (level == 3) return &run_v3<Weight>;
#endif
  return &run_plain<Weight>;
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
