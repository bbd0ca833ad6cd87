// Copies of the caller's strided arrays in a thread's workspace, in the layout that the matrix products need.
//
// Rows are packed before they are used. This costs O(n·d) next to the O(n²·d) of the products and handles strides, dtypes that
// the products do not take, and masked keys: keys that the mask excludes are not packed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../simd/lane_rows.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Params;

// Sums over more rows or queries than this are sums of partial sums: each summand then takes part in fewer roundings.
constexpr int64_t ROWS_PER_PARTIAL = 64, QUERIES_PER_PARTIAL = 1024;

// The buffers of one thread. Their sizes depend on the problem only.
template <class L>
struct Workspace {
  int d, dp;       // channels, and padded to whole vectors
  bool paired;     // a row of channels is at most half a vector: dk and dv have two lanes per channel, see PairedLanes
  int lanes, lp;   // lanes of a row, and padded to whole vectors
  int64_t tiles;   // of queries
  int64_t padded;  // keys, to whole tiles
  std::vector<float> bias;                          // [tile][key][QB]: transposed, in units of log 2
  std::vector<float> k, v;                          // [key][lp]
  std::vector<float> interleaved_kv;                // K or V interleaved, for Bf16Lanes only: [key / 2][dp]
  std::vector<float> kt, vt;                        // transposed: [tile of keys][lane][KB]
  std::vector<float> dk, dv;                        // [key][dp]
  std::vector<float> mask_bias;                     // the value of a float mask at each kept key
  std::vector<int64_t> kept_keys;                   // indices of the keys that are not masked
  std::vector<float> scores, weights, interleaved;  // [KB][QB], [KB][QB], [KB / 2][QB]
  std::vector<float> q, g, qt, gt;                  // [QB][lp]; transposed [lp][QB]
  std::vector<float> qz, gz;                        // interleaved, for Bf16Lanes only: [QB / 2][dp]
  std::vector<float> sums, sum_rows;                // [dp][QB] and, transposed, [QB][dp]
  std::vector<float> row, row2, row3;               // [dp]
  std::vector<float> zeros;                         // [QB]: a bias of 0
  std::vector<double> mask_grad;                    // [key]: the gradient of a float mask
  std::vector<float> bias_partial, bias_lost;       // like bias: its gradient, see run_task
  std::vector<float> partial_dk, partial_dv;        // like dk and dv: sums over QUERIES_PER_PARTIAL queries, if there are more

  Workspace(const Params& p, bool backward) {
    d = int(p.channels);
    dp = round_up(d, W);
    paired = 2 * d <= W;
    lanes = (d + L::PER_LANE - 1) / L::PER_LANE;
    lp = round_up(lanes, W);
    tiles = (p.queries + QB - 1) / QB;
    const size_t keys = p.keys + 1;  // one more: Bf16Lanes take keys in pairs
    if (p.bias.data) bias.resize(size_t(tiles) * p.keys * QB);
    padded = (keys + KB - 1) / KB * KB;
    for (auto* x : {&k, &v, &kt}) x->resize(padded * lp);
    mask_bias.resize(keys);
    kept_keys.resize(keys);
    scores.resize(KB * QB);
    for (auto* x : {&q, &qt}) x->resize(lp * QB);
    sums.resize(dp * QB);
    sum_rows.resize(dp * QB);
    for (auto* x : {&row, &row2, &row3}) x->resize(dp);
    zeros.assign(QB, 0.0f);
    if (L::PER_LANE == 2) {
      interleaved_kv.resize(keys / 2 * dp + dp);
      interleaved.resize(KB * QB / 2);
    }
    if (backward) {
      vt.resize(padded * lp);
      for (auto* x : {&g, &gt}) x->resize(lp * QB);
      if (L::PER_LANE == 2)
        for (auto* x : {&qz, &gz}) x->resize(QB / 2 * dp);
      dk.resize(keys * dp);
      dv.resize(keys * dp);
      if (L::PER_LANE == 1 && p.queries > QUERIES_PER_PARTIAL)
        for (auto* x : {&partial_dk, &partial_dv}) x->resize(keys * dp);
      weights.resize(KB * QB);
      if (p.grad_mask) mask_grad.resize(p.keys);
    }
  }

  // The operand a of a product along the keys, from `key` on.
  const float* along_keys(const std::vector<float>& rows, int64_t key) const {
    return L::PER_LANE == 2 ? &interleaved_kv[key / 2 * dp] : &rows[key * lp];
  }
};

// Packs the pair bias of one (batch, head), transposed to [tile of queries][key][query].
template <class L>
static void pack_bias(const Params& p, int64_t b, int64_t h, Workspace<L>& w) {
  if (!p.bias.data) return;
  float square[W][W] = {}, transposed[W][W];
  for (int64_t q0 = 0; q0 < p.queries; q0 += W)
    for (int64_t k0 = 0; k0 < p.keys; k0 += W) {
      const int height = int(std::min<int64_t>(W, p.queries - q0)), length = int(std::min<int64_t>(W, p.keys - k0));
      for (int q = 0; q < height; ++q) {
        const int64_t at = offset(p.bias, b, h, q0 + q, k0);
        if (p.bias.stride[3] == 1)
          load_row(Rows(p.bias, at), 0, length, square[q]);
        else
          for (int k = 0; k < length; ++k) square[q][k] = element(p.bias, at + k * p.bias.stride[3]);
        store(square[q], to_log2(load(square[q])));
      }
      transpose(square[0], W, transposed[0], W);
      for (int k = 0; k < length; ++k)
        store(&w.bias[((q0 / QB) * p.keys + k0 + k) * QB + q0 % QB], load(transposed[k]));
    }
}

// Packs the keys and values of one row that are not masked and returns their number. Bf16Lanes add a key of zeros, masked with
// -inf, to an odd number.
template <class L>
static int64_t pack_keys(const Params& p, int64_t b, int64_t s, int64_t h, bool backward, Workspace<L>& w) {
  int64_t n = 0;
  const Rows k_rows(p.k, b, s, h), v_rows(p.v, b, s, h);
  for (int64_t k = 0; k < p.keys; ++k) {
    float value = 0.0f;
    if (p.mask.data) {
      const int64_t at = offset(p.mask, b, s, k, 0);
      if (p.mask.dtype == ds4sci::BOOL) {
        if (!static_cast<const uint8_t*>(p.mask.data)[at]) continue;
      } else {
        value = element(p.mask, at);
        if (value == NEG_INF) continue;
      }
    }
    w.kept_keys[n] = k;
    w.mask_bias[n] = to_log2(set1(value))[0];
    load_lanes(L{}, k_rows, k, w.d, &w.k[n * w.lp]);
    load_lanes(L{}, v_rows, k, w.d, &w.v[n * w.lp]);
    ++n;
  }
#if defined(__AVX512BF16__)
  if constexpr (L::PER_LANE == 2) {
    if (n % 2) {
      std::fill(&w.k[n * w.lp], &w.k[n * w.lp] + w.lp, 0.0f);
      std::fill(&w.v[n * w.lp], &w.v[n * w.lp] + w.lp, 0.0f);
      w.kept_keys[n] = n ? w.kept_keys[n - 1] : 0;
      w.mask_bias[n++] = NEG_INF;
    }
    auto& rows = backward ? w.k : w.v;  // the backward needs K for dQ, the forward V for the output
    for (int64_t i = 0; i < n; i += 2)
      interleave(&rows[i * w.lp], &rows[(i + 1) * w.lp], w.d, &w.interleaved_kv[i / 2 * w.dp]);
  }
#endif
  for (int64_t k0 = 0; k0 < n; k0 += W)
    for (int c = 0; c < w.lanes; c += W) {
      const int64_t at = k0 / KB * KB * w.lp + c * KB + k0 % KB;
      transpose(&w.k[k0 * w.lp + c], w.lp, &w.kt[at], KB, std::min(W, w.lanes - c));
      if (backward) transpose(&w.v[k0 * w.lp + c], w.lp, &w.vt[at], KB, std::min(W, w.lanes - c));
    }
  return n;
}

// Merges pairs of rows of at most half a vector in place, lane by lane, for PairedLanes.
static inline void pair_rows(std::vector<float>& rows, int count, int step) {
  for (int t = 0; t < count / 2; ++t) {
    float both[W];
    const float *a = &rows[2 * t * step], *b = &rows[(2 * t + 1) * step];
    for (int c = 0; c < W / 2; ++c) both[2 * c] = a[c], both[2 * c + 1] = b[c];
    store(&rows[t * step], load(both));
  }
}

// Transposes the rows of QB queries to [lane][query].
template <class L>
static void transpose_tile(const Workspace<L>& w, const std::vector<float>& rows, std::vector<float>& to) {
  for (int c = 0; c < w.lanes; c += W)
    for (int q = 0; q < QB; q += W)
      transpose(&rows[q * w.lp + c], w.lp, &to[c * QB + q], QB, std::min(W, w.lanes - c));
}

// Packs the tile of queries that starts at q0. Queries beyond the last one are 0.
template <class L>
static void pack_queries(const Params& p, int64_t b, int64_t s, int64_t h, int64_t q0, int count, Workspace<L>& w) {
  const Rows from(p.q, b, s, h);
  for (int q = 0; q < count; ++q) load_lanes(L{}, from, q0 + q, w.d, &w.q[q * w.lp]);
  std::fill(w.q.begin() + count * w.lp, w.q.end(), 0.0f);
  transpose_tile(w, w.q, w.qt);
}

}  // namespace DS4SCI_ISA
