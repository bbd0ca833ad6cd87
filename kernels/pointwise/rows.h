// Functions on tiles of rows. Included by width.cpp inside its namespace.
//
// A function object works on one row and adds what it sums to `mine`, in fp32: a sum of few rows, see Sums.

template <class T>
static inline T* row_of(const Tile& t, int64_t rows, int64_t i) {
  return static_cast<T*>(t.data) + i / rows * t.stride[0] + i % rows * t.stride[1];
}

template <class T>
struct NormForward {
  static constexpr int SUMS = 0;
  const Call& c;
  void operator()(int64_t i, float*) const {
    const int64_t n = c.channels;
    const T* x = row_of<T>(c.tile[0], c.rows, i);
    T* y = row_of<T>(c.tile[1], c.rows * c.outer, i);
    const float mean = sum_over(n, [&](int64_t k, auto at) { return read(x + k, at); }) / float(n);
    const float square = sum_over(n, [&](int64_t k, auto at) {
      const Vec d = (read(x + k, at) - mean) * there(at);
      return d * d;
    });
    // a sum beyond fp32 is no variance: NaN, which shows, where 1 / inf would make every y the bias
    const float rstd = 1.0f / std::sqrt(square / float(n) + float(c.eps)) + (square - square);
    each(n, [&](int64_t k, auto at) {
      write(y + k, plus((read(x + k, at) - mean) * rstd * read(c.vector[0] + k, at), c.vector[1], k, at), at);
    });
    c.stats[0][i] = mean;
    c.stats[1][i] = rstd;
  }
};

template <class T>
struct NormBackward {
  static constexpr int SUMS = 2;
  const Call& c;
  void operator()(int64_t i, float* mine) const {
    const int64_t n = c.channels;
    const T* g = row_of<T>(c.tile[0], c.rows * c.outer, i);
    const T* x = row_of<T>(c.tile[1], c.rows, i);
    T* out = row_of<T>(c.tile[2], c.rows, i);
    const float mean = c.stats[0][i], rstd = c.stats[1][i];
    double all[2] = {};
    in_parts(n, [&](int64_t begin, int64_t end) {
      Vec sum = {}, inner = {};
      each(end - begin, [&](int64_t j, auto at) {
        const int64_t k = begin + j;
        const Vec grad = read(g + k, at), scaled = (read(x + k, at) - mean) * rstd, a = grad * read(c.vector[0] + k, at);
        sum += a;
        inner += a * scaled;
        if (mine) {
          write(mine + k, read(mine + k, at) + grad * scaled, at);
          write(mine + n + k, read(mine + n + k, at) + grad, at);
        }
      });
      all[0] += total(sum), all[1] += total(inner);
    });
    const float first = float(all[0] / double(n)), second = float(all[1] / double(n));
    each(n, [&](int64_t k, auto at) {
      const Vec scaled = (read(x + k, at) - mean) * rstd, a = read(g + k, at) * read(c.vector[0] + k, at);
      write(out + k, (a - first - scaled * second) * rstd, at);
    });
  }
};

template <class T>
struct Gated {
  static constexpr int SUMS = 0;
  const Call& c;
  void operator()(int64_t i, float*) const {
    const T *value = row_of<T>(c.tile[0], c.rows, i), *logits = row_of<T>(c.tile[1], c.rows, i);
    T* out = row_of<T>(c.tile[2], c.rows, i);
    each(c.channels, [&](int64_t k, auto at) {
      const Vec v = plus(read(value + k, at), c.vector[0], k, at), l = plus(read(logits + k, at), c.vector[1], k, at);
      write(out + k, v * sigmoid(l).open, at);
    });
  }
};

template <class T>
struct GatedBackward {
  static constexpr int SUMS = 2;
  const Call& c;
  void operator()(int64_t i, float* mine) const {
    const int64_t n = c.channels;
    const T* g = row_of<T>(c.tile[0], c.rows, i);
    T *value = row_of<T>(c.tile[1], c.rows, i), *logits = row_of<T>(c.tile[2], c.rows, i);
    each(n, [&](int64_t k, auto at) {
      const Vec grad = read(g + k, at), v = plus(read(value + k, at), c.vector[0], k, at);
      const Gate gate = sigmoid(plus(read(logits + k, at), c.vector[1], k, at));
      const Vec dv = grad * gate.open, dl = dv * v * gate.shut;
      write(value + k, dv, at);
      write(logits + k, dl, at);
      if (mine) {
        write(mine + k, read(mine + k, at) + dv, at);
        write(mine + n + k, read(mine + n + k, at) + dl, at);
      }
    });
  }
};

template <class T>
struct Relu {
  static constexpr int SUMS = 0;
  const Call& c;
  void operator()(int64_t i, float*) const {
    T* x = row_of<T>(c.tile[0], c.rows, i);
    each(c.channels, [&](int64_t k, auto at) {
      const Vec v = plus(read(x + k, at), c.vector[0], k, at);
      write(x + k, v < 0.0f ? Vec{} : v, at);  // a NaN stays one
    });
  }
};

template <class T>
struct ReluBackward {
  static constexpr int SUMS = 1;
  const Call& c;
  void operator()(int64_t i, float* mine) const {
    T* g = row_of<T>(c.tile[0], c.rows, i);
    const T* hidden = row_of<T>(c.tile[1], c.rows, i);
    each(c.channels, [&](int64_t k, auto at) {
      const Vec grad = read(hidden + k, at) > 0.0f ? read(g + k, at) : Vec{};
      write(g + k, grad, at);
      if (mine) write(mine + k, read(mine + k, at) + grad, at);
    });
  }
};

template <class T>
struct Swiglu {  // channels: of the result
  static constexpr int SUMS = 0;
  const Call& c;
  void operator()(int64_t i, float*) const {
    const int64_t n = c.channels;
    const T* joint = row_of<T>(c.tile[0], c.rows, i);
    T* out = row_of<T>(c.tile[1], c.rows, i);
    each(n, [&](int64_t k, auto at) {
      const Vec u = plus(read(joint + k, at), c.vector[0], k, at), v = plus(read(joint + n + k, at), c.vector[0], n + k, at);
      write(out + k, u * sigmoid(u).open * v, at);
    });
  }
};

template <class T>
struct SwigluBackward {
  static constexpr int SUMS = 2;
  const Call& c;
  void operator()(int64_t i, float* mine) const {
    const int64_t n = c.channels;
    const T* g = row_of<T>(c.tile[0], c.rows, i);
    T* joint = row_of<T>(c.tile[1], c.rows, i);
    each(n, [&](int64_t k, auto at) {
      const Vec grad = read(g + k, at), u = plus(read(joint + k, at), c.vector[0], k, at);
      const Vec v = plus(read(joint + n + k, at), c.vector[0], n + k, at);
      const Gate gate = sigmoid(u);
      const Vec du = grad * v * gate.open * (1.0f + u * gate.shut), dv = grad * u * gate.open;
      write(joint + k, du, at);
      write(joint + n + k, dv, at);
      if (mine) {
        write(mine + k, read(mine + k, at) + du, at);
        write(mine + n + k, read(mine + n + k, at) + dv, at);
      }
    });
  }
};

template <class T>
struct ColumnSums {
  static constexpr int SUMS = 1;
  const Call& c;
  void operator()(int64_t i, float* mine) const {
    const T* x = row_of<T>(c.tile[0], c.rows, i);
    each(c.channels, [&](int64_t k, auto at) { write(mine + k, read(mine + k, at) + read(x + k, at), at); });
  }
};

// A block's sums: in fp32 of at most FEW additions, those in fp64. Rounding then does not grow with the number of rows.
struct Sums {
  float* few;
  double* all;
  int64_t size;

  // After `done` additions to `few`, or with none to come.
  void move(int64_t done, bool last) const {
    if (!all || (done % FEW && !last)) return;
    for (int64_t i = 0; i < size; ++i) all[i] += double(few[i]), few[i] = 0.0f;
  }
};

// Adds a block's sums, SUMS times `n` numbers, to the caller's: the gradients of biases that nobody asks for are left out.
static inline void add_sums(const Call& c, const double* made, int count, int64_t n) {
  for (int s = 0; s < count; ++s)
    for (int64_t k = 0; c.sums[s] && k < n; ++k) c.sums[s][k] += made[s * n + k];
}

// All rows, in blocks whose number depends on the shape alone; their sums are added in their order.
template <class F>
static void run_rows(const Call& c) {
  const int64_t rows = c.rows * c.outer, blocks = std::max<int64_t>(1, std::min<int64_t>(32, rows / 16));
  const int64_t size = F::SUMS && (c.sums[0] || c.sums[1]) ? F::SUMS * c.channels : 0;
  std::vector<double> made(blocks * size);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto run = [&] {
    const std::unique_ptr<float[]> few(new (std::nothrow) float[size]());
    if (!few) failed = true;
    for (int64_t b; few && (b = next++) < blocks;) {
      const F one{c};
      const Sums sums{few.get(), size ? made.data() + b * size : nullptr, size};
      const int64_t from = rows * b / blocks, to = rows * (b + 1) / blocks;
      for (int64_t i = from; i < to; ++i) {
        one(i, size ? sums.few : nullptr);
        sums.move(i + 1 - from, i + 1 == to);
      }
    }
  };
  on_threads(std::min(c.threads, blocks), c.team, run);
  if (failed) throw std::bad_alloc();
  for (int64_t b = 0; size && b < blocks; ++b) add_sums(c, made.data() + b * size, F::SUMS, c.channels);
}
