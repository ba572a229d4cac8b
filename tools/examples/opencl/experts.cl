/* experts.cl: the matrix products of an Expert Threshold layer and the sums over a token's slots,
 * in OpenCL C 1.2. Who goes where is in router.cl, in which order all of it runs in test_et.c.
 *
 *     forward    logits, H and A, f(x), y
 *     backward   dw and dO, dA and dH, weight gradients, slots' dx, dx
 *
 * Letters: N tokens, d width, n experts, h hidden width, S slots: pairs of a token and an expert
 * that takes it, numbered expert by expert, tokens ascending. Every matrix is row-major.
 *
 * A launch is a grid of work-groups. The work-items of a group share local memory, and each runs by
 * itself from one barrier to the next: some may be done before others begin. So whoever reads there
 * what another item wrote stands behind a barrier, and whoever writes where another may still be
 * reading, too. All items of a group come to a barrier, or none: a group returns early as a whole.
 *
 * BF16: x, dy, weights, activations and their gradients are stored in bf16. Sums are always float.
 *
 * Faults that are typical of GPU code can be planted, one a build: FAULT_MISSING_BARRIER,
 * FAULT_TILE_TAIL, FAULT_LOST_ATOMIC, FAULT_WRONG_STRIDE, FAULT_STALE_LOCAL. A CPU (pocl) runs the
 * items of a group one after the other from barrier to barrier; why a fault bites there, too, is
 * said at its place.
 */
#define TILE 16          /* items of a group: TILE * TILE, or LANES in a row */
#define PITCH (TILE + 1) /* of a tile's rows: a column's elements lie in different banks */
#define LANES 64

/* ---- storage ---- */

#ifdef BF16
typedef ushort stored;
static float load(global const stored *from, size_t at)
{
    return as_float((uint)from[at] << 16);
}
/* To nearest, ties to even; NaN stays NaN. */
static void store(global stored *to, size_t at, float value)
{
    uint word = as_uint(value);
    to[at] = isnan(value) ? word >> 16 | 0x40 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}
#else
typedef float stored;
static float load(global const stored *from, size_t at)
{
    return from[at];
}
static void store(global stored *to, size_t at, float value)
{
    to[at] = value;
}
#endif

kernel void round_to_stored(global const float *from, global stored *to, int count)
{
    const int i = get_global_id(0);
    if (i < count) store(to, i, from[i]);
}

/* Rows of a matrix from `first` on; or, with a list, the rows list[first], list[first + 1], ...:
 * tokens are gathered while they are read, nothing is copied. */
typedef struct rows {
    global const stored *matrix;
    size_t width;
    int first;
    global const int *list; /* or 0 */
} rows;

static float cell(rows m, int i, int j)
{
    const int row = m.list ? m.list[m.first + i] : m.first + i;
    return load(m.matrix, row * m.width + j);
}

/* ---- the two products: a group computes a tile of the result, each item one element ---- */

/* TILE terms of a sum. */
static float terms(local const float *a, local const float *b)
{
    const float16 all = vload16(0, a) * vload16(0, b);
    const float8 eight = all.lo + all.hi;
    const float4 four = eight.lo + eight.hi;
    return four.x + four.y + (four.z + four.w);
}

/* sum_k a(i,k) b(j,k), k < K, where b(j,k) = b[j b_j + k b_k]. The group reads TILE columns of its
 * rows of a and b into local memory, each item one element of both; then each item takes a row of
 * both, TILE terms of its sum, read by as many items. Beyond the edge tiles hold zeros. */
static float over_columns(rows a, global const stored *b, size_t b_j, size_t b_k, int I, int J,
                          int K, local float (*A)[PITCH], local float (*B)[PITCH])
{
    const int u = get_local_id(1), v = get_local_id(0);
    const int i = get_global_id(1), j = get_group_id(0) * TILE + u;
    float sum = 0;
    for (int k = 0; k < K; k += TILE) {
        A[u][v] = i < I && k + v < K ? cell(a, i, k + v) : 0;
        B[u][v] = j < J && k + v < K ? load(b, j * b_j + (k + v) * b_k) : 0;
        barrier(CLK_LOCAL_MEM_FENCE); /* the tiles are whole before anybody multiplies */
        sum += terms(A[u], B[v]);
        barrier(CLK_LOCAL_MEM_FENCE); /* all have multiplied before anybody reads the next tiles */
    }
    return sum;
}

/* sum_s a(s,i) b(s,j), s < S: the gradient of a weight. Neighbouring items read along a row, and
 * put what they read into a column, so that a row of the tile holds terms again. */
static float over_slots(rows a, rows b, int I, int J, int S, local float (*A)[PITCH],
                        local float (*B)[PITCH])
{
    const int u = get_local_id(1), v = get_local_id(0);
    const int i = get_group_id(1) * TILE + v, j = get_global_id(0);
    float sum = 0;
    for (int s = 0; s < S; s += TILE) {
#ifdef FAULT_STALE_LOCAL
        /* Zeros are put there before the first tile alone. A last tile that is not full ends with
         * slots of the tile before, which count twice. The same on every device. */
        if (s == 0) A[v][u] = B[v][u] = 0;
        if (s + u < S && i < I) A[v][u] = cell(a, s + u, i);
        if (s + u < S && j < J) B[v][u] = cell(b, s + u, j);
#else
        A[v][u] = s + u < S && i < I ? cell(a, s + u, i) : 0;
        B[v][u] = s + u < S && j < J ? cell(b, s + u, j) : 0;
#endif
#ifndef FAULT_MISSING_BARRIER
        /* Without it an item multiplies elements that others have yet to read. On pocl it goes on
         * alone through `terms`, which has no loop before which pocl would wait for all items: of
         * the elements that later items read it finds those of the last tile or launch. Only the
         * last item finds whole tiles. On a GPU, one warp is late for another. */
        barrier(CLK_LOCAL_MEM_FENCE);
#endif
        sum += terms(A[u], B[v]);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return sum;
}

/* ---- logits r = x W_r' [N,n] ---- */

kernel void logits(global const stored *x, global const stored *router, global float *r, int N,
                   int n, int d)
{
    local float A[TILE][PITCH], B[TILE][PITCH];
    const int t = get_global_id(1), i = get_global_id(0);
    const float sum = over_columns((rows){x, d, 0, 0}, router, d, 1, N, n, d, A, B);
    if (t < N && i < n) r[(size_t)t * n + i] = sum;
}

/* ---- an expert: H = x W_up', A = relu(H)^2, f(x) = A W_down' ---- */

/* Expert e's slots: `load` of them from `first` on. Grids are made for the largest load. */
typedef struct segment {
    int first, load;
} segment;

static segment slots_of(global const int *offset, int e)
{
    return (segment){offset[e], offset[e + 1] - offset[e]};
}

kernel void expert_up(global const stored *x, global const int *token, global const int *offset,
                      global const stored *up, global stored *pre, global stored *act, int d, int h)
{
    local float A[TILE][PITCH], B[TILE][PITCH];
    const int e = get_group_id(2), i = get_global_id(1), j = get_global_id(0);
    const segment own = slots_of(offset, e);
    if (get_group_id(1) * TILE >= own.load) return;
    const float H = over_columns((rows){x, d, own.first, token}, up + (size_t)e * h * d, d, 1,
                                 own.load, h, d, A, B);
    if (i >= own.load || j >= h) return;
    const size_t at = (size_t)(own.first + i) * h + j;
    store(pre, at, H);
    const float positive = fmax(load(pre, at), 0.0f);
    store(act, at, positive * positive);
}

kernel void expert_down(global const stored *act, global const int *offset,
                        global const stored *down, global float *out, int d, int h)
{
    local float A[TILE][PITCH], B[TILE][PITCH];
    const int e = get_group_id(2), i = get_global_id(1), j = get_global_id(0);
    const segment own = slots_of(offset, e);
#ifdef FAULT_TILE_TAIL
    /* Whole tiles of rows alone are computed: an expert's last slots keep the zeros in memory. */
    if ((get_group_id(1) + 1) * TILE > own.load) return;
#else
    if (get_group_id(1) * TILE >= own.load) return;
#endif
    const float sum = over_columns((rows){act, h, own.first, 0}, down + (size_t)e * d * h, h, 1,
                                   own.load, d, h, A, B);
    if (i < own.load && j < d) out[(size_t)(own.first + i) * d + j] = sum;
}

/* ---- combine: out_t = base_weight_t base_t + the sum over the token's slots of w_s part_s ---- */

/* Several items add to one number: none may write between another's reading and writing. OpenCL C
 * 1.2 cannot add a float so, but it can exchange a number if it still is what was read. If it is
 * not, try again. */
static void add(volatile local float *to, float term)
{
    uint before, seen = as_uint(*to);
    do {
        before = seen;
        seen = atomic_cmpxchg((volatile local uint *)to, before, as_uint(as_float(before) + term));
    } while (seen != before);
}

/* A group for a token and TILE columns; its row u of items adds experts u, u + TILE, ... Without a
 * base: 0; without weights: 1. This is y, of f(x), and dx, of what the slots give to it. */
kernel void combine(global const float *base, global const float *base_weight,
                    global const float *part, global const float *w, global const int *slot,
                    global stored *out, int d, int n)
{
    local float sum[TILE];
    const int u = get_local_id(1), v = get_local_id(0), t = get_group_id(1), c = get_global_id(0);
    const size_t at = (size_t)t * d + c;
    if (u == 0) sum[v] = base && c < d ? (base_weight ? base_weight[t] : 1) * base[at] : 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int first = 0; first < n; first += TILE) {
        const int s = first + u < n && c < d ? slot[(size_t)t * n + first + u] : -1;
        const float term = s < 0 ? 0 : (w ? w[s] : 1) * part[(size_t)s * d + c];
#ifdef FAULT_LOST_ATOMIC
        /* A plain addition. Items in step, as in a warp, all read before any writes: of a column's
         * terms one remains. The barriers put pocl's items in step, too: one after the other, each
         * would find the sum of those before, and be right by chance. */
        const float before = sum[v];
        barrier(CLK_LOCAL_MEM_FENCE);
        if (s >= 0) sum[v] = before + term;
        barrier(CLK_LOCAL_MEM_FENCE);
#else
        if (s >= 0) add(&sum[v], term);
#endif
    }
    barrier(CLK_LOCAL_MEM_FENCE); /* all have added */
    if (u == 0 && c < d) store(out, at, sum[v]);
}

/* ---- backward of combine: dw = <dy_t, f(x_t)>, the unweighted output, and dO = w dy_t ---- */

/* A group a slot. Each item sums every LANES-th column; then half of the items add the others' sums
 * to their own, then half of those, until one is left. */
kernel void combine_backward(global const stored *dy, global const int *token,
                             global const float *out, global const float *w, global float *dw,
                             global stored *dout, int d)
{
    local float sum[LANES];
    const int lane = get_local_id(0), s = get_group_id(0);
    const size_t from = (size_t)token[s] * d, to = (size_t)s * d;
    float mine = 0;
    for (int c = lane; c < d; c += LANES) {
        const float g = load(dy, from + c);
        mine += g * out[to + c];
        store(dout, to + c, w[s] * g);
    }
    sum[lane] = mine;
    for (int left = LANES / 2; left > 0; left /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE); /* the sums are there that this round adds */
        if (lane < left) sum[lane] += sum[lane + left];
    }
    if (lane == 0) dw[s] = sum[0];
}

/* ---- backward of an expert: dA = dO W_down, dH = dA 2 relu(H); dx = dH W_up ---- */

kernel void expert_down_backward(global const stored *dout, global const int *offset,
                                 global const stored *down, global const stored *pre,
                                 global stored *dact, global stored *dpre, int d, int h)
{
    local float A[TILE][PITCH], B[TILE][PITCH];
    const int e = get_group_id(2), i = get_global_id(1), j = get_global_id(0);
    const segment own = slots_of(offset, e);
    if (get_group_id(1) * TILE >= own.load) return;
#ifdef FAULT_WRONG_STRIDE
    const size_t stride = h / 4 * 4; /* right only where rows are whole vectors of four */
#else
    const size_t stride = h;
#endif
    const float sum = over_columns((rows){dout, d, own.first, 0}, down + (size_t)e * d * h, 1,
                                   stride, own.load, h, d, A, B);
    if (i >= own.load || j >= h) return;
    const size_t at = (size_t)(own.first + i) * h + j;
    store(dact, at, sum);
    store(dpre, at, load(dact, at) * 2 * fmax(load(pre, at), 0.0f));
}

/* part [S,d] = dH W_up, or += if `more`. And with one expert of all tokens, dr for dH and W_r for
 * W_up: the router's part of dx. */
kernel void expert_up_backward(global const stored *dpre, global const int *offset,
                               global const stored *up, global float *part, int d, int h, int more)
{
    local float A[TILE][PITCH], B[TILE][PITCH];
    const int e = get_group_id(2), i = get_global_id(1), j = get_global_id(0);
    const segment own = slots_of(offset, e);
    if (get_group_id(1) * TILE >= own.load) return;
    const float sum = over_columns((rows){dpre, h, own.first, 0}, up + (size_t)e * h * d, 1, d,
                                   own.load, d, h, A, B);
    if (i >= own.load || j >= d) return;
    const size_t at = (size_t)(own.first + i) * d + j;
    part[at] = more ? part[at] + sum : sum;
}

/* dW [.,I,J]: for each expert, the sum over its slots of a_s' b_s; 0 without any. dW_down is that
 * of dO and A; dW_up of dH and x, dW_r of dr and x, whose rows the list names. */
kernel void weight_gradient(global const stored *a, global const stored *b, global const int *list,
                            global const int *offset, global stored *dW, int I, int J)
{
    local float A[TILE][PITCH], B[TILE][PITCH];
    const int e = get_group_id(2), i = get_global_id(1), j = get_global_id(0);
    const segment own = slots_of(offset, e);
    const float sum = over_slots((rows){a, I, own.first, 0}, (rows){b, J, own.first, list}, I, J,
                                 own.load, A, B);
    if (i < I && j < J) store(dW, ((size_t)e * I + i) * J + j, sum);
}
