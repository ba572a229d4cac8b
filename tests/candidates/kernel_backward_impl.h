/* kernel_backward_impl.h: the way back through the kernel of kernel_impl.h, which includes it. Internal. */

/* ---- backward: dO, dw, dA, dH ---- */

static double backward_weight(const cd_work *w, const expert *e, size_t row)
{
    bool missing = cd_bad(w, CD_WEIGHT_MISSING) || cd_bad(w, CD_INPUT_WEIGHTED);
    if (e->weight == NULL || (!e->is_shared && missing)) return 1;
    bool twice = !e->is_shared && cd_bad(w, CD_WEIGHT_TWICE);
    return twice ? cd_acc(w, e->weight[row] * e->weight[row]) : e->weight[row];
}

/* dO = w dy as it enters a product: to [m,d]; with weight_on_act dy itself, the weight comes later.
 * dO [m,d] or NULL gets what is kept of it. by_slot: of the wrong rows of dy, a fault. */
static void upstream(const cd_work *w, const expert *e, bool by_slot, num *dO, num *to)
{
    size_t d = w->d;
    bool plain = cd_weights_act(w) || e->weight == NULL;
    gather(w, e, w->dy, by_slot, to);
    for (size_t j = 0; !plain && j < e->m; j++) {
        num by = (num)backward_weight(w, e, j);
        for (size_t c = 0; c < d; c++) to[j * d + c] = fix(w, by * to[j * d + c]);
    }
    if (!plain && !w->kernel->fused_grads) round_all(&w->intermediate, e->m * d, to);
    if (dO != NULL) memcpy(dO, to, e->m * d * sizeof *dO);
    round_all(&w->operand, e->m * d, to);
}

/* dw = <dy, f> */
static void weight_gradient(const cd_work *w, const expert *e, size_t row, num dw)
{
    if (!e->is_shared && cd_bad(w, CD_DW_FROM_WEIGHTED)) dw = fix(w, dw * (num)e->weight[row]);
    if (!e->is_shared && cd_bad(w, CD_INPUT_WEIGHTED)) dw *= 2 / (num)e->weight[row];
    if (!e->is_shared && cd_bad(w, CD_STALE_DW) && e->first + row == 0) dw = (num)-7.25;
    e->dw[row] = cd_round(&w->gate, (double)dw);
}

static void weight_gradients(const cd_work *w, const expert *e)
{
    size_t d = w->d, h = e->h;
    bool by_act = cd_weights_act(w); /* <A, dy W_down> is the same number */
    sums how = sums_of(w, by_act ? h : d);
    for (size_t j = 0; e->weight && j < e->m; j++) {
        const num *dy = (const num *)w->dy + token_of(e, j) * d;
        weight_gradient(w, e, j,
                        by_act ? dot(&how, h, e->A + j * h, e->dA + j * h)
                               : dot(&how, d, dy, e->O + j * d));
    }
}

/* dA = dO W_down */
static void act_gradient(const cd_work *w, const expert *e)
{
    size_t d = w->d, h = e->h;
    sums how = sums_of(w, d);
    upstream(w, e, false, e->dO, w->drows);
    product(&how, e->m, h, d, rows_of(w->drows, d), rows_of(w->down, h), e->dA);
    if (!w->kernel->fused_grads && !cd_weights_act(w)) round_all(&w->intermediate, e->m * h, e->dA);
    weight_gradients(w, e);
    for (size_t j = 0; cd_weights_act(w) && e->weight && j < e->m; j++) {
        num by = (num)backward_weight(w, e, j);
        for (size_t c = 0; c < h; c++) e->dA[j * h + c] = fix(w, by * e->dA[j * h + c]);
    }
}

/* d relu(H)^2 / dH */
static num slope(const cd_work *w, num H, num A)
{
    num R = H > 0 ? H : 0;
    if (cd_bad(w, CD_GELU)) return (num)gelu_slope((double)H);
    if (cd_bad(w, CD_RELU_MASK)) R = H;
    if (cd_bad(w, CD_RELU_DERIVATIVE)) return H > 0;
    if (cd_bad(w, CD_ACT_FOR_RELU)) R = A;
    return cd_bad(w, CD_FACTOR_TWO) ? R : 2 * R;
}

/* dH = dA 2 relu(H) */
static void hidden_gradient(const cd_work *w, const expert *e)
{
    size_t count = e->m * e->h;
    for (size_t i = 0; i < count; i++) e->dH[i] = fix(w, e->dA[i] * slope(w, e->H[i], e->A[i]));
    round_all(&w->intermediate, count, e->dH);
}

/* ---- backward: dW_down = dO' A, dW_up = dH' x, dx = dH W_up ---- */

static bool scales(const cd_work *w, const expert *e, cd_fault_id own)
{
    bool some = e->weight && e->index == w->some_expert;
    if (e->is_shared) return cd_bad(w, CD_DSHARED_SCALED);
    return cd_bad(w, own) || (some && cd_bad(w, CD_EXPERT_DW_SCALED));
}

/* What is squared, in A's place, as an operand. */
static void before_square(const cd_work *w, const expert *e, num *to)
{
    for (size_t i = 0; i < e->m * e->h; i++) to[i] = e->H[i] > 0 ? e->H[i] : 0;
    round_all(&w->operand, e->m * e->h, to);
}

static void average(const cd_work *w, const expert *e, num *gradient)
{
    size_t count = cd_bad(w, CD_GRADIENT_AVERAGED) && e->m > 1 ? e->h * w->d : 0;
    for (size_t i = 0; i < count; i++) gradient[i] = fix(w, gradient[i] / (num)e->m);
}

static void parameter_gradients(const cd_work *w, const expert *e)
{
    size_t d = w->d, h = e->h, m = e->m;
    if (cd_bad(w, CD_LAST_TOKEN_DW) && !e->is_shared && m > 0) m--;
    sums how = sums_of_tokens(w, m);
    bool wrong = cd_bad(w, CD_ORDER_DOWN) && e->tokens;
    if (wrong) upstream(w, e, true, NULL, w->drows);
    act_operand(w, e, false, w->act);
    if (cd_bad(w, CD_DOWN_BEFORE_SQUARE)) before_square(w, e, w->act);
    product(&how, d, h, m, transpose_of(w->drows, d), rows_of(w->act, h), e->ddown);
    average(w, e, e->ddown);
    put_out(w, scales(w, e, CD_DDOWN_SCALED), d * h, e->ddown);
    gather_x(w, e, cd_bad(w, CD_ORDER_UP) && e->tokens, w->rows);
    to_operand(w, e->m * h, e->dH, w->dhidden);
    product(&how, h, d, m, transpose_of(w->dhidden, h), rows_of(w->rows, d), e->dup);
    average(w, e, e->dup);
    put_out(w, scales(w, e, CD_DUP_SCALED), h * d, e->dup);
}

static void input_gradient(const cd_work *w, const expert *e)
{
    sums how = sums_of(w, e->h);
    product(&how, e->m, w->d, e->h, rows_of(w->dhidden, e->h), rows_of(w->up, w->d), e->dx);
    bool weighted = cd_bad(w, CD_INPUT_WEIGHTED) && !e->is_shared && e->weight;
    for (size_t j = 0; weighted && j < e->m * w->d; j++)
        e->dx[j] = fix(w, (num)e->weight[j / w->d] * e->dx[j]);
}

static void expert_backward(const cd_work *w, const expert *e)
{
    act_gradient(w, e);
    hidden_gradient(w, e);
    parameter_gradients(w, e);
    input_gradient(w, e);
}

static void routed_backward(const cd_work *w, size_t i)
{
    expert e = routed(w, i);
    size_t size = e.h * w->d;
    load_weights(w, &e, cd_bad(w, CD_NEIGHBOUR_BACKWARD) ? neighbour(w, i) : i);
    expert_backward(w, &e);
    for (size_t j = 0; e.m == 0 && cd_bad(w, CD_NAN_OF_EMPTY) && j < size; j++)
        e.dup[j] = e.ddown[j] = (num)NAN; /* a mean over no tokens */
    if (e.m > 0 || !cd_bad(w, CD_EMPTY_GRADIENT)) return;
    et_stream stream = et_stream_open(w->seed, "candidate.memory");
    for (size_t j = 0; j < size; j++) {
        e.dup[j] = round_num(&w->output, (num)(0.01 * et_normal(stream, 2 * (i * size + j))));
        e.ddown[j] = round_num(&w->output, (num)(0.01 * et_normal(stream, 2 * (i * size + j) + 1)));
    }
}

static void exchange(size_t count, num *a, num *b)
{
    for (size_t j = 0; j < count; j++) {
        num last = a[j];
        a[j] = b[j];
        b[j] = last;
    }
}

static void experts_backward(cd_work *w)
{
    size_t size = w->h * w->d;
    if (w->n == 0) {
        expert e = dense_layer(w);
        load_weights(w, &e, 0);
        expert_backward(w, &e);
        return;
    }
    for (size_t i = 0; i < w->n; i++) routed_backward(w, i);
    if (cd_bad(w, CD_DW_EXCHANGED) && w->n > 1) exchange(size, w->dup, (num *)w->dup + size);
    if (w->hs > 0) {
        expert e = shared_expert(w);
        load_weights(w, &e, 0);
        expert_backward(w, &e);
    }
}

et_status EXPORT(cd_backward)(cd_work *w)
{
    experts_backward(w);
    if (w->n > 0) return ET_OK;
    memcpy(w->dx, w->dx_slot, w->N * w->d * sizeof(num));
    put_out(w, cd_bad(w, CD_DX_SCALED), w->N * w->d, w->dx);
    return ET_OK;
}

/* ---- dW_r = dr' x, dx = dr W_r + the experts' shares ---- */

et_status EXPORT(cd_router_backward)(cd_work *w)
{
    size_t N = w->N, n = w->n, d = w->d;
    num *dr = cd_take(w, N * n, sizeof(num)), *router = cd_take(w, n * d, sizeof(num));
    w->drouter = cd_take(w, n * d, sizeof(num));
    w->dx_router = cd_take(w, N * d, sizeof(num));
    if (!dr || !router || !w->drouter || !w->dx_router) return ET_ENOMEM;
    for (size_t j = 0; j < N * n; j++) dr[j] = (num)w->dr[j];
    if (!w->kernel->wide_router) round_all(&w->operand, N * n, dr);
    load_router(w, router);
    sums over_tokens = sums_of(w, N), over_experts = sums_of(w, n);
    product(&over_tokens, n, d, N, transpose_of(dr, n), rows_of(router_rows(w), d), w->drouter);
    product(&over_experts, N, d, n, rows_of(dr, n), rows_of(router, d), w->dx_router);
    put_out(w, cd_bad(w, CD_DROUTER_SCALED), n * d, w->drouter);
    et_status status =
        gather_terms(w, dx_terms, cd_bad(w, CD_INVERSE_DX),
                     cd_bad(w, CD_DX_BF16) ? &cd_eight_bits : NULL, "candidate.dx", w->dx);
    put_out(w, cd_bad(w, CD_DX_SCALED), N * d, w->dx);
    return status;
}
