/* test_et.c: the OpenCL layer of router.cl and experts.cl, judged by libetref in memory.
 *
 *     test_et [--bf16] [--fault FAULT] [--out FILE] GOLDEN...
 *     test_et --device
 *
 * Each golden bundle brings a case with its inputs. The kernels compute the step on the first GPU,
 * or else on the first device, and et_judge says whether what came out is what a kernel of this
 * precision may give: profile f32, or bf16 with --bf16. `test_et --help` says which cases can be
 * computed. The CPU chooses the launches and sums up loads (place_slots); all else is the device's.
 *
 * Letters: N tokens, d width, n experts, h hidden width, S slots, P tokens of a micro-batch.
 */
#include "device.h"

#include <etref/case.h>
#include <etref/golden.h>
#include <etref/routing.h>
#include <etref/safetensors.h>

static const char help[] =
    "usage: test_et [--bf16] [--fault FAULT] [--out FILE] GOLDEN...\n"
    "       test_et --device\n"
    "\n"
    "Computes each golden's step with OpenCL kernels, and judges what came out.\n"
    "\n"
    "  --bf16         x, dy, weights, activations and their gradients are stored in bf16, not "
    "float\n"
    "  --fault FAULT  compiles a fault into the kernels: missing-barrier, tile-tail, lost-atomic,\n"
    "                 wrong-stride, stale-local\n"
    "  --out FILE     writes what came out, for `etref verify GOLDEN FILE`\n"
    "  --device       names the device that would be used\n"
    "\n"
    "Rules et and ec with every gate and norm, with or without shared expert and capacity; strict "
    "or\n"
    "inclusive; micro-batches, pools, warm-up, evaluation; the moving average. Left out: rule tc,\n"
    "losses, and what would make it fast (several elements an item, wide loads, fused steps).\n"
    "\n"
    "Exit status: 0 pass, 1 mismatch, 2 error or no OpenCL device, 3 inconclusive.\n";

/* Each is in one kernel of experts.cl. */
static const struct fault {
    const char *name, *definition, *kernel;
} faults[] = {
    {"missing-barrier", " -DFAULT_MISSING_BARRIER", "weight_gradient"},
    {"tile-tail", " -DFAULT_TILE_TAIL", "expert_down"},
    {"lost-atomic", " -DFAULT_LOST_ATOMIC", "combine"},
    {"wrong-stride", " -DFAULT_WRONG_STRIDE", "expert_down_backward"},
    {"stale-local", " -DFAULT_STALE_LOCAL", "weight_gradient"},
};

static et_error error;

static void check(et_status status, const char *what)
{
    if (status != ET_OK) die(what, error.text);
}

/* The linker has put the kernels' sources into the program, by names of its own. NOLINTBEGIN(bugprone-reserved-identifier) */
extern const char _binary_experts_cl_start[], _binary_experts_cl_end[];
extern const char _binary_router_cl_start[], _binary_router_cl_end[];
/* NOLINTEND(bugprone-reserved-identifier) */

/* The kernel with the fault comes from a program of its own: an OpenCL that keeps what it has
 * compiled, as pocl does, need not compile the others again. */
static void build_kernels(const struct fault *fault)
{
    const char *start = _binary_experts_cl_start, *end = _binary_experts_cl_end;
    char options[64];
    snprintf(options, sizeof options, "%s", device.bf16 ? " -DBF16" : "");
    device.experts = build("experts.cl", start, end, options);
    device.router = build("router.cl", _binary_router_cl_start, _binary_router_cl_end, "");
    if (!fault) return;
    strcat(options, fault->definition);
    device.faulty = build("experts.cl", start, end, options);
    device.faulty_kernel = fault->kernel;
}

/* ---- experts ---- */

/* Of one shape, with the slots that they take: the n routed ones, or the shared one alone. */
typedef struct experts {
    size_t count, d, h, slots, longest; /* longest: most slots of one expert */
    buffer up, down, offset, token;
    buffer weight, dweight;                     /* [slots] */
    buffer pre, act, out, dpre, dact, dout, dx; /* H, A, f(x), their gradients; [slots,h or d] */
    buffer dup, ddown;
} experts;

static experts new_experts(experts e, const double *up, const double *down)
{
    e.up = buffer_of(STORED, e.count * e.h * e.d, up);
    e.down = buffer_of(STORED, e.count * e.d * e.h, down);
    buffer *weights[] = {&e.dup, &e.ddown}, *hidden[] = {&e.pre, &e.act, &e.dpre, &e.dact};
    for (int i = 0; i < 2; i++) *weights[i] = new_buffer(STORED, e.count * e.h * e.d);
    for (int i = 0; i < 4; i++) *hidden[i] = new_buffer(STORED, e.slots * e.h);
    e.weight = new_buffer(FLOAT, e.slots), e.dweight = new_buffer(FLOAT, e.slots);
    e.out = new_buffer(FLOAT, e.slots * e.d), e.dx = new_buffer(FLOAT, e.slots * e.d);
    e.dout = new_buffer(STORED, e.slots * e.d);
    return e;
}

static void experts_forward(const experts *e, buffer x)
{
    LAUNCH(experts, "expert_up", tile, e->h, e->longest, e->count, AT(x), AT(e->token),
           AT(e->offset), AT(e->up), AT(e->pre), AT(e->act), NUMBER(e->d), NUMBER(e->h));
    LAUNCH(experts, "expert_down", tile, e->d, e->longest, e->count, AT(e->act), AT(e->offset),
           AT(e->down), AT(e->out), NUMBER(e->d), NUMBER(e->h));
}

static void experts_backward(const experts *e, buffer x, buffer dy)
{
    LAUNCH(experts, "combine_backward", lanes, e->slots * LANES, 1, 1, AT(dy), AT(e->token),
           AT(e->out), AT(e->weight), AT(e->dweight), AT(e->dout), NUMBER(e->d));
    LAUNCH(experts, "expert_down_backward", tile, e->h, e->longest, e->count, AT(e->dout),
           AT(e->offset), AT(e->down), AT(e->pre), AT(e->dact), AT(e->dpre), NUMBER(e->d),
           NUMBER(e->h));
    LAUNCH(experts, "weight_gradient", tile, e->h, e->d, e->count, AT(e->dout), AT(e->act), NONE,
           AT(e->offset), AT(e->ddown), NUMBER(e->d), NUMBER(e->h));
    LAUNCH(experts, "weight_gradient", tile, e->d, e->h, e->count, AT(e->dpre), AT(x), AT(e->token),
           AT(e->offset), AT(e->dup), NUMBER(e->h), NUMBER(e->d));
    LAUNCH(experts, "expert_up_backward", tile, e->d, e->longest, e->count, AT(e->dpre),
           AT(e->offset), AT(e->up), AT(e->dx), NUMBER(e->d), NUMBER(e->h), NUMBER(false));
}

/* ---- the layer ---- */

typedef struct layer {
    et_case c;
    size_t N, n, d, P, lines; /* lines: of gates (router.cl) */
    size_t pool, pools;       /* tokens among which an expert chooses */
    buffer x, dy, w_router;
    buffer all, ends; /* all tokens, as one expert's: [N], and {0, N} */
    buffer r, p, anchor, threshold, rank, mask, kth, slot, divisor;
    experts routed, shared;
    buffer y, dp, danchor, dr, dr_stored, dw_router, dx;
    buffer cutoff, ema;
} layer;

/* NULL: the golden has no such input. In memory all are F64. */
static const double *input(et_golden *golden, const char *name)
{
    et_array array;
    for (size_t i = 0;; i++) {
        check(et_golden_tensor(golden, i, &array, &error), name);
        if (!array.name || strncmp(array.name, "in.", 3) != 0) return NULL;
        if (strcmp(array.name, name) == 0) return array.values;
    }
}

static layer new_layer(const et_case *c, et_golden *golden)
{
    const size_t N = c->tokens, n = c->experts, d = c->d_model, P = et_case_micro_tokens(c);
    layer l = {.c = *c, .N = N, .n = n, .d = d, .P = P};
    l.lines = c->gate == ET_GATE_SOFTMAX_TOKENS ? N / P * n : N;
    l.pool = et_case_routes_by_choice(c) ? c->pool_tokens : P;
    l.pools = N / l.pool;
    l.x = buffer_of(STORED, N * d, input(golden, "in.x"));
    l.dy = buffer_of(STORED, N * d, input(golden, "in.dy"));
    l.w_router = buffer_of(STORED, n * d, input(golden, "in.w_router"));

    const double *ema = input(golden, "in.ema");
    double *threshold = memory(n, sizeof *threshold);
    if (ema)
        et_ema_threshold(NULL, n, ema, c->ema_decay, c->ema_bias_correction, c->ema_updates,
                         threshold);
    l.threshold = buffer_of(FLOAT, n, threshold), l.ema = buffer_of(FLOAT, n, ema);
    free(threshold);

    cl_int *all = memory(N, sizeof *all);
    for (size_t t = 0; t < N; t++) all[t] = (cl_int)t;
    l.all = ints_of(N, all), l.ends = ints_of(2, (cl_int[]){0, (cl_int)N});
    free(all);

    buffer *scores[] = {&l.r, &l.p, &l.dp, &l.dr}, *tokens[] = {&l.anchor, &l.danchor, &l.divisor};
    for (int i = 0; i < 4; i++) *scores[i] = new_buffer(FLOAT, N * n);
    for (int i = 0; i < 3; i++) *tokens[i] = new_buffer(FLOAT, N);
    l.rank = new_buffer(INT, N * n), l.slot = new_buffer(INT, N * n);
    l.mask = new_buffer(BYTE, N * n), l.kth = new_buffer(FLOAT, l.pools * n);
    l.y = new_buffer(STORED, N * d), l.dx = new_buffer(STORED, N * d);
    l.dr_stored = new_buffer(STORED, N * n), l.dw_router = new_buffer(STORED, n * d);
    l.cutoff = new_buffer(FLOAT, n);
    return l;
}

/* routed->offset from the experts' loads. Their sum S sizes memory: the one number that must come
 * back from the device before all is done. */
static void place_slots(experts *routed, buffer load)
{
    cl_int *loads = memory(routed->count, sizeof *loads);
    cl_int *offset = memory(routed->count + 1, sizeof *offset);
    get(load, loads);
    for (size_t i = 0; i < routed->count; i++) {
        offset[i + 1] = offset[i] + loads[i];
        if ((size_t)loads[i] > routed->longest) routed->longest = (size_t)loads[i];
    }
    routed->slots = (size_t)offset[routed->count];
    routed->offset = ints_of(routed->count + 1, offset);
    free(loads), free(offset);
}

static void route(layer *l, experts *routed)
{
    const et_case *c = &l->c;
    const size_t N = l->N, n = l->n, k = c->target_load;
    et_capacity bounds = {0, l->pool};
    if (c->has_capacity && !c->eval) bounds = et_capacity_bounds(k, c->capacity_factor, l->pool);
    if (et_case_routes_by_choice(c)) bounds = (et_capacity){k, k};
    buffer load = new_buffer(INT, n);
    LAUNCH(experts, "logits", tile, n, N, 1, AT(l->x), AT(l->w_router), AT(l->r), NUMBER(N),
           NUMBER(n), NUMBER(l->d));
    LAUNCH(router, "gates", lanes, l->lines, 1, 1, AT(l->r), AT(l->p), AT(l->anchor),
           NUMBER(c->gate), NUMBER(n), NUMBER(l->P), NUMBER(l->lines));
    LAUNCH(router, "rank_tokens", tile, n, N, 1, AT(l->r), AT(l->rank), NUMBER(N), NUMBER(n),
           NUMBER(l->pool));
    LAUNCH(router, "take", lanes, n * LANES, l->pools, 1, AT(l->r), AT(l->threshold), AT(l->rank),
           AT(l->mask), AT(load), AT(l->kth), NUMBER(n), NUMBER(l->pool), NUMBER(bounds.lower),
           NUMBER(bounds.upper), NUMBER(c->inclusive), NUMBER(k));
    place_slots(routed, load);
    routed->token = new_buffer(INT, routed->slots);
    LAUNCH(router, "fill_slots", tile, n, N, 1, AT(l->mask), AT(routed->offset), AT(l->slot),
           AT(routed->token), NUMBER(N), NUMBER(n));
}

static void forward(layer *l, et_golden *golden)
{
    const et_case *c = &l->c;
    experts routed = {.count = l->n, .d = l->d, .h = c->d_expert};
    experts shared = {.count = c->shared, .d = l->d, .h = c->shared_d_expert, .longest = l->N};
    route(l, &routed);
    shared.slots = c->shared ? l->N : 0, shared.offset = l->ends, shared.token = l->all;
    l->routed = new_experts(routed, input(golden, "in.w_up"), input(golden, "in.w_down"));
    l->shared = new_experts(shared, input(golden, "in.shared_up"), input(golden, "in.shared_down"));
    const double fixed =
        c->gate == ET_GATE_SOFTMAX_ANCHOR_OUT ? 1 / (1 + (double)c->granularity) : 1;
    LAUNCH(router, "weights", lanes, l->N, 1, 1, AT(l->p), AT(l->anchor), AT(l->slot),
           AT(l->routed.weight), AT(l->shared.weight), AT(l->divisor), NUMBER(c->gate),
           NUMBER(c->norm), NUMBER(c->shared), REAL(fixed), NUMBER(l->N), NUMBER(l->n));
    experts_forward(&l->routed, l->x);
    experts_forward(&l->shared, l->x);
    const argument base = c->shared ? (argument)AT(l->shared.out) : (argument)NONE;
    LAUNCH(experts, "combine", tile, l->d, l->N * TILE, 1, base, AT(l->shared.weight),
           AT(l->routed.out), AT(l->routed.weight), AT(l->slot), AT(l->y), NUMBER(l->d),
           NUMBER(l->n));
}

static void backward(layer *l)
{
    const et_case *c = &l->c;
    const size_t N = l->N, n = l->n, d = l->d;
    experts_backward(&l->routed, l->x, l->dy);
    experts_backward(&l->shared, l->x, l->dy);
    LAUNCH(router, "weights_backward", lanes, N, 1, 1, AT(l->routed.weight), AT(l->routed.dweight),
           AT(l->shared.dweight), AT(l->slot), AT(l->divisor), AT(l->dp), AT(l->danchor),
           NUMBER(c->gate), NUMBER(c->norm), NUMBER(c->shared), NUMBER(N), NUMBER(n));
    LAUNCH(router, "gates_backward", lanes, l->lines, 1, 1, AT(l->r), AT(l->p), AT(l->anchor),
           AT(l->dp), AT(l->danchor), AT(l->dr), NUMBER(c->gate), NUMBER(n), NUMBER(l->P),
           NUMBER(l->lines));
    LAUNCH(experts, "round_to_stored", lanes, N * n, 1, 1, AT(l->dr), AT(l->dr_stored),
           NUMBER(N * n));
    LAUNCH(experts, "weight_gradient", tile, d, n, 1, AT(l->dr_stored), AT(l->x), AT(l->all),
           AT(l->ends), AT(l->dw_router), NUMBER(n), NUMBER(d));
    /* dx_t: dr W_r, on top of what the shared expert gives, then the slots */
    buffer base = c->shared ? l->shared.dx : new_buffer(FLOAT, N * d);
    LAUNCH(experts, "expert_up_backward", tile, d, N, 1, AT(l->dr_stored), AT(l->ends),
           AT(l->w_router), AT(base), NUMBER(d), NUMBER(n), NUMBER(true));
    LAUNCH(experts, "combine", tile, d, N * TILE, 1, AT(base), NONE, AT(l->routed.dx), NONE,
           AT(l->slot), AT(l->dx), NUMBER(d), NUMBER(n));
}

static void move_average(layer *l)
{
    const double beta = l->c.ema_decay;
    LAUNCH(router, "moving_average", lanes, l->n, 1, 1, AT(l->kth), AT(l->cutoff), AT(l->ema),
           REAL(beta), REAL(1 - beta), NUMBER(l->n), NUMBER(l->pools));
}

/* ---- what came out ---- */

typedef struct candidate {
    size_t count;
    et_array arrays[64];
    et_dtype stored[64]; /* as the device stored them */
} candidate;

/* What the layer computed under a bundle's name; memory NULL: nothing. */
static buffer result(const layer *l, const char *name)
{
    const struct {
        const char *name;
        buffer buffer;
    } all[] = {
        {"fwd.logits", l->r},
        {"fwd.gates", l->p},
        {"route.threshold", l->threshold},
        {"route.mask", l->mask},
        {"route.slot_weight", l->routed.weight},
        {"fwd.slot_pre", l->routed.pre},
        {"fwd.slot_act", l->routed.act},
        {"fwd.slot_out", l->routed.out},
        {"fwd.shared_pre", l->shared.pre},
        {"fwd.shared_act", l->shared.act},
        {"fwd.shared_out", l->shared.out},
        {"fwd.shared_weight", l->shared.weight},
        {"fwd.y", l->y},
        {"bwd.slot_weight", l->routed.dweight},
        {"bwd.slot_out", l->routed.dout},
        {"bwd.slot_act", l->routed.dact},
        {"bwd.slot_pre", l->routed.dpre},
        {"bwd.shared_weight", l->shared.dweight},
        {"bwd.shared_out", l->shared.dout},
        {"bwd.shared_act", l->shared.dact},
        {"bwd.shared_pre", l->shared.dpre},
        {"bwd.logits", l->dr},
        {"bwd.x", l->dx},
        {"bwd.w_router", l->dw_router},
        {"bwd.w_up", l->routed.dup},
        {"bwd.w_down", l->routed.ddown},
        {"bwd.shared_up", l->shared.dup},
        {"bwd.shared_down", l->shared.ddown},
        {"route.cutoff", l->cutoff},
        {"state.ema", l->ema},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(name, all[i].name) == 0) return all[i].buffer;
    return (buffer){0};
}

/* As float, or bytes of the mask. */
static void *values_of(buffer b)
{
    float *values = memory(b.count, sizeof *values);
    get(b, values);
    unsigned char *bits = (unsigned char *)values;
    for (size_t i = b.count; size_of(b.kind) == 2 && i-- > 0;) /* backwards: they grow in place */
        values[i] = (float)et_dtype_decode(bits + 2 * i, ET_BF16);
    return values;
}

/* The golden's tensors that were computed. Shapes are the golden's, but for the number of slots. */
static void collect(candidate *c, const layer *l, et_golden *golden)
{
    et_array array;
    for (size_t i = 0;; i++) {
        check(et_golden_tensor(golden, i, &array, &error), "golden");
        if (!array.name) return;
        buffer b = result(l, array.name);
        if (!b.memory) continue;
        size_t row = 1;
        for (size_t axis = 1; axis < array.rank; axis++) row *= array.shape[axis];
        array.shape[0] = b.count / row;
        array.dtype = b.kind == BYTE ? ET_U8 : ET_F32;
        array.values = values_of(b);
        c->stored[c->count] = size_of(b.kind) == 2 ? ET_BF16 : array.dtype;
        c->arrays[c->count++] = array;
    }
}

static void write_candidate(const candidate *c, const char *path)
{
    et_tensor_out out[64];
    for (size_t i = 0; i < c->count; i++) {
        const et_array *a = &c->arrays[i];
        out[i] =
            (et_tensor_out){a->name, c->stored[i], a->rank,
                            {0},     a->values,    a->dtype == ET_U8 ? ET_FROM_U8 : ET_FROM_F32};
        memcpy(out[i].shape, a->shape, sizeof out[i].shape);
    }
    check(et_tensor_file_write(path, out, c->count, NULL, &error), path);
}

/* ---- the verdict ---- */

static int judge(const candidate *c, et_golden *golden)
{
    char *json, *text;
    const char *options = device.bf16 ? "{\"profile\": \"bf16\"}" : "{\"profile\": \"f32\"}";
    check(et_judge(golden, c->arrays, c->count, options, &json, &text, &error), "verdict");
    printf("%s", text);
    int status = strstr(json, "\"verdict\": \"pass\"")       ? 0
                 : strstr(json, "\"verdict\": \"mismatch\"") ? 1
                                                             : 3;
    et_release(json);
    et_release(text);
    return status;
}

static et_case case_of(et_golden *golden, const char *path)
{
    et_case c;
    char *json;
    check(et_golden_case(golden, &json, &error), path);
    check(et_case_parse(&c, json, strlen(json), path, &error), path);
    et_release(json);
    if (c.layer != ET_MOE || c.rule == ET_TC)
        die(path, "the kernels have the rules et and ec only");
    if (c.given) die(path, "the kernels route by themselves");
    if (c.padding > 0) die(path, "the kernels know no padding");
    if (c.z_loss_coef != 0 && !c.eval) die(path, "the kernels have no losses");
    return c;
}

static int test(const char *path, const char *out)
{
    et_golden *golden;
    check(et_golden_open(&golden, path, 0, &error), "golden");
    const et_case c = case_of(golden, path);
    layer l = new_layer(&c, golden);
    forward(&l, golden);
    backward(&l);
    move_average(&l);
    candidate found = {0};
    collect(&found, &l, golden);
    free_buffers();
    if (out) write_candidate(&found, out);
    int status = judge(&found, golden);
    for (size_t i = 0; i < found.count; i++) free((void *)found.arrays[i].values);
    et_golden_close(golden);
    return status;
}

static const struct fault *known_fault(const char *name)
{
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (strcmp(name, faults[i].name) == 0) return &faults[i];
    die(name, "no such fault (test_et --help names them)");
}

int main(int argc, char **argv)
{
    const struct fault *fault = NULL;
    const char *out = NULL;
    int i = 1, worst = 0;
    for (; i < argc && argv[i][0] == '-'; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--help") == 0) return printf("%s", help) < 0;
        if (strcmp(argv[i], "--device") == 0) return printf("%s\n", find_device()) < 0;
        if (strcmp(argv[i], "--bf16") == 0)
            device.bf16 = true;
        else if (strcmp(argv[i], "--fault") == 0 && more)
            fault = known_fault(argv[++i]);
        else if (strcmp(argv[i], "--out") == 0 && more)
            out = argv[++i];
        else
            die(argv[i], "no such option, or without its value (test_et --help)");
    }
    if (i == argc) die("no golden", "`etref generate` makes some (test_et --help)");
    if (out && argc - i > 1) die("--out", "there are several goldens, and one file");
    open_device();
    build_kernels(fault);
    for (; i < argc; i++) {
        int status = test(argv[i], out);
        if (worst == 0 || status == 1) worst = status;
    }
    return worst;
}
