/* faults_experts.c: H, A and f(x), wrongly. See faults.h. */
#include "etref/elementary.h"
#include "ref/base/memory.h"
#include "ref/verdict/faults.h"

#include <stdlib.h>
#include <string.h>

/* Of some expert: one whose weights can be read as if transposed. */
ET_WHERE(is_square,
         s->c.d_expert == s->c.d_model || (et_is_moe(s) && s->c.shared_d_expert == s->c.d_model));

/* ---- other weights ---- */

void et_use_expert(et_mutant *m, const et_row *r, size_t e)
{
    bool up = r->stage == ET_AT_PRE || r->stage == ET_AT_SLOT_DX;
    const et_real *weights = up ? m->moe.up : m->moe.down;
    if (r->expert < m->moe.n)
        et_through(m, r, weights + e % m->moe.n * m->moe.h * m->moe.d, false, NULL);
}

ET_ROW(neighbours_weights, et_use_expert(m, r, r->expert + (m->variant > 1 ? m->moe.n - 1 : 1)));
ET_ROW(first_experts_weights, et_use_expert(m, r, 0));

static bool is_in_last_tile(const et_row *r, size_t tile)
{
    return r->place >= r->load - r->load % tile;
}

/* The last rows of a routed expert, which fill no tile. */
static void neighbours_in_last_tile(et_mutant *m, const et_row *r)
{
    static const size_t tiles[] = {16, 64, 128};
    if (r->expert < m->moe.n && is_in_last_tile(r, tiles[m->variant - 4]))
        et_use_expert(m, r, r->expert + 1);
}

/* The shared expert may have another width than the routed ones: only what is square is turned. */
static void turned(et_mutant *m, const et_row *r)
{
    bool up = r->stage == ET_AT_PRE || r->stage == ET_AT_SLOT_DX;
    if (r->width == m->moe.d) et_through(m, r, up ? r->up : r->down, true, NULL);
}

/* H of the row of x whose number is the slot's, as if slots were tokens. */
static void slot_as_token(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, bytes = d * sizeof(et_real);
    void *x = NULL;
    if (r->expert == m->moe.n) return;
    if (et_allocate(&x, r->count, bytes, "rows", NULL) != ET_OK) {
        m->status = ET_ENOMEM;
        return;
    }
    for (size_t q = 0; q < r->count; q++)
        memcpy((et_real *)x + q * d,
               m->on->right->in.x + m->pick->slots[r->first + q] % m->moe.N * d, bytes);
    et_through(m, r, r->up, false, x);
    free(x);
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

/* O = 0; or what autograd makes of a row that y does not have: dw = 0, and then dO = 0. */
static void forget(const et_row *r)
{
    et_scale_values(r->size, 0, r->values);
}

/* Variant 2: of routed experts, whose rows are missing in y. */
ET_ROW(last_row_lost, if (is_last_row(r) && (r->expert < m->moe.n || m->variant != 2)) forget(r));

static size_t dropped_tile(const et_mutant *m)
{
    static const size_t tiles[] = {16, 32, 64, 128, 256};
    return tiles[m->variant % 5];
}

/* Variants from 10 on: of routed experts, whose rows are missing in y. */
ET_ROW(last_tile_lost, if (is_in_last_tile(r, dropped_tile(m)) &&
                           (r->expert < m->moe.n || m->variant < 10)) forget(r));

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
            et_add_slot(m, t, (size_t)slots[j], et_weight_in_y(m, (size_t)slots[j]));
    }
}

ET_ROW(y_without_last_row, y_without_end(m, r->t, 0));
ET_ROW(y_without_last_tile, y_without_end(m, r->t, dropped_tile(m)));

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"neighbour-expert", "rows are computed with the neighbouring expert's weights", "forward"},
     .applies = et_has_many_experts,
     .variants = {"expert i+1", "expert i+1, in the backward pass, too", "expert i-1", "expert i-1, in the backward pass, too",
                  "expert i+1, rows that fill no tile of 16", "expert i+1, rows that fill no tile of 64", "expert i+1, rows that fill no tile of 128"},
     .hooks = {{.at = ET_AT_PRE, .variants = 15, .rows = neighbours_weights}, {.at = ET_AT_OUT, .variants = 15, .rows = neighbours_weights},
               {.at = ET_AT_DACT, .variants = 10, .rows = neighbours_weights}, {.at = ET_AT_SLOT_DX, .variants = 10, .rows = neighbours_weights},
               {.at = ET_AT_PRE, .variants = 112, .row = neighbours_in_last_tile}, {.at = ET_AT_OUT, .variants = 112, .row = neighbours_in_last_tile}}},
    {.doc = {"first-expert-everywhere", "every expert computes with expert 0's weights", "forward"},
     .applies = et_has_many_experts, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .rows = first_experts_weights}, {.at = ET_AT_OUT, .rows = first_experts_weights},
               {.at = ET_AT_DACT, .variants = 2, .rows = first_experts_weights}, {.at = ET_AT_SLOT_DX, .variants = 2, .rows = first_experts_weights}}},
    {.doc = {"up-transposed", "W_up is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_PRE, .rows = turned}, {.at = ET_AT_SLOT_DX, .variants = 2, .rows = turned}}},
    {.doc = {"down-transposed", "W_down is read transposed", "forward"},
     .applies = is_square, .variants = {"", "in the backward pass, too"},
     .hooks = {{.at = ET_AT_OUT, .rows = turned}, {.at = ET_AT_DACT, .variants = 2, .rows = turned}}},
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
     .hooks = {{.at = ET_AT_OUT, .variants = 1 | 8, .row = last_row_lost}, {.at = ET_AT_Y, .variants = 2 | 4, .row = y_without_last_row},
               {.at = ET_AT_DWEIGHT, .variants = 4 | 8, .row = last_row_lost}, {.at = ET_AT_DOUT, .variants = 4 | 8, .row = last_row_lost}}},
    {.doc = {"last-tile-dropped", "an expert's last rows, which fill no whole tile, are missing", "forward"},
     .variants = {"tiles of 16", "tiles of 32", "tiles of 64", "tiles of 128", "tiles of 256",
                  "tiles of 16, in the backward pass, too", "tiles of 32, in the backward pass, too", "tiles of 64, in the backward pass, too",
                  "tiles of 128, in the backward pass, too", "tiles of 256, in the backward pass, too", "tiles of 16, in y, and from there back",
                  "tiles of 32, in y, and from there back", "tiles of 64, in y, and from there back", "tiles of 128, in y, and from there back",
                  "tiles of 256, in y, and from there back"},
     .hooks = {{.at = ET_AT_OUT, .variants = 31 | 31 << 5, .row = last_tile_lost}, {.at = ET_AT_Y, .variants = 31 << 10, .row = y_without_last_tile},
               {.at = ET_AT_DWEIGHT, .variants = 31 << 5 | 31 << 10, .row = last_tile_lost},
               {.at = ET_AT_DOUT, .variants = 31 << 5 | 31 << 10, .row = last_tile_lost}}},
};
/* clang-format on */

const et_faults et_expert_faults = ET_FAULTS(table);
