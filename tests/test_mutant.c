/* test_mutant.c: the reference with a hook in it, on a sub-step: a hook that does nothing leaves the
 * reference's values, and one that does something reaches what the catalogue says. */
#include "ref/diagnose/diagnosis.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>
#include <string.h>

#define SIZES "'tokens':40,'d_model':8,'d_expert':12,'input':{'source':'normal','seed':3}"

static const char *const layers[] = {
    "{'name':'a','rule':'et','gate':'sigmoid','experts':4,'ema_updates':10," SIZES "}",
    "{'name':'b','rule':'tc','top_k':2,'gate':'softmax','norm':'sum','balance':'aux','experts':5,"
    "'z_loss_coef':0.01,'micro_batches':2," SIZES "}",
    "{'name':'c','rule':'ec','gate':'softmax_anchor','norm':'fanout','pool_tokens':20,'experts':"
    "4," SIZES "}",
    "{'name':'d','rule':'ec','gate':'softmax_tokens','shared':false,'experts':4," SIZES "}",
    "{'name':'e','rule':'tc','top_k':1,'balance':'lossfree','experts':6,'shared':true,"
    "'shared_d_expert':20," SIZES "}",
    "{'name':'f','layer':'dense'," SIZES "}",
    "{'name':'g','rule':'tc','top_k':2,'weigh':'input','activation':'swiglu','experts':4," SIZES "}",
    "{'name':'h','rule':'ec','granularity':2,'expert_bias':true,'activation':'swiglu','experts':4," SIZES "}",
    "{'name':'j','rule':'tc','padding':5,'balance':'aux','z_loss_coef':0.1,'experts':4," SIZES "}",
    "{'name':'i','layer':'dense','expert_bias':true," SIZES "}",
};
enum { LAYERS = sizeof layers / sizeof *layers };

static void run_text(et_step *s, const char *json)
{
    et_case c;
    et_error error;
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s", error.text);
    run_case(s, &c);
}

static void nothing(et_mutant *m)
{
    (void)m;
}

static void no_setting(et_mutant *m, et_step *s)
{
    (void)m;
    (void)s;
}

static void no_rows(et_mutant *m, const et_row *r)
{
    ck_assert(r->count == 0 || r->values != NULL || m->on->right->c.layer == ET_DENSE);
}

/* Everything is computed anew. */
static const et_hypothesis idle = {.doc = {"idle", "nothing is wrong", "selection"},
                                   .variants = {""},
                                   .hooks = {{.at = ET_AT_PLAN, .settings = no_setting},
                                             {.at = ET_AT_CUTOFF, .whole = nothing},
                                             {.at = ET_AT_GATES, .settings = no_setting},
                                             {.at = ET_AT_WEIGHTS, .row = no_rows},
                                             {.at = ET_AT_PRE, .row = no_rows},
                                             {.at = ET_AT_OUT, .rows = no_rows},
                                             {.at = ET_AT_Y, .row = no_rows},
                                             {.at = ET_AT_DDOWN, .rows = no_rows},
                                             {.at = ET_AT_DB_UP, .rows = no_rows},
                                             {.at = ET_AT_SLOT_DX, .rows = no_rows},
                                             {.at = ET_AT_DLOGITS, .row = no_rows}}};

static void is_near(const char *name, size_t i, et_real got, et_real want)
{
    double size = fmax(1, fabs((double)want)), unit = sizeof(et_real) == 8 ? 1e-12 : 2e-4;
    ck_assert_msg(fabs((double)got - (double)want) <= unit * size, "%s[%zu]: %g, not %g", name, i,
                  (double)got, (double)want);
}

/* Each of the mutant's tensors against the reference's, row by row; returns how many there are. */
static size_t compare(const et_mutant *m)
{
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    size_t compared = 0, have = et_step_tensors(m->on->right, false, list);
    for (size_t i = 0; i < have; i++) {
        const et_tensor_out *t = &list[i];
        const char *shape = et_tensor_doc_find(t->name)->shape;
        const et_real *got = et_mutant_values(m, t->name), *want = t->values;
        bool slots = et_rows_are(shape, "S"), tokens = et_rows_are(shape, "N");
        size_t rows = slots ? m->pick->a.slots : tokens ? m->pick->count : 0;
        size_t columns = t->rank > 1 && t->shape[0] > 0 ? et_tensor_count(t) / t->shape[0] : 1;
        const size_t *numbers = slots ? m->pick->slots : m->pick->tokens;
        if (!got || !et_tensor_is_real(t) || et_stage_of(t->name) == ET_AT_MASK) continue;
        for (size_t r = 0; r < rows * columns; r++)
            is_near(t->name, r, got[r], want[numbers[r / columns] * columns + r % columns]);
        for (size_t r = 0; rows == 0 && m->pick->whole && r < et_tensor_count(t); r++)
            is_near(t->name, r, got[r], want[r]);
        compared++;
    }
    return compared;
}

static void run(et_mutant *m, et_subject *on, const et_hypothesis *what, bool carried)
{
    et_mutant_open(m, on, &(et_fault){.what = what, .factor = 1}, carried);
    for (int phase = 0; phase < ET_PHASES; phase++)
        ck_assert_int_eq(et_mutant_phase(m, (et_phase)phase, NULL), ET_OK);
}

/* All tokens, every third, and one. Rerouted: by an assignment of its own, with the same mask. */
START_TEST(nothing_wrong_is_the_reference)
{
    et_step right;
    et_subject on;
    uint8_t tokens[40] = {0};
    run_text(&right, layers[_i]);
    for (size_t every = 1; every <= 40; every = every == 1 ? 3 : every == 3 ? 40 : 41)
        for (int carried = 0; carried < 2; carried++) {
            et_mutant m;
            for (size_t t = 0; t < 40; t++) tokens[t] = t % every == 0;
            ck_assert_int_eq(
                et_subject_open(&on, &right, NULL, 0, every == 1 ? NULL : tokens, NULL), ET_OK);
            run(&m, &on, &idle, carried && right.c.layer == ET_MOE);
            ck_assert_uint_ge(compare(&m), 8);
            et_mutant_close(&m);
            et_subject_close(&on);
        }
    et_step_free(&right);
}
END_TEST

/* What a hypothesis does not reach stays the reference's own array. */
START_TEST(what_is_not_reached_is_shared)
{
    et_step right;
    et_subject on;
    run_text(&right, layers[_i]);
    ck_assert_int_eq(et_subject_open(&on, &right, NULL, 0, NULL, NULL), ET_OK);
    const et_hypothesis *what;
    for (size_t i = 0; (what = et_hypothesis_row(i)) != NULL; i++) {
        et_mutant m;
        unsigned reach = et_hypothesis_reach(&right.c, what, 0, false);
        if (what->nature != ET_BY_VALUE || (what->applies && !what->applies(&right))) continue;
        run(&m, &on, what, false);
        et_tensor_out list[ET_MAX_STEP_TENSORS];
        size_t have = et_step_tensors(&right, false, list);
        for (size_t k = 0; k < have; k++) {
            et_stage stage = et_stage_of(list[k].name);
            bool reached = stage < ET_STAGES && reach >> stage & 1;
            if (!reached && !(reach >> ET_AT_LAYOUT & 1))
                ck_assert_msg(et_mutant_values(&m, list[k].name) == NULL, "%s changes %s",
                              what->doc.name, list[k].name);
        }
        et_mutant_close(&m);
    }
    et_subject_close(&on);
    et_step_free(&right);
}
END_TEST

static const et_hypothesis *named(const char *name)
{
    size_t i = 0;
    while (strcmp(et_hypothesis_row(i)->doc.name, name) != 0) i++;
    return et_hypothesis_row(i);
}

/* A layer with weights on its inputs and the mistake that puts them on the outputs, against one that has them there. */
START_TEST(a_mistake_is_the_layer_that_has_it)
{
#define LAYER                                                                                      \
    "'rule':'tc','top_k':2,'norm':'sum','routed_scale':1.5,'experts':4,'z_loss_coef':0.1," SIZES "}"
    et_step input, output;
    et_subject on;
    et_mutant m;
    run_text(&input, "{'name':'in','weigh':'input'," LAYER);
    run_text(&output, "{'name':'out'," LAYER);
    ck_assert_int_eq(et_subject_open(&on, &input, NULL, 0, NULL, NULL), ET_OK);
    run(&m, &on, named("weight-on-output"), true);
    et_tensor_out list[ET_MAX_STEP_TENSORS];
    size_t compared = 0, have = et_step_tensors(&output, false, list);
    for (size_t k = 0; k < have; k++) {
        const et_real *wrong = et_mutant_values(&m, list[k].name), *want = list[k].values;
        if (wrong == NULL || !et_tensor_is_real(&list[k])) continue;
        for (size_t i = 0; i < et_tensor_count(&list[k]); i++)
            is_near(list[k].name, i, wrong[i], want[i]);
        compared++;
    }
    ck_assert_uint_ge(compared, 12);
    et_mutant_close(&m);
    et_subject_close(&on);
    et_step_free(&output);
    et_step_free(&input);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mutants");
    TCase *all = add_case(suite, "every layer");
    tcase_add_loop_test(all, nothing_wrong_is_the_reference, 0, LAYERS);
    tcase_add_loop_test(all, what_is_not_reached_is_shared, 0, LAYERS);
    tcase_add_test(all, a_mistake_is_the_layer_that_has_it);
    return run_suite(suite);
}
