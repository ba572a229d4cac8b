/* test_faults.c: the faults of emulated kernels: each changes something in some case, and nothing
 * before the place where it sits; its name and its size are right.
 */
#include "tests/candidate_cases.h"

START_TEST(names_are_unique_and_known)
{
    size_t faults = 0, kernels = 0, explained = 0;
    for (; cd_fault_at(faults); faults++) {
        const cd_fault *f = cd_fault_at(faults);
        bool known = f->explained_by == NULL;
        for (size_t h = 0; !known && et_hypothesis_at(h); h++)
            known = strcmp(et_hypothesis_at(h)->name, f->explained_by) == 0;
        ck_assert_msg(known, "%s: no hypothesis %s", f->name, f->explained_by);
        ck_assert_msg(cd_fault_find(f->name) == f, "%s twice", f->name);
        explained += f->explained_by != NULL;
    }
    for (; cd_kernel_at(kernels); kernels++)
        ck_assert_ptr_eq(cd_kernel_find(cd_kernel_at(kernels)->name), cd_kernel_at(kernels));
    ck_assert_ptr_null(cd_fault_find("no such fault"));
    ck_assert_ptr_null(cd_kernel_find("no such kernel"));
    printf("%zu faults, %zu of them with a hypothesis; %zu kernels\n", faults, explained, kernels);
    ck_assert_uint_ge(faults, 70);
    ck_assert_uint_ge(kernels, 12);
}
END_TEST

/* A fault's first effect lies in its own stage: what is computed before is as it was. */
static bool may_change_first(const cd_fault *f, const char *name)
{
    if (!strcmp(name, "fwd.logits")) return !strcmp(f->stage, "precision");
    if (!strcmp(f->stage, "selection")) return begins(name, "route.");
    if (!strcmp(f->stage, "state"))
        return begins(name, "route.") || begins(name, "state.") || begins(name, "loss.") ||
               begins(name, "bwd.");
    if (!strcmp(f->stage, "forward"))
        return !begins(name, "route.") || !strcmp(name, "route.slot_weight");
    if (!strcmp(f->stage, "backward")) return begins(name, "bwd.") || begins(name, "loss.");
    if (!strcmp(f->stage, "layout")) return begins(name, "route.");
    return true;
}

enum { MOST_FAULTS = 256 };

/* Of each fault: cases in which it has a place, in which it changed something, and in which a
 * value of the forward pass was the first to change; the least change. */
static struct tally {
    size_t applies, planted, forward;
    double least;
} tally[MOST_FAULTS];

static void plant_all(const et_step *golden, const char *profile, const char *stage)
{
    cd_candidate healthy = run_kernel(golden, profile, cd_kernel_find("blocked"));
    for (size_t i = 0; cd_fault_at(i); i++) {
        const cd_fault *f = cd_fault_at(i);
        cd_candidate c;
        et_error error;
        if ((stage && strcmp(stage, f->stage) != 0) || !f->applies(golden)) continue;
        ck_assert_msg(cd_plant(&c, &healthy, f, 0, &error) == ET_OK, "%s", error.text);
        tally[i].applies++;
        if (c.planted) {
            bool first = tally[i].planted++ == 0;
            tally[i].forward +=
                begins(c.changed, "fwd.") || !strcmp(c.changed, "route.slot_weight");
            if (first || c.largest_change < tally[i].least) tally[i].least = c.largest_change;
            ck_assert_msg(may_change_first(f, c.changed), "%s, %s: %s changed first",
                          golden->c.name, f->name, c.changed);
        } else {
            ck_assert_msg(c.changed == NULL && c.changed_tensors == 0 && c.largest_change == 0,
                          "%s, %s: not planted, but %s changed", golden->c.name, f->name,
                          c.changed);
        }
        cd_free(&c);
    }
    cd_free(&healthy);
}

static void look_for_faults(const et_step *golden)
{
    plant_all(golden, "bf16", NULL);
}

/* What is coarser than bf16, or flushed, shows elsewhere. */
static void look_for_precision(const et_step *golden)
{
    plant_all(golden, "f32", "precision");
    if (golden->c.input.source != ET_INPUT_HUGE) plant_all(golden, "f16", "precision");
}

/* Mean loads beyond 256 that 8 bits do not hold; a clamped sum of gates: no case of the core suite has any. */
static void plant_in_own_cases(void)
{
    et_step golden;
    run_text(&golden, BIG_CASE);
    plant_all(&golden, "bf16", "state");
    et_step_free(&golden);
    run_text(&golden, CLAMPED_CASE);
    plant_all(&golden, "bf16", "forward");
    et_step_free(&golden);
}

START_TEST(every_fault_is_planted_somewhere)
{
    memset(tally, 0, sizeof tally);
    each_case(MANY_TOKENS, look_for_faults);
    each_case(MANY_TOKENS, look_for_precision);
    plant_in_own_cases();
    printf("%-32s %-10s %6s %8s %10s  explained by\n", "fault", "stage", "cases", "planted",
           "least");
    for (size_t i = 0; cd_fault_at(i); i++) {
        const cd_fault *f = cd_fault_at(i);
        printf("%-32s %-10s %6zu %8zu %10.2g  %s\n", f->name, f->stage, tally[i].applies,
               tally[i].planted, tally[i].least, f->explained_by ? f->explained_by : "-");
    }
    for (size_t i = 0; cd_fault_at(i); i++) {
        const cd_fault *f = cd_fault_at(i);
        ck_assert_msg(tally[i].planted > 0, "%s changes nothing anywhere", f->name);
        ck_assert_msg(strcmp(f->stage, "forward") != 0 || tally[i].forward > 0,
                      "%s: nothing in the forward pass changes", f->name);
    }
}
END_TEST

/* In f64 the size of a fault can be read off. */
static void assert_scales(const et_step *golden, const char *fault, const char *tensor,
                          double amount)
{
    cd_candidate healthy = run_kernel(golden, "f64", cd_kernel_at(0)), c;
    et_error error;
    double given = amount;
    if (amount == 0) amount = cd_fault_find(fault)->usual;
    et_status status = cd_plant(&c, &healthy, cd_fault_find(fault), given, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    const et_tensor_out *a = cd_tensor(&c, tensor), *b = cd_tensor(&healthy, tensor);
    double top = 0, bottom = 0;
    for (size_t i = 0; i < cd_count(a); i++) {
        top += cd_element(a, i) * cd_element(b, i);
        bottom += cd_element(b, i) * cd_element(b, i);
    }
    ck_assert_msg(fabs(top / bottom - 1 - amount) <= 1e-6 * amount, "%s: %g", fault,
                  top / bottom - 1);
    ck_assert(fabs(c.largest_change - amount) <= 1e-6 * amount || strstr(fault, "gate"));
    cd_free(&c);
    cd_free(&healthy);
}

START_TEST(a_fault_has_the_size_that_is_asked_for)
{
    et_step golden;
    run_text(&golden,
             "{'name': 'sizes', 'rule': 'ec', 'tokens': 24, 'd_model': 12, 'd_expert': 16, "
             "'experts': 3, 'precision': 'bf16', 'input': {'source': 'normal'}}");
    for (int i = 0; i < 3; i++) {
        double amount = i * 0.01;
        assert_scales(&golden, "y-scaled", "fwd.y", amount);
        assert_scales(&golden, "dx-scaled", "bwd.x", amount);
        assert_scales(&golden, "w-up-scaled", "bwd.w_up", amount);
        assert_scales(&golden, "w-down-scaled", "bwd.w_down", amount);
        assert_scales(&golden, "w-router-scaled", "bwd.w_router", amount);
        assert_scales(&golden, "shared-gradient-scaled", "bwd.shared_up", amount);
        assert_scales(&golden, "gate-scaled", "route.slot_weight", amount);
    }
    et_step_free(&golden);
}
END_TEST

/* A fault without a place is not planted, and says so. */
START_TEST(a_fault_without_a_place_changes_nothing)
{
    et_step golden;
    et_error error;
    cd_candidate out;
    run_text(&golden,
             "{'name': 'dense', 'layer': 'dense', 'tokens': 8, 'd_model': 8, 'd_expert': 12, "
             "'precision': 'bf16', 'input': {'source': 'normal'}}");
    for (size_t i = 0; cd_fault_at(i); i++) {
        if (cd_fault_at(i)->applies(&golden)) continue;
        et_status status = cd_run(&out, &golden, et_profile_find("bf16"), cd_kernel_at(0),
                                  cd_fault_at(i), 0, SEED, &error);
        ck_assert_msg(status == ET_OK, "%s", error.text);
        ck_assert_msg(!out.planted, "%s changed %s", cd_fault_at(i)->name, out.changed);
        cd_free(&out);
    }
    et_step_free(&golden);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("faults");
    TCase *faults = add_case(suite, "faults");
    tcase_add_test(faults, names_are_unique_and_known);
    tcase_add_test(faults, every_fault_is_planted_somewhere);
    tcase_add_test(faults, a_fault_has_the_size_that_is_asked_for);
    tcase_add_test(faults, a_fault_without_a_place_changes_nothing);
    return run_suite(suite);
}
