// Copies of the caller's strided arrays in a thread's workspace, in the layout that the matrix products need.
//
// Keys and values of a task are packed once for all queries and all heads of the group. This costs O(n·d) next to the O(n²·d)
// of the products and handles strides and dtypes that the products do not take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../simd/lane_rows.h"
#include "params.h"
#include "tasks.h"

namespace DS4SCI_ISA {

using ds4sci::Params;
using ds4sci::Task;

// Query tiles that are processed with the same key tile in sequence. The key tile and its gradients then stay in the first
// cache level and are read from memory once for all of them, for documents of any length.
constexpr int TILES = 8;

// `keys` rounded up to whole tiles.
static inline int64_t whole_tiles(int64_t keys) { return (keys + KB - 1) / KB * KB; }

// A tile of up to QB queries.
struct QueryTile {
  int64_t token;                // first token
  int count;                    // of queries
  int64_t num_keys;             // keys that at least one query attends to, rounded up to whole lanes
  std::vector<float> q, qt;     // [QB][lp]; transposed [lp][QB]
  std::vector<float> g, gt;     // the same of the gradient of the output
  std::vector<float> qz, gz;    // interleaved [QB / 2][dp], for Bf16Lanes only
  std::vector<float> sums;      // [dp][QB]: sums of the output or of dq
  Vec running_max[QB / W], running_sum[QB / W];  // of the scores, of the weights
  float lse[QB], lse_low[QB], delta[QB];
};

// The buffers of one thread. Their sizes depend on the problem only.
template <class L>
struct Workspace {
  int d, dp;      // channels, and padded to whole vectors
  int lanes, lp;  // lanes of a row, and padded to whole vectors
  std::vector<float> kt, vt;   // keys and values, transposed: [tile of keys][lane][KB]
  std::vector<float> rows;     // values (forward) or keys (backward): [key][lp]; for Bf16Lanes interleaved [key / 2][dp]
  std::vector<float> staging;  // [KB][lp]
  std::vector<float> dk, dv;                        // [key][dp]
  std::vector<float> partial_dk, partial_dv;        // [KB][dp], for Fp32Lanes only: sums over TILES tiles of queries
  std::vector<float> scores, weights, interleaved;  // [KB][QB], [KB][QB], [KB / 2][QB]
  std::vector<float> sum_rows;                      // [QB][dp]
  std::vector<float> row, row2;                     // [dp]
  std::vector<float> zeros;                         // [W]; not a compile-time constant on purpose, see backward_tile
  QueryTile tile[TILES];

  Workspace(const Params& p, const std::vector<Task>& tasks, bool backward) {
    d = int(p.channels);
    dp = round_up(d, W);
    lanes = (d + L::PER_LANE - 1) / L::PER_LANE;
    lp = round_up(lanes, W);
    int64_t keys = 0;
    for (const Task& task : tasks) keys = std::max(keys, task.keys(p.causal));
    const size_t padded = whole_tiles(keys + 1);  // one more: Bf16Lanes take keys in pairs
    kt.resize(padded * lp);
    rows.resize(padded / L::PER_LANE * (L::PER_LANE == 2 ? dp : lp));
    staging.resize(KB * lp);
    scores.resize(KB * QB);
    sum_rows.resize(QB * dp);
    for (auto* x : {&row, &row2}) x->resize(dp);
    zeros.resize(W);
    if (L::PER_LANE == 2) interleaved.resize(KB / 2 * QB);
    if (backward) {
      vt.resize(padded * lp);
      for (auto* x : {&dk, &dv}) x->resize(padded * dp);
      if (L::PER_LANE == 1)
        for (auto* x : {&partial_dk, &partial_dv}) x->resize(KB * dp);
      weights.resize(KB * QB);
    }
    for (QueryTile& x : tile) {
      for (auto* rows : {&x.q, &x.qt}) rows->resize(lp * QB);
      x.sums.resize(dp * QB);
      if (!backward) continue;
      for (auto* rows : {&x.g, &x.gt}) rows->resize(lp * QB);
      if (L::PER_LANE == 2)
        for (auto* rows : {&x.qz, &x.gz}) rows->resize(QB / 2 * dp);
    }
  }

  // The operand a of a product along the keys, from key `first` on.
  const float* along_keys(int64_t first) const { return L::PER_LANE == 2 ? &rows[first / 2 * dp] : &rows[first * lp]; }
};

// The rows of a head, starting at token `start`.
static inline Rows rows_of(const Array& x, int64_t head, int64_t start) {
  Rows rows(x, 0, 0, head);
  rows.data += start * rows.stride;
  return rows;
}

// Prefetches the rows of the next task, a few with each tile of the current one: they are h·d apart, a stride that hardware
// prefetchers do not follow. For short documents only: long ones hide their loads behind enough arithmetic.
class Prefetcher {
  const Params& p;
  const bool backward;
  int64_t at, to, step, key_head;

  // Rows of the tokens at..until; row 0 of x is that of token `first`, and there are `count` rows.
  template <int WRITE>
  void prefetch(const Array& x, int64_t head, int64_t until, int64_t first, int64_t count) const {
    if (!x.data) return;
    const int64_t from = std::max(at - first, int64_t(0)), to = std::min(until - first, count);
    rows_of(x, head, 0).prefetch<WRITE>(from, to, int(p.channels));
  }

 public:
  // `next` is null if there is no next task.
  Prefetcher(const Params& p, bool backward, const Task& task, const Task* next, int64_t key_head)
      : p(p), backward(backward), at(0), to(0), step(0), key_head(key_head) {
    if (!next || next->stop - next->start > 512) return;
    at = next->start, to = next->stop;
    const int64_t query_tiles = (task.queries() + QB - 1) / QB, key_tiles = (task.keys(p.causal) + KB - 1) / KB;
    const int64_t visits = query_tiles * key_tiles * (p.heads / p.key_heads);
    step = (to - at + visits - 1) / visits;
  }

  // Prefetches the next few rows.
  void advance() {
    if (at >= to) return;
    const int64_t until = std::min(to, at + step), group = p.heads / p.key_heads;
    for (const Array* x : {&p.k, &p.v}) prefetch<0>(*x, key_head, until, 0, p.tokens);
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      prefetch<0>(p.q, head, until, p.first_query, p.queries);
      if (backward)
        for (const Array* x : {&p.out, &p.grad_out}) prefetch<0>(*x, head, until, p.first_query, p.queries);
      prefetch<1>(backward ? p.grad_q : p.out, head, until, p.first_query, p.queries);
    }
    at = until;
  }
};

// Packs `n` rows into `transposed` and `rows`, either of which may be null. Bf16Lanes add a row of zeros to an odd number.
template <class L>
static void pack(const Rows& from, int64_t n, std::vector<float>* transposed, std::vector<float>* rows, Workspace<L>& w) {
  for (int64_t k0 = 0; k0 < n; k0 += KB) {
    const int count = int(std::min<int64_t>(KB, n - k0)), even = round_up(count, L::PER_LANE);
    float* to = rows && L::PER_LANE == 1 ? &(*rows)[k0 * w.lp] : w.staging.data();
    from.prefetch<0>(k0 + KB, std::min(n, k0 + 2 * KB), w.d);
    for (int i = 0; i < count; ++i) load_lanes(L{}, from, k0 + i, w.d, to + i * w.lp);
    if (even > count) std::fill(to + count * w.lp, to + even * w.lp, 0.0f);
#if defined(__AVX512BF16__)
    if constexpr (L::PER_LANE == 2)
      for (int i = 0; rows && i < even; i += 2)
        interleave(to + i * w.lp, to + (i + 1) * w.lp, w.d, &(*rows)[(k0 + i) / 2 * w.dp]);
#endif
    if (transposed)
      for (int i = 0; i < count; i += W)  // rows beyond the last one hold old data, which is not read
        for (int c = 0; c < w.lanes; c += W)
          transpose(to + i * w.lp + c, w.lp, &(*transposed)[k0 * w.lp + c * KB + i], KB, std::min(W, w.lanes - c));
  }
}

// Packs the keys and values of a task.
template <class L>
static void pack_keys(const Params& p, const Task& task, int64_t key_head, bool backward, Workspace<L>& w) {
  const Rows k = rows_of(p.k, key_head, task.start), v = rows_of(p.v, key_head, task.start);
  const int64_t n = task.keys(p.causal);
  pack(k, n, &w.kt, backward ? &w.rows : nullptr, w);
  pack(v, n, backward ? &w.vt : nullptr, backward ? nullptr : &w.rows, w);
}

// Transposes the rows of QB queries to [lane][query].
template <class L>
static void transpose_tile(const Workspace<L>& w, const std::vector<float>& rows, std::vector<float>& to) {
  for (int c = 0; c < w.lanes; c += W)
    for (int q = 0; q < QB; q += W)
      transpose(&rows[q * w.lp + c], w.lp, &to[c * QB + q], QB, std::min(W, w.lanes - c));
}

// Packs the tile of queries that starts at token `at`. Queries beyond the last one are 0.
template <class L>
static void pack_queries(const Params& p, const Task& task, int64_t head, int64_t at, Workspace<L>& w, QueryTile& x) {
  x.token = at;
  x.count = int(std::min<int64_t>(QB, task.query_end - at));
  const int64_t keys = p.causal ? at + x.count - task.start : task.stop - task.start;
  x.num_keys = (keys + L::PER_LANE - 1) / L::PER_LANE * L::PER_LANE;
  const Rows from = rows_of(p.q, head, at - p.first_query);
  for (int q = 0; q < x.count; ++q) load_lanes(L{}, from, q, w.d, &x.q[q * w.lp]);
  std::fill(x.q.begin() + x.count * w.lp, x.q.end(), 0.0f);
  transpose_tile(w, x.q, x.qt);
}

// The mask of a tile of queries and a tile of keys: the last key that each query attends to, relative to key `first` of the
// document. Without causality that is the last key of the document.
struct CausalMask {
  IVec last_key[QB / W];
  int min_last_key;  // the smallest of all queries: keys up to it are not masked for any query

  CausalMask(const Params& p, const Task& task, const QueryTile& x, int64_t first)
      : min_last_key(int((p.causal ? x.token : task.stop - 1) - task.start - first)) {
    for (int i = 0; i < QB; ++i) last_key[i / W][i % W] = min_last_key + (p.causal ? i : 0);
  }

  // The scores of vector x of the queries with `key`; -inf where masked.
  Vec apply(Vec score, int x, int key) const { return last_key[x] < key ? set1(NEG_INF) : score; }
};

}  // namespace DS4SCI_ISA
