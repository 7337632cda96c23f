// The product of packed_linear.cpp for one level of CPU. Included once for each, in a namespace of its own, under
// `#pragma GCC target` of that level and with these defined there:
//
//   kLanes      floats of a vector register
//   kMostRows   rows of a tile; with kVectors, what the registers hold
//   kVectors    vectors of a tile's row; kVectors * kLanes divides 32
//
// Vector types wider than the registers of the function they stand in are taken apart before it is inlined into one that
// has wider ones, and stay so: under one target for all, the products of AVX2 ran at 1.6 instead of 38 GFLOP/s (AMD
// EPYC, GCC 12, 2026-11-30). So the code is compiled for each level, not inlined into it.

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

INLINE void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }

INLINE void load(const uint16_t* from, Floats& to) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof to);
}

// kRows rows of x from row m against kWide vectors of outputs from output n.
template <typename Weight, int kRows, int kWide>
INLINE void tile(const Problem& job, int64_t m, int64_t n) {
  const int64_t count = std::min<int64_t>(kWide * kLanes, job.num_outputs - n);
  if (count <= 0) return;
  const float* x = job.x + m * job.depth;
  const Weight* w[kWide];
  for (int j = 0; j < kWide; ++j) {
    const int64_t output = n + j * kLanes;
    w[j] = static_cast<const Weight*>(job.w) + output / kPanel * kPanel * job.depth + output % kPanel;
  }
  Floats sum[kRows][kWide];
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kWide; ++j) sum[r][j] = Floats{};
  for (int64_t k = 0; k < job.depth; ++k) {
    Floats column[kWide];
    for (int j = 0; j < kWide; ++j) load(w[j] + k * kPanel, column[j]);
    for (int r = 0; r < kRows; ++r) {
      const float factor = x[r * job.depth + k];
      for (int j = 0; j < kWide; ++j) sum[r][j] = factor * column[j] + sum[r][j];
    }
  }
  for (int r = 0; r < kRows; ++r)
    std::memcpy(job.y + (m + r) * job.num_outputs + n, sum[r], static_cast<size_t>(count) * sizeof(float));
}

// Few rows are bound by the memory of W, so several panels are streamed at once; many rows by arithmetic, so that each
// loaded weight serves as many rows as the registers hold.
template <typename Weight>
void run(const Problem& job, int64_t p, int64_t end) {
  constexpr int kStreams = kMostRows > 2 ? 8 : 4;  // vectors of a single row: enough to hide the latency of a product
  constexpr int64_t kStep = kVectors * kLanes, kStride = kStreams * kLanes;
  if (job.num_rows == 1) {
    int64_t n = p * kPanel;
    for (; n + kStride <= end * kPanel; n += kStride) tile<Weight, 1, kStreams>(job, 0, n);
    for (; n < end * kPanel; n += kLanes) tile<Weight, 1, 1>(job, 0, n);
    return;
  }
  for (int64_t n = p * kPanel; n < end * kPanel; n += kStep) {
    int64_t m = 0;
    for (; m + kMostRows <= job.num_rows; m += kMostRows) tile<Weight, kMostRows, kVectors>(job, m, n);
    if (kMostRows > 8)
      for (; m + 8 <= job.num_rows; m += 8) tile<Weight, 8, kVectors>(job, m, n);
    if (kMostRows > 4)
      for (; m + 4 <= job.num_rows; m += 4) tile<Weight, 4, kVectors>(job, m, n);
    for (; m + 2 <= job.num_rows; m += 2) tile<Weight, 2, kVectors>(job, m, n);
    for (; m < job.num_rows; ++m) tile<Weight, 1, kVectors>(job, m, n);
  }
}
