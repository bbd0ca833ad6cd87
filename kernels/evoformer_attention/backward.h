// Backward of one row of one (batch, head).
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "forward.h"

namespace DS4SCI_ISA {

// Packs the gradient of the output of a tile of queries, with delta and lse of each query, and writes the gradient of the gate.
//
// A weight is 2^(score - lse - lse_low). Weights are only used in products with dO and delta, so the factor 2^-lse_low is applied
// to those, once per query.
template <class L>
static void pack_gradients(const Params& p, int64_t b, int64_t s, int64_t h, int64_t q0, int count, Workspace<L>& w,
                           float* lse, float* delta) {
  const int d = w.d;
  const Rows grad_rows(p.grad_out, b, s, h), out_rows(p.out, b, s, h), gate_rows(p.gate, b, s, h);
  const Rows grad_gate_rows(p.grad_gate, b, s, h);
  const float* lses = static_cast<const float*>(p.lse.data) + offset(p.lse, b, s, h, 0);
  const float* lse_lows =
      p.lse_low.data ? static_cast<const float*>(p.lse_low.data) + offset(p.lse_low, b, s, h, 0) : nullptr;
  float low_factors[QB];
  for (int q = 0; q < QB; ++q) lse[q] = NEG_INF, low_factors[q] = delta[q] = 0.0f;  // beyond the last query every weight is 0
  copy(lses + q0, lse, count);
  if (lse_lows) copy(lse_lows + q0, low_factors, count);
  for (int x = 0; x < QB; x += W) {  // without keys every weight is 0
    const Vec natural = load(lse + x);
    store(low_factors + x, exp2<5>(load(low_factors + x) * float(-LOG2E)));
    store(lse + x, natural == NEG_INF ? set1(-NEG_INF) : to_log2(natural));
  }
  std::fill(w.g.begin() + count * w.lp, w.g.end(), 0.0f);
  for (int q = 0; q < count; ++q) {
    float *grad = w.row.data(), *out = w.row2.data(), *gate = w.row3.data();
    load_row(grad_rows, q0 + q, d, grad);
    load_row(out_rows, q0 + q, d, out);
    const float low_factor = low_factors[q];
    DVec dots = {};
    if (p.gate.data) {
      load_row(gate_rows, q0 + q, d, gate);
      for (int c = 0; c < d; c += W) {  // the lanes beyond d are padding in all three
        const Vec sigma = sigmoid(load(gate + c)), grad_c = load(grad + c), gated = grad_c * sigma * low_factor;
        dots += to_double(grad_c * low_factor) * to_double(load(out + c));
        // `out` already contains the factor σ(gate), so the dot product takes dO without it. dO is rounded when it is packed: the
        // dot product must contain the same rounding, or the gradients of the weights of a query, which sum to 0, all have the
        // same error.
        if (L::PER_LANE == 2) dots += to_double(sigma > 1e-6f ? (from_bf16(to_bf16(gated)) - gated) * load(out + c) / sigma : Vec{});
        store(out + c, load(out + c) * grad_c * (1.0f - sigma));
        store(grad + c, gated);
      }
      if (p.grad_gate.data) store_row(grad_gate_rows, q0 + q, d, out);
    } else {
      for (int c = 0; c < d; c += W) {
        const Vec gated = load(grad + c) * low_factor;
        dots += to_double(L::PER_LANE == 2 ? from_bf16(to_bf16(gated)) : gated) * to_double(load(out + c));
        store(grad + c, gated);
      }
    }
    delta[q] = float(reduce_add(dots));
    pack_lanes(L{}, grad, d, &w.g[q * w.lp]);
    if (p.grad_lse.data)
      delta[q] -= low_factor * static_cast<const float*>(p.grad_lse.data)[offset(p.grad_lse, b, s, h, q0 + q)];
  }
  transpose_tile(w, w.g, w.gt);
#if defined(__AVX512BF16__)
  if constexpr (L::PER_LANE == 2)
    for (int q = 0; q < QB; q += 2) {
      interleave(&w.q[q * w.lp], &w.q[(q + 1) * w.lp], d, &w.qz[q / 2 * w.dp]);
      interleave(&w.g[q * w.lp], &w.g[(q + 1) * w.lp], d, &w.gz[q / 2 * w.dp]);
    }
#endif
  if (w.paired)
    for (auto* rows : {L::PER_LANE == 2 ? &w.qz : &w.q, L::PER_LANE == 2 ? &w.gz : &w.g})
      pair_rows(*rows, QB / L::PER_LANE, w.dp);
}

// The gradients of one row of the MSA; that of the pair bias is added to `grad_bias`.
template <class L>
static void backward_row(const Params& p, int64_t b, int64_t s, int64_t h, bool more, float* grad_bias, Workspace<L>& w) {
  const int64_t n = pack_keys(p, b, s, h, true, w);
  const int d = w.d, dp = w.dp, lp = w.lp;
  const bool has_mask_bias = n && (w.mask_bias[n - 1] == NEG_INF || (p.mask.data && p.mask.dtype != ds4sci::BOOL));
  const Vec score_scale = set1(float(p.scale * LOG2E));
  std::fill(w.dk.begin(), w.dk.begin() + n * dp, 0.0f);
  std::fill(w.dv.begin(), w.dv.begin() + n * dp, 0.0f);
  const bool uses_partial = !w.partial_dk.empty();
  float *dk = uses_partial ? w.partial_dk.data() : w.dk.data(), *dv = uses_partial ? w.partial_dv.data() : w.dv.data();
  float* grad_mask = p.grad_mask ? p.grad_mask + ((b * p.rows + s) * p.heads + h) * p.keys : nullptr;
  if (grad_mask) std::fill(w.mask_grad.begin(), w.mask_grad.end(), 0.0);
  const int64_t bias_step = p.bias.data ? QB : 0;
  const Rows grad_q(p.grad_q, b, s, h), grad_k(p.grad_k, b, s, h), grad_v(p.grad_v, b, s, h);
  for (int64_t q0 = 0; q0 < p.queries; q0 += QB) {
    const int count = int(std::min<int64_t>(QB, p.queries - q0));
    float lse[QB], delta[QB];
    prefetch_next(p, b, s, h, q0, more, true);
    pack_queries(p, b, s, h, q0, count, w);
    const float* bias = p.bias.data ? &w.bias[q0 * p.keys] : w.zeros.data();
    pack_gradients(p, b, s, h, q0, count, w, lse, delta);
    float* into = grad_bias ? grad_bias + q0 * p.keys : nullptr;
    for (int64_t first = 0; first < n; first += KB) {
      const int keys = int(std::min<int64_t>(KB, n - first));
      for (int x0 = 0; x0 < QB; x0 += 2 * W)
        for_each_block<MR2, L::PER_LANE>(keys, [&](auto height, int i0) {
          constexpr int M = height;
          Vec probs[M][2] = {}, dscores[M][2] = {};
          accumulate<L, 1>(probs, w.lanes, &w.kt[first * lp + i0], KB, &w.qt[x0], QB);
          accumulate<L, 1>(dscores, w.lanes, &w.vt[first * lp + i0], KB, &w.gt[x0], QB);
          DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
            const int64_t key = w.kept_keys[first + i0 + i];
            DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
              const int at = x0 + x * W;
              Vec score = probs[i][x] * score_scale + load(bias + key * bias_step + at);
              if (has_mask_bias) score += w.mask_bias[first + i0 + i];
              probs[i][x] = exp2<L::DEGREE>(score - load(lse + at));
              dscores[i][x] = probs[i][x] * (dscores[i][x] - load(delta + at));
              if (into) store(into + key * QB + at, load(into + key * QB + at) + dscores[i][x]);
            }
            if (grad_mask) w.mask_grad[key] += reduce_add(to_double(dscores[i][0]) + to_double(dscores[i][1]));
          }
          store_p_ds(L{}, probs, dscores, i0, x0, w.scores.data(), w.weights.data(), w.interleaved.data());
        });
      // w.scores holds P and w.weights dS. Gradients that were not requested are not computed.
      const float* ds_lanes = L::PER_LANE == 2 ? w.interleaved.data() : w.weights.data();
      const float* packed = w.along_keys(w.k, first);
      constexpr int QW = QB / L::PER_LANE;
      if (p.grad_q.data && first)
        matmul<L, 1, ADD>(d, QB, keys / L::PER_LANE, packed, dp, ds_lanes, QB, w.sums.data(), QB);
      else if (p.grad_q.data)
        matmul<L, 1, SET>(d, QB, keys / L::PER_LANE, packed, dp, ds_lanes, QB, w.sums.data(), QB);
      auto along_queries = [&](const Array& target, const float* a, const std::vector<float>& b, float* c) {
        if (target.data && w.paired)
          matmul<PairedLanes<L>, QW, ADD>(keys, dp, QW / 2, a, 2, b.data(), dp, c, dp);
        else if (target.data)
          matmul<L, QW, ADD>(keys, dp, (count + L::PER_LANE - 1) / L::PER_LANE, a, 1, b.data(), dp, c, dp);
      };
      along_queries(p.grad_k, w.weights.data(), L::PER_LANE == 2 ? w.qz : w.q, &dk[first * dp]);
      along_queries(p.grad_v, w.scores.data(), L::PER_LANE == 2 ? w.gz : w.g, &dv[first * dp]);
    }
    if (uses_partial && ((q0 + QB) % QUERIES_PER_PARTIAL == 0 || q0 + QB >= p.queries))
      for (auto [from, to] : {std::pair{&w.partial_dk, &w.dk}, {&w.partial_dv, &w.dv}})
        for (int64_t i = 0; i < n * dp; i += W) {
          store(&(*to)[i], load(&(*to)[i]) + load(&(*from)[i]));
          store(&(*from)[i], Vec{});
        }
    if (p.grad_q.data) {
      for (int c = 0; c < dp; c += W)
        for (int q = 0; q < QB; q += W) transpose(&w.sums[c * QB + q], QB, &w.sum_rows[q * dp + c], dp);
      for (int q = 0; q < count; ++q) {
        float* row = &w.sum_rows[q * dp];
        for (int c = 0; c < d; c += W) store(row + c, n ? load(row + c) * float(p.scale) : Vec{});
        store_row(grad_q, q0 + q, d, row);
      }
    }
  }
  if (grad_mask) std::copy(w.mask_grad.begin(), w.mask_grad.end(), grad_mask);
  int64_t next = 0;
  for (int64_t k = 0; k < p.keys; ++k) {
    const bool is_kept = next < n && w.kept_keys[next] == k;
    auto write = [&](const Array& target, const Rows& to, const std::vector<float>& sums, float factor) {
      if (!target.data) return;
      const float* from = &sums[next * dp];
      if (!is_kept)
        std::fill(w.row.begin(), w.row.end(), 0.0f);
      else if (w.paired)
        for (int c = 0; c < d; ++c) w.row[c] = (from[2 * c] + from[2 * c + 1]) * factor;
      else
        for (int c = 0; c < d; c += W) store(&w.row[c], load(from + c) * factor);
      store_row(to, k, d, w.row.data());
    };
    write(p.grad_k, grad_k, w.dk, float(p.scale));
    write(p.grad_v, grad_v, w.dv, 1.0f);
    next += is_kept;
  }
}

}  // namespace DS4SCI_ISA
