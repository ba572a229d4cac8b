/* test_case.c: reading, checking and printing cases.
 *
 * Bad cases are a table: what is written and the whole message it must get, so that a message that
 * names the wrong field, or forgets what is allowed, fails. Good ones are printed, too (test_kept_cases.c
 * has all those of the suites and of data/witness).
 */
#include "etref/case.h"
#include "etref/safetensors.h"
#include "tests/check_main.h"
#include "tests/run_case.h"

#include <math.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define MOE(more)    "{'name':'a','tokens':8,'d_model':4,'d_expert':4,'experts':4" more "}"
#define DENSE(more)  "{'name':'a','layer':'dense','tokens':8,'d_model':4,'d_expert':4" more "}"
#define IN_A         "test: case 'a': "
#define NAMES        "1 to 63 letters, digits, '-', '_', '.', the first a letter or digit"
#define COUNTS       "integer from 1 to 2147483647"
#define SOURCES      "normal|text|integer|ties|skewed|outlier|tiny|huge|checkpoint"

static et_case parse_good(const char *json)
{
    et_case c;
    et_error error = {""};
    ck_assert_msg(parse_quoted(&c, json, &error) == ET_OK, "%s: %s", json, error.text);
    ck_assert_str_eq(error.text, "");
    return c;
}

/* ---- defaults ---- */

START_TEST(the_defaults_are_the_papers_setup)
{
    et_case c = parse_good(MOE(""));
    ck_assert_str_eq(c.name, "a");
    ck_assert_str_eq(c.hunts, "");
    ck_assert(c.layer == ET_MOE && c.rule == ET_ET && !c.eval);
    ck_assert_uint_eq(c.top_k, 1);
    ck_assert_uint_eq(c.granularity, 1);
    ck_assert_uint_eq(c.target_load, 2);
    ck_assert_uint_eq(c.pool_tokens, 8);
    ck_assert(c.gate == ET_GATE_SIGMOID && c.norm == ET_NORM_NONE);
    ck_assert(c.shared && c.shared_d_expert == 4);
    ck_assert(!c.inclusive && !c.has_capacity && c.capacity_factor == 0);
    ck_assert(c.ema_decay == 0.999 && !c.ema_bias_correction && c.ema_updates == 0);
    ck_assert(c.step == 0 && c.warmup_steps == 0 && c.micro_batches == 1);
    ck_assert(c.balance == ET_BALANCE_NONE && c.balance_coef == 0.001 && c.bias_rate == 0.005);
    ck_assert(!c.global_load && c.z_loss_coef == 0 && c.precision == ET_F64);
    ck_assert(c.input.source == ET_INPUT_NONE && c.input.seed == 1 && c.input.copies == 2);
    ck_assert_str_eq(c.input.text, "GPL-3");
}
END_TEST

START_TEST(derived_defaults_follow_other_fields)
{
    et_case c = parse_good(MOE(",'rule':'tc','top_k':3"));
    ck_assert(c.granularity == 3 && c.target_load == 0 && c.pool_tokens == 8);
    c = parse_good(MOE(",'rule':'ec','granularity':3,'micro_batches':2"));
    ck_assert(c.pool_tokens == 4 && c.target_load == 3 && et_case_micro_tokens(&c) == 4);
    c = parse_good("{'name':'a','tokens':50,'d_model':4,'d_expert':4,'experts':6}");
    ck_assert_uint_eq(c.target_load, 8); /* floor(50/6) */
    c = parse_good(MOE(",'target_load':7,'shared_d_expert':9"));
    ck_assert(c.target_load == 7 && c.shared_d_expert == 9);
    c = parse_good(MOE(",'shared':false"));
    ck_assert(!c.shared && c.shared_d_expert == 0);
    c = parse_good(DENSE(",'shared':false"));
    ck_assert(!c.shared && c.experts == 0 && c.target_load == 0 && c.pool_tokens == 8);
}
END_TEST

START_TEST(a_field_that_says_nothing_is_let_pass)
{
    const char *good[] = {
        MOE(",'rule':'tc','ema_decay':0.999,'warmup_steps':0,'threshold':'strict'"),
        MOE(",'rule':'tc','balance':'aux','balance_coef':0.5,'bias_rate':0.0"),
        MOE(",'rule':'tc','balance_coef':0,'bias_rate':0.005,'granularity':1"),
        MOE(",'rule':'ec','balance':'none','capacity_factor':null,'global_load':false"),
        MOE(",'rule':'tc','groups':1,'capacity_factor':null,'drop':'arrival'"),
        MOE(",'rule':'tc','top_k':2,'capacity_factor':0.5,'drop':'score','groups':2,'groups_kept':1"),
        MOE(",'mode':'eval','capacity_factor':0.5,'pool_tokens':4,'z_loss_coef':0.1"),
        MOE(",'step':3,'warmup_steps':4,'pool_tokens':4"),
        DENSE(",'gate':'sigmoid','balance':'none','shared':true"),
        MOE(",'input':{'source':'normal','copies':2,'hot':0,'text':'GPL-3','decisive':false}"),
    };
    for (size_t i = 0; i < COUNT(good); i++) parse_good(good[i]);
    /* What does not apply holds its default, so that equal cases are equal. */
    et_case a = parse_good(MOE(",'rule':'tc','balance_coef':0")),
            b = parse_good(MOE(",'rule':'tc'"));
    ck_assert(memcmp(&a, &b, sizeof a) == 0);
}
END_TEST

START_TEST(what_a_step_routes_by)
{
    const struct {
        const char *json;
        bool choice, threshold;
    } rows[] = {
        {MOE(",'rule':'tc'"), false, false},
        {MOE(",'rule':'tc','mode':'eval'"), false, false},
        {MOE(",'rule':'ec'"), true, false},
        {MOE(",'rule':'ec','mode':'eval'"), false, true},
        {MOE(""), false, true},
        {MOE(",'step':3,'warmup_steps':4"), true, false},
        {MOE(",'step':4,'warmup_steps':4"), false, true},
        {MOE(",'step':3,'warmup_steps':4,'mode':'eval'"), false, true},
        {DENSE(""), false, false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        et_case c = parse_good(rows[i].json);
        ck_assert_msg(et_case_routes_by_choice(&c) == rows[i].choice, "%s", rows[i].json);
        ck_assert_msg(et_case_routes_by_threshold(&c) == rows[i].threshold, "%s", rows[i].json);
    }
}
END_TEST

START_TEST(every_field_is_documented)
{
    size_t count = 0;
    const et_field_doc *f;
    for (; (f = et_case_field(count)) != NULL; count++) {
        ck_assert(strlen(f->name) > 0 && strlen(f->type) > 0 && strlen(f->initial) > 0);
        ck_assert(strlen(f->scope) > 0 && strlen(f->meaning) > 0);
        for (size_t i = 0; i < count; i++) ck_assert_str_ne(et_case_field(i)->name, f->name);
    }
    ck_assert_uint_eq(count, 71);
    ck_assert_ptr_null(et_case_field((size_t)-1));
}
END_TEST

/* ---- bad cases ---- */

static const struct bad_case {
    const char *json, *message;
} bad_cases[] = {
    {"'a'", "test: \"a\"; allowed: an object with fields name, tokens, ..."},
    {"3", "test: 3; allowed: an object with fields name, tokens, ..."},
    {"null", "test: null; allowed: an object with fields name, tokens, ..."},
    {"[]", "test: []; allowed: an object with fields name, tokens, ..."},
    {"{}", "test: name is missing; allowed: " NAMES},
    {"{'name':'a'}", IN_A "tokens is missing; allowed: " COUNTS},
    {"{'name':'a','tokens':8,'d_model':4,'d_expert':4}",
     IN_A "experts is missing; allowed: " COUNTS},
    {"{'name':''}", "test: name = \"\"; allowed: " NAMES},
    {"{'name':'a b'}", "test: name = \"a b\"; allowed: " NAMES},
    {"{'name':'../x'}", "test: name = \"../x\"; allowed: " NAMES},
    {"{'name':'..'}", "test: name = \"..\"; allowed: " NAMES},
    {"{'name':'-x'}", "test: name = \"-x\"; allowed: " NAMES},
    {"{'name':7}", "test: name = 7; allowed: " NAMES},
    {MOE(",'hunts':''"), IN_A "hunts = \"\"; allowed: text of 1 to 159 bytes"},
    {MOE(",'granularty':1"), IN_A "unknown field granularty; the nearest is granularity"},
    {MOE(",'colour':'red'"), IN_A "unknown field colour; 'etref list fields' names them all"},
    {MOE(",'input.seed':1"),
     IN_A "unknown field input.seed; the fields of input stand in an object input"},
    {MOE(",'input':{'source':'normal','sede':1}"),
     IN_A "unknown field input.sede; the nearest is input.seed"},
    {MOE(",'seed':3"), IN_A "unknown field seed; the nearest is input.seed"},
    {MOE(",'input':{'source':'normal','nonsense':1}"),
     IN_A "unknown field input.nonsense; 'etref list fields' names them all"},
    {MOE(",'layer':'lstm'"),
     IN_A "layer = \"lstm\"; allowed: dense|moe|rmsnorm|rope|attention|cross_entropy|adamw|muon"},
    {MOE(",'layer':'attention'"),
     IN_A "d_expert = 4 does not apply; allowed: only with layers dense and moe"},
    {"{'name':'a','layer':'attention','tokens':8,'d_model':12,'heads':5}",
     IN_A "heads = 5 with d_model = 12: allowed: a divisor of d_model"},
    {"{'name':'a','layer':'attention','tokens':8,'d_model':12,'heads':6,'kv_heads':4}",
     IN_A "kv_heads = 4 with heads = 6: allowed: a divisor of heads"},
    {"{'name':'a','layer':'rope','tokens':8,'d_model':12,'heads':4}",
     IN_A "heads = 4 with d_model = 12: d_model / heads, the width of a head, must be even"},
    {"{'name':'a','layer':'rope','tokens':8,'d_model':12,'sequence':3}",
     IN_A "sequence = 3 with tokens = 8: allowed: a divisor of tokens"},
    {"{'name':'a','layer':'cross_entropy','tokens':8,'d_model':12}",
     IN_A "vocab is missing; allowed: integer from 1 to 2147483647"},
    {"{'name':'a','layer':'muon','tokens':8,'d_model':12,'input':{'source':'text'}}",
     IN_A "input.source = \"text\" with layer = \"muon\": for a layer of the model: normal, "
          "outlier, tiny or huge; rmsnorm, attention and cross_entropy: checkpoint, too"},
    {"{'name':'a','layer':'rope','tokens':8,'d_model':12,"
     "'input':{'source':'checkpoint','checkpoint':'a','checkpoint_layer':1}}",
     IN_A "input.source = \"checkpoint\" with layer = \"rope\": for a layer of the model: normal, "
          "outlier, tiny or huge; rmsnorm, attention and cross_entropy: checkpoint, too"},
    {MOE(",'input':{'source':'checkpoint','checkpoint_layer':1}"),
     IN_A "input.checkpoint is missing; allowed: text of 1 to 255 bytes"},
    {MOE(",'input':{'source':'checkpoint','checkpoint':'a'}"),
     IN_A "input.checkpoint_layer is missing; allowed: integer from 0 to 2147483647"},
    {MOE(",'input':{'source':'normal','checkpoint':'a'}"),
     IN_A "input.checkpoint = \"a\" does not apply; allowed: only with source checkpoint"},
    {MOE(",'input':{'source':'checkpoint','checkpoint':'a','checkpoint_layer':1,'seed':2}"),
     IN_A "input.seed = 2 does not apply; allowed: only with sources other than checkpoint"},
    {MOE(",'mode':'eval','input':{'source':'checkpoint','checkpoint':'a','checkpoint_layer':1}"),
     IN_A
     "mode = \"eval\" with input.source = \"checkpoint\": what is captured is a step of training"},
    {MOE(",'rule':'hash'"), IN_A "rule = \"hash\"; allowed: tc|ec|et"},
    {MOE(",'mode':'test'"), IN_A "mode = \"test\"; allowed: train|eval"},
    {MOE(",'gate':'sigmod'"),
     IN_A "gate = \"sigmod\"; allowed: "
          "sigmoid|relu|softmax|softmax_anchor|softmax_anchor_out|softmax_tokens"},
    {MOE(",'gate':'softmax|relu'"),
     IN_A "gate = \"softmax|relu\"; allowed: "
          "sigmoid|relu|softmax|softmax_anchor|softmax_anchor_out|softmax_tokens"},
    {MOE(",'gate':null"), IN_A
     "gate = null; allowed: sigmoid|relu|softmax|softmax_anchor|softmax_anchor_out|softmax_tokens"},
    {MOE(",'norm':'mean'"), IN_A "norm = \"mean\"; allowed: none|fanout|sum"},
    {MOE(",'threshold':'>'"), IN_A "threshold = \">\"; allowed: strict|inclusive"},
    {MOE(",'balance':'aux_loss'"),
     IN_A "balance = \"aux_loss\"; allowed: none|aux|aux_error|lossfree|proportional"},
    {MOE(",'precision':'f8'"), IN_A "precision = \"f8\"; allowed: f64|f32|bf16|f16"},
    {MOE(",'input':{'source':'uniform'}"), IN_A "input.source = \"uniform\"; allowed: " SOURCES},
    {MOE(",'shared':1"), IN_A "shared = 1; allowed: true|false"},
    {MOE(",'shared':'true'"), IN_A "shared = \"true\"; allowed: true|false"},
    {MOE(",'ema_bias_correction':0"), IN_A "ema_bias_correction = 0; allowed: true|false"},
    {MOE(",'capacity_factor':'0.5'"),
     IN_A "capacity_factor = \"0.5\"; allowed: number from 0 to 1e6, or null"},
    {MOE(",'capacity_factor':-0.1"),
     IN_A "capacity_factor = -0.1; allowed: number from 0 to 1e6, or null"},
    {MOE(",'capacity_factor':1000001"),
     IN_A "capacity_factor = 1000001; allowed: number from 0 to 1e6, or null"},
    {MOE(",'ema_decay':1"), IN_A "ema_decay = 1; allowed: number from 0, less than 1"},
    {MOE(",'ema_decay':-0.5"), IN_A "ema_decay = -0.5; allowed: number from 0, less than 1"},
    {MOE(",'ema_decay':true"), IN_A "ema_decay = true; allowed: number from 0, less than 1"},
    {MOE(",'z_loss_coef':-1"), IN_A "z_loss_coef = -1; allowed: number from 0 to 1e6"},
    {MOE(",'rule':'tc','balance':'aux','balance_coef':-0.1"),
     IN_A "balance_coef = -0.1; allowed: number from 0 to 1e6"},
    {MOE(",'rule':'tc','balance':'lossfree','bias_rate':-0.1"),
     IN_A "bias_rate = -0.1; allowed: number from 0 to 1e6"},
    {"{'name':'a','tokens':0,'d_model':4,'d_expert':4,'experts':4}",
     IN_A "tokens = 0; allowed: " COUNTS},
    {"{'name':'a','tokens':8,'d_model':0,'d_expert':4,'experts':4}",
     IN_A "d_model = 0; allowed: " COUNTS},
    {"{'name':'a','tokens':8,'d_model':4,'d_expert':0,'experts':4}",
     IN_A "d_expert = 0; allowed: " COUNTS},
    {"{'name':'a','tokens':8,'d_model':4,'d_expert':4,'experts':0}",
     IN_A "experts = 0; allowed: " COUNTS},
    {"{'name':'a','tokens':-3}", IN_A "tokens = -3; allowed: " COUNTS},
    {"{'name':'a','tokens':2.5}", IN_A "tokens = 2.5; allowed: " COUNTS},
    {"{'name':'a','tokens':2147483648}", IN_A "tokens = 2147483648; allowed: " COUNTS},
    {"{'name':'a','tokens':[8]}", IN_A "tokens = [8]; allowed: " COUNTS},
    {MOE(",'rule':'tc','top_k':0"), IN_A "top_k = 0; allowed: " COUNTS},
    {MOE(",'granularity':0"), IN_A "granularity = 0; allowed: " COUNTS},
    {MOE(",'target_load':0"), IN_A "target_load = 0; allowed: " COUNTS},
    {MOE(",'pool_tokens':0"), IN_A "pool_tokens = 0; allowed: " COUNTS},
    {MOE(",'micro_batches':0"), IN_A "micro_batches = 0; allowed: " COUNTS},
    {MOE(",'step':-1"), IN_A "step = -1; allowed: integer from 0 to 2147483647"},
    {MOE(",'shared_d_expert':0"), IN_A "shared_d_expert = 0; allowed: " COUNTS},
    {MOE(",'top_k':1"), IN_A "top_k = 1 does not apply; allowed: only with rule tc"},
    {MOE(",'rule':'ec','top_k':2"), IN_A "top_k = 2 does not apply; allowed: only with rule tc"},
    {MOE(",'rule':'tc','target_load':2"),
     IN_A "target_load = 2 does not apply; allowed: only with rules ec and et"},
    {MOE(",'rule':'tc','pool_tokens':8"),
     IN_A "pool_tokens = 8 does not apply; allowed: only with rules ec and et"},
    {MOE(",'rule':'tc','top_k':2,'granularity':1"),
     IN_A "granularity = 1 with top_k = 2: under rule tc granularity is top_k; leave it out"},
    {MOE(",'rule':'tc','top_k':5"), IN_A "top_k = 5 with experts = 4: allowed: 1 to experts"},
    {MOE(",'granularity':5"), IN_A "granularity = 5 with experts = 4: allowed: 1 to experts"},
    {MOE(",'target_load':9"),
     IN_A "target_load = 9 with pool_tokens = 8: allowed: 1 to pool_tokens"},
    {MOE(",'rule':'ec','pool_tokens':3"), IN_A
     "pool_tokens = 3 with tokens = 8: allowed: a divisor of tokens / micro_batches - padding"},
    {MOE(",'rule':'ec','micro_batches':2,'pool_tokens':8"), IN_A
     "pool_tokens = 8 with tokens = 8: allowed: a divisor of tokens / micro_batches - padding"},
    {MOE(",'parallel':'tp'"), IN_A "parallel = \"tp\"; allowed: none|ep|dp"},
    {MOE(",'weigh':'both'"), IN_A "weigh = \"both\"; allowed: output|input"},
    {MOE(",'weigh':'input','parallel':'ep','ranks':2"), IN_A
     "weigh = \"input\" with parallel = \"ep\": allowed: output; rows that travel between ranks "
     "are not weighted"},
    {MOE(",'expert_bias':1"), IN_A "expert_bias = 1; allowed: true|false"},
    {MOE(",'expert_bias':true,'parallel':'dp','ranks':2"),
     IN_A "expert_bias = true with parallel = \"dp\": allowed: false; ranks have no gradients of "
          "biases"},
    {MOE(",'rule':'ec','gate':'softmax_tokens','padding':1"),
     IN_A "padding = 1 with gate = \"softmax_tokens\": allowed: 0; a softmax over tokens is over "
          "all of a micro-batch"},
    {MOE(",'rule':'tc','micro_batches':2,'padding':4"),
     IN_A "padding = 4 with tokens = 8: allowed: less than tokens / micro_batches"},
    {MOE(",'parallel':'ep'"), IN_A "ranks is missing; allowed: " COUNTS},
    {MOE(",'ranks':2"), IN_A "ranks = 2 does not apply; allowed: only with parallel ep and dp"},
    {MOE(",'parallel':'ep','ranks':3"),
     IN_A "ranks = 3 with tokens = 8: allowed: a divisor of tokens"},
    {MOE(",'parallel':'ep','ranks':8"),
     IN_A "ranks = 8 with experts = 4: allowed: a divisor of experts"},
    {MOE(",'parallel':'ep','ranks':2,'micro_batches':2"),
     IN_A "micro_batches = 2 with parallel = \"ep\": allowed: 1, whose rows the ranks exchange"},
    {MOE(",'parallel':'dp','ranks':4,'micro_batches':2"), IN_A
     "micro_batches = 2 with ranks = 4: allowed: a multiple of ranks, those of all ranks together"},
    {MOE(",'parallel':'dp','ranks':4"),
     IN_A "pool_tokens = 2 with experts = 4: k = floor(pool_tokens * granularity / experts) is 0; "
          "allowed: at least 1 (more tokens, or target_load)"},
    {MOE(",'rule':'tc','parallel':'dp','ranks':2,'sync_after_warmup':true"), IN_A
     "sync_after_warmup = true does not apply; allowed: only with parallel dp, rules ec and et"},
    {MOE(",'micro_batches':3"),
     IN_A "micro_batches = 3 with tokens = 8: allowed: a divisor of tokens"},
    {MOE(",'micro_batches':9"),
     IN_A "micro_batches = 9 with tokens = 8: allowed: a divisor of tokens"},
    {MOE(",'pool_tokens':4"),
     IN_A "pool_tokens = 4 with tokens = 8: allowed: tokens / "
          "micro_batches - padding, the pool of et in training after its warm-up"},
    {MOE(",'rule':'ec','pool_tokens':2"),
     IN_A "pool_tokens = 2 with experts = 4: k = floor(pool_tokens * granularity / experts) is 0; "
          "allowed: at least 1 (more tokens, or target_load)"},
    {MOE(",'rule':'tc','capacity_factor':0"),
     IN_A "capacity_factor = 0.0 with rule = \"tc\": under rule tc allowed: more than 0, or null"},
    {MOE(",'rule':'ec','capacity_factor':0"),
     IN_A "capacity_factor = 0.0 does not apply; allowed: only with rules tc and et"},
    {MOE(",'rule':'tc','drop':'score'"),
     IN_A "drop = \"score\" does not apply; allowed: only with rule tc with a capacity_factor"},
    {MOE(",'capacity_factor':0.5,'drop':'score'"),
     IN_A "drop = \"score\" does not apply; allowed: only with rule tc with a capacity_factor"},
    {MOE(",'rule':'tc','groups':3,'groups_kept':1"),
     IN_A "groups = 3 with experts = 4: allowed: a divisor of experts"},
    {MOE(",'rule':'tc','groups':2,'groups_kept':3"),
     IN_A "groups_kept = 3 with groups = 2: allowed: 1 to groups"},
    {MOE(",'rule':'tc','groups':2"),
     IN_A "groups_kept is missing; allowed: integer from 1 to 2147483647"},
    {MOE(",'rule':'tc','groups_kept':1"),
     IN_A "groups_kept = 1 does not apply; allowed: only with groups above 1"},
    {MOE(",'rule':'tc','top_k':3,'groups':2,'groups_kept':1"),
     IN_A "top_k = 3 with groups_kept = 1: allowed: at most the experts of groups_kept groups"},
    {MOE(",'rule':'tc','groups':4,'groups_kept':2,'group_score':'top2'"),
     IN_A "group_score = \"top2\" with groups = 4: a group of one expert has no second best; "
          "allowed: max"},
    {MOE(",'groups':2,'groups_kept':1"),
     IN_A "groups = 2 does not apply; allowed: only with rule tc"},
    {DENSE(",'routing':'given'"),
     IN_A "routing = \"given\" does not apply; allowed: only with layer moe"},
    {MOE(",'rule':'tc','threshold':'inclusive'"),
     IN_A "threshold = \"inclusive\" does not apply; allowed: only with rules ec and et"},
    {MOE(",'rule':'tc','ema_updates':3"),
     IN_A "ema_updates = 3 does not apply; allowed: only with rules ec and et"},
    {MOE(",'rule':'tc','ema_decay':0.9"),
     IN_A "ema_decay = 0.9 does not apply; allowed: only with rules ec and et"},
    {MOE(",'rule':'ec','warmup_steps':4000"),
     IN_A "warmup_steps = 4000 does not apply; allowed: only with rule et"},
    {MOE(",'rule':'tc','warmup_steps':1"),
     IN_A "warmup_steps = 1 does not apply; allowed: only with rule et"},
    {MOE(",'balance':'aux'"), IN_A "balance = \"aux\" does not apply; allowed: only with rule tc"},
    {MOE(",'rule':'ec','balance':'lossfree'"),
     IN_A "balance = \"lossfree\" does not apply; allowed: only with rule tc"},
    {MOE(",'rule':'tc','global_load':true"),
     IN_A "global_load = true with balance = \"none\": allowed: false, or a balance that uses "
          "loads: aux|aux_error|lossfree|proportional"},
    {MOE(",'global_load':true"),
     IN_A "global_load = true does not apply; allowed: only with rule tc"},
    {MOE(",'rule':'tc','balance_coef':0.5"),
     IN_A "balance_coef = 0.5 does not apply; allowed: only with balance aux and aux_error"},
    {MOE(",'rule':'tc','balance':'aux','bias_rate':0.01"),
     IN_A "bias_rate = 0.01 does not apply; allowed: only with balance lossfree and proportional"},
    {MOE(",'rule':'tc','gate':'softmax_tokens'"),
     IN_A "gate = \"softmax_tokens\" with rule = \"tc\": a softmax over tokens is for ec and et"},
    {MOE(",'shared':false,'shared_d_expert':4"),
     IN_A "shared_d_expert = 4 does not apply; allowed: only with shared true"},
    {DENSE(",'experts':4"), IN_A "experts = 4 does not apply; allowed: only with layer moe"},
    {DENSE(",'gate':'relu'"), IN_A "gate = \"relu\" does not apply; allowed: only with layer moe"},
    {DENSE(",'norm':'sum'"), IN_A "norm = \"sum\" does not apply; allowed: only with layer moe"},
    {DENSE(",'rule':'tc'"), IN_A "rule = \"tc\" does not apply; allowed: only with layer moe"},
    {DENSE(",'granularity':1"),
     IN_A "granularity = 1 does not apply; allowed: only with layer moe"},
    {DENSE(",'micro_batches':2"),
     IN_A "micro_batches = 2 does not apply; allowed: only with layer moe"},
    {DENSE(",'z_loss_coef':0.1"),
     IN_A "z_loss_coef = 0.1 does not apply; allowed: only with layer moe"},
    {DENSE(",'shared_d_expert':8"),
     IN_A "shared_d_expert = 8 does not apply; allowed: only with shared true"},
    {DENSE(",'input':{'source':'skewed'}"), IN_A
     "input.source = \"skewed\" with layer = \"dense\": a dense layer has no expert to prefer"},
    {DENSE(",'input':{'source':'normal','decisive':true}"),
     IN_A "input.decisive = true does not apply; allowed: only with layer moe, sources normal, "
          "skewed, outlier, tiny and huge"},
    {MOE(",'input':'normal'"),
     IN_A "input = \"normal\"; allowed: an object with source, seed, ..."},
    {MOE(",'input':{}"), IN_A "input.source is missing; allowed: " SOURCES},
    {MOE(",'input':{'seed':1}"), IN_A "input.source is missing; allowed: " SOURCES},
    {MOE(",'input':{'source':'normal','seed':-1}"),
     IN_A "input.seed = -1; allowed: integer from 0 to 9007199254740992"},
    {MOE(",'input':{'source':'normal','seed':9007199254740993}"),
     IN_A "input.seed = 9007199254740993; allowed: integer from 0 to 9007199254740992"},
    {MOE(",'input':{'source':'normal','seed':1.0}"),
     IN_A "input.seed = 1.0; allowed: integer from 0 to 9007199254740992"},
    {MOE(",'input':{'source':'normal','text':'BSD'}"),
     IN_A "input.text = \"BSD\" does not apply; allowed: only with sources text and checkpoint"},
    {MOE(",'input':{'source':'text','text':''}"),
     IN_A "input.text = \"\"; allowed: text of 1 to 255 bytes"},
    {MOE(",'input':{'source':'normal','copies':3}"),
     IN_A "input.copies = 3 does not apply; allowed: only with source ties"},
    {MOE(",'input':{'source':'ties','copies':0}"), IN_A "input.copies = 0; allowed: " COUNTS},
    {MOE(",'input':{'source':'ties','jitter':2}"),
     IN_A "input.jitter = 2; allowed: number from 0 to 1"},
    {MOE(",'input':{'source':'ties','decisive':true}"),
     IN_A "input.decisive = true does not apply; allowed: only with layer moe, sources normal, "
          "skewed, outlier, tiny and huge"},
    {MOE(",'input':{'source':'normal','mean':1e7}"),
     IN_A "input.mean = 10000000.0; allowed: number from -1e6 to 1e6"},
    {MOE(",'input':{'source':'text','mean':1}"), IN_A
     "input.mean = 1.0 does not apply; allowed: only with sources other than text, integer and "
     "checkpoint"},
    {MOE(",'input':{'source':'normal','hot':1}"),
     IN_A "input.hot = 1 does not apply; allowed: only with source skewed"},
    {MOE(",'input':{'source':'skewed','hot':4}"),
     IN_A "input.hot = 4 with experts = 4: allowed: 0 to experts - 1"},
    {MOE(",'input':{'source':'integer'}"),
     IN_A "gate = \"sigmoid\" with input.source = \"integer\": integers stay integers only with "
          "gate relu"},
    {MOE(",'gate':'relu','norm':'sum','input':{'source':'integer'}"), IN_A
     "norm = \"sum\" with input.source = \"integer\": integers stay integers only with norm none"},
    {MOE(",'rule':'tc','gate':'relu','balance':'lossfree','input':{'source':'integer'}"),
     IN_A "balance = \"lossfree\" with input.source = \"integer\": integers stay integers only "
          "with balance none"},
    {MOE(",'gate':'relu','z_loss_coef':0.5,'input':{'source':'integer'}"),
     IN_A "z_loss_coef = 0.5 with input.source = \"integer\": integers stay integers only with 0"},
    {"{'name':'a','tokens':2147483647,'d_model':2147483647,'d_expert':4,'experts':4}",
     IN_A "tokens = 2147483647 with d_model = 2147483647: [tokens, width] cannot be addressed"},
    {"{'name':'a','tokens':2147483647,'d_model':1,'d_expert':4,'experts':2147483647}",
     IN_A "tokens = 2147483647 with experts = 2147483647: [tokens, experts] cannot be addressed"},
    {"{'name':'a','tokens':8,'d_model':2147483647,'d_expert':2147483647,'experts':2147483647,'"
     "granularity':2147483647}",
     IN_A
     "d_expert = 2147483647 with d_model = 2147483647: the experts' weights cannot be addressed"},
};

/* Jansson's own words follow; only our part is pinned. */
static const struct bad_case bad_json[] = {
    {"", "test: is empty; the case belongs here"},
    {"[", "test: line 1, column 1: cannot be read as JSON: "},
    {"{", "test: line 1, column 1: cannot be read as JSON: "},
    {"{'name':'a'} 1", "test: line 1, column 14: cannot be read as JSON: "},
    {"{'name':'a','name':'b'}", "test: line 1, column 18: cannot be read as JSON: "},
    {MOE(",'input':{'seed':1,'seed':2}"), "test: line 1, column 84: cannot be read as JSON: "},
    {"{'name':'a','tokens':1e400}", "test: line 1, column 26: cannot be read as JSON: "},
    {"{'name':'a','tokens':99999999999999999999}",
     "test: line 1, column 41: cannot be read as JSON: "},
    {"{'name':'\\u0000'}", "test: line 1, column 16: cannot be read as JSON: "},
};

/* A case that fails leaves the struct alone. */
static void check_refusal(const struct bad_case *bad, bool whole)
{
    et_case c, before;
    et_error error = {""};
    memset(&c, 0x5a, sizeof c);
    memcpy(&before, &c, sizeof c);
    ck_assert_msg(parse_quoted(&c, bad->json, &error) == ET_EINVAL, "accepted: %s", bad->json);
    if (whole)
        ck_assert_str_eq(error.text, bad->message);
    else
        ck_assert_msg(strncmp(error.text, bad->message, strlen(bad->message)) == 0, "%s",
                      error.text);
    ck_assert(memcmp(&c, &before, sizeof c) == 0);
    ck_assert_int_eq(parse_quoted(&c, bad->json, NULL), ET_EINVAL);
}

START_TEST(contradictions_are_named)
{
    for (size_t i = 0; i < COUNT(bad_cases); i++) check_refusal(&bad_cases[i], true);
}
END_TEST

START_TEST(what_is_not_json_is_located)
{
    for (size_t i = 0; i < COUNT(bad_json); i++) check_refusal(&bad_json[i], false);
}
END_TEST

START_TEST(long_values_are_cut_in_messages)
{
    const struct {
        const char *before, *after, *message;
        int length;
    } rows[] = {
        {"{'name':'", "'}",
         "test: name = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ...; "
         "allowed: " NAMES,
         64},
        {"{'name':'a','hunts':'", "'}",
         IN_A "hunts = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ...; allowed: "
              "text of "
              "1 to 159 bytes",
         160},
        {"{'name':'a','input':{'text':'", "'}}",
         IN_A "input.text = \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ...; "
              "allowed: text "
              "of 1 to 255 bytes",
         256},
        {"{'name':'a','", "':1}",
         IN_A
         "unknown field xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; 'etref "
         "list fields' names them all",
         1000},
    };
    char xs[1001], json[1200];
    for (size_t i = 0; i < COUNT(rows); i++) {
        memset(xs, 'x', sizeof xs);
        xs[rows[i].length] = '\0';
        snprintf(json, sizeof json, "%s%s%s", rows[i].before, xs, rows[i].after);
        check_refusal(&(struct bad_case){json, rows[i].message}, true);
    }
}
END_TEST

#define REST "\"tokens\":1,\"d_model\":1,\"d_expert\":1,\"experts\":1}"
#define ONE  "{\"name\":\"one\"," REST
#define TWO  "{\"name\":\"two\"," REST

START_TEST(a_text_holds_one_case_or_many)
{
    static const struct {
        const char *text, *refused; /* NULL: as many cases as it says */
        size_t count;
    } rows[] = {
        {ONE, NULL, 1},
        {"[]", NULL, 0},
        {"[" ONE "]", NULL, 1},
        {"[" ONE "," TWO "]", NULL, 2},
        {"{}", "f: name is missing; allowed: ", 0},
        {"[" ONE ",{\"name\":\"a\",\"tokens\":0}]", "f: case 'a': tokens = 0; allowed: " COUNTS, 0},
        {"[" ONE ",{\"tokens\":0}]", "f: case number 2: tokens = 0; allowed: " COUNTS, 0},
        {"[{\"name\":\"a\"},{},{\"name\":\"b\"},{\"name\":\"a\"}]",
         "f: cases number 1 and 4 are both named 'a'", 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        et_case *cases = NULL;
        size_t count = 42;
        et_error error = {""};
        et_status status =
            et_case_parse_all(&cases, &count, rows[i].text, strlen(rows[i].text), "f", &error);
        ck_assert_msg((status == ET_OK) == (rows[i].refused == NULL), "%s: %s", rows[i].text,
                      error.text);
        ck_assert_uint_eq(count, status == ET_OK ? rows[i].count : 42);
        ck_assert((cases != NULL) == (status == ET_OK));
        if (status != ET_OK)
            ck_assert_msg(strncmp(error.text, rows[i].refused, strlen(rows[i].refused)) == 0, "%s",
                          error.text);
        for (size_t k = 0; status == ET_OK && k < count; k++)
            ck_assert_str_eq(cases[k].name, k == 0 ? "one" : "two");
        free(cases);
    }
}
END_TEST

START_TEST(a_text_has_a_largest_size)
{
    enum { MOST = 1 << 20 };
    char *text = malloc(MOST + 1);
    et_case *cases = NULL;
    size_t count;
    et_error error;
    ck_assert_ptr_nonnull(text);
    memset(text, ' ', MOST + 1);
    memcpy(text, "[]", 2);
    ck_assert_int_eq(et_case_parse_all(&cases, &count, text, MOST, "f", &error), ET_OK);
    free(cases);
    ck_assert_int_eq(et_case_parse_all(&cases, &count, text, MOST + 1, "f", &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "f: 1048577 bytes; allowed: at most 1048576");
    for (size_t i = 0; i <= 10000; i++) memcpy(text + 2 * i, i == 0 ? "[0" : ",0", 2);
    text[2 * 10001] = ']';
    ck_assert_int_eq(et_case_parse_all(&cases, &count, text, MOST, "f", &error), ET_EINVAL);
    ck_assert_str_eq(error.text, "f: 10001 cases; allowed: at most 10000");
    free(text);
}
END_TEST

/* ---- printing ---- */

START_TEST(only_what_applies_is_printed)
{
    const struct {
        const char *json, *printed;
    } rows[] = {
        {DENSE(",'precision':'bf16'"), "{'name': 'a', 'layer': 'dense', 'mode': 'train', 'tokens': "
                                       "8, 'd_model': 4, 'd_expert': 4, "
                                       "'precision': 'bf16'}"},
        {MOE(",'rule':'tc','top_k':2,'shared':false,'input':{'source':'tiny','mean':0.1}"),
         "{'name': 'a', 'layer': 'moe', 'rule': 'tc', 'mode': 'train', 'tokens': 8, 'd_model': 4, "
         "'d_expert': 4, 'experts': 4, 'top_k': 2, 'granularity': 2, 'gate': 'sigmoid', 'norm': "
         "'none', 'shared': false, 'step': 0, 'micro_batches': 1, 'balance': 'none', "
         "'global_load': false, "
         "'z_loss_coef': 0.0, 'precision': 'f64', 'input': {'source': 'tiny', 'seed': 1, 'mean': "
         "0.1, "
         "'router_mean': 0.0, 'decisive': false}}"},
        {DENSE(",'input':{'source':'normal','mean':0.12345678901234560,'router_mean':0."
               "30000000000000004}"),
         "{'name': 'a', 'layer': 'dense', 'mode': 'train', 'tokens': 8, 'd_model': 4, 'd_expert': "
         "4, "
         "'precision': 'f64', 'input': {'source': 'normal', 'seed': 1, 'mean': 0.1234567890123456, "
         "'router_mean': 0.30000000000000004}}"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        et_case c = parse_good(rows[i].json);
        char *text, expected[1024];
        snprintf(expected, sizeof expected, "%s", rows[i].printed);
        double_the_quotes(expected);
        ck_assert_int_eq(et_case_print(&text, &c, NULL), ET_OK);
        ck_assert_str_eq(text, expected);
        free(text);
    }
}
END_TEST

START_TEST(numbers_and_texts_survive_printing)
{
    const double numbers[] = {0.1,       1.0 / 3,     0.1 + 0.2, 1e-300, 0x1p-1074,
                              0x1p-1022, 1 - 0x1p-53, 0.999,     0,      123456.78901234567};
    et_case c = parse_good(MOE(",'rule':'ec','input':{'source':'normal'}"));
    for (size_t i = 0; i < COUNT(numbers); i++) {
        if (numbers[i] < 1) c.ema_decay = numbers[i];
        c.input.mean = -numbers[i];
        check_round_trip(&c);
    }
    const char *texts[] = {"plain", "\"quotes\" and \\", "a\nb\t\x01\x7f", "\xe2\x89\xa5 c"};
    for (size_t i = 0; i < COUNT(texts); i++) {
        memset(c.hunts, 0, sizeof c.hunts);
        memcpy(c.hunts, texts[i], strlen(texts[i]));
        check_round_trip(&c);
    }
    /* The longest line: every byte of every text is escaped to six. */
    c = parse_good(MOE(",'input':{'source':'text'}"));
    memset(c.hunts, 1, sizeof c.hunts - 1);
    memset(c.input.text, 1, sizeof c.input.text - 1);
    memset(c.name, 'n', sizeof c.name - 1);
    check_round_trip(&c);
    memset(c.hunts, 0xff, sizeof c.hunts - 1);
    et_error error;
    char *text;
    ck_assert_int_ne(et_case_print(&text, &c, &error), ET_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("case");
    TCase *tests = add_case(suite, "defaults");
    tcase_add_test(tests, the_defaults_are_the_papers_setup);
    tcase_add_test(tests, derived_defaults_follow_other_fields);
    tcase_add_test(tests, a_field_that_says_nothing_is_let_pass);
    tcase_add_test(tests, what_a_step_routes_by);
    tcase_add_test(tests, every_field_is_documented);
    tests = add_case(suite, "refusals");
    tcase_add_test(tests, contradictions_are_named);
    tcase_add_test(tests, what_is_not_json_is_located);
    tcase_add_test(tests, long_values_are_cut_in_messages);
    tcase_add_test(tests, a_text_holds_one_case_or_many);
    tcase_add_test(tests, a_text_has_a_largest_size);
    tests = add_case(suite, "printing");
    tcase_add_test(tests, only_what_applies_is_printed);
    tcase_add_test(tests, numbers_and_texts_survive_printing);
    return run_suite(suite);
}
