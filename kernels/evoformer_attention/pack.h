// Between the caller's strided arrays and a thread's buffers. Included by width.cpp inside its namespace.
//
// Rows are packed first (n·d work beside n²·d), which takes care of strides, of dtypes that are no words of the products,
// and of masked keys: a key that the mask drops is simply not packed.

using ds4sci::Problem;

// Sums over more than so many rows, and queries, are made of sums over so many: rounding then grows with the root of both
// numbers instead of with their product's.
constexpr int64_t SOME_ROWS = 64, SOME_QUERIES = 1024;

// Where one thread works. Sizes depend on the problem alone.
template <class N>
struct Scratch {
  int d, dp;  // channels, and padded to whole vectors
  bool twin;  // a row of channels is at most half a vector: dk and dv have two lanes for each, which are summed at last
  int words, wp;  // words of a row, and padded to whole vectors
  int64_t tiles;  // of queries
  int64_t padded;  // keys, to whole tiles
  std::vector<float> bias;                     // [tile][key][QB]: transposed, in units of log 2
  std::vector<float> k, v, zip;                // [key][wp]; K or V zipped (Pair alone): [key / 2][dp]
  std::vector<float> kt, vt;                   // transposed: [tile of keys][word][KB]
  std::vector<float> dk, dv;                   // [key][dp]
  std::vector<float> added;                    // the mask's float at each kept key
  std::vector<int64_t> kept;                   // keys that take part
  std::vector<float> scores, weights, zipped;  // [KB][QB], [KB][QB], [KB / 2][QB]
  std::vector<float> q, g, qt, gt, qz, gz;     // [QB][wp]; transposed [wp][QB]; zipped (Pair alone) [QB / 2][dp]
  std::vector<float> sums, lines;              // [dp][QB] and, transposed, [QB][dp]
  std::vector<float> line, line2, line3;       // [dp]
  std::vector<float> nothing;                  // [QB]: a bias of 0
  std::vector<double> of_mask;                 // [key]: the float mask's gradient
  std::vector<float> recent, lost;             // like bias: its gradient, see run_task
  std::vector<float> near_k, near_v;           // like dk and dv, of SOME_QUERIES queries where there are more

  Scratch(const Problem& p, bool backward) {
    d = int(p.channels);
    dp = round_up(d, W);
    twin = 2 * d <= W;
    words = (d + N::PER - 1) / N::PER;
    wp = round_up(words, W);
    tiles = (p.queries + QB - 1) / QB;
    const size_t keys = p.keys + 1;  // one more: pairs of keys
    if (p.bias.data) bias.resize(size_t(tiles) * p.keys * QB);
    padded = (keys + KB - 1) / KB * KB;
    for (auto* x : {&k, &v, &kt}) x->resize(padded * wp);
    added.resize(keys);
    kept.resize(keys);
    scores.resize(KB * QB);
    for (auto* x : {&q, &qt}) x->resize(wp * QB);
    sums.resize(dp * QB);
    lines.resize(dp * QB);
    for (auto* x : {&line, &line2, &line3}) x->resize(dp);
    nothing.assign(QB, 0.0f);
    if (N::PER == 2) {
      zip.resize(keys / 2 * dp + dp);
      zipped.resize(KB * QB / 2);
    }
    if (backward) {
      vt.resize(padded * wp);
      for (auto* x : {&g, &gt}) x->resize(wp * QB);
      if (N::PER == 2)
        for (auto* x : {&qz, &gz}) x->resize(QB / 2 * dp);
      dk.resize(keys * dp);
      dv.resize(keys * dp);
      if (N::PER == 1 && p.queries > SOME_QUERIES)
        for (auto* x : {&near_k, &near_v}) x->resize(keys * dp);
      weights.resize(KB * QB);
      if (p.grad_mask) of_mask.resize(p.keys);
    }
  }

  // a of a product along keys
  const float* along_keys(const std::vector<float>& rows, int64_t key) const {
    return N::PER == 2 ? &zip[key / 2 * dp] : &rows[key * wp];
  }
};

// The pair bias of one (batch, head), tile by tile of queries and transposed to [key][query].
template <class N>
static void pack_bias(const Problem& p, int64_t b, int64_t h, Scratch<N>& w) {
  if (!p.bias.data) return;
  float square[W][W] = {}, turned[W][W];
  for (int64_t q0 = 0; q0 < p.queries; q0 += W)
    for (int64_t k0 = 0; k0 < p.keys; k0 += W) {
      const int height = int(std::min<int64_t>(W, p.queries - q0)), length = int(std::min<int64_t>(W, p.keys - k0));
      for (int q = 0; q < height; ++q) {
        const int64_t at = place(p.bias, b, h, q0 + q, k0);
        if (p.bias.stride[3] == 1)
          fetch(Rows(p.bias, at), 0, length, square[q]);
        else
          for (int k = 0; k < length; ++k) square[q][k] = element(p.bias, at + k * p.bias.stride[3]);
        store(square[q], binary(load(square[q])));
      }
      transpose(square[0], W, turned[0], W);
      for (int k = 0; k < length; ++k)
        store(&w.bias[((q0 / QB) * p.keys + k0 + k) * QB + q0 % QB], load(turned[k]));
    }
}

// K and V of one row, kept keys only; returns their number, which for Pair a key of zeros, with a mask of -inf, makes even.
template <class N>
static int64_t pack_keys(const Problem& p, int64_t b, int64_t s, int64_t h, bool backward, Scratch<N>& w) {
  int64_t n = 0;
  const Rows from_k(p.k, b, s, h), from_v(p.v, b, s, h);
  for (int64_t k = 0; k < p.keys; ++k) {
    float add = 0.0f;
    if (p.mask.data) {
      const int64_t at = place(p.mask, b, s, k, 0);
      if (p.mask.type == ds4sci::BOOL) {
        if (!static_cast<const uint8_t*>(p.mask.data)[at]) continue;
      } else {
        add = element(p.mask, at);
        if (add == NONE) continue;
      }
    }
    w.kept[n] = k;
    w.added[n] = binary(set(add))[0];
    row(N{}, from_k, k, w.d, &w.k[n * w.wp]);
    row(N{}, from_v, k, w.d, &w.v[n * w.wp]);
    ++n;
  }
#if defined(__AVX512BF16__)
  if constexpr (N::PER == 2) {
    if (n % 2) {
      std::fill(&w.k[n * w.wp], &w.k[n * w.wp] + w.wp, 0.0f);
      std::fill(&w.v[n * w.wp], &w.v[n * w.wp] + w.wp, 0.0f);
      w.kept[n] = n ? w.kept[n - 1] : 0;
      w.added[n++] = NONE;
    }
    auto& rows = backward ? w.k : w.v;  // for dQ, for the output
    for (int64_t i = 0; i < n; i += 2) zip(&rows[i * w.wp], &rows[(i + 1) * w.wp], w.d, &w.zip[i / 2 * w.dp]);
  }
#endif
  for (int64_t k0 = 0; k0 < n; k0 += W)
    for (int c = 0; c < w.words; c += W) {
      const int64_t at = k0 / KB * KB * w.wp + c * KB + k0 % KB;
      transpose(&w.k[k0 * w.wp + c], w.wp, &w.kt[at], KB, std::min(W, w.words - c));
      if (backward) transpose(&w.v[k0 * w.wp + c], w.wp, &w.vt[at], KB, std::min(W, w.words - c));
    }
  return n;
}

// For Twin, in place: two rows of at most half a vector become one, lane by lane.
static inline void pair_up(std::vector<float>& rows, int count, int step) {
  for (int t = 0; t < count / 2; ++t) {
    float both[W];
    const float *a = &rows[2 * t * step], *b = &rows[(2 * t + 1) * step];
    for (int c = 0; c < W / 2; ++c) both[2 * c] = a[c], both[2 * c + 1] = b[c];
    store(&rows[t * step], load(both));
  }
}

// Rows of QB queries, transposed: [word][query].
template <class N>
static void turn(const Scratch<N>& w, const std::vector<float>& rows, std::vector<float>& to) {
  for (int c = 0; c < w.words; c += W)
    for (int q = 0; q < QB; q += W)
      transpose(&rows[q * w.wp + c], w.wp, &to[c * QB + q], QB, std::min(W, w.words - c));
}

// A tile of queries from q0 on; beyond the last one zeros.
template <class N>
static void pack_queries(const Problem& p, int64_t b, int64_t s, int64_t h, int64_t q0, int count, Scratch<N>& w) {
  const Rows from(p.q, b, s, h);
  for (int q = 0; q < count; ++q) row(N{}, from, q0 + q, w.d, &w.q[q * w.wp]);
  std::fill(w.q.begin() + count * w.wp, w.q.end(), 0.0f);
  turn(w, w.q, w.qt);
}
