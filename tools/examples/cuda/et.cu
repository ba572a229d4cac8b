/* et.cu: the kernels of an Expert Threshold layer, in the order of the mathematics.
 *
 *     forward    logits, gates, threshold (ranks and capacity), slot lists, H, A, f(x), y
 *     backward   dw and dO, dA, dH, dW_down, dW_up, an expert's dx, dr, dW_r, dx
 *     state      the k-th largest score, the moving average
 *
 * Letters: N tokens, d width, n experts, h hidden width, S slots: pairs of a token and an expert
 * that takes it, numbered expert by expert, tokens ascending. T is the type in which activations,
 * weights and their gradients are stored: float or bf16. Every sum is a float.
 *
 * Every matrix product is the one tiled kernel below; what it multiplies and where the result goes,
 * a small struct says. Rows of tokens are gathered while they are read, nothing is copied. No
 * atomics: two runs give the same bits.
 */
#include "et.h"
#include "bf16.h"
#include "block.h"

#include <cmath>
#include <memory>

/* ---- shapes of kernels ---- */

/* to(i) for i = 0 .. count - 1, a thread each. */
template <class Element> struct elements {
    Element element;
    size_t count;
    ANYWHERE void operator()(block at) const
    {
        each_thread([&](int thread) {
            size_t i = at.x * THREADS + (size_t)thread;
            if (i < count) element(i);
        });
    }
};

template <class Element> void for_each(bool gpu, size_t count, const Element &element)
{
    launch(gpu, (count + THREADS - 1) / THREADS, 1, 1, elements<Element>{element, count});
}

/* C_ij = sum_k a(i,k) b(j,k), a tile of TILE x TILE for a block, a thread for each element. `z` says
 * whose matrices: the expert. Tiles of a and b pass through shared memory; beyond the edge they hold
 * zeros. */
enum { TILE = 16 };
static_assert(TILE * TILE == THREADS, "a thread for each element of a tile");

template <class Product> struct tiled {
    Product p;
    ANYWHERE void operator()(block at) const
    {
        SHARED float a[TILE][TILE + 1], b[TILE][TILE + 1]; /* + 1: columns in different banks */
        per_thread<float> sum;
        size_t z = at.z, I = p.rows(z), J = p.columns(z), K = p.depth(z);
        size_t row = at.y * TILE, column = at.x * TILE;
        if (row >= I) return; /* the grid is made for the largest expert there can be */
        each_thread([&](int thread) { sum[thread] = 0; });
        for (size_t k = 0; k < K; k += TILE) {
            each_thread([&](int thread) {
                size_t u = (size_t)thread / TILE, v = (size_t)thread % TILE;
                a[u][v] = row + u < I && k + v < K ? (float)p.a(z, row + u, k + v) : 0;
                b[u][v] = column + u < J && k + v < K ? (float)p.b(z, column + u, k + v) : 0;
            });
            each_thread([&](int thread) {
                for (int v = 0; v < TILE; v++)
                    sum[thread] += a[thread / TILE][v] * b[thread % TILE][v];
            });
        }
        each_thread([&](int thread) {
            size_t i = row + (size_t)thread / TILE, j = column + (size_t)thread % TILE;
            if (i < I && j < J) p.store(z, i, j, sum[thread]);
        });
    }
};

/* For `experts` experts, results of at most I x J. */
template <class Product>
void multiply(bool gpu, size_t experts, size_t I, size_t J, const Product &product)
{
    launch(gpu, (J + TILE - 1) / TILE, (I + TILE - 1) / TILE, experts, tiled<Product>{product});
}

/* Running sum within a block: put(i, value(0) + .. + value(i-1)) for i < count; returns the total.
 * Chunks of THREADS; within one, each thread adds what stands 1, 2, 4, .. places before it. */
template <class Value, class Put>
ANYWHERE int scan(size_t count, const Value &value, const Put &put)
{
    SHARED int sum[THREADS];
    SHARED int before; /* this chunk */
    per_thread<int> left;
    each_thread([&](int thread) {
        if (thread == 0) before = 0;
    });
    for (size_t first = 0; first < count; first += THREADS) {
        each_thread([&](int thread) {
            size_t i = first + (size_t)thread;
            sum[thread] = i < count ? value(i) : 0;
        });
        for (int step = 1; step < THREADS; step *= 2) {
            each_thread(
                [&](int thread) { left[thread] = thread >= step ? sum[thread - step] : 0; });
            each_thread([&](int thread) { sum[thread] += left[thread]; });
        }
        each_thread([&](int thread) {
            size_t i = first + (size_t)thread;
            if (i < count) put(i, before + sum[thread] - value(i));
        });
        each_thread([&](int thread) {
            if (thread == 0) before += sum[THREADS - 1];
        });
    }
    return before;
}

/* ---- what the kernels see: plain pointers ---- */

/* The router and its decisions. */
template <class T> struct router {
    size_t N, d, n;
    const T *x, *w;         /* [N,d], [n,d] */
    float *logits, *gates;  /* [N,n] */
    const float *threshold; /* [n] */
    bool inclusive;
    int *rank;          /* [N,n] how many tokens the expert prefers */
    int *mask, *slot;   /* [N,n] 0 or 1; the slot, or -1 */
    int *load, *offset; /* [n], [n+1] */
    float *dlogits;     /* [N,n] */
    T *dw;              /* [n,d] */
};

/* Experts of one shape with the rows that they take: the n routed ones, or the shared one alone. */
template <class T> struct experts {
    size_t count, d, h;
    const T *up, *down;        /* [count,h,d], [count,d,h] */
    const int *offset, *token; /* [count+1], [rows]: an expert's rows, and the token of each */
    float *weight, *dweight;   /* [rows] w, dw */
    T *pre, *act, *out;        /* [rows,h] H, [rows,h] A, [rows,d] f(x) */
    T *dpre, *dact, *dout;     /* dH, dA, dO */
    float *dx;                 /* [rows,d] */
    T *dup, *ddown;            /* as up, down */
    et_fault fault;
    ANYWHERE size_t load(size_t expert) const
    {
        return (size_t)(offset[expert + 1] - offset[expert]);
    }
    ANYWHERE size_t row(size_t expert, size_t i) const
    {
        return (size_t)offset[expert] + i;
    }
};

/* ---- logits: r = x W_r'; gates: p = sigmoid(r) ---- */

template <class T> struct logits {
    router<T> r;
    ANYWHERE size_t rows(size_t) const
    {
        return r.N;
    }
    ANYWHERE size_t columns(size_t) const
    {
        return r.n;
    }
    ANYWHERE size_t depth(size_t) const
    {
        return r.d;
    }
    ANYWHERE T a(size_t, size_t t, size_t c) const
    {
        return r.x[t * r.d + c];
    }
    ANYWHERE T b(size_t, size_t i, size_t c) const
    {
        return r.w[i * r.d + c];
    }
    ANYWHERE void store(size_t, size_t t, size_t i, float sum) const
    {
        r.logits[t * r.n + i] = sum;
    }
};

/* e^-|r| does not overflow; for r < 0, 1/(1+e^-r) = e^r/(1+e^r). */
template <class T> struct sigmoid {
    router<T> r;
    ANYWHERE void operator()(size_t at) const
    {
        float e = expf(-fabsf(r.logits[at]));
        r.gates[at] = r.logits[at] < 0 ? e / (1 + e) : 1 / (1 + e);
    }
};

/* ---- routing: z = [r > c]; with a capacity, the count best tokens instead ---- */

template <class T> struct pass_threshold {
    router<T> r;
    ANYWHERE void operator()(size_t at) const
    {
        float score = r.logits[at], c = r.threshold[at % r.n];
        r.mask[at] = r.inclusive ? score >= c : score > c;
    }
};

/* The number of tokens that come before token t when expert i orders them: higher scores, and equal
 * scores of a lower index. N comparisons for each; a sort would need fewer. */
template <class T> struct rank_tokens {
    router<T> r;
    ANYWHERE void operator()(size_t at) const
    {
        size_t t = at / r.n, i = at % r.n;
        int before = 0;
        for (size_t u = 0; u < r.N; u++) {
            float other = r.logits[u * r.n + i];
            before += other > r.logits[at] || (other == r.logits[at] && u < t);
        }
        r.rank[at] = before;
    }
};

/* An expert whose load is out of bounds takes its best tokens, as many as the bound says. A block
 * for each expert: the load is the total of the mask's running sum. */
template <class T> struct keep_capacity {
    router<T> r;
    int lower, upper;
    ANYWHERE void operator()(block at) const
    {
        size_t i = at.x, n = r.n;
        const int *mask = r.mask;
        int load = scan(
            r.N, [=](size_t t) { return mask[t * n + i]; }, [](size_t, int) {});
        int count = load < lower ? lower : load > upper ? upper : load;
        if (count == load) return;
        each_thread([&](int thread) {
            for (size_t t = (size_t)thread; t < r.N; t += THREADS)
                r.mask[t * n + i] = r.rank[t * n + i] < count;
        });
    }
};

/* ---- slot lists, by running sums: first each token's place within its expert ... ---- */

template <class T> struct place_tokens {
    router<T> r;
    ANYWHERE void operator()(block at) const
    {
        size_t i = at.x, n = r.n;
        const int *mask = r.mask;
        int *slot = r.slot;
        int load = scan(
            r.N, [=](size_t t) { return mask[t * n + i]; },
            [=](size_t t, int place) { slot[t * n + i] = place; });
        each_thread([&](int thread) {
            if (thread == 0) r.load[i] = load;
        });
    }
};

/* ... then where each expert's slots begin ... */
template <class T> struct place_experts {
    router<T> r;
    ANYWHERE void operator()(block) const
    {
        const int *load = r.load;
        int *offset = r.offset;
        int total = scan(
            r.n, [=](size_t i) { return load[i]; },
            [=](size_t i, int first) { offset[i] = first; });
        each_thread([&](int thread) {
            if (thread == 0) r.offset[r.n] = total;
        });
    }
};

/* ... and both together are the slot. */
template <class T> struct fill_slots {
    router<T> r;
    int *token; /* [S] */
    float *weight;
    ANYWHERE void operator()(size_t at) const
    {
        size_t t = at / r.n, i = at % r.n;
        int slot = r.mask[at] ? r.offset[i] + r.slot[at] : -1;
        r.slot[at] = slot;
        if (slot < 0) return;
        token[slot] = (int)t;
        weight[slot] = r.gates[at];
    }
};

/* ---- an expert: H = x W_up', A = relu(H)^2, f(x) = A W_down' ---- */

template <class T> struct up_product {
    experts<T> e;
    const T *x; /* [N,d] */
    ANYWHERE size_t rows(size_t z) const
    {
        return e.load(z);
    }
    ANYWHERE size_t columns(size_t) const
    {
        return e.h;
    }
    ANYWHERE size_t depth(size_t) const
    {
        return e.d;
    }
    ANYWHERE T a(size_t z, size_t i, size_t c) const
    {
        return x[(size_t)e.token[e.row(z, i)] * e.d + c];
    }
    ANYWHERE T b(size_t z, size_t j, size_t c) const
    {
        return e.up[(z * e.h + j) * e.d + c];
    }
    ANYWHERE void store(size_t z, size_t i, size_t j, float sum) const
    {
        e.pre[e.row(z, i) * e.h + j] = T(sum);
    }
};

template <class T> struct square {
    experts<T> e;
    ANYWHERE void operator()(size_t at) const
    {
        float H = e.pre[at], relu = H > 0 ? H : 0;
        e.act[at] = T(relu * relu);
    }
};

template <class T> struct down_product {
    experts<T> e;
    ANYWHERE size_t rows(size_t z) const
    {
        size_t load = e.load(z);
        return e.fault == FAULT_LAST_TILE_DROPPED ? load - load % TILE : load;
    }
    ANYWHERE size_t columns(size_t) const
    {
        return e.d;
    }
    ANYWHERE size_t depth(size_t) const
    {
        return e.h;
    }
    ANYWHERE T a(size_t z, size_t i, size_t j) const
    {
        return e.act[e.row(z, i) * e.h + j];
    }
    ANYWHERE T b(size_t z, size_t c, size_t j) const
    {
        return e.down[(z * e.d + c) * e.h + j];
    }
    ANYWHERE void store(size_t z, size_t i, size_t c, float sum) const
    {
        e.out[e.row(z, i) * e.d + c] = T(sum);
    }
};

/* ---- combine: y_t = f_shared(x_t) + sum_i z_ti w_ti f_i(x_t) ---- */

template <class T> struct combine {
    router<T> r;
    experts<T> routed, shared; /* shared.count = 0: none */
    T *y;                      /* [N,d] */
    ANYWHERE void operator()(size_t at) const
    {
        size_t t = at / r.d, c = at % r.d;
        float sum = shared.count > 0 ? (float)shared.out[at] : 0;
        for (size_t i = 0; i < r.n; i++) {
            int slot = r.slot[t * r.n + i];
            if (slot < 0) continue;
            float w = routed.fault == FAULT_GATE_FORGOTTEN ? 1 : routed.weight[slot];
            sum += w * (float)routed.out[(size_t)slot * r.d + c];
        }
        y[at] = T(sum);
    }
};

/* ---- backward of combine: dw = <dy_t, f(x_t)>, the unweighted output, and dO = w dy_t ---- */

template <class T> struct dweight {
    experts<T> e;
    const float *dy; /* [N,d] */
    ANYWHERE void operator()(size_t row) const
    {
        const float *from = dy + (size_t)e.token[row] * e.d;
        float sum = 0;
        for (size_t c = 0; c < e.d; c++) sum += from[c] * (float)e.out[row * e.d + c];
        e.dweight[row] = sum;
    }
};

template <class T> struct dout {
    experts<T> e;
    const float *dy;
    ANYWHERE void operator()(size_t at) const
    {
        size_t row = at / e.d, c = at % e.d;
        e.dout[at] = T(e.weight[row] * dy[(size_t)e.token[row] * e.d + c]);
    }
};

/* ---- backward of an expert: dA = dO W_down, dH = dA 2 relu(H), dW_down = dO' A, dW_up = dH' x,
 *      dx = dH W_up ---- */

template <class T> struct dact_product {
    experts<T> e;
    ANYWHERE size_t rows(size_t z) const
    {
        return e.load(z);
    }
    ANYWHERE size_t columns(size_t) const
    {
        return e.h;
    }
    ANYWHERE size_t depth(size_t) const
    {
        return e.d;
    }
    ANYWHERE T a(size_t z, size_t i, size_t c) const
    {
        return e.dout[e.row(z, i) * e.d + c];
    }
    ANYWHERE T b(size_t z, size_t j, size_t c) const
    {
        return e.down[(z * e.d + c) * e.h + j];
    }
    ANYWHERE void store(size_t z, size_t i, size_t j, float sum) const
    {
        e.dact[e.row(z, i) * e.h + j] = T(sum);
    }
};

template <class T> struct dsquare {
    experts<T> e;
    ANYWHERE void operator()(size_t at) const
    {
        float H = e.pre[at], relu = H > 0 ? H : 0;
        float two = e.fault == FAULT_FACTOR_TWO ? 1 : 2;
        e.dpre[at] = T((float)e.dact[at] * two * relu);
    }
};

/* An expert without tokens has depth 0, and its gradients become 0. */
template <class T> struct ddown_product {
    experts<T> e;
    ANYWHERE size_t rows(size_t) const
    {
        return e.d;
    }
    ANYWHERE size_t columns(size_t) const
    {
        return e.h;
    }
    ANYWHERE size_t depth(size_t z) const
    {
        return e.load(z);
    }
    ANYWHERE T a(size_t z, size_t c, size_t i) const
    {
        return e.dout[e.row(z, i) * e.d + c];
    }
    ANYWHERE T b(size_t z, size_t j, size_t i) const
    {
        return e.act[e.row(z, i) * e.h + j];
    }
    ANYWHERE void store(size_t z, size_t c, size_t j, float sum) const
    {
        e.ddown[(z * e.d + c) * e.h + j] = T(sum);
    }
};

template <class T> struct dup_product {
    experts<T> e;
    const T *x;
    ANYWHERE size_t rows(size_t) const
    {
        return e.h;
    }
    ANYWHERE size_t columns(size_t) const
    {
        return e.d;
    }
    ANYWHERE size_t depth(size_t z) const
    {
        return e.load(z);
    }
    ANYWHERE T a(size_t z, size_t j, size_t i) const
    {
        return e.dpre[e.row(z, i) * e.h + j];
    }
    ANYWHERE T b(size_t z, size_t c, size_t i) const
    {
        return x[(size_t)e.token[e.row(z, i)] * e.d + c];
    }
    ANYWHERE void store(size_t z, size_t j, size_t c, float sum) const
    {
        e.dup[(z * e.h + j) * e.d + c] = T(sum);
    }
};

template <class T> struct dx_product {
    experts<T> e;
    ANYWHERE size_t rows(size_t z) const
    {
        return e.load(z);
    }
    ANYWHERE size_t columns(size_t) const
    {
        return e.d;
    }
    ANYWHERE size_t depth(size_t) const
    {
        return e.h;
    }
    ANYWHERE T a(size_t z, size_t i, size_t j) const
    {
        return e.dpre[e.row(z, i) * e.h + j];
    }
    ANYWHERE T b(size_t z, size_t c, size_t j) const
    {
        return e.up[(z * e.h + j) * e.d + c];
    }
    ANYWHERE void store(size_t z, size_t i, size_t c, float sum) const
    {
        e.dx[e.row(z, i) * e.d + c] = sum;
    }
};

/* ---- backward of the router: dr = dw p(1-p) on slots, 0 elsewhere; dW_r = dr' x ---- */

/* p(1-p) = e^-|r| / (1+e^-|r|)^2, which keeps its digits where p rounds to 1. */
template <class T> struct dsigmoid {
    router<T> r;
    const float *dweight; /* [S] */
    ANYWHERE void operator()(size_t at) const
    {
        float e = expf(-fabsf(r.logits[at]));
        r.dlogits[at] = r.slot[at] < 0 ? 0 : dweight[r.slot[at]] * (e / ((1 + e) * (1 + e)));
    }
};

template <class T> struct drouter_product {
    router<T> r;
    ANYWHERE size_t rows(size_t) const
    {
        return r.n;
    }
    ANYWHERE size_t columns(size_t) const
    {
        return r.d;
    }
    ANYWHERE size_t depth(size_t) const
    {
        return r.N;
    }
    ANYWHERE float a(size_t, size_t i, size_t t) const
    {
        return r.dlogits[t * r.n + i];
    }
    ANYWHERE T b(size_t, size_t c, size_t t) const
    {
        return r.x[t * r.d + c];
    }
    ANYWHERE void store(size_t, size_t i, size_t c, float sum) const
    {
        r.dw[i * r.d + c] = T(sum);
    }
};

/* dx_t = the shared expert's + every slot's + dr_t W_r, added in float and rounded once. */
template <class T> struct collect_dx {
    router<T> r;
    experts<T> routed, shared;
    T *dx; /* [N,d] */
    ANYWHERE void operator()(size_t at) const
    {
        size_t t = at / r.d, c = at % r.d;
        float sum = shared.count > 0 ? shared.dx[at] : 0;
        for (size_t i = 0; i < r.n; i++) {
            int slot = r.slot[t * r.n + i];
            if (slot >= 0) sum += routed.dx[(size_t)slot * r.d + c];
            sum += r.dlogits[t * r.n + i] * (float)r.w[i * r.d + c];
        }
        dx[at] = T(sum);
    }
};

/* ---- state: ema <- beta ema + (1-beta) kth, kth the k-th largest score, whoever was routed ---- */

template <class T> struct update_ema {
    router<T> r;
    int k;
    float beta, rest; /* beta, 1 - beta */
    float *ema, *kth; /* [n] */
    ANYWHERE void operator()(size_t at) const
    {
        size_t i = at % r.n;
        if (r.rank[at] != k - 1) return; /* one token of each expert has this rank */
        kth[i] = r.logits[at];
        ema[i] = beta * ema[i] + rest * kth[i];
    }
};

/* ---- the layer: memory, and the kernels one after the other ---- */

/* Experts with their memory. */
template <class T> class expert_group
{
  public:
    expert_group(bool gpu_, size_t count, size_t d, size_t h, size_t rows_, const double *w_up,
                 const double *w_down, const int *offset, const int *token, et_fault fault)
        : gpu(gpu_), rows(rows_), up(gpu, count * h * d), down(gpu, count * h * d),
          weight(gpu, rows), dweights(gpu, rows), pre(gpu, rows * h), act(gpu, rows * h),
          out(gpu, rows * d), dpre(gpu, rows * h), dact(gpu, rows * h), douts(gpu, rows * d),
          dx(gpu, rows * d), dup(gpu, count * h * d), ddown(gpu, count * h * d)
    {
        if (count > 0) {
            up.put(w_up);
            down.put(w_down);
        }
        view = experts<T>{count,
                          d,
                          h,
                          up.data(),
                          down.data(),
                          offset,
                          token,
                          weight.data(),
                          dweights.data(),
                          pre.data(),
                          act.data(),
                          out.data(),
                          dpre.data(),
                          dact.data(),
                          douts.data(),
                          dx.data(),
                          dup.data(),
                          ddown.data(),
                          fault};
    }

    void forward(const T *x)
    {
        multiply(gpu, view.count, rows, view.h, up_product<T>{view, x});
        for_each(gpu, rows * view.h, square<T>{view});
        multiply(gpu, view.count, rows, view.d, down_product<T>{view});
    }

    void backward(const T *x, const float *dy)
    {
        for_each(gpu, rows, dweight<T>{view, dy});
        for_each(gpu, rows * view.d, dout<T>{view, dy});
        multiply(gpu, view.count, rows, view.h, dact_product<T>{view});
        for_each(gpu, rows * view.h, dsquare<T>{view});
        multiply(gpu, view.count, view.d, view.h, ddown_product<T>{view});
        multiply(gpu, view.count, view.h, view.d, dup_product<T>{view, x});
        multiply(gpu, view.count, rows, view.d, dx_product<T>{view});
    }

    /* Puts what it holds into `result`: "fwd.slot_pre" for kind "slot_", weight "w_up" for "w_". */
    void give(et_result &result, const std::string &kind, const std::string &matrix) const;

    experts<T> view;

  private:
    bool gpu;
    size_t rows;

  public:
    array<T> up, down;
    array<float> weight, dweights;
    array<T> pre, act, out, dpre, dact, douts;
    array<float> dx;
    array<T> dup, ddown;
};

template <class T> std::vector<float> floats(const array<T> &from)
{
    std::vector<T> values = from.get();
    return std::vector<float>(values.begin(), values.end());
}

template <class T>
void expert_group<T>::give(et_result &result, const std::string &kind,
                           const std::string &matrix) const
{
    result["fwd." + kind + "pre"] = floats(pre);
    result["fwd." + kind + "act"] = floats(act);
    result["fwd." + kind + "out"] = floats(out);
    result["bwd." + kind + "weight"] = floats(dweights);
    result["bwd." + kind + "pre"] = floats(dpre);
    result["bwd." + kind + "act"] = floats(dact);
    result["bwd." + kind + "out"] = floats(douts);
    result["bwd." + matrix + "up"] = floats(dup);
    result["bwd." + matrix + "down"] = floats(ddown);
}

template <class T> static et_result run(const et_problem &p, bool gpu)
{
    const size_t N = p.N, d = p.d, n = p.n;
    array<T> x(gpu, N * d), w(gpu, n * d), dw(gpu, n * d), y(gpu, N * d), dx(gpu, N * d);
    array<float> dy(gpu, N * d), r(gpu, N * n), gates(gpu, N * n), dr(gpu, N * n);
    array<float> threshold(gpu, n), ema(gpu, n), kth(gpu, n);
    array<int> rank(gpu, N * n), mask(gpu, N * n), slot(gpu, N * n), load(gpu, n),
        offset(gpu, n + 1);
    x.put(p.x);
    w.put(p.router);
    dy.put(p.dy);
    ema.put(p.ema);
    std::vector<double> c(p.ema, p.ema + n);
    for (size_t i = 0; i < n; i++) c[i] = p.weight > 0 ? c[i] / p.weight : 0;
    threshold.put(c.data());
    router<T> route = {N,
                       d,
                       n,
                       x.data(),
                       w.data(),
                       r.data(),
                       gates.data(),
                       threshold.data(),
                       p.inclusive,
                       rank.data(),
                       mask.data(),
                       slot.data(),
                       load.data(),
                       offset.data(),
                       dr.data(),
                       dw.data()};

    /* who goes where */
    multiply(gpu, 1, N, n, logits<T>{route});
    for_each(gpu, N * n, sigmoid<T>{route});
    for_each(gpu, N * n, pass_threshold<T>{route});
    if (p.training) {
        for_each(gpu, N * n, rank_tokens<T>{route});
        launch(gpu, n, 1, 1, keep_capacity<T>{route, (int)p.lower, (int)p.upper});
    }
    launch(gpu, n, 1, 1, place_tokens<T>{route});
    launch(gpu, 1, 1, 1, place_experts<T>{route});
    size_t S = (size_t)offset.get()[n]; /* the one number that the CPU must know */
    array<int> token(gpu, S);
    expert_group<T> routed(gpu, n, d, p.h, S, p.up, p.down, offset.data(), token.data(), p.fault);
    for_each(gpu, N * n, fill_slots<T>{route, token.data(), routed.weight.data()});

    /* The shared expert is a group of one that takes every token with weight 1. */
    size_t ones = p.hs > 0 ? N : 0;
    array<int> all(gpu, ones), ends(gpu, 2);
    std::vector<double> count(ones), bounds = {0, (double)ones}, one(ones, 1.0);
    for (size_t t = 0; t < ones; t++) count[t] = (double)t;
    all.put(count.data());
    ends.put(bounds.data());
    expert_group<T> shared(gpu, p.hs > 0, d, p.hs, ones, p.shared_up, p.shared_down, ends.data(),
                           all.data(), FAULT_NONE);
    shared.weight.put(one.data());

    /* forward */
    routed.forward(x.data());
    shared.forward(x.data());
    for_each(gpu, N * d, combine<T>{route, routed.view, shared.view, y.data()});

    /* backward */
    routed.backward(x.data(), dy.data());
    shared.backward(x.data(), dy.data());
    for_each(gpu, N * n, dsigmoid<T>{route, routed.dweights.data()});
    multiply(gpu, 1, n, d, drouter_product<T>{route});
    for_each(gpu, N * d, collect_dx<T>{route, routed.view, shared.view, dx.data()});

    et_result result;
    result["fwd.logits"] = floats(r);
    result["fwd.gates"] = floats(gates);
    result["route.threshold"] = floats(threshold);
    result["route.mask"] = floats(mask);
    result["route.slot_weight"] = floats(routed.weight);
    result["fwd.y"] = floats(y);
    result["bwd.logits"] = floats(dr);
    result["bwd.x"] = floats(dx);
    result["bwd.w_router"] = floats(dw);
    routed.give(result, "slot_", "w_");
    if (p.hs > 0) {
        result["fwd.shared_weight"] = floats(shared.weight);
        shared.give(result, "shared_", "shared_");
    }
    if (p.training) {
        for_each(gpu, N * n,
                 update_ema<T>{route, (int)p.k, (float)p.ema_decay, (float)(1 - p.ema_decay),
                               ema.data(), kth.data()});
        result["route.cutoff"] = floats(kth);
        result["state.ema"] = floats(ema);
    }
    return result;
}

et_result et_layer_f32(const et_problem &problem, bool gpu)
{
    return run<float>(problem, gpu);
}

et_result et_layer_bf16(const et_problem &problem, bool gpu)
{
    return run<bf16>(problem, gpu);
}
