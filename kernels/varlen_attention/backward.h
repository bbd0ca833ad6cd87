// Backward of one task: the given queries of a document, for the heads of one group.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "forward.h"

namespace DS4SCI_ISA {

// Packs the gradient of the output of a tile of queries, with delta = Σ_c dOut[c] · out[c] and the log-sum-exp in units of
// log 2 for each query.
template <class L>
static void pack_gradients(const Params& p, int64_t head, Workspace<L>& w, QueryTile& tile) {
  const int64_t row = tile.token - p.first_query, at = head * p.queries + row;
  const Rows grad_rows = rows_of(p.grad_out, head, row), out_rows = rows_of(p.out, head, row);
  for (int q = 0; q < QB; ++q) tile.lse[q] = NEG_INF, tile.lse_low[q] = tile.delta[q] = 0.0f;
  copy(p.lse + at, tile.lse, tile.count);
  if (p.lse_low) copy(p.lse_low + at, tile.lse_low, tile.count);
  std::fill(tile.g.begin() + tile.count * w.lp, tile.g.end(), 0.0f);
  for (int q = 0; q < tile.count; ++q) {
    float *grad = w.row.data(), *out = w.row2.data();
    load_row(grad_rows, q, w.d, grad);
    load_row(out_rows, q, w.d, out);
    DVec dots = {};
    for (int c = 0; c < w.d; c += W) dots += to_double(load(grad + c)) * to_double(load(out + c));
    tile.delta[q] = float(reduce_add(dots));
    pack_lanes(L{}, grad, w.d, &tile.g[q * w.lp]);
  }
  for (int x = 0; x < QB; x += W) {  // lse + lse_low; +inf beyond the last query, so that every weight is 0
    const Vec natural = load(tile.lse + x);
    const DVec exact = (to_double(natural) + to_double(load(tile.lse_low + x))) * LOG2E;
    const Vec whole = natural == NEG_INF ? set1(-NEG_INF) : to_float(exact);
    store(tile.lse + x, whole);
    store(tile.lse_low + x, natural == NEG_INF ? Vec{} : to_float(exact - to_double(whole)));
  }
  transpose_tile(w, tile.g, tile.gt);
#if defined(__AVX512BF16__)
  if constexpr (L::PER_LANE == 2)
    for (int q = 0; q < QB; q += 2) {
      interleave(&tile.q[q * w.lp], &tile.q[(q + 1) * w.lp], w.d, &tile.qz[q / 2 * w.dp]);
      interleave(&tile.g[q * w.lp], &tile.g[(q + 1) * w.lp], w.d, &tile.gz[q / 2 * w.dp]);
    }
#endif
}

// The gradients between a tile of queries and the tile of keys that starts at key `first`. The gradients of the keys are added
// to `dk`, those of the values to `dv`, both [KB][dp]; that of the queries is accumulated in the tile.
template <class L>
static void backward_tile(const Params& p, const Task& task, int64_t first, float* dk, float* dv, Workspace<L>& w,
                          QueryTile& tile) {
  const int keys = int(std::min<int64_t>(KB, tile.num_keys - first));
  const CausalMask mask(p, task, tile, first);
  const Vec score_scale = set1(float(p.scale * LOG2E));
  // Adding zeros makes the compiler round the scores as in the forward. Fused with the subtraction of lse, which contains the
  // rounded maximum, a weight of 1 would be wrong by half a unit in the last place of a large score.
  const Vec zeros = load(w.zeros.data());
  for (int x0 = 0; x0 < QB; x0 += 2 * W)
    for_each_block<MR2, L::PER_LANE>(keys, [&](auto height, int i0) {
      constexpr int M = height;
      Vec probs[M][2] = {}, dscores[M][2] = {};
      accumulate<L, 1>(probs, w.lanes, &w.kt[first * w.lp + i0], KB, &tile.qt[x0], QB);
      accumulate<L, 1>(dscores, w.lanes, &w.vt[first * w.lp + i0], KB, &tile.gt[x0], QB);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
          const int at = x0 + x * W;
          probs[i][x] = probs[i][x] * score_scale + zeros - load(tile.lse + at);
          if (L::PER_LANE == 1) probs[i][x] -= load(tile.lse_low + at);
        }
      if (i0 + M - 1 > mask.min_last_key)
        DS4SCI_UNROLL for (int i = 0; i < M; ++i)
          DS4SCI_UNROLL for (int x = 0; x < 2; ++x) probs[i][x] = mask.apply(probs[i][x], x0 / W + x, i0 + i);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
          probs[i][x] = exp2<L::DEGREE>(probs[i][x]);
          dscores[i][x] = probs[i][x] * (dscores[i][x] - load(tile.delta + x0 + x * W));
        }
      store_p_ds(L{}, probs, dscores, i0, x0, w.scores.data(), w.weights.data(), w.interleaved.data());
    });
  // w.scores holds P and w.weights dS. Gradients that were not requested are not computed.
  const float* ds_lanes = L::PER_LANE == 2 ? w.interleaved.data() : w.weights.data();
  if (p.grad_q.data && first)
    matmul<L, 1, ADD>(w.d, QB, keys / L::PER_LANE, w.along_keys(first), w.dp, ds_lanes, QB, tile.sums.data(), QB);
  else if (p.grad_q.data)
    matmul<L, 1, SET>(w.d, QB, keys / L::PER_LANE, w.along_keys(first), w.dp, ds_lanes, QB, tile.sums.data(), QB);
  const int steps = (tile.count + L::PER_LANE - 1) / L::PER_LANE;
  auto along_queries = [&](const Array& target, const float* a, const std::vector<float>& b, float* c) {
    if (target.data) matmul<L, QB / L::PER_LANE, ADD>(keys, w.dp, steps, a, 1, b.data(), w.dp, c, w.dp);
  };
  along_queries(p.grad_k, w.weights.data(), L::PER_LANE == 2 ? tile.qz : tile.q, dk);
  along_queries(p.grad_v, w.scores.data(), L::PER_LANE == 2 ? tile.gz : tile.g, dv);
}

// Adds the sums over some tiles of queries to the sums over all, and sets them to 0.
static inline void flush_partial(std::vector<float>& partial, float* sums) {
  for (size_t i = 0; i < partial.size(); i += W) {
    store(sums + i, load(sums + i) + load(&partial[i]));
    store(&partial[i], Vec{});
  }
}

// Multiplies rows of sums by `factor` and stores them in the caller's array, or with `adds` adds them to it.
template <class L>
static void store_rows(const Array& to, int64_t head, int64_t at, int64_t count, float* from, float factor, bool adds,
                       Workspace<L>& w) {
  if (!to.data) return;
  const Rows rows = rows_of(to, head, at);
  for (int64_t i = 0; i < count; ++i) {
    float *row = from + i * w.dp, *before = w.row.data();
    for (int c = 0; c < w.dp; c += W) store(row + c, load(row + c) * factor);
    if (adds) {
      load_row(rows, i, w.d, before);
      for (int c = 0; c < w.d; c += W) store(row + c, load(row + c) + load(before + c));
    }
    store_row(rows, i, w.d, row);
  }
}

template <class L>
static void backward_task(const Params& p, const Task& task, int64_t key_head, Prefetcher prefetcher, Workspace<L>& w) {
  pack_keys(p, task, key_head, true, w);
  const int64_t n = task.keys(p.causal), group = p.heads / p.key_heads;
  for (auto* sums : {&w.dk, &w.dv}) std::fill(sums->begin(), sums->begin() + whole_tiles(n) * w.dp, 0.0f);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head)
    for (int64_t from = task.query_begin; from < task.query_end; from += TILES * QB) {
      const int tiles = int(std::min<int64_t>(TILES, (task.query_end - from + QB - 1) / QB));
      for (int i = 0; i < tiles; ++i) {
        pack_queries(p, task, head, from + i * QB, w, w.tile[i]);
        pack_gradients(p, head, w, w.tile[i]);
      }
      for (int64_t first = 0; first < w.tile[tiles - 1].num_keys; first += KB) {
        for (int i = 0; i < tiles; ++i)
          if (first < w.tile[i].num_keys) {
            prefetcher.advance();
            if constexpr (L::PER_LANE == 1)
              backward_tile(p, task, first, w.partial_dk.data(), w.partial_dv.data(), w, w.tile[i]);
            else
              backward_tile(p, task, first, &w.dk[first * w.dp], &w.dv[first * w.dp], w, w.tile[i]);
          }
        if (L::PER_LANE == 2) continue;
        if (p.grad_k.data) flush_partial(w.partial_dk, &w.dk[first * w.dp]);
        if (p.grad_v.data) flush_partial(w.partial_dv, &w.dv[first * w.dp]);
      }
      for (int i = 0; i < tiles; ++i) {
        sums_to_rows(w.tile[i], w);
        const int64_t row = w.tile[i].token - p.first_query;
        store_rows(p.grad_q, head, row, w.tile[i].count, w.sum_rows.data(), float(p.scale), false, w);
      }
    }
  store_rows(p.grad_k, key_head, task.start, n, w.dk.data(), float(p.scale), p.adds, w);
  store_rows(p.grad_v, key_head, task.start, n, w.dv.data(), 1.0f, p.adds, w);
}

}  // namespace DS4SCI_ISA
