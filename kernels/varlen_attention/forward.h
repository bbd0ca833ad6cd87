// Forward of one task and one head. Included by width.cpp inside its namespace.

// A tile of queries sees the tile of keys from key `first` on.
template <class N>
static void attend(const Packed& p, const Task& task, int64_t first, Scratch<N>& w, Queries& tile) {
  const int keys = int(std::min<int64_t>(KB, tile.reach - first));
  const Sight sight(p, task, tile, first);
  const Vec factor = set(float(p.scale * LOG2E));
  Vec highest[QB / W];
  for (int x = 0; x < QB / W; ++x) highest[x] = tile.top[x];
  for (int x0 = 0; x0 < QB; x0 += 2 * W)
    blocks<MR, 1>(keys, [&](auto height, int i0) {
      constexpr int M = height;
      Vec acc[M][2] = {};
      accumulate<N, 1>(acc, w.words, &w.kt[first * w.wp + i0], KB, &tile.qt[x0], QB);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < 2; ++x) acc[i][x] = acc[i][x] * factor;
      if (i0 + M - 1 > sight.least)
        DS4SCI_UNROLL for (int i = 0; i < M; ++i)
          DS4SCI_UNROLL for (int x = 0; x < 2; ++x) acc[i][x] = sight.hide(acc[i][x], x0 / W + x, i0 + i);
      DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
        Vec high = highest[x0 / W + x];
        DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
          store(&w.scores[(i0 + i) * QB + x0 + x * W], acc[i][x]);
          high = max(high, acc[i][x]);
        }
        highest[x0 / W + x] = high;
      }
    });
  Vec shrink[QB / W];
  for (int x = 0; x < QB / W; ++x) {
    // every query sees key 0, so there is a highest score, unless all are -inf by themselves
    const Vec base = highest[x] == set(NONE) ? Vec{} : highest[x];
    shrink[x] = exp2<5>(tile.top[x] - base);
    tile.total[x] = tile.total[x] * shrink[x] + weigh(N{}, keys, base, &w.scores[x * W], w.zipped.data() + x * W);
    tile.top[x] = highest[x];
  }
  const float* weights = N::PER == 2 ? w.zipped.data() : w.scores.data();
  if (first)
    product<N, 1, RESCALE>(w.d, QB, keys / N::PER, w.along_keys(first), w.dp, weights, QB, tile.sums.data(), QB, shrink);
  else
    product<N, 1, SET>(w.d, QB, keys / N::PER, w.along_keys(first), w.dp, weights, QB, tile.sums.data(), QB);
}

// The sums of a tile as rows [QB][dp].
template <class N>
static void lay_out(const Queries& tile, Scratch<N>& w) {
  for (int c = 0; c < w.dp; c += W)
    for (int q = 0; q < QB; q += W) transpose(&tile.sums[c * QB + q], QB, &w.lines[q * w.dp + c], w.dp);
}

template <class N>
static void finish(const Packed& p, int64_t head, Scratch<N>& w, Queries& tile) {
  lay_out(tile, w);
  float scales[QB], lse[QB], rest[QB];
  for (int x = 0; x < QB / W; ++x) {
    const Vec total = tile.total[x];
    const DVec exact = (wide(tile.top[x]) + log2(total)) * LN2;
    const Vec whole = total == 0.0f ? set(NONE) : narrow(exact) + (total - total);  // log2 of NaN is none
    store(lse + x * W, whole);
    store(rest + x * W, total == 0.0f ? Vec{} : narrow(exact - wide(whole)));
    store(scales + x * W, total == 0.0f ? Vec{} : 1.0f / total);
  }
  const Rows out = rows_of(p.out, head, tile.at);
  for (int q = 0; q < tile.count; ++q) {
    float* line = &w.lines[q * w.dp];
    for (int c = 0; c < w.d; c += W) store(line + c, load(line + c) * scales[q]);
    put(out, q, w.d, line);
  }
  const int64_t at = head * p.tokens + tile.at;
  copy(lse, p.lse + at, tile.count);
  if (p.rest) copy(rest, p.rest + at, tile.count);
}

template <class N>
static void forward_task(const Packed& p, const Task& task, int64_t key_head, Ahead ahead, Scratch<N>& w) {
  pack_keys(p, task, key_head, false, w);
  const int64_t group = p.heads / p.key_heads;
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head)
    for (int64_t from = task.from; from < task.to; from += TILES * QB) {
      const int tiles = int(std::min<int64_t>(TILES, (task.to - from + QB - 1) / QB));
      for (int i = 0; i < tiles; ++i) {
        Queries& tile = w.tile[i];
        pack_queries(p, task, head, from + i * QB, w, tile);
        for (int x = 0; x < QB / W; ++x) tile.top[x] = set(NONE), tile.total[x] = Vec{};
      }
      for (int64_t first = 0; first < w.tile[tiles - 1].reach; first += KB)
        for (int i = 0; i < tiles; ++i)
          if (first < w.tile[i].reach) {
            ahead.some();
            attend(p, task, first, w, w.tile[i]);
          }
      for (int i = 0; i < tiles; ++i) finish(p, head, w, w.tile[i]);
    }
}
