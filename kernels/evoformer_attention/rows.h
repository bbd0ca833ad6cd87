// Forward and backward of one task: a group of rows of one (batch, head), which share the transposed pair bias.
// Included by width.cpp inside its namespace.

static inline Vec sigmoid(Vec x) {
  const Vec y = x * float(-LOG2E);
  return set(1.0f) / (set(1.0f) + exp2<5>(y > 126.0f ? set(126.0f) : y));  // beyond, 2^y has no exponent
}

// What a tile of queries will need next, asked for while the tile before it is worked on: its own rows and, towards the
// end of a row, the next one's keys, no earlier: rows of one head share few sets of the cache.
// `more`: there is a next row.
static void ask(const Problem& p, int64_t b, int64_t s, int64_t h, int64_t q0, bool more, bool backward) {
  const int d = int(p.channels);
  const bool last = q0 + QB >= p.queries;
  if (!last || more) {
    const int64_t row = last ? s + 1 : s, from = last ? 0 : q0 + QB, to = std::min<int64_t>(p.queries, from + QB);
    for (const Array* x : {&p.q, &p.gate, backward ? &p.out : nullptr, backward ? &p.grad_out : nullptr})
      if (x && x->data) Rows(*x, b, row, h).ahead<0>(from, to, d);
    for (const Array* x : {backward ? &p.grad_q : &p.out, backward ? &p.grad_gate : nullptr})
      if (x && x->data) Rows(*x, b, row, h).ahead<1>(from, to, d);
  }
  const int64_t tiles = (p.queries + QB - 1) / QB, late = (tiles + 3) / 4, turn = q0 / QB - (tiles - late);
  if (turn < 0) return;
  const int64_t from = p.keys * turn / late, to = p.keys * (turn + 1) / late;
  if (more)
    for (const Array* x : {&p.k, &p.v}) Rows(*x, b, s + 1, h).ahead<0>(from, to, d);
  if (backward)
    for (const Array* x : {&p.grad_k, &p.grad_v})
      if (x->data) Rows(*x, b, s, h).ahead<1>(from, to, d);
}

template <class N>
static void forward_row(const Problem& p, int64_t b, int64_t s, int64_t h, bool more, Scratch<N>& w) {
  const int64_t n = pack_keys(p, b, s, h, false, w);
  const int d = w.d, dp = w.dp, wp = w.wp;
  const bool adds = n && (w.added[n - 1] == NONE || (p.mask.data && p.mask.type != ds4sci::BOOL));
  const Vec factor = set(float(p.scale * LOG2E));
  const int64_t step = p.bias.data ? QB : 0;
  const Rows out(p.out, b, s, h), gate(p.gate, b, s, h);
  float* lses = static_cast<float*>(p.lse.data) + place(p.lse, b, s, h, 0);
  float* rests = p.rest.data ? static_cast<float*>(p.rest.data) + place(p.rest, b, s, h, 0) : nullptr;
  for (int64_t q0 = 0; q0 < p.queries; q0 += QB) {
    const int count = int(std::min<int64_t>(QB, p.queries - q0));
    ask(p, b, s, h, q0, more, false);
    pack_queries(p, b, s, h, q0, count, w);
    const float* bias = p.bias.data ? &w.bias[q0 * p.keys] : w.nothing.data();
    Vec top[QB / W], sum[QB / W], highest[QB / W], shrink[QB / W];
    for (int x = 0; x < QB / W; ++x) top[x] = set(NONE), sum[x] = Vec{};
    for (int64_t first = 0; first < n; first += KB) {
      const int keys = int(std::min<int64_t>(KB, n - first));
      for (int x = 0; x < QB / W; ++x) highest[x] = top[x];
      for (int x0 = 0; x0 < QB; x0 += 2 * W)
        blocks<MR, 1>(keys, [&](auto height, int i0) {
          constexpr int M = height;
          Vec acc[M][2] = {};
          accumulate<N, 1>(acc, w.words, &w.kt[first * wp + i0], KB, &w.qt[x0], QB);
          DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
            Vec high = highest[x0 / W + x];
            DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
              Vec score = acc[i][x] * factor + load(bias + w.kept[first + i0 + i] * step + x0 + x * W);
              if (adds) score += w.added[first + i0 + i];
              store(&w.scores[(i0 + i) * QB + x0 + x * W], score);
              high = max(high, score);
            }
            highest[x0 / W + x] = high;
          }
        });
      for (int x = 0; x < QB / W; ++x) {
        // nothing but -inf so far: subtract 0, so that the weights are 0 and not NaN
        const Vec base = highest[x] == set(NONE) ? Vec{} : highest[x];
        shrink[x] = exp2<5>(top[x] - base);
        sum[x] = sum[x] * shrink[x] + weigh(N{}, keys, base, &w.scores[x * W], w.zipped.data() + x * W);
        top[x] = highest[x];
      }
      const float* values = w.along_keys(w.v, first);
      const float* weights = N::PER == 2 ? w.zipped.data() : w.scores.data();
      if (first)
        product<N, 1, RESCALE>(d, QB, keys / N::PER, values, dp, weights, QB, w.sums.data(), QB, shrink);
      else
        product<N, 1, SET>(d, QB, keys / N::PER, values, dp, weights, QB, w.sums.data(), QB);
    }
    for (int c = 0; c < dp; c += W)
      for (int q = 0; q < QB; q += W) transpose(&w.sums[c * QB + q], QB, &w.lines[q * dp + c], dp);
    float scales[QB], lse[QB], rest[QB];
    for (int x = 0; x < QB / W; ++x) {
      const Vec total = n ? sum[x] : Vec{};
      const Vec whole = natural(top[x], log2(total)) + (total - total);  // log2 of NaN is none
      store(lse + x * W, total == 0.0f ? set(NONE) : whole);
      store(rest + x * W, total == 0.0f ? Vec{} : narrow((wide(top[x]) - wide(binary(whole)) + log2(total)) * LN2));
      store(scales + x * W, total == 0.0f ? Vec{} : 1.0f / total);
    }
    for (int q = 0; q < count; ++q) {
      float* line = &w.lines[q * dp];
      if (scales[q] == 0.0f) std::fill(line, line + dp, 0.0f);  // no keys: the sums are another tile's
      for (int c = 0; c < d; c += W) store(line + c, load(line + c) * scales[q]);
      if (p.gate.data) {
        fetch(gate, q0 + q, d, w.line2.data());
        for (int c = 0; c < d; c += W) store(line + c, load(line + c) * sigmoid(load(&w.line2[c])));
      }
      put(out, q0 + q, d, line);
    }
    copy(lse, lses + q0, count);
    if (rests) copy(rest, rests + q0, count);
  }
}

// A tile of dO: rows, and its delta and lse for each query; gradient of the gate on the way.
//
// A weight is 2^(score - lse - left), lse being rounded: dO and delta take the factor 2^-left, as the weights' products
// with them are all that is needed.
template <class N>
static void pack_gradients(const Problem& p, int64_t b, int64_t s, int64_t h, int64_t q0, int count, Scratch<N>& w,
                           float* lse, float* delta) {
  const int d = w.d;
  const Rows from_grad(p.grad_out, b, s, h), from_out(p.out, b, s, h), from_gate(p.gate, b, s, h);
  const Rows to_gate(p.grad_gate, b, s, h);
  const float* lses = static_cast<const float*>(p.lse.data) + place(p.lse, b, s, h, 0);
  const float* rests = p.rest.data ? static_cast<const float*>(p.rest.data) + place(p.rest, b, s, h, 0) : nullptr;
  float shares[QB];
  for (int q = 0; q < QB; ++q) lse[q] = NONE, shares[q] = delta[q] = 0.0f;  // past the last query: every weight 0
  copy(lses + q0, lse, count);
  if (rests) copy(rests + q0, shares, count);
  for (int x = 0; x < QB; x += W) {  // no keys: every weight 0
    const Vec own = load(lse + x);
    store(shares + x, exp2<5>(load(shares + x) * float(-LOG2E)));
    store(lse + x, own == NONE ? set(-NONE) : binary(own));
  }
  std::fill(w.g.begin() + count * w.wp, w.g.end(), 0.0f);
  for (int q = 0; q < count; ++q) {
    float *grad = w.line.data(), *out = w.line2.data(), *gate = w.line3.data();
    fetch(from_grad, q0 + q, d, grad);
    fetch(from_out, q0 + q, d, out);
    const float share = shares[q];
    DVec dots = {};
    if (p.gate.data) {
      fetch(from_gate, q0 + q, d, gate);
      for (int c = 0; c < d; c += W) {  // the lanes beyond d are padding in all three
        const Vec open = sigmoid(load(gate + c)), given = load(grad + c), all = given * open * share;
        dots += wide(given * share) * wide(load(out + c));
        // σ(g) stands in out instead of in dO; what dO loses when it becomes words, the dots must lose too, or weights'
        // gradients of a query, whose sum is 0, are all wrong by the same
        if (N::PER == 2) dots += wide(open > 1e-6f ? (from_bf16(to_bf16(all)) - all) * load(out + c) / open : Vec{});
        store(out + c, load(out + c) * given * (1.0f - open));
        store(grad + c, all);
      }
      if (p.grad_gate.data) put(to_gate, q0 + q, d, out);
    } else {
      for (int c = 0; c < d; c += W) {
        const Vec all = load(grad + c) * share;
        dots += wide(N::PER == 2 ? from_bf16(to_bf16(all)) : all) * wide(load(out + c));
        store(grad + c, all);
      }
    }
    delta[q] = float(sum_of(dots));
    to_words(N{}, grad, d, &w.g[q * w.wp]);
    if (p.grad_lse.data)
      delta[q] -= share * static_cast<const float*>(p.grad_lse.data)[place(p.grad_lse, b, s, h, q0 + q)];
  }
  turn(w, w.g, w.gt);
#if defined(__AVX512BF16__)
  if constexpr (N::PER == 2)
    for (int q = 0; q < QB; q += 2) {
      zip(&w.q[q * w.wp], &w.q[(q + 1) * w.wp], d, &w.qz[q / 2 * w.dp]);
      zip(&w.g[q * w.wp], &w.g[(q + 1) * w.wp], d, &w.gz[q / 2 * w.dp]);
    }
#endif
  if (w.twin)
    for (auto* rows : {N::PER == 2 ? &w.qz : &w.q, N::PER == 2 ? &w.gz : &w.g}) pair_up(*rows, QB / N::PER, w.dp);
}

template <class N>
static void backward_row(const Problem& p, int64_t b, int64_t s, int64_t h, bool more, float* grad_bias, Scratch<N>& w) {
  const int64_t n = pack_keys(p, b, s, h, true, w);
  const int d = w.d, dp = w.dp, wp = w.wp;
  const bool adds = n && (w.added[n - 1] == NONE || (p.mask.data && p.mask.type != ds4sci::BOOL));
  const Vec factor = set(float(p.scale * LOG2E));
  std::fill(w.dk.begin(), w.dk.begin() + n * dp, 0.0f);
  std::fill(w.dv.begin(), w.dv.begin() + n * dp, 0.0f);
  const bool many = !w.near_k.empty();
  float *dk = many ? w.near_k.data() : w.dk.data(), *dv = many ? w.near_v.data() : w.dv.data();
  float* grad_mask = p.grad_mask ? p.grad_mask + ((b * p.rows + s) * p.heads + h) * p.keys : nullptr;
  if (grad_mask) std::fill(w.of_mask.begin(), w.of_mask.end(), 0.0);
  const int64_t step = p.bias.data ? QB : 0;
  const Rows grad_q(p.grad_q, b, s, h), grad_k(p.grad_k, b, s, h), grad_v(p.grad_v, b, s, h);
  for (int64_t q0 = 0; q0 < p.queries; q0 += QB) {
    const int count = int(std::min<int64_t>(QB, p.queries - q0));
    float lse[QB], delta[QB];
    ask(p, b, s, h, q0, more, true);
    pack_queries(p, b, s, h, q0, count, w);
    const float* bias = p.bias.data ? &w.bias[q0 * p.keys] : w.nothing.data();
    pack_gradients(p, b, s, h, q0, count, w, lse, delta);
    float* into = grad_bias ? grad_bias + q0 * p.keys : nullptr;
    for (int64_t first = 0; first < n; first += KB) {
      const int keys = int(std::min<int64_t>(KB, n - first));
      for (int x0 = 0; x0 < QB; x0 += 2 * W)
        blocks<MR2, N::PER>(keys, [&](auto height, int i0) {
          constexpr int M = height;
          Vec own[M][2] = {}, slope[M][2] = {};
          accumulate<N, 1>(own, w.words, &w.kt[first * wp + i0], KB, &w.qt[x0], QB);
          accumulate<N, 1>(slope, w.words, &w.vt[first * wp + i0], KB, &w.gt[x0], QB);
          DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
            const int64_t key = w.kept[first + i0 + i];
            DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
              const int at = x0 + x * W;
              Vec score = own[i][x] * factor + load(bias + key * step + at);
              if (adds) score += w.added[first + i0 + i];
              own[i][x] = exp2<N::DEGREE>(score - load(lse + at));
              slope[i][x] = own[i][x] * (slope[i][x] - load(delta + at));
              if (into) store(into + key * QB + at, load(into + key * QB + at) + slope[i][x]);
            }
            if (grad_mask) w.of_mask[key] += sum_of(wide(slope[i][0]) + wide(slope[i][1]));
          }
          keep(N{}, own, slope, i0, x0, w.scores.data(), w.weights.data(), w.zipped.data());
        });
      // scores holds P, weights dS; a gradient that nobody asked for is not made
      const float* pairs = N::PER == 2 ? w.zipped.data() : w.weights.data();
      const float* packed = w.along_keys(w.k, first);
      constexpr int QW = QB / N::PER;
      if (p.grad_q.data && first)
        product<N, 1, ADD>(d, QB, keys / N::PER, packed, dp, pairs, QB, w.sums.data(), QB);
      else if (p.grad_q.data)
        product<N, 1, SET>(d, QB, keys / N::PER, packed, dp, pairs, QB, w.sums.data(), QB);
      auto along_queries = [&](const Array& wanted, const float* a, const std::vector<float>& b, float* c) {
        if (wanted.data && w.twin)
          product<Twin<N>, QW, ADD>(keys, dp, QW / 2, a, 2, b.data(), dp, c, dp);
        else if (wanted.data)
          product<N, QW, ADD>(keys, dp, (count + N::PER - 1) / N::PER, a, 1, b.data(), dp, c, dp);
      };
      along_queries(p.grad_k, w.weights.data(), N::PER == 2 ? w.qz : w.q, &dk[first * dp]);
      along_queries(p.grad_v, w.scores.data(), N::PER == 2 ? w.gz : w.g, &dv[first * dp]);
    }
    if (many && ((q0 + QB) % SOME_QUERIES == 0 || q0 + QB >= p.queries))
      for (auto [from, to] : {std::pair{&w.near_k, &w.dk}, {&w.near_v, &w.dv}})
        for (int64_t i = 0; i < n * dp; i += W) {
          store(&(*to)[i], load(&(*to)[i]) + load(&(*from)[i]));
          store(&(*from)[i], Vec{});
        }
    if (p.grad_q.data) {
      for (int c = 0; c < dp; c += W)
        for (int q = 0; q < QB; q += W) transpose(&w.sums[c * QB + q], QB, &w.lines[q * dp + c], dp);
      for (int q = 0; q < count; ++q) {
        float* line = &w.lines[q * dp];
        for (int c = 0; c < d; c += W) store(line + c, n ? load(line + c) * float(p.scale) : Vec{});
        put(grad_q, q0 + q, d, line);
      }
    }
  }
  if (grad_mask) std::copy(w.of_mask.begin(), w.of_mask.end(), grad_mask);
  int64_t next = 0;
  for (int64_t k = 0; k < p.keys; ++k) {
    const bool is_kept = next < n && w.kept[next] == k;
    auto write = [&](const Array& wanted, const Rows& to, const std::vector<float>& sums, float factor) {
      if (!wanted.data) return;
      const float* from = &sums[next * dp];
      if (!is_kept)
        std::fill(w.line.begin(), w.line.end(), 0.0f);
      else if (w.twin)
        for (int c = 0; c < d; ++c) w.line[c] = (from[2 * c] + from[2 * c + 1]) * factor;
      else
        for (int c = 0; c < d; c += W) store(&w.line[c], load(from + c) * factor);
      put(to, k, d, w.line.data());
    };
    write(p.grad_k, grad_k, w.dk, float(p.scale));
    write(p.grad_v, grad_v, w.dv, 1.0f);
    next += is_kept;
  }
}

// Adds `recent` to `sums` and makes it 0; `lost` keeps what their rounding loses (Knuth's sum of two).
static inline void move_into(std::vector<float>& recent, float* sums, std::vector<float>& lost) {
  for (size_t i = 0; i < recent.size(); i += W) {
    const Vec a = load(sums + i), b = load(&recent[i]), whole = a + b, part = whole - a;
    store(sums + i, whole);
    store(&lost[i], load(&lost[i]) + ((a - (whole - part)) + (b - part)));
    store(&recent[i], Vec{});
  }
}

template <class N>
static void run_task(const Problem& p, int64_t task, bool backward, Scratch<N>& w) {
  const int64_t group = task % p.groups, h = task / p.groups % p.heads, b = task / p.groups / p.heads;
  const int64_t from = p.rows * group / p.groups, to = p.rows * (group + 1) / p.groups;
  pack_bias(p, b, h, w);
  float* grad_bias =
      p.grad_bias ? p.grad_bias + ((group * p.batch + b) * p.heads + h) * w.tiles * p.keys * QB : nullptr;
  // of many rows, the pair bias's gradient is summed over some at a time, and then over those sums without a loss
  const bool many = grad_bias && to - from > SOME_ROWS;
  if (many)
    for (auto* x : {&w.recent, &w.lost}) x->assign(w.tiles * p.keys * QB, 0.0f);
  for (int64_t s = from; s < to; ++s) {
    if (backward)
      backward_row(p, b, s, h, s + 1 < to, many ? w.recent.data() : grad_bias, w);
    else
      forward_row(p, b, s, h, s + 1 < to, w);
    if (many && ((s + 1 - from) % SOME_ROWS == 0 || s + 1 == to)) move_into(w.recent, grad_bias, w.lost);
  }
  if (many)
    for (size_t i = 0; i < w.lost.size(); ++i) grad_bias[i] += w.lost[i];
}

// Tasks are taken from a shared counter; each writes its own part of the results, so who took it does not matter. Each
// thread begins in a part of its own: narrow heads that are neighbours share cache lines.
template <class N>
static void work_with(const Problem& p, bool backward, std::atomic<int64_t>& next) {
  const int64_t tasks = p.batch * p.heads * p.groups;
  const int64_t parts = std::max<int64_t>(1, std::min(p.threads, tasks)), part = (tasks + parts - 1) / parts;
  std::unique_ptr<Scratch<N>> scratch;
  for (int64_t turn = next++; turn < part * parts; turn = next++) {
    const int64_t task = turn % parts * part + turn / parts;
    if (task >= tasks) continue;
    if (!scratch) scratch.reset(new Scratch<N>(p, backward));
    run_task(p, task, backward, *scratch);
  }
}

static void work(const Problem& p, bool backward, std::atomic<int64_t>& next) {
#if defined(__AVX512BF16__)
  if (p.q.type == ds4sci::BFLOAT16) return work_with<Pair>(p, backward, next);
#endif
  work_with<Single>(p, backward, next);
}
