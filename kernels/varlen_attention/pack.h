// Between the caller's strided arrays and a thread's buffers. Included by width.cpp inside its namespace.
//
// Keys and values of a task are packed once for all queries and all heads of the group (n·d work beside n²·d), which takes
// care of strides and of dtypes that are no words of the products.

using ds4sci::Packed;
using ds4sci::Task;

// Tiles of queries that visit a tile of keys one after another: it and its gradients then come from the nearest cache,
// and from memory once for all of them, however long the document.
constexpr int TILES = 8;

static inline int64_t whole_tiles(int64_t keys) { return (keys + KB - 1) / KB * KB; }

// A tile of queries, from token `at` on.
struct Queries {
  int64_t at;
  int count;
  int64_t reach;                // keys that any of them sees, a whole number of words
  std::vector<float> q, qt;     // [QB][wp]; transposed [wp][QB]
  std::vector<float> g, gt;     // dOut likewise
  std::vector<float> qz, gz;    // zipped (Pair alone) [QB / 2][dp]
  std::vector<float> sums;      // [dp][QB]: of the output, of dq
  Vec top[QB / W], total[QB / W];  // of the scores, of the weights
  float lse[QB], rest[QB], delta[QB];
};

// Where one thread works. Sizes depend on the problem alone.
template <class N>
struct Scratch {
  int d, dp;      // channels, and padded to whole vectors
  int words, wp;  // words of a row, and padded to whole vectors
  std::vector<float> kt, vt;                   // keys and values transposed: [tile of keys][word][KB]
  std::vector<float> rows;                     // of values (forward) or keys (backward): [key][wp]; zipped [key / 2][dp]
  std::vector<float> stage;                    // [KB][wp]
  std::vector<float> dk, dv;                   // [key][dp]
  std::vector<float> near_k, near_v;           // [KB][dp] (Single alone): sums over TILES tiles of queries
  std::vector<float> scores, weights, zipped;  // [KB][QB], [KB][QB], [KB / 2][QB]
  std::vector<float> lines;                    // [QB][dp]
  std::vector<float> line, line2;              // [dp]
  std::vector<float> nothing;                  // [W]: 0, which the compiler does not know
  Queries tile[TILES];

  Scratch(const Packed& p, const std::vector<Task>& tasks, bool backward) {
    d = int(p.channels);
    dp = round_up(d, W);
    words = (d + N::PER - 1) / N::PER;
    wp = round_up(words, W);
    int64_t keys = 0;
    for (const Task& task : tasks) keys = std::max(keys, task.keys(p.causal));
    const size_t padded = whole_tiles(keys + 1);  // one more: pairs of keys
    kt.resize(padded * wp);
    rows.resize(padded / N::PER * (N::PER == 2 ? dp : wp));
    stage.resize(KB * wp);
    scores.resize(KB * QB);
    lines.resize(QB * dp);
    for (auto* x : {&line, &line2}) x->resize(dp);
    nothing.resize(W);
    if (N::PER == 2) zipped.resize(KB / 2 * QB);
    if (backward) {
      vt.resize(padded * wp);
      for (auto* x : {&dk, &dv}) x->resize(padded * dp);
      if (N::PER == 1)
        for (auto* x : {&near_k, &near_v}) x->resize(KB * dp);
      weights.resize(KB * QB);
    }
    for (Queries& one : tile) {
      for (auto* x : {&one.q, &one.qt}) x->resize(wp * QB);
      one.sums.resize(dp * QB);
      if (!backward) continue;
      for (auto* x : {&one.g, &one.gt}) x->resize(wp * QB);
      if (N::PER == 2)
        for (auto* x : {&one.qz, &one.gz}) x->resize(QB / 2 * dp);
    }
  }

  // a of a product along keys, from key `first` on
  const float* along_keys(int64_t first) const { return N::PER == 2 ? &rows[first / 2 * dp] : &rows[first * wp]; }
};

// The rows of a head, from token `start` on.
static inline Rows rows_of(const Array& x, int64_t head, int64_t start) {
  Rows rows(x, 0, 0, head);
  rows.at += start * rows.step;
  return rows;
}

// The rows of the task after this one, asked for some at a time while this one works: they lie h·d apart, which no hardware
// prefetcher follows. Of short documents alone: long ones have work enough beside their loads.
class Ahead {
  const Packed& p;
  const bool backward;
  int64_t at, to, step, key_head;

  template <int WRITE>
  void ask(const Array& x, int64_t head, int64_t until) const {
    if (x.data) rows_of(x, head, 0).ahead<WRITE>(at, until, int(p.channels));
  }

 public:
  // `next`: null where there is none
  Ahead(const Packed& p, bool backward, const Task& own, const Task* next, int64_t key_head)
      : p(p), backward(backward), at(0), to(0), step(0), key_head(key_head) {
    if (!next || next->stop - next->start > 512) return;
    at = next->start, to = next->stop;
    const int64_t visits = ((own.queries() + QB - 1) / QB) * ((own.keys(p.causal) + KB - 1) / KB) * (p.heads / p.key_heads);
    step = (to - at + visits - 1) / visits;
  }

  void some() {
    if (at >= to) return;
    const int64_t until = std::min(to, at + step), group = p.heads / p.key_heads;
    for (const Array* x : {&p.k, &p.v}) ask<0>(*x, key_head, until);
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      ask<0>(p.q, head, until);
      if (backward)
        for (const Array* x : {&p.out, &p.grad_out}) ask<0>(*x, head, until);
      ask<1>(backward ? p.grad_q : p.out, head, until);
    }
    at = until;
  }
};

// `n` rows: transposed, and as they are. Either may be null. For Pair a row of zeros makes the number even.
template <class N>
static void pack(const Rows& from, int64_t n, std::vector<float>* turned, std::vector<float>* kept, Scratch<N>& w) {
  for (int64_t k0 = 0; k0 < n; k0 += KB) {
    const int count = int(std::min<int64_t>(KB, n - k0)), whole = round_up(count, N::PER);
    float* to = kept && N::PER == 1 ? &(*kept)[k0 * w.wp] : w.stage.data();
    from.ahead<0>(k0 + KB, std::min(n, k0 + 2 * KB), w.d);
    for (int i = 0; i < count; ++i) row(N{}, from, k0 + i, w.d, to + i * w.wp);
    if (whole > count) std::fill(to + count * w.wp, to + whole * w.wp, 0.0f);
#if defined(__AVX512BF16__)
    if constexpr (N::PER == 2)
      for (int i = 0; kept && i < whole; i += 2)
        zip(to + i * w.wp, to + (i + 1) * w.wp, w.d, &(*kept)[(k0 + i) / 2 * w.dp]);
#endif
    if (turned)
      for (int i = 0; i < count; i += W)  // beyond the last row: what was there, which nobody reads
        for (int c = 0; c < w.words; c += W)
          transpose(to + i * w.wp + c, w.wp, &(*turned)[k0 * w.wp + c * KB + i], KB, std::min(W, w.words - c));
  }
}

template <class N>
static void pack_keys(const Packed& p, const Task& task, int64_t key_head, bool backward, Scratch<N>& w) {
  const Rows k = rows_of(p.k, key_head, task.start), v = rows_of(p.v, key_head, task.start);
  const int64_t n = task.keys(p.causal);
  pack(k, n, &w.kt, backward ? &w.rows : nullptr, w);
  pack(v, n, backward ? &w.vt : nullptr, backward ? nullptr : &w.rows, w);
}

template <class N>
static void turn(const Scratch<N>& w, const std::vector<float>& rows, std::vector<float>& to) {
  for (int c = 0; c < w.words; c += W)
    for (int q = 0; q < QB; q += W)
      transpose(&rows[q * w.wp + c], w.wp, &to[c * QB + q], QB, std::min(W, w.words - c));
}

// The tile of queries from token `at` on; beyond the last one zeros.
template <class N>
static void pack_queries(const Packed& p, const Task& task, int64_t head, int64_t at, Scratch<N>& w, Queries& x) {
  x.at = at;
  x.count = int(std::min<int64_t>(QB, task.to - at));
  const int64_t keys = p.causal ? at + x.count - task.start : task.stop - task.start;
  x.reach = (keys + N::PER - 1) / N::PER * N::PER;
  const Rows from = rows_of(p.q, head, at);
  for (int q = 0; q < x.count; ++q) row(N{}, from, q, w.d, &x.q[q * w.wp]);
  std::fill(x.q.begin() + x.count * w.wp, x.q.end(), 0.0f);
  turn(w, x.q, x.qt);
}

// The last key that each query of a tile sees, counted from key `first` of the document.
struct Sight {
  IVec last[QB / W];
  int least;  // of all queries: what any of them may not see begins behind it

  Sight(const Packed& p, const Task& task, const Queries& x, int64_t first)
      : least(int((p.causal ? x.at : task.stop - 1) - task.start - first)) {
    for (int i = 0; i < QB; ++i) last[i / W][i % W] = least + (p.causal ? i : 0);
  }

  Vec hide(Vec score, int x, int key) const { return last[x] < key ? set(NONE) : score; }
};
