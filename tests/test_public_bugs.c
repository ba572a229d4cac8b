/* test_public_bugs.c: mistakes that public reports on MoE kernels tell of, each planted into an
 * emulated kernel, and the name that it must get, first of all explanations.
 *
 *     kind of report          case     fault, and how large         name
 *
 * Reports: of Megatron-LM, MegaBlocks, torchtitan, TransformerEngine, DeepEP, DeepSpeed, vLLM, SGLang,
 * TensorRT-LLM, FlashInfer, transformers, llama.cpp, verl. ETREF_KINDS=all plants all of them; a
 * fault's name that one; else every third is planted, so that each part of the catalogue has some.
 */
#include "tests/candidate_cases.h"

#include <time.h>

#ifndef ETREF_F32

#define SMALL                                                                                      \
    "'tokens':96,'d_model':24,'d_expert':40,'precision':'bf16','input':{'source':'normal','seed':" \
    "3}"
#define WIDE                                                                                       \
    "'tokens':256,'d_model':32,'d_expert':48,'precision':'bf16','input':{'source':'normal','seed'" \
    ":3}"

static const char *const cases[] = {
    "{'name':'et','rule':'et','granularity':2,'experts':8,'ema_updates':5000,'micro_batches':"
    "4," WIDE "}",
    "{'name':'ec','rule':'ec','granularity':2,'experts':4,'norm':'fanout'," SMALL "}",
    "{'name':'tc','rule':'tc','top_k':2,'experts':8," SMALL "}",
    "{'name':'aux','rule':'tc','top_k':2,'experts':8,'gate':'softmax','norm':'sum','balance':'aux',"
    "'micro_batches':2,"
    "'shared':false," SMALL "}",
    "{'name':'bias','rule':'tc','top_k':2,'experts':8,'gate':'softmax','balance':'proportional','"
    "shared':false," SMALL "}",
    "{'name':'capacity','rule':'et','granularity':3,'experts':8,'ema_updates':5000,'capacity_"
    "factor':0.05,'norm':'sum'," WIDE "}",
    "{'name':'column','rule':'ec','gate':'softmax_tokens','experts':4,'micro_batches':2,'shared':"
    "false," SMALL "}",
    "{'name':'many','rule':'tc','top_k':8,'experts':320,'tokens':32,'d_model':24,'d_expert':8,'"
    "precision':'bf16',"
    "'input':{'source':'normal','seed':3}}",
};
enum { CASES = sizeof cases / sizeof *cases };
enum { ET, EC, TC, AUX, BIAS, CAPACITY, COLUMN, MANY };

/* clang-format off */
static const struct {
    const char *kind;
    int layer;
    const char *fault;
    double amount; /* 0: the usual one */
    const char *name;
} kinds[] = {
    {"average moved twice under recompute", ET, "ema-moved-twice", 0, "ema-moved-twice"},
    {"average moved by each micro-batch", ET, "ema-per-micro-batch", 0, "ema-per-micro-batch"},
    {"cutoffs summed over ranks, not averaged", ET, "ema-cutoffs-summed", 0, "ema-cutoffs-summed"},
    {"another decay than the case's", ET, "ema-decay", 0, "ema-decay"},
    {"average not restored from the checkpoint", ET, "ema-not-restored", 0, "state-not-restored"},
    {"average cast to bf16 with the model", ET, "ema-in-bf16", 0, "state-in-short-format"},
    {"bias kept in bf16", BIAS, "bias-in-bf16", 0, "state-in-short-format"},
    {"loads counted twice under recompute", BIAS, "loads-counted-twice", 0, "loads-counted-twice"},
    {"F not over K", AUX, "aux-not-over-k", 0, "aux-convention"},
    {"F of first choices alone", AUX, "aux-first-choices", 0, "aux-convention"},
    {"F of running counts", AUX, "aux-running", 0, "aux-convention"},
    {"padding counted in loads", AUX, "aux-in-tiles", 0, "aux-convention"},
    {"balancing loss without the last expert", AUX, "aux-lacks-last", 0, "aux-convention"},
    {"its gradient without the coefficient", AUX, "loss-coefficient-missing", 0, "loss-coefficient-missing"},
    {"its gradient times N", AUX, "aux-gradient-scaled", 95, "scaled"},
    {"expert gradients times 4", TC, "w-up-scaled", 3, "scaled"},
    {"expert gradients over 8 ranks", TC, "w-down-scaled", -0.875, "scaled"},
    {"routed experts times 6.25", TC, "gate-scaled", 5.25, "scaled"},
    {"all gradients times the loss scale", TC, "gradients-scaled", 1023, "scaled"},
    {"a block of rows by the previous expert", TC, "block-of-previous", 0, "neighbour-expert"},
    {"an expert's row list runs over", TC, "row-list-overflows", 16, "row-list-overflows"},
    {"an activation read before it is there", ET, "read-too-early", 0, "product-cut"},
    {"weights of another call", AUX, "stale-weights", 0, "stale-rows"},
    {"dw of one slot overwritten", TC, "stale-dw", 0, "stale-rows"},
    {"a row of y of another call", TC, "stale-row", 0, "stale-rows"},
    {"scores of 0 and below never taken", TC, "positive-scores-alone", 0, "positive-scores-alone"},
    {"experts beyond 255 never taken", MANY, "experts-beyond-255", 0, "experts-beyond-table"},
    {"loads rounded to tiles", TC, "loads-cut-to-tiles", 0, "loads-cut-to-tiles"},
    {"overflow dropped by arrival", TC, "overflow-dropped", 0, "overflow-dropped"},
    {"raw logits as weights", TC, "raw-logits", 0, "other-gate"},
    {"an epsilon in the norm", AUX, "norm-epsilon", 1e-3, "norm-epsilon"},
    {"the norm's sum without the last slot", AUX, "norm-lacks-last", 0, "norm-lacks-member"},
    {"the softmax's sum without the last expert", BIAS, "softmax-lacks-last", 0, "softmax-lacks-last"},
    {"norm before the capacity", CAPACITY, "norm-before-capacity", 0, "norm-before-capacity"},
    {"shared expert not over the fanout", EC, "shared-not-divided", 0, "shared-not-divided"},
    {"softmax over the tokens of the step", COLUMN, "softmax-over-step", 0, "softmax-over-step"},
    {"router without gradient", AUX, "router-detached", 0, "router-detached"},
    {"router gradient of local experts alone", AUX, "router-gradient-local", 0, "router-gradient-local"},
    {"weight on the input", TC, "input-weighted", 0, "gate-before-activation"},
    {"the exact GELU", TC, "gelu", 0, "other-activation"},
    {"columns that the activation skips", TC, "activation-skips-columns", 0, "activation-skips-columns"},
    {"part of a K loop lost", TC, "terms-lost", 16, "product-cut"},
    {"the last member of a sum lost", TC, "last-term-lost", 0, "product-cut"},
    {"a product that reads past K", TC, "product-past-end", 0, "product-past-end"},
    {"group offsets rounded down to 8", TC, "offsets-aligned", 0, "offsets-aligned"},
    {"a slot lost in y", MANY, "slot-lost", 0, "slot-lost"},
    {"NaN of an empty expert", MANY, "nan-of-empty", 0, "empty-expert-gradient"},
    {"a slot added twice", TC, "slot-added-twice", 0, "slot-added-twice"},
    {"the gate of expert i+1", AUX, "gate-of-neighbour", 0, "gate-of-neighbour"},
};
/* clang-format on */
enum { KINDS = sizeof kinds / sizeof *kinds };

static et_step goldens[CASES];

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Returns whether it is named rightly. */
static bool try_kind(size_t k)
{
    const cd_fault *fault = cd_fault_find(kinds[k].fault);
    const et_profile *profile = et_profile_find("bf16");
    const et_step *golden = &goldens[kinds[k].layer];
    const et_verify_options options = {.profile = profile, .explain = true};
    cd_candidate c;
    et_verdict v;
    et_error error;
    ck_assert_msg(fault != NULL, "no fault %s", kinds[k].fault);
    et_status status = cd_run(&c, golden, profile, cd_kernel_find("blocked"), fault,
                              kinds[k].amount, SEED, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    ck_assert_msg(c.planted, "%s changes nothing", kinds[k].fault);
    double before = cpu_seconds();
    status = et_verify(&v, golden, c.tensors, c.count, &options, &error);
    ck_assert_msg(status == ET_OK, "%s", error.text);
    bool named = v.outcome == ET_MISMATCH && v.explanation_count > 0 &&
                 strcmp(v.explanations[0].name, kinds[k].name) == 0;
    printf("%-44s %-24s %5.1f s  %s", kinds[k].kind, kinds[k].name, cpu_seconds() - before,
           named ? "" : "NOT: ");
    for (size_t i = 0; i < v.explanation_count; i++)
        printf("%s%s (%s)%s", i ? ", " : "", v.explanations[i].name, v.explanations[i].scope,
               strcmp(v.explanations[i].explains, "everything") ? " in part" : "");
    printf("%s\n", named ? "" : v.line);
    if (getenv("ETREF_LINE")) printf("    %s\n", v.line);
    if (!named) printf("    %s\n", v.residual);
    et_verdict_free(&v);
    cd_free(&c);
    return named;
}

START_TEST(each_kind_has_its_name)
{
    const char *wanted = getenv("ETREF_KINDS");
    size_t step = wanted ? 1 : 3, named = 0, tried = 0;
    for (size_t i = 0; i < CASES; i++) run_text(&goldens[i], cases[i]);
    for (size_t k = 0; k < KINDS; k += step) {
        if (wanted && strcmp(wanted, "all") != 0 && strcmp(wanted, kinds[k].fault) != 0) continue;
        named += try_kind(k);
        tried++;
    }
    printf("%zu of %zu kinds are named\n", named, tried);
    ck_assert_uint_eq(named, tried);
    for (size_t i = 0; i < CASES; i++) et_step_free(&goldens[i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("public bugs");
    TCase *all = add_case(suite, "kinds");
    tcase_add_test(all, each_kind_has_its_name);
    return run_suite(suite);
}

#else

int main(void)
{
    return EXIT_SUCCESS; /* the float build does not judge */
}

#endif
