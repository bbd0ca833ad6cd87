// Forward of one task: tiles of queries against tiles of keys with an online softmax.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pack.h"

namespace DS4SCI_ISA {

// Adds the contribution of the tile of keys that starts at key `first` to a tile of queries.
template <class L>
static void forward_tile(const Params& p, const Task& task, int64_t first, Workspace<L>& w, QueryTile& tile) {
  const int keys = int(std::min<int64_t>(KB, tile.num_keys - first));
  const CausalMask mask(p, task, tile, first);
  const Vec score_scale = set1(float(p.scale * LOG2E));
  Vec block_max[QB / W];
  for (int x = 0; x < QB / W; ++x) block_max[x] = tile.running_max[x];
  for (int x0 = 0; x0 < QB; x0 += 2 * W)
    for_each_block<MR, 1>(keys, [&](auto height, int i0) {
      constexpr int M = height;
      Vec acc[M][2] = {};
      accumulate<L, 1>(acc, w.lanes, &w.kt[first * w.lp + i0], KB, &tile.qt[x0], QB);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < 2; ++x) acc[i][x] = acc[i][x] * score_scale;
      if (i0 + M - 1 > mask.min_last_key)
        DS4SCI_UNROLL for (int i = 0; i < M; ++i)
          DS4SCI_UNROLL for (int x = 0; x < 2; ++x) acc[i][x] = mask.apply(acc[i][x], x0 / W + x, i0 + i);
      DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
        Vec maximum = block_max[x0 / W + x];
        DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
          store(&w.scores[(i0 + i) * QB + x0 + x * W], acc[i][x]);
          maximum = max(maximum, acc[i][x]);
        }
        block_max[x0 / W + x] = maximum;
      }
    });
  Vec rescale[QB / W];
  for (int x = 0; x < QB / W; ++x) {
    // Every query attends to key 0, so the maximum is finite unless the scores themselves are all -inf.
    const Vec base = block_max[x] == set1(NEG_INF) ? Vec{} : block_max[x];
    rescale[x] = exp2<5>(tile.running_max[x] - base);
    tile.running_sum[x] =
        tile.running_sum[x] * rescale[x] + exp_and_sum(L{}, keys, base, &w.scores[x * W], w.interleaved.data() + x * W);
    tile.running_max[x] = block_max[x];
  }
  const float* weights = L::PER_LANE == 2 ? w.interleaved.data() : w.scores.data();
  if (first)
    matmul<L, 1, RESCALE>(w.d, QB, keys / L::PER_LANE, w.along_keys(first), w.dp, weights, QB, tile.sums.data(), QB, rescale);
  else
    matmul<L, 1, SET>(w.d, QB, keys / L::PER_LANE, w.along_keys(first), w.dp, weights, QB, tile.sums.data(), QB);
}

// Transposes the sums of a tile to rows, [QB][dp].
template <class L>
static void sums_to_rows(const QueryTile& tile, Workspace<L>& w) {
  for (int c = 0; c < w.dp; c += W)
    for (int q = 0; q < QB; q += W) transpose(&tile.sums[c * QB + q], QB, &w.sum_rows[q * w.dp + c], w.dp);
}

// Writes the output and the log-sum-exp of a tile.
template <class L>
static void write_output(const Params& p, int64_t head, Workspace<L>& w, QueryTile& tile) {
  sums_to_rows(tile, w);
  float scales[QB], lse[QB], lse_low[QB];
  for (int x = 0; x < QB / W; ++x) {
    const Vec total = tile.running_sum[x];
    const DVec exact = (to_double(tile.running_max[x]) + log2(total)) * LN2;
    const Vec whole = total == 0.0f ? set1(NEG_INF) : to_float(exact) + (total - total);  // log2() maps NaN to a number
    store(lse + x * W, whole);
    store(lse_low + x * W, total == 0.0f ? Vec{} : to_float(exact - to_double(whole)));
    store(scales + x * W, total == 0.0f ? Vec{} : 1.0f / total);
  }
  const int64_t row = tile.token - p.first_query;
  const Rows out = rows_of(p.out, head, row);
  for (int q = 0; q < tile.count; ++q) {
    float* sums = &w.sum_rows[q * w.dp];
    for (int c = 0; c < w.d; c += W) store(sums + c, load(sums + c) * scales[q]);
    store_row(out, q, w.d, sums);
  }
  const int64_t at = head * p.queries + row;
  copy(lse, p.lse + at, tile.count);
  if (p.lse_low) copy(lse_low, p.lse_low + at, tile.count);
}

template <class L>
static void forward_task(const Params& p, const Task& task, int64_t key_head, Prefetcher prefetcher, Workspace<L>& w) {
  pack_keys(p, task, key_head, false, w);
  const int64_t group = p.heads / p.key_heads;
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head)
    for (int64_t from = task.query_begin; from < task.query_end; from += TILES * QB) {
      const int tiles = int(std::min<int64_t>(TILES, (task.query_end - from + QB - 1) / QB));
      for (int i = 0; i < tiles; ++i) {
        QueryTile& tile = w.tile[i];
        pack_queries(p, task, head, from + i * QB, w, tile);
        for (int x = 0; x < QB / W; ++x) tile.running_max[x] = set1(NEG_INF), tile.running_sum[x] = Vec{};
      }
      for (int64_t first = 0; first < w.tile[tiles - 1].num_keys; first += KB)
        for (int i = 0; i < tiles; ++i)
          if (first < w.tile[i].num_keys) {
            prefetcher.advance();
            forward_tile(p, task, first, w, w.tile[i]);
          }
      for (int i = 0; i < tiles; ++i) write_output(p, head, w, w.tile[i]);
    }
}

}  // namespace DS4SCI_ISA
