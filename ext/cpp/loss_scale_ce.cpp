// The passes between the matrix products of the weighted cross-entropy; kernels/loss_scale_ce/cpp.py drives them.
//
// A tile holds logits vocabulary-major and contiguous: z[v][t], v < num_vocab, t < num_tokens, float or double.
// Vectors run along t, so a sum or maximum over the vocabulary needs no shuffle and no reassociation; threads split t,
// so no result depends on their number. Per-token arrays are double whatever the element type. Nothing may alias.
// Pointers come from Python as integers (0 for none); that they point at enough memory is Python's duty.
//
// exp for float is Cephes' polynomial (<https://www.netlib.org/cephes/>): 2 ulp on [-87, 0], 0 below, NaN stays NaN.
// GCC compiles each pass three times (AVX-512, AVX2+FMA, plain x86-64) and the loader picks what the CPU has.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "exponential.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

constexpr int64_t kColumns = 128;  // tokens a thread takes at a time: its sums stay in the first-level cache
constexpr int64_t kRows = 64;      // vocabulary entries between two rescalings of the running sum

INLINE double exp_nonpositive(double x) { return std::exp(x); }

// tanh by way of exp(-2|u|): its absolute error is one rounding, which is all a logit of size `softcap` can hold.
template <typename Real>
INLINE Real tanh_by_exp(Real u) {
  const Real decay = exp_nonpositive(-2 * (u < 0 ? -u : u));
  const Real t = (1 - decay) / (1 + decay);
  return u < 0 ? -t : t;
}

// One tile, and where it lies in the vocabulary.
template <typename Real>
struct Tile {
  Real* z;
  int64_t num_vocab;
  int64_t num_tokens;
  int64_t first_vocab;         // vocabulary id of row 0
  const int64_t* targets;      // (num_tokens); an id outside the tile means that the target is elsewhere
};

// z = cap(scale * (z + bias)); softcap 0 is none.
template <typename Real>
struct LogitMap {
  const Real* bias;  // (num_vocab of the tile), or null
  Real scale;
  Real softcap;
};

template <typename Real>
INLINE void map_logits(Tile<Real> tile, LogitMap<Real> map, int64_t t0, int64_t n) {
  for (int64_t v = 0; v < tile.num_vocab; ++v) {
    Real* row = tile.z + v * tile.num_tokens + t0;
    const Real shift = map.bias == nullptr ? Real(0) : map.bias[v];
    for (int64_t t = 0; t < n; ++t) row[t] = (row[t] + shift) * map.scale;
    if (map.softcap > 0) {
      for (int64_t t = 0; t < n; ++t) row[t] = map.softcap * tanh_by_exp(row[t] / map.softcap);
    }
  }
}

// stats is (5, num_tokens): running max, sum of e, z of the target, sum of z, sum of e z; e = exp(z - max). The last
// two only with want_sums. The sums of kRows entries are kept in Real, all the others in double.
template <typename Real>
INLINE void add_stats(Tile<Real> tile, double* stats, bool want_sums, int64_t t0, int64_t n) {
  Real top[kColumns], shift[kColumns], sum[kColumns], plain[kColumns], product[kColumns];
  double* max_T = stats + t0;
  double* sum_T = max_T + tile.num_tokens;
  double* target_T = sum_T + tile.num_tokens;
  double* plain_T = target_T + tile.num_tokens;
  double* product_T = plain_T + tile.num_tokens;
  for (int64_t t = 0; t < n; ++t) top[t] = static_cast<Real>(max_T[t]);
  for (int64_t v0 = 0; v0 < tile.num_vocab; v0 += kRows) {
    const int64_t v1 = std::min(v0 + kRows, tile.num_vocab);
    for (int64_t v = v0; v < v1; ++v) {
      const Real* row = tile.z + v * tile.num_tokens + t0;
      for (int64_t t = 0; t < n; ++t) top[t] = row[t] > top[t] ? row[t] : top[t];
    }
    for (int64_t t = 0; t < n; ++t) {
      // All barred so far (-inf): exp(-inf - 0) is the 0 we want, exp(-inf - -inf) would be NaN.
      shift[t] = top[t] == -std::numeric_limits<Real>::infinity() ? Real(0) : top[t];
      sum[t] = plain[t] = product[t] = 0;
    }
    for (int64_t v = v0; v < v1; ++v) {
      const Real* row = tile.z + v * tile.num_tokens + t0;
      if (!want_sums) {
        for (int64_t t = 0; t < n; ++t) sum[t] += exp_nonpositive(row[t] - shift[t]);
        continue;
      }
      for (int64_t t = 0; t < n; ++t) {
        const Real e = exp_nonpositive(row[t] - shift[t]);
        sum[t] += e;
        plain[t] += row[t];
        product[t] += e == 0 ? Real(0) : e * row[t];  // a barred entry adds 0, not 0 * -inf
      }
    }
    for (int64_t t = 0; t < n; ++t) {
      const double rescale = max_T[t] == top[t] ? 1.0 : std::exp(max_T[t] - top[t]);
      max_T[t] = top[t];
      sum_T[t] = sum_T[t] * rescale + sum[t];
      plain_T[t] += plain[t];
      product_T[t] = product_T[t] * rescale + product[t];
    }
  }
  for (int64_t t = 0; t < n; ++t) {
    const int64_t v = tile.targets[t0 + t] - tile.first_vocab;
    if (v >= 0 && v < tile.num_vocab) target_T[t] = tile.z[v * tile.num_tokens + t0 + t];
  }
}

// out = cap'(z) * (exp(z - shift) (a + e z) + c, plus b at the target); factors is (5, num_tokens): shift, a, e, b, c.
template <typename Real>
INLINE void write_gradient(Tile<Real> tile, Real* out, const double* factors, Real softcap, bool want_product,
                           int64_t t0, int64_t n) {
  Real shift[kColumns], a[kColumns], e[kColumns], c[kColumns];
  const double* from = factors + t0;
  for (int64_t t = 0; t < n; ++t) {
    shift[t] = static_cast<Real>(from[t]);
    a[t] = static_cast<Real>(from[tile.num_tokens + t]);
    e[t] = static_cast<Real>(from[2 * tile.num_tokens + t]);
    c[t] = static_cast<Real>(from[4 * tile.num_tokens + t]);
  }
  const Real inverse_cap = softcap > 0 ? 1 / softcap : Real(0);
  for (int64_t v = 0; v < tile.num_vocab; ++v) {
    const Real* z = tile.z + v * tile.num_tokens + t0;
    Real* to = out + v * tile.num_tokens + t0;
    if (want_product) {
      for (int64_t t = 0; t < n; ++t) {
        const Real p = exp_nonpositive(z[t] - shift[t]);
        to[t] = c[t] + (p == 0 ? Real(0) : p * (a[t] + e[t] * z[t]));
      }
    } else {
      for (int64_t t = 0; t < n; ++t) to[t] = c[t] + a[t] * exp_nonpositive(z[t] - shift[t]);
    }
    if (softcap > 0) {
      for (int64_t t = 0; t < n; ++t) to[t] *= 1 - (z[t] * inverse_cap) * (z[t] * inverse_cap);
    }
  }
  for (int64_t t = 0; t < n; ++t) {
    const int64_t v = tile.targets[t0 + t] - tile.first_vocab;
    if (v < 0 || v >= tile.num_vocab) continue;
    const Real u = tile.z[v * tile.num_tokens + t0 + t] * inverse_cap;
    out[v * tile.num_tokens + t0 + t] += static_cast<Real>(from[3 * tile.num_tokens + t]) * (1 - u * u);
  }
}

FOR_EACH_CPU void stats_columns(Tile<float> tile, LogitMap<float> map, double* stats, bool want_map, bool want_sums,
                                int64_t t0, int64_t n) {
  if (want_map) map_logits(tile, map, t0, n);
  add_stats(tile, stats, want_sums, t0, n);
}

FOR_EACH_CPU void stats_columns(Tile<double> tile, LogitMap<double> map, double* stats, bool want_map, bool want_sums,
                                int64_t t0, int64_t n) {
  if (want_map) map_logits(tile, map, t0, n);
  add_stats(tile, stats, want_sums, t0, n);
}

FOR_EACH_CPU void gradient_columns(Tile<float> tile, float* out, const double* factors, float softcap,
                                   bool want_product, int64_t t0, int64_t n) {
  write_gradient(tile, out, factors, softcap, want_product, t0, n);
}

FOR_EACH_CPU void gradient_columns(Tile<double> tile, double* out, const double* factors, double softcap,
                                   bool want_product, int64_t t0, int64_t n) {
  write_gradient(tile, out, factors, softcap, want_product, t0, n);
}

// Calls pass(t0, n) on pieces of [0, num_tokens), each a whole number of cache lines where there is a choice.
template <typename Pass>
void for_columns(int64_t num_tokens, int num_threads, Pass pass) {
  const int64_t share = (num_tokens + num_threads - 1) / num_threads;
  const int64_t step = std::min(kColumns, (share + 15) / 16 * 16);
#ifdef _OPENMP
  // The pool of the BLAS: its threads are awake after a product, and a second pool would fight them for the cores.
#pragma omp parallel for num_threads(num_threads) schedule(static)
#endif
  for (int64_t t0 = 0; t0 < num_tokens; t0 += step) pass(t0, std::min(step, num_tokens - t0));
}

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename Real>
void tile_stats(uintptr_t z, int64_t num_vocab, int64_t num_tokens, int64_t first_vocab, uintptr_t targets,
                uintptr_t bias, double scale, double softcap, uintptr_t stats, bool want_sums, int num_threads) {
  const Tile<Real> tile{at<Real>(z), num_vocab, num_tokens, first_vocab, at<const int64_t>(targets)};
  const LogitMap<Real> map{at<const Real>(bias), static_cast<Real>(scale), static_cast<Real>(softcap)};
  const bool want_map = bias != 0 || scale != 1 || softcap > 0;
  for_columns(num_tokens, num_threads, [=](int64_t t0, int64_t n) {
    stats_columns(tile, map, at<double>(stats), want_map, want_sums, t0, n);
  });
}

template <typename Real>
void tile_gradient(uintptr_t z, int64_t num_vocab, int64_t num_tokens, int64_t first_vocab, uintptr_t targets,
                   uintptr_t factors, double softcap, bool want_product, uintptr_t out, int num_threads) {
  const Tile<Real> tile{at<Real>(z), num_vocab, num_tokens, first_vocab, at<const int64_t>(targets)};
  for_columns(num_tokens, num_threads, [=](int64_t t0, int64_t n) {
    gradient_columns(tile, at<Real>(out), at<const double>(factors), static_cast<Real>(softcap), want_product, t0, n);
  });
}

}  // namespace

void bind_loss_scale_ce(pybind11::module_& module) {
  namespace py = pybind11;
  const py::call_guard<py::gil_scoped_release> unlocked;
  module.def("loss_scale_ce_stats_f32", &tile_stats<float>, unlocked);
  module.def("loss_scale_ce_stats_f64", &tile_stats<double>, unlocked);
  module.def("loss_scale_ce_gradient_f32", &tile_gradient<float>, unlocked);
  module.def("loss_scale_ce_gradient_f64", &tile_gradient<double>, unlocked);
}
