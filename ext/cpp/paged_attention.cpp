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

typedef float Floats __attribute__((vector_size(64)));

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

INLINE float add_lanes(const Floats& lanes) {
  float a[kLanes];
  std::memcpy(a, &lanes, sizeof a);
  for (int64_t step = kLanes / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; ++i) a[i] = a[i] + a[i + step];
  return a[0];
}

INLINE const float* row_of(const float* pages, const int32_t* table, int64_t at, int64_t group, const Problem& job) {
  return pages + ((table[at / kPage] * kPage + at % kPage) * job.num_groups + group) * job.dim;
}

// One token, one group of heads that share keys: each key is loaded once for all of them.
INLINE void attend(const Problem& job, int64_t t, int64_t group, std::vector<float>& room) {
  const int64_t heads = job.num_heads / job.num_groups, begin = job.first[t], count = job.length[t] - begin;
  const int32_t* table = job.table + job.owner[t] * job.width;
  const float* q = job.q + (t * job.num_heads + group * heads) * job.dim;
  float* out = job.out + (t * job.num_heads + group * heads) * job.dim;
  room.resize(static_cast<size_t>(heads * count));
  for (int64_t i = 0; i < count; ++i) {
    const float* key = row_of(job.keys, table, begin + i, group, job);
    for (int64_t h = 0; h < heads; ++h) {
      Floats sum{};
      for (int64_t d = 0; d < job.dim; d += kLanes) {
        Floats a, b;
        std::memcpy(&a, q + h * job.dim + d, sizeof a);
        std::memcpy(&b, key + d, sizeof b);
        sum = a * b + sum;
      }
      const float score = add_lanes(sum) * job.scale;
      room[static_cast<size_t>(h * count + i)] = job.softcap > 0 ? job.softcap * std::tanh(score / job.softcap) : score;
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    float* score = room.data() + h * count;
    float top = -std::numeric_limits<float>::infinity(), total = 0;
    for (int64_t i = 0; i < count; ++i) top = score[i] > top ? score[i] : top;
    for (int64_t i = 0; i < count; ++i) score[i] = exp_nonpositive(score[i] - top);
    for (int64_t i = 0; i < count; ++i) total = total + score[i];
    const float share = 1.0f / total;
    for (int64_t i = 0; i < count; ++i) score[i] = score[i] * share;
  }
  for (int64_t d = 0; d < job.dim; d += kLanes) {
    for (int64_t h = 0; h < heads; ++h) {
      const float* score = room.data() + h * count;
      Floats sum{};
      for (int64_t i = 0; i < count; ++i) {
        Floats value;
        std::memcpy(&value, row_of(job.values, table, begin + i, group, job) + d, sizeof value);
        sum = score[i] * value + sum;
      }
      std::memcpy(out + h * job.dim + d, &sum, sizeof sum);
    }
  }
}

INLINE void attend_all(const Problem& job, int64_t unit, int64_t end) {
  std::vector<float> room;
  for (; unit < end; ++unit) attend(job, unit / job.num_groups, unit % job.num_groups, room);
}

void run_plain(const Problem& job, int64_t unit, int64_t end) { attend_all(job, unit, end); }
#if HAS_CPU_LEVELS
__attribute__((target("arch=x86-64-v3"))) void run_v3(const Problem& job, int64_t u, int64_t end) { attend_all(job, u, end); }
__attribute__((target("arch=x86-64-v4"))) void run_v4(const Problem& job, int64_t u, int64_t end) { attend_all(job, u, end); }
#endif

void paged_attention(uintptr_t q, uintptr_t keys, uintptr_t values, uintptr_t table, uintptr_t owner, uintptr_t first,
                     uintptr_t length, uintptr_t out, int64_t num_tokens, int64_t width, int64_t num_heads,
                     int64_t num_groups, int64_t dim, float scale, float softcap, int num_threads, int level) {
  const Problem job{reinterpret_cast<const float*>(q),       reinterpret_cast<const float*>(keys),
                    reinterpret_cast<const float*>(values),  reinterpret_cast<const int32_t*>(table),
                    reinterpret_cast<const int32_t*>(owner), reinterpret_cast<const int32_t*>(first),
                    reinterpret_cast<const int32_t*>(length), reinterpret_cast<float*>(out),
                    width, num_heads, num_groups, dim, scale, softcap};
  auto run = &run_plain;
#if HAS_CPU_LEVELS
  if (level >= 4 && __builtin_cpu_supports("x86-64-v4")) run = &run_v4;
  else if (level >= 3 && __builtin_cpu_supports("x86-64-v3")) run = &run_v3;
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
