// Forward of one row of one (batch, head): tiles of queries against tiles of keys with an online softmax.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pack.h"

namespace DS4SCI_ISA {

static inline Vec sigmoid(Vec x) {
  const Vec y = x * float(-LOG2E);
  return set1(1.0f) / (set1(1.0f) + exp2<5>(y > 126.0f ? set1(126.0f) : y));  // larger y would overflow the exponent
}

// Prefetches what the next tile of queries needs while the current one, from q0 on, is processed: its rows and, towards the
// end of a row of the MSA, the keys of the next one. Not earlier: rows of one head compete for few cache sets.
// `more`: there is a next row.
static void prefetch_next(const Params& p, int64_t b, int64_t s, int64_t h, int64_t q0, bool more, bool backward) {
  const int d = int(p.channels);
  const bool last = q0 + QB >= p.queries;
  if (!last || more) {
    const int64_t row = last ? s + 1 : s, from = last ? 0 : q0 + QB, to = std::min<int64_t>(p.queries, from + QB);
    for (const Array* x : {&p.q, &p.gate, backward ? &p.out : nullptr, backward ? &p.grad_out : nullptr})
      if (x && x->data) Rows(*x, b, row, h).prefetch<0>(from, to, d);
    for (const Array* x : {backward ? &p.grad_q : &p.out, backward ? &p.grad_gate : nullptr})
      if (x && x->data) Rows(*x, b, row, h).prefetch<1>(from, to, d);
  }
  const int64_t tiles = (p.queries + QB - 1) / QB, late = (tiles + 3) / 4, index = q0 / QB - (tiles - late);
  if (index < 0) return;
  const int64_t from = p.keys * index / late, to = p.keys * (index + 1) / late;
  if (more)
    for (const Array* x : {&p.k, &p.v}) Rows(*x, b, s + 1, h).prefetch<0>(from, to, d);
  if (backward)
    for (const Array* x : {&p.grad_k, &p.grad_v})
      if (x->data) Rows(*x, b, s, h).prefetch<1>(from, to, d);
}

// Output and log-sum-exp of one row of the MSA.
template <class L>
static void forward_row(const Params& p, int64_t b, int64_t s, int64_t h, bool more, Workspace<L>& w) {
  const int64_t n = pack_keys(p, b, s, h, false, w);
  const int d = w.d, dp = w.dp, lp = w.lp;
  const bool has_mask_bias = n && (w.mask_bias[n - 1] == NEG_INF || (p.mask.data && p.mask.dtype != ds4sci::BOOL));
  const Vec score_scale = set1(float(p.scale * LOG2E));
  const int64_t bias_step = p.bias.data ? QB : 0;
  const Rows out(p.out, b, s, h), gate(p.gate, b, s, h);
  float* lses = static_cast<float*>(p.lse.data) + offset(p.lse, b, s, h, 0);
  float* lse_lows = p.lse_low.data ? static_cast<float*>(p.lse_low.data) + offset(p.lse_low, b, s, h, 0) : nullptr;
  for (int64_t q0 = 0; q0 < p.queries; q0 += QB) {
    const int count = int(std::min<int64_t>(QB, p.queries - q0));
    prefetch_next(p, b, s, h, q0, more, false);
    pack_queries(p, b, s, h, q0, count, w);
    const float* bias = p.bias.data ? &w.bias[q0 * p.keys] : w.zeros.data();
    Vec running_max[QB / W], running_sum[QB / W], block_max[QB / W], rescale[QB / W];
    for (int x = 0; x < QB / W; ++x) running_max[x] = set1(NEG_INF), running_sum[x] = Vec{};
    for (int64_t first = 0; first < n; first += KB) {
      const int keys = int(std::min<int64_t>(KB, n - first));
      for (int x = 0; x < QB / W; ++x) block_max[x] = running_max[x];
      for (int x0 = 0; x0 < QB; x0 += 2 * W)
        for_each_block<MR, 1>(keys, [&](auto height, int i0) {
          constexpr int M = height;
          Vec acc[M][2] = {};
          accumulate<L, 1>(acc, w.lanes, &w.kt[first * lp + i0], KB, &w.qt[x0], QB);
          DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
            Vec maximum = block_max[x0 / W + x];
            DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
              Vec score = acc[i][x] * score_scale + load(bias + w.kept_keys[first + i0 + i] * bias_step + x0 + x * W);
              if (has_mask_bias) score += w.mask_bias[first + i0 + i];
              store(&w.scores[(i0 + i) * QB + x0 + x * W], score);
              maximum = max(maximum, score);
            }
            block_max[x0 / W + x] = maximum;
          }
        });
      for (int x = 0; x < QB / W; ++x) {
        // All scores so far are -inf: subtract 0, so that the weights are 0 and not NaN.
        const Vec base = block_max[x] == set1(NEG_INF) ? Vec{} : block_max[x];
        rescale[x] = exp2<5>(running_max[x] - base);
        running_sum[x] =
            running_sum[x] * rescale[x] + exp_and_sum(L{}, keys, base, &w.scores[x * W], w.interleaved.data() + x * W);
        running_max[x] = block_max[x];
      }
      const float* values = w.along_keys(w.v, first);
      const float* weights = L::PER_LANE == 2 ? w.interleaved.data() : w.scores.data();
      if (first)
        matmul<L, 1, RESCALE>(d, QB, keys / L::PER_LANE, values, dp, weights, QB, w.sums.data(), QB, rescale);
      else
        matmul<L, 1, SET>(d, QB, keys / L::PER_LANE, values, dp, weights, QB, w.sums.data(), QB);
    }
    for (int c = 0; c < dp; c += W)
      for (int q = 0; q < QB; q += W) transpose(&w.sums[c * QB + q], QB, &w.sum_rows[q * dp + c], dp);
    float scales[QB], lse[QB], lse_low[QB];
    for (int x = 0; x < QB / W; ++x) {
      const Vec total = n ? running_sum[x] : Vec{};
      const Vec whole = from_log2(running_max[x], log2(total)) + (total - total);  // log2() maps NaN to a number
      store(lse + x * W, total == 0.0f ? set1(NEG_INF) : whole);
      const DVec low = (to_double(running_max[x]) - to_double(to_log2(whole)) + log2(total)) * LN2;
      store(lse_low + x * W, total == 0.0f ? Vec{} : to_float(low));
      store(scales + x * W, total == 0.0f ? Vec{} : 1.0f / total);
    }
    for (int q = 0; q < count; ++q) {
      float* row = &w.sum_rows[q * dp];
      if (scales[q] == 0.0f) std::fill(row, row + dp, 0.0f);  // no keys: w.sums holds another tile
      for (int c = 0; c < d; c += W) store(row + c, load(row + c) * scales[q]);
      if (p.gate.data) {
        load_row(gate, q0 + q, d, w.row2.data());
        for (int c = 0; c < d; c += W) store(row + c, load(row + c) * sigmoid(load(&w.row2[c])));
      }
      store_row(out, q0 + q, d, row);
    }
    copy(lse, lses + q0, count);
    if (lse_lows) copy(lse_low, lse_lows + q0, count);
  }
}

}  // namespace DS4SCI_ISA
