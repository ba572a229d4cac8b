/* faults_rows.c: products and activations that lose or gain columns, rows by another expert's weights or of another
 * token, rows that hold what memory held. See faults.h.
 *
 * Offsets and sums here are those of the whole step; where a hook needs rows that were not picked, it waits for the look at
 * all tokens.
 */
#include "ref/base/memory.h"
#include "ref/diagnose/faults.h"
#include "ref/verdict/judge.h"

#include <stdlib.h>
#include <string.h>

static const size_t tiles[] = {16, 32, 64, 128};

/* ---- products of fewer terms, and of more ---- */

/* Forms by sixes: the last term; what fills no tile of 16 to 128; the second half. */
static void cut_product(et_mutant *m, const et_row *r)
{
    size_t form = m->fault.variant % 6;
    bool through_d = r->stage != ET_AT_OUT && r->stage != ET_AT_SLOT_DX;
    size_t K = through_d ? m->moe.d : r->width, end = K - 1;
    if (form >= 1 && form <= 4) end = K - K % tiles[form - 1];
    if (form == 5) end = K / 2;
    if (end < K && end > 0) et_through_terms(m, r, end);
}

/* Term k of a row of K numbers that begins at `at`, past the row's end, too; 0 past the array's. */
static et_real beyond(const et_real *array, size_t count, size_t at, size_t k)
{
    return at + k < count ? array[at + k] : 0;
}

static void past_end(et_mutant *m, const et_row *r, const et_real *left, size_t left_count,
                     size_t left_at, size_t K)
{
    size_t tile = tiles[m->fault.variant % 4], end = (K + tile - 1) / tile * tile;
    const et_real *all = r->stage == ET_AT_PRE        ? m->moe.up
                         : r->stage == ET_AT_GATE_PRE ? m->moe.gating
                                                      : m->moe.down;
    size_t count = m->moe.n * m->moe.h * m->moe.d, first = r->expert * m->moe.h * m->moe.d;
    for (size_t j = 0; j < r->size; j++)
        for (size_t k = K; k < end; k++)
            r->values[j] +=
                beyond(left, left_count, left_at, k) * beyond(all, count, first + j * K, k);
}

/* Form 0 to 3: x as it lies in memory; 4 to 7: gathered, so that the next slot's follows. */
static void up_past_end(et_mutant *m, const et_row *r)
{
    const et_real *x = m->on->right->in.x;
    size_t d = m->moe.d, N = m->moe.N;
    if (m->fault.variant < 4) {
        past_end(m, r, x, N * d, r->token * d, d);
        return;
    }
    bool last = r->slot + 1 == m->a->slots;
    const et_real *next = last ? NULL : x + (size_t)m->a->slot_token[r->slot + 1] * d;
    void *room = NULL;
    if (et_allocate(&room, 2 * d, sizeof(et_real), "rows", NULL) != ET_OK) {
        m->status = ET_ENOMEM;
        return;
    }
    et_real *both = room;
    memcpy(both, x + r->token * d, d * sizeof *both);
    if (next) memcpy(both + d, next, d * sizeof *both);
    if (next && m->moe.weighs_input)
        et_scale_values(d, (double)m->all.fwd.slot_weight[r->slot + 1], both + d);
    past_end(m, r, both, 2 * d, 0, d);
    free(room);
}

static void down_past_end(et_mutant *m, const et_row *r)
{
    size_t h = m->moe.h;
    if (!m->pick->whole) m->blocked = true;
    if (!m->blocked) past_end(m, r, m->s.fwd.slot_act, m->a->slots * h, r->slot * h, h);
}

/* ---- an activation that leaves columns out ---- */

/* Forms by sixes: odd tiles, even ones, what fills no tile; of 16, of 32, of 64. First as they were, then as 0. */
static void skip_columns(et_mutant *m, const et_row *r)
{
    size_t form = m->fault.variant % 9, tile = tiles[form / 3];
    bool zero = m->fault.variant >= 9;
    for (size_t c = 0; c < r->width; c++) {
        bool left = form % 3 < 2 ? c / tile % 2 != form % 3 : c >= r->width - r->width % tile;
        if (left) r->A[c] = zero ? 0 : r->H[c];
    }
}

/* ---- offsets that are aligned ---- */

/* By sixes: down, and up to a tile. */
static size_t aligned(const et_mutant *m, size_t offset)
{
    static const size_t to[] = {4, 8, 16, 32, 64, 128};
    size_t form = m->fault.variant % 12, tile = to[form % 6];
    return form < 6 ? offset - offset % tile : (offset + tile - 1) / tile * tile;
}

/* Forms 24 and on: rows behind the last offset are nobody's. */
static bool is_behind(const et_mutant *m, size_t slot)
{
    return m->fault.variant >= 24 && slot >= aligned(m, m->a->slots);
}

static void use_aligned(et_mutant *m, const et_row *r)
{
    size_t e = m->moe.n - 1;
    while (e > 0 && aligned(m, (size_t)m->a->expert_offsets[e]) > r->slot) e--;
    if (is_behind(m, r->slot))
        et_scale_values(r->size, 0, r->values);
    else if (e != r->expert)
        et_use_expert(m, r, e);
}

/* dW of the rows between its aligned offsets. */
static void gradient_of_aligned(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = m->moe.h, S = m->a->slots;
    if (r->expert == m->moe.n) return;
    if (!m->pick->whole) m->blocked = true;
    size_t first = aligned(m, (size_t)m->a->expert_offsets[r->expert]);
    size_t end = aligned(m, (size_t)m->a->expert_offsets[r->expert + 1]);
    if (end > S || (r->expert + 1 == m->moe.n && m->fault.variant < 24)) end = S;
    bool up = r->stage != ET_AT_DDOWN;
    const et_real *dP = r->stage == ET_AT_DUP ? m->s.bwd.slot_pre : m->s.bwd.slot_gate_pre;
    et_scale_values(r->size, 0, r->values);
    for (size_t s = first; !m->blocked && s < end; s++) {
        const et_real *x = m->on->x + (size_t)m->a->slot_token[s] * d;
        et_real factor = up && m->moe.weighs_input ? m->used.slot_weight[s] : 1;
        const et_real *left = up ? dP + s * h : m->s.bwd.slot_out + s * d;
        const et_real *right = up ? x : m->used.slot_act + s * h;
        size_t rows = up ? h : d, columns = up ? d : h;
        for (size_t i = 0; i < rows; i++)
            if (left[i] != 0) et_add_row(columns, factor * left[i], right, r->values + i * columns);
    }
}

/* ---- lists of rows that run over ---- */

/* The token that stands where expert i's row `place` is listed, if each has room for so many rows and a longer list runs
 * into the next one's, which is written later. */
static size_t listed_token(const et_mutant *m, size_t i, size_t place)
{
    static const size_t rooms[] = {16, 32, 64, 128, 256, 512};
    size_t room = rooms[m->fault.variant % 6], at = i * room + place, e = at / room;
    if (e >= m->moe.n) e = m->moe.n - 1;
    while (e > i && at - e * room >= (size_t)m->a->load[e]) e--;
    return (size_t)m->a->slot_token[(size_t)m->a->expert_offsets[e] + at - e * room];
}

static void read_listed(et_mutant *m, const et_row *r)
{
    size_t token = listed_token(m, r->expert, r->place);
    const et_real *W = r->stage == ET_AT_GATE_PRE ? r->gating : r->up;
    if (token != r->token) et_through(m, r, W, false, m->on->right->in.x + token * m->moe.d);
}

/* Forms 6 and on: dW_up, and dW_gate, take x from there, too. */
static void dup_of_listed(et_mutant *m, const et_row *r)
{
    size_t d = m->moe.d, h = m->moe.h;
    const et_real *x = m->on->right->in.x, *dP = r->stage == ET_AT_DUP ? r->dH : r->dV;
    for (size_t q = 0; r->expert < m->moe.n && q < r->count; q++) {
        size_t slot = m->pick->slots[r->first + q], own = (size_t)m->a->slot_token[slot];
        size_t token = listed_token(m, r->expert, slot - (size_t)m->a->expert_offsets[r->expert]);
        for (size_t i = 0; token != own && i < h; i++) {
            et_real factor = et_factor_of_x(m, r, q) * dP[q * h + i];
            et_add_row(d, -factor, x + own * d, r->values + i * d);
            et_add_row(d, factor, x + token * d, r->values + i * d);
        }
    }
}

/* ---- rows that hold what memory held ---- */

/* Nobody can say what memory held; but what follows from it must follow. */
static void take_candidates(et_mutant *m, const et_row *r)
{
    bool shared = r->expert == m->moe.n && et_rows_at(r->stage) == ET_OF_SLOTS;
    const et_tensor_out *t =
        et_tensor_named(m->on->candidate, m->on->count, et_tensor_at(r->stage, shared));
    bool by_token = shared || et_rows_at(r->stage) == ET_OF_TOKENS;
    size_t row = by_token ? r->token : r->slot;
    if (t == NULL || (row + 1) * r->size > et_tensor_count(t)) return;
    for (size_t j = 0; j < r->size; j++)
        r->values[j] = (et_real)et_tensor_element(t, row * r->size + j);
}

/* ---- the table ---- */

/* clang-format off */
static const et_hypothesis table[] = {
    {.doc = {"product-cut", "a product's sums stop early", "forward"},
     .variants = {"H: the last term", "H: what fills no tile of 16", "H: what fills no tile of 32", "H: what fills no tile of 64", "H: what fills no tile of 128", "H: the second half",
                  "f(x): the last term", "f(x): what fills no tile of 16", "f(x): what fills no tile of 32", "f(x): what fills no tile of 64", "f(x): what fills no tile of 128", "f(x): the second half",
                  "dA: the last term", "dA: what fills no tile of 16", "dA: what fills no tile of 32", "dA: what fills no tile of 64", "dA: what fills no tile of 128", "dA: the second half",
                  "dx: the last term", "dx: what fills no tile of 16", "dx: what fills no tile of 32", "dx: what fills no tile of 64", "dx: what fills no tile of 128", "dx: the second half"},
     .hooks = {{.at = ET_AT_PRE, .variants = 63, .rows = cut_product}, {.at = ET_AT_GATE_PRE, .variants = 63, .rows = cut_product}, {.at = ET_AT_OUT, .variants = 63 << 6, .rows = cut_product},
               {.at = ET_AT_DACT, .variants = 63 << 12, .rows = cut_product}, {.at = ET_AT_SLOT_DX, .variants = 63 << 18, .rows = cut_product}}},
    {.doc = {"product-cut-in-one-half", "the sums of H alone, or of V, stop early", "forward"}, .applies = et_is_gated,
     .variants = {"H: the last term", "H: what fills no tile of 16", "H: what fills no tile of 32", "H: what fills no tile of 64", "H: what fills no tile of 128", "H: the second half",
                  "V: the last term", "V: what fills no tile of 16", "V: what fills no tile of 32", "V: what fills no tile of 64", "V: what fills no tile of 128", "V: the second half"},
     .hooks = {{.at = ET_AT_PRE, .variants = 63, .rows = cut_product}, {.at = ET_AT_GATE_PRE, .variants = 63 << 6, .rows = cut_product}}},
    {.doc = {"product-past-end", "a product's sums go on past the ends of their rows, to whole tiles", "forward"},
     .everywhere = true, .applies = et_is_moe,
     .variants = {"H: tiles of 16", "H: tiles of 32", "H: tiles of 64", "H: tiles of 128",
                  "H of gathered rows: tiles of 16", "H of gathered rows: tiles of 32", "H of gathered rows: tiles of 64", "H of gathered rows: tiles of 128",
                  "f(x): tiles of 16", "f(x): tiles of 32", "f(x): tiles of 64", "f(x): tiles of 128"},
     .hooks = {{.at = ET_AT_PRE, .variants = 255, .who = et_is_routed, .row = up_past_end}, {.at = ET_AT_GATE_PRE, .variants = 255, .who = et_is_routed, .row = up_past_end}, {.at = ET_AT_OUT, .variants = 15 << 8, .who = et_is_routed, .row = down_past_end}}},
    {.doc = {"activation-skips-columns", "some columns of H pass the activation by", "forward"},
     .everywhere = true, .variants = {"every second tile of 16", "every second tile of 16, from the first on", "what fills no tile of 16", "every second tile of 32", "every second tile of 32, from the first on",
                  "what fills no tile of 32", "every second tile of 64", "every second tile of 64, from the first on", "what fills no tile of 64",
                  "A = 0 in every second tile of 16", "A = 0 in every second tile of 16, from the first on", "A = 0 in what fills no tile of 16", "A = 0 in every second tile of 32",
                  "A = 0 in every second tile of 32, from the first on", "A = 0 in what fills no tile of 32", "A = 0 in every second tile of 64",
                  "A = 0 in every second tile of 64, from the first on", "A = 0 in what fills no tile of 64"},
     .hooks = {{.at = ET_AT_ACT, .row = skip_columns}}},
    {.doc = {"offsets-aligned", "the offsets of experts are aligned to tiles, so rows meet another expert's weights", "forward"},
     .everywhere = true, .applies = et_has_many_experts,
     .variants = {"down to 4", "down to 8", "down to 16", "down to 32", "down to 64", "down to 128", "up to 4", "up to 8", "up to 16", "up to 32", "up to 64", "up to 128",
                  "down to 4, in the backward pass, too", "down to 8, in the backward pass, too", "down to 16, in the backward pass, too", "down to 32, in the backward pass, too",
                  "down to 64, in the backward pass, too", "down to 128, in the backward pass, too",
                  "up to 4, in the backward pass, too", "up to 8, in the backward pass, too", "up to 16, in the backward pass, too", "up to 32, in the backward pass, too",
                  "up to 64, in the backward pass, too", "up to 128, in the backward pass, too",
                  "down to 4, the end, too, and in the backward pass", "down to 8, the end, too, and in the backward pass", "down to 16, the end, too, and in the backward pass",
                  "down to 32, the end, too, and in the backward pass", "down to 64, the end, too, and in the backward pass", "down to 128, the end, too, and in the backward pass"},
     .hooks = {{.at = ET_AT_PRE, .who = et_is_routed, .row = use_aligned}, {.at = ET_AT_GATE_PRE, .who = et_is_routed, .row = use_aligned}, {.at = ET_AT_OUT, .who = et_is_routed, .row = use_aligned},
               {.at = ET_AT_DACT, .variants = 0x3ffff000, .who = et_is_routed, .row = use_aligned}, {.at = ET_AT_SLOT_DX, .variants = 0x3ffff000, .who = et_is_routed, .row = use_aligned},
               {.at = ET_AT_DUP, .variants = 0x3ffff000, .rows = gradient_of_aligned}, {.at = ET_AT_DGATING, .variants = 0x3ffff000, .rows = gradient_of_aligned}, {.at = ET_AT_DDOWN, .variants = 0x3ffff000, .rows = gradient_of_aligned}}},
    {.doc = {"offsets-aligned-in-one-product", "one product's offsets of experts are aligned to tiles, the others' are not", "forward"},
     .everywhere = true, .applies = et_has_many_experts,
     .variants = {"f(x), down to 4", "f(x), down to 8", "f(x), down to 16", "f(x), down to 32", "f(x), down to 64", "f(x), down to 128",
                  "f(x), up to 4", "f(x), up to 8", "f(x), up to 16", "f(x), up to 32", "f(x), up to 64", "f(x), up to 128",
                  "H, down to 4", "H, down to 8", "H, down to 16", "H, down to 32", "H, down to 64", "H, down to 128",
                  "H, up to 4", "H, up to 8", "H, up to 16", "H, up to 32", "H, up to 64", "H, up to 128"},
     .hooks = {{.at = ET_AT_OUT, .variants = 0xfff, .who = et_is_routed, .row = use_aligned}, {.at = ET_AT_PRE, .variants = 0xfff000, .who = et_is_routed, .row = use_aligned},
               {.at = ET_AT_GATE_PRE, .variants = 0xfff000, .who = et_is_routed, .row = use_aligned}}},
    {.doc = {"offsets-aligned-in-dw", "the weight gradients' offsets of experts are aligned to tiles", "backward"},
     .everywhere = true, .applies = et_has_many_experts,
     .variants = {"down to 4", "down to 8", "down to 16", "down to 32", "down to 64", "down to 128", "up to 4", "up to 8", "up to 16", "up to 32", "up to 64", "up to 128"},
     .hooks = {{.at = ET_AT_DUP, .rows = gradient_of_aligned}, {.at = ET_AT_DGATING, .rows = gradient_of_aligned}, {.at = ET_AT_DDOWN, .rows = gradient_of_aligned}}},
    {.doc = {"row-list-overflows", "an expert's list of rows runs over into the next one's, which overwrites it", "forward"},
     .everywhere = true, .applies = et_has_many_experts,
     .variants = {"H: room for 16", "H: room for 32", "H: room for 64", "H: room for 128", "H: room for 256", "H: room for 512",
                  "H and dW_up: room for 16", "H and dW_up: room for 32", "H and dW_up: room for 64", "H and dW_up: room for 128", "H and dW_up: room for 256", "H and dW_up: room for 512"},
     .hooks = {{.at = ET_AT_PRE, .who = et_is_routed, .row = read_listed}, {.at = ET_AT_GATE_PRE, .who = et_is_routed, .row = read_listed},
               {.at = ET_AT_DUP, .variants = 63 << 6, .rows = dup_of_listed}, {.at = ET_AT_DGATING, .variants = 63 << 6, .rows = dup_of_listed}}},
    {.doc = {"rows-not-computed", "some rows are 0: nobody has computed them", "forward"}, .only = ET_IN_ROWS,
     .variants = {"H", "A", "f(x)", "y", "dO", "dA", "dH", "dr", "dx", "V", "dV"},
     .hooks = {{.at = ET_AT_PRE, .variants = 1, .row = et_zero_row}, {.at = ET_AT_GATE_PRE, .variants = 512, .row = et_zero_row}, {.at = ET_AT_DGATE_PRE, .variants = 1024, .row = et_zero_row}, {.at = ET_AT_ACT, .variants = 2, .row = et_zero_row}, {.at = ET_AT_OUT, .variants = 4, .row = et_zero_row},
               {.at = ET_AT_Y, .variants = 8, .row = et_zero_row}, {.at = ET_AT_DOUT, .variants = 16, .row = et_zero_row}, {.at = ET_AT_DACT, .variants = 32, .row = et_zero_row},
               {.at = ET_AT_DPRE, .variants = 64, .row = et_zero_row}, {.at = ET_AT_DLOGITS, .variants = 128, .row = et_zero_row}, {.at = ET_AT_DX, .variants = 256, .row = et_zero_row}}},
    {.doc = {"stale-rows", "some rows hold what was in memory before, another call's", "forward"}, .nature = ET_BY_CANDIDATE, .only = ET_IN_ROWS,
     .variants = {"of w", "of H", "of A", "of f(x)", "of y", "of dw", "of dO", "of dA", "of dH", "of dr", "of dx", "of V", "of dV"},
     .hooks = {{.at = ET_AT_WEIGHTS, .variants = 1, .row = take_candidates}, {.at = ET_AT_PRE, .variants = 2, .row = take_candidates}, {.at = ET_AT_GATE_PRE, .variants = 2048, .row = take_candidates}, {.at = ET_AT_DGATE_PRE, .variants = 4096, .row = take_candidates}, {.at = ET_AT_ACT, .variants = 4, .row = take_candidates},
               {.at = ET_AT_OUT, .variants = 8, .row = take_candidates}, {.at = ET_AT_Y, .variants = 16, .row = take_candidates}, {.at = ET_AT_DWEIGHT, .variants = 32, .row = take_candidates},
               {.at = ET_AT_DOUT, .variants = 64, .row = take_candidates}, {.at = ET_AT_DACT, .variants = 128, .row = take_candidates}, {.at = ET_AT_DPRE, .variants = 256, .row = take_candidates},
               {.at = ET_AT_DLOGITS, .variants = 512, .row = take_candidates}, {.at = ET_AT_DX, .variants = 1024, .row = take_candidates}}},
};
/* clang-format on */

const et_faults et_row_faults = ET_FAULTS(table);
