// The attention of paged_attention.cpp for one level of CPU. Included once for each, in a namespace of its own, under
// `#pragma GCC target` of that level and with kWidth, the floats of a vector register there; see packed_linear_tiles.h
// for why it is not inlined into functions of each level. 16 lanes are kParts vectors.

constexpr int64_t kParts = kLanes / kWidth;

typedef float Floats __attribute__((vector_size(4 * kWidth)));

INLINE void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }

INLINE float add_lanes(const Floats (&lanes)[kParts]) {
  float a[kLanes];
  std::memcpy(a, lanes, sizeof a);
  for (int64_t step = kLanes / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; ++i) a[i] = a[i] + a[i + step];
  return a[0];
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
      Floats sum[kParts] = {};
      for (int64_t d = 0; d < job.dim; d += kLanes) {
        for (int64_t part = 0; part < kParts; ++part) {
          Floats a, b;
          load(q + h * job.dim + d + part * kWidth, a);
          load(key + d + part * kWidth, b);
          sum[part] = a * b + sum[part];
        }
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
      Floats sum[kParts] = {};
      for (int64_t i = 0; i < count; ++i) {
        const float* row = row_of(job.values, table, begin + i, group, job) + d;
        for (int64_t part = 0; part < kParts; ++part) {
          Floats value;
          load(row + part * kWidth, value);
          sum[part] = score[i] * value + sum[part];
        }
      }
      std::memcpy(out + h * job.dim + d, sum, sizeof sum);
    }
  }
}

inline void run(const Problem& job, int64_t unit, int64_t end) {
  std::vector<float> room;
  for (; unit < end; ++unit) attend(job, unit / job.num_groups, unit % job.num_groups, room);
}
