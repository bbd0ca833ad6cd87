// Backward of one task: all queries of a document, for the heads of one group. Included by width.cpp inside its namespace.

// A tile of dOut: rows; delta = Σ dOut · out, and the logarithm in units of log 2, of each query.
template <class N>
static void pack_gradients(const Packed& p, int64_t head, Scratch<N>& w, Queries& tile) {
  const Rows from_grad = rows_of(p.grad_out, head, tile.at), from_out = rows_of(p.out, head, tile.at);
  const int64_t at = head * p.tokens + tile.at;
  for (int q = 0; q < QB; ++q) tile.lse[q] = NONE, tile.rest[q] = tile.delta[q] = 0.0f;
  copy(p.lse + at, tile.lse, tile.count);
  if (p.rest) copy(p.rest + at, tile.rest, tile.count);
  std::fill(tile.g.begin() + tile.count * w.wp, tile.g.end(), 0.0f);
  for (int q = 0; q < tile.count; ++q) {
    float *grad = w.line.data(), *out = w.line2.data();
    fetch(from_grad, q, w.d, grad);
    fetch(from_out, q, w.d, out);
    DVec dots = {};
    for (int c = 0; c < w.d; c += W) dots += wide(load(grad + c)) * wide(load(out + c));
    tile.delta[q] = float(sum_of(dots));
    to_words(N{}, grad, w.d, &tile.g[q * w.wp]);
  }
  for (int x = 0; x < QB; x += W) {  // as a sum of two; past the last query: every weight 0
    const Vec own = load(tile.lse + x);
    const DVec exact = (wide(own) + wide(load(tile.rest + x))) * LOG2E;
    const Vec whole = own == NONE ? set(-NONE) : narrow(exact);
    store(tile.lse + x, whole);
    store(tile.rest + x, own == NONE ? Vec{} : narrow(exact - wide(whole)));
  }
  turn(w, tile.g, tile.gt);
#if defined(__AVX512BF16__)
  if constexpr (N::PER == 2)
    for (int q = 0; q < QB; q += 2) {
      zip(&tile.q[q * w.wp], &tile.q[(q + 1) * w.wp], w.d, &tile.qz[q / 2 * w.dp]);
      zip(&tile.g[q * w.wp], &tile.g[(q + 1) * w.wp], w.d, &tile.gz[q / 2 * w.dp]);
    }
#endif
}

// What a tile of queries gives to, and takes from, the tile of keys from key `first` on.
// Gradients of the keys are added to `dk`, those of the values to `dv`, both [KB][dp].
template <class N>
static void attend_back(const Packed& p, const Task& task, int64_t first, float* dk, float* dv, Scratch<N>& w,
                        Queries& tile) {
  const int keys = int(std::min<int64_t>(KB, tile.reach - first));
  const Sight sight(p, task, tile, first);
  const Vec factor = set(float(p.scale * LOG2E));
  // added, so that the compiler rounds scores as in the forward: fused with the subtraction of lse, whose highest score was
  // rounded, a weight of 1 would be wrong by half a digit of a large score
  const Vec nothing = load(w.nothing.data());
  for (int x0 = 0; x0 < QB; x0 += 2 * W)
    blocks<MR2, N::PER>(keys, [&](auto height, int i0) {
      constexpr int M = height;
      Vec own[M][2] = {}, slope[M][2] = {};
      accumulate<N, 1>(own, w.words, &w.kt[first * w.wp + i0], KB, &tile.qt[x0], QB);
      accumulate<N, 1>(slope, w.words, &w.vt[first * w.wp + i0], KB, &tile.gt[x0], QB);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
          const int at = x0 + x * W;
          own[i][x] = own[i][x] * factor + nothing - load(tile.lse + at);
          if (N::PER == 1) own[i][x] -= load(tile.rest + at);
        }
      if (i0 + M - 1 > sight.least)
        DS4SCI_UNROLL for (int i = 0; i < M; ++i)
          DS4SCI_UNROLL for (int x = 0; x < 2; ++x) own[i][x] = sight.hide(own[i][x], x0 / W + x, i0 + i);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
          own[i][x] = exp2<N::DEGREE>(own[i][x]);
          slope[i][x] = own[i][x] * (slope[i][x] - load(tile.delta + x0 + x * W));
        }
      keep(N{}, own, slope, i0, x0, w.scores.data(), w.weights.data(), w.zipped.data());
    });
  // scores holds P, weights dS; a gradient that nobody asked for is not made
  const float* pairs = N::PER == 2 ? w.zipped.data() : w.weights.data();
  if (p.grad_q.data && first)
    product<N, 1, ADD>(w.d, QB, keys / N::PER, w.along_keys(first), w.dp, pairs, QB, tile.sums.data(), QB);
  else if (p.grad_q.data)
    product<N, 1, SET>(w.d, QB, keys / N::PER, w.along_keys(first), w.dp, pairs, QB, tile.sums.data(), QB);
  const int steps = (tile.count + N::PER - 1) / N::PER;
  auto along_queries = [&](const Array& wanted, const float* a, const std::vector<float>& b, float* c) {
    if (wanted.data) product<N, QB / N::PER, ADD>(keys, w.dp, steps, a, 1, b.data(), w.dp, c, w.dp);
  };
  along_queries(p.grad_k, w.weights.data(), N::PER == 2 ? tile.qz : tile.q, dk);
  along_queries(p.grad_v, w.scores.data(), N::PER == 2 ? tile.gz : tile.g, dv);
}

// What some tiles of queries gave, to the sums of all.
static inline void move_into(std::vector<float>& near, float* sums) {
  for (size_t i = 0; i < near.size(); i += W) {
    store(sums + i, load(sums + i) + load(&near[i]));
    store(&near[i], Vec{});
  }
}

// Rows of sums, times a factor, to where they belong.
template <class N>
static void deliver(const Array& to, int64_t head, int64_t at, int64_t count, float* from, float factor,
                    const Scratch<N>& w) {
  if (!to.data) return;
  const Rows rows = rows_of(to, head, at);
  for (int64_t i = 0; i < count; ++i) {
    float* line = from + i * w.dp;
    for (int c = 0; c < w.dp; c += W) store(line + c, load(line + c) * factor);
    put(rows, i, w.d, line);
  }
}

template <class N>
static void backward_task(const Packed& p, const Task& task, int64_t key_head, Ahead ahead, Scratch<N>& w) {
  pack_keys(p, task, key_head, true, w);
  const int64_t n = task.stop - task.start, group = p.heads / p.key_heads;
  for (auto* sums : {&w.dk, &w.dv}) std::fill(sums->begin(), sums->begin() + whole_tiles(n) * w.dp, 0.0f);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head)
    for (int64_t from = task.from; from < task.to; from += TILES * QB) {
      const int tiles = int(std::min<int64_t>(TILES, (task.to - from + QB - 1) / QB));
      for (int i = 0; i < tiles; ++i) {
        pack_queries(p, task, head, from + i * QB, w, w.tile[i]);
        pack_gradients(p, head, w, w.tile[i]);
      }
      for (int64_t first = 0; first < w.tile[tiles - 1].reach; first += KB) {
        for (int i = 0; i < tiles; ++i)
          if (first < w.tile[i].reach) {
            ahead.some();
            if constexpr (N::PER == 1)
              attend_back(p, task, first, w.near_k.data(), w.near_v.data(), w, w.tile[i]);
            else
              attend_back(p, task, first, &w.dk[first * w.dp], &w.dv[first * w.dp], w, w.tile[i]);
          }
        if (N::PER == 2) continue;
        if (p.grad_k.data) move_into(w.near_k, &w.dk[first * w.dp]);
        if (p.grad_v.data) move_into(w.near_v, &w.dv[first * w.dp]);
      }
      for (int i = 0; i < tiles; ++i) {
        lay_out(w.tile[i], w);
        deliver(p.grad_q, head, w.tile[i].at, w.tile[i].count, w.lines.data(), float(p.scale), w);
      }
    }
  deliver(p.grad_k, key_head, task.start, n, w.dk.data(), float(p.scale), w);
  deliver(p.grad_v, key_head, task.start, n, w.dv.data(), 1.0f, w);
}
