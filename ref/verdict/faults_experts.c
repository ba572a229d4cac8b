/* faults_experts.c: H, A and f(x), wrongly. See faults.h. */
#include "etref/elementary.h"
#include "ref/verdict/faults.h"
#include "ref/verdict/judge.h"

#include <stdlib.h>
#include <string.h>

/* Of some expert: one whose weights can be read as if transposed. */
static bool is_square(const et_step *s)
{
    return s->c.d_expert == s->c.d_model || (et_is_moe(s) && s->c.shared_d_expert == s->c.d_model);
}

/* ---- other weights ---- */

/* Of another routed expert, those that the stage takes; the shared one has no neighbour. */
static void use_expert(et_mutant *m, const et_rows_of *r, size_t e)
{
    bool up = r->stage == ET_AT_PRE || r->stage == ET_AT_SLOT_DX;
    const et_real *weights = up ? m->moe.up : m->moe.down;
    if (r->expert < m->moe.n) et_through(m, r, weights + e * m->moe.h * m->moe.d, false, NULL);
}

static void neighbours_weights(et_mutant *m, const et_rows_of *r)
{
    use_expert(m, r, (r->expert + (m->variant > 1 ? m->moe.n - 1 : 1)) % m->moe.n);
}

static void first_experts_weights(et_mutant *m, const et_rows_of *r)
{
    use_expert(m, r, 0);
}

/* The shared expert may have another width than the routed ones: only what is square is turned. */
static void turn_up(et_mutant *m, const et_rows_of *r)
{
    if (r->width == m->moe.d) et_through(m, r, r->up, true, NULL);
}

static void turn_down(et_mutant *m, const et_rows_of *r)
{
    if (r->width == m->moe.d) et_through(m, r, r->down, true, NULL);
}

/* The row whose number is a slot's, as if slots were tokens. */
static void slot_as_token(et_mutant *m, const et_rows_of *r)
{
    size_t d = m->moe.d;
    et_real *rows = r->expert < m->moe.n ? malloc((r->count * d + 1) * sizeof *rows) : NULL;
    if (rows == NULL) return;
    for (size_t q = 0; q < r->count; q++)
        memcpy(rows + q * d, m->on->right->in.x + m->pick->slots[r->first + q] % m->moe.N * d,
               d * sizeof *rows);
    et_through(m, r, r->up, false, rows);
    free(rows);
}

/* One row through other weights: variants 4 to 6 of neighbour-expert, the last rows of an expert
 * that fill no tile of 16, 64 or 128. */
static bool is_in_last_tile(const et_row *r, size_t tile)
{
    return r->place >= r->load - r->load % tile;
}

static const et_real *next_weights(const et_mutant *m, const et_real *weights, size_t e)
{
    return weights + (e + 1) % m->moe.n * m->moe.h * m->moe.d;
}

static bool fills_no_tile(const et_mutant *m, const et_row *r)
{
    static const size_t tiles[] = {16, 64, 128};
    return r->expert < m->moe.n && is_in_last_tile(r, tiles[m->variant - 4]);
}

static void neighbours_hidden(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = m->moe.h;
    if (!fills_no_tile(m, r)) return;
    et_matmul(ET_BLAS, 1, h, d, et_rows(m->on->right->in.x + r->token * d, d),
              et_transposed(next_weights(m, m->moe.up, r->expert), d), false, r->H, h);
}

static void neighbours_output(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = m->moe.h;
    if (!fills_no_tile(m, r)) return;
    et_matmul(ET_BLAS, 1, d, h, et_rows(r->A, h),
              et_transposed(next_weights(m, m->moe.down, r->expert), h), false, r->O, d);
}

/* ---- another activation ---- */

static et_real relu(et_real v)
{
    return v > 0 ? v : 0;
}

static void not_squared(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) r->A[j] = relu(r->H[j]);
}

static void square_alone(et_mutant *m, const et_row *r)
{
    (void)m;
    for (size_t j = 0; j < r->width; j++) r->A[j] = r->H[j] * r->H[j];
}

static double logistic(double x)
{
    return 1 / (1 + et_exp(-x));
}

/* SiLU: x s(x), s the logistic function, slope s + x s (1-s). GELU by its usual approximation with a tanh is
 * x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the same form. */
static double smooth_relu(const et_mutant *m, double x, double *slope)
{
    const double root = 0.79788456080286536;
    bool silu = m->variant == 0;
    double inner = silu ? x : 2 * root * (x + 0.044715 * x * x * x);
    double s = logistic(inner), ds = silu ? 1 : 2 * root * (1 + 3 * 0.044715 * x * x);
    *slope = s + x * s * (1 - s) * ds;
    return x * s;
}

static void other_activation(et_mutant *m, const et_row *r)
{
    double slope;
    for (size_t j = 0; j < r->width; j++)
        r->A[j] = (et_real)smooth_relu(m, (double)r->H[j], &slope);
}

static void other_activation_slope(et_mutant *m, const et_row *r)
{
    double slope;
    for (size_t j = 0; j < r->width; j++) {
        smooth_relu(m, (double)r->H[j], &slope);
        r->dH[j] = r->dA[j] * (et_real)slope;
    }
}

/* ---- rows that get lost ---- */

static bool is_last_row(const et_row *r)
{
    return r->place + 1 == r->load;
}

static void forget_O(const et_mutant *m, const et_row *r)
{
    memset(r->O, 0, m->moe.d * sizeof *r->O);
}

/* What autograd makes of a row that y does not have: dw = 0, and then dO = 0. */
static void forget_dO(const et_mutant *m, const et_row *r)
{
    memset(r->dO, 0, m->moe.d * sizeof *r->dO);
}

static void drop_last_row(et_mutant *m, const et_row *r)
{
    if (is_last_row(r)) forget_O(m, r);
}

static size_t dropped_tile(const et_mutant *m)
{
    static const size_t tiles[] = {16, 32, 64, 128, 256};
    return tiles[m->variant % 5];
}

static void drop_last_tile(et_mutant *m, const et_row *r)
{
    if (is_in_last_tile(r, dropped_tile(m))) forget_O(m, r);
}

/* y_t without the rows that end an expert's load: those that fill no whole tile; or the last, with tile = 0. */
static void y_without_end(et_mutant *m, size_t t, size_t tile)
{
    const int32_t *slots;
    size_t count = et_slots_of(&m->pick->a, t, &slots);
    et_start_y(m, t);
    for (size_t j = 0; j < count; j++) {
        size_t slot = m->pick->slots[slots[j]], e = (size_t)m->a->slot_expert[slot];
        size_t lost = tile ? (size_t)m->a->load[e] % tile : 1;
        if (slot + lost < (size_t)m->a->expert_offsets[e + 1])
            et_add_slot(m, t, (size_t)slots[j], 1);
    }
}

static void y_without_last_rows(et_mutant *m, size_t t)
{
    y_without_end(m, t, 0);
}

static void y_without_last_tiles(et_mutant *m, size_t t)
{
    y_without_end(m, t, dropped_tile(m));
}

static bool is_lost_last_row(const et_mutant *m, const et_row *r)
{
    return is_last_row(r) && (r->expert < m->moe.n || m->variant == 3);
}

static void last_row_without_dw(et_mutant *m, const et_row *r)
{
    if (is_lost_last_row(m, r)) *r->dw = 0;
}

static void last_row_without_dO(et_mutant *m, const et_row *r)
{
    if (is_lost_last_row(m, r)) forget_dO(m, r);
}

static bool is_in_lost_tile(const et_mutant *m, const et_row *r)
{
    bool in_y = m->variant >= 10; /* of routed experts */
    return is_in_last_tile(r, dropped_tile(m)) && !(in_y && r->expert == m->moe.n);
}

static void last_tile_without_dw(et_mutant *m, const et_row *r)
{
    if (is_in_lost_tile(m, r)) *r->dw = 0;
}

static void last_tile_without_dO(et_mutant *m, const et_row *r)
{
    if (is_in_lost_tile(m, r)) forget_dO(m, r);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"neighbour-expert", "rows are computed with the neighbouring expert's weights", "forward"},
     .applies = et_has_many_experts,
     .variants = {"expert i+1", "expert i+1, in the backward pass, too", "expert i-1", "expert i-1, in the backward pass, too",
                  "expert i+1, rows that fill no tile of 16", "expert i+1, rows that fill no tile of 64", "expert i+1, rows that fill no tile of 128"},
     .hooks = {{.at = ET_AT_PRE, .variants = 15, .rows = neighbours_weights}, {.at = ET_AT_OUT, .variants = 15, .rows = neighbours_weights},
               {.at = ET_AT_DACT, .variants = 10, .rows = neighbours_weights}, {.at = ET_AT_SLOT_DX, .variants = 10, .rows = neighbours_weights},
               {.at = ET_AT_PRE, .variants = 112, .row = neighbours_hidden}, {.at = ET_AT_OUT, .variants = 112, .row = neighbours_output}}},
    {.doc = {"first-expert-everywhere", "every expert computes with expert 0's weights", "forward"},
     .applies = et_has_many_experts, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .rows = first_experts_weights}, {.at = ET_AT_OUT, .rows = first_experts_weights},
               {.at = ET_AT_DACT, .variants = 2, .rows = first_experts_weights}, {.at = ET_AT_SLOT_DX, .variants = 2, .rows = first_experts_weights}}},
    {.doc = {"up-transposed", "W_up is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .rows = turn_up}, {.at = ET_AT_SLOT_DX, .variants = 2, .rows = turn_up}}},
    {.doc = {"down-transposed", "W_down is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .rows = turn_down}, {.at = ET_AT_DACT, .variants = 2, .rows = turn_down}}},
    {.doc = {"slot-for-token", "an expert reads the row of x that its slot's number names, not its token", "forward"},
     .applies = et_is_moe, .variants = ET_ONE_FORM, .hooks = {{.at = ET_AT_PRE, .rows = slot_as_token}}},
    {.doc = {"relu-not-squared", "A = relu(H), not its square", "forward"},
     .variants = {"", "its derivative, too"},
     .hooks = {{.at = ET_AT_ACT, .row = not_squared}, {.at = ET_AT_DPRE, .variants = 2, .row = et_not_squared_slope}}},
    {.doc = {"square-without-relu", "A = H^2, not relu(H)^2", "forward"},
     .variants = {"", "its derivative, too"},
     .hooks = {{.at = ET_AT_ACT, .row = square_alone}, {.at = ET_AT_DPRE, .variants = 2, .row = et_square_slope}}},
    {.doc = {"other-activation", "the activation is not relu(H)^2", "forward"},
     .variants = {"SiLU", "GELU"},
     .hooks = {{.at = ET_AT_ACT, .row = other_activation}, {.at = ET_AT_DPRE, .row = other_activation_slope}}},
    {.doc = {"last-row-dropped", "an expert's last row is missing", "forward"},
     .variants = {"", "in y alone", "in y, and from there back", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .variants = 1 | 8, .row = drop_last_row}, {.at = ET_AT_Y, .variants = 2 | 4, .token = y_without_last_rows},
               {.at = ET_AT_DWEIGHT, .variants = 4 | 8, .row = last_row_without_dw}, {.at = ET_AT_DOUT, .variants = 4 | 8, .row = last_row_without_dO}}},
    {.doc = {"last-tile-dropped", "an expert's last rows, which fill no whole tile, are missing", "forward"},
     .variants = {"tiles of 16", "tiles of 32", "tiles of 64", "tiles of 128", "tiles of 256",
                  "tiles of 16, in the backward pass, too", "tiles of 32, in the backward pass, too", "tiles of 64, in the backward pass, too",
                  "tiles of 128, in the backward pass, too", "tiles of 256, in the backward pass, too", "tiles of 16, in y, and from there back",
                  "tiles of 32, in y, and from there back", "tiles of 64, in y, and from there back", "tiles of 128, in y, and from there back",
                  "tiles of 256, in y, and from there back"},
     .hooks = {{.at = ET_AT_OUT, .variants = 31 | 31 << 5, .row = drop_last_tile}, {.at = ET_AT_Y, .variants = 31 << 10, .token = y_without_last_tiles},
               {.at = ET_AT_DWEIGHT, .variants = 31 << 5 | 31 << 10, .row = last_tile_without_dw},
               {.at = ET_AT_DOUT, .variants = 31 << 5 | 31 << 10, .row = last_tile_without_dO}}},
};
/* clang-format on */

const et_faults et_expert_faults = ET_FAULTS(table);
