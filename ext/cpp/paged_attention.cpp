// Causal attention of packed tokens over keys and values that lie in pages of 16 tokens.
//
// q (T, H, D) and out (T, H, D); keys and values (pages, 16, G, D) with H = G * heads_per_group, all float32 and
// contiguous, D a multiple of 16. Token t belongs to row owner[t] of `table` (rows, width), which lists pages, and sees
// positions first[t] .. length[t] - 1 of it. A score is summed in 16 lanes that are added in a fixed tree, and a value
// over positions in order, so the bits of a token depend on nothing beside it, nor on the width of the CPU's vectors.
// exp is Cephes' polynomial (<https://www.netlib.org/cephes/>), 2 ulp: the C library's differs between machines.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "exponential.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_CPU_LEVELS 1
#else
#define HAS_CPU_LEVELS 0
#endif

namespace {

constexpr int64_t kPage = 16;
constexpr int64_t kLanes = 16;

struct Problem {
  const float* q;
  const float* keys;
  const float* values;
  const int32_t* table;
  const int32_t* owner;
  const int32_t* first;
  const int32_t* length;
  float* out;
  int64_t width, num_heads, num_groups, dim;
  float scale, softcap;
};

INLINE const float* row_of(const float* pages, const int32_t* table, int64_t at, int64_t group, const Problem& job) {
  return pages + ((table[at / kPage] * kPage + at % kPage) * job.num_groups + group) * job.dim;
}

namespace plain {
constexpr int64_t kWidth = 4;
#include "paged_attention_rows.h"
}  // namespace plain

#if HAS_CPU_LEVELS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
constexpr int64_t kWidth = 8;
#include "paged_attention_rows.h"
}  // namespace v3
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
constexpr int64_t kWidth = 16;
#include "paged_attention_rows.h"
}  // namespace v4
#pragma GCC pop_options
#endif

void paged_attention(uintptr_t q, uintptr_t keys, uintptr_t values, uintptr_t table, uintptr_t owner, uintptr_t first,
                     uintptr_t length, uintptr_t out, int64_t num_tokens, int64_t width, int64_t num_heads,
                     int64_t num_groups, int64_t dim, float scale, float softcap, int num_threads, int level) {
  const Problem job{reinterpret_cast<const float*>(q),       reinterpret_cast<const float*>(keys),
                    reinterpret_cast<const float*>(values),  reinterpret_cast<const int32_t*>(table),
                    reinterpret_cast<const int32_t*>(owner), reinterpret_cast<const int32_t*>(first),
                    reinterpret_cast<const int32_t*>(length), reinterpret_cast<float*>(out),
                    width, num_heads, num_groups, dim, scale, softcap};
  auto run = &plain::run;
#if HAS_CPU_LEVELS
  if (level >= 4 && __builtin_cpu_supports("x86-64-v4")) run = &v4::run;
  else if (level >= 3 && __builtin_cpu_supports("x86-64-v3")) run = &v3::run;
#else
  (void)level;
#endif
  const int64_t units = num_tokens * num_groups;
#ifdef _OPENMP
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
#endif
  for (int64_t u = 0; u < units; u += 8) run(job, u, std::min(u + 8, units));
}

}  // namespace

void bind_paged_attention(pybind11::module_& module) {
  module.def("paged_attention", &paged_attention, pybind11::call_guard<pybind11::gil_scoped_release>());
}
