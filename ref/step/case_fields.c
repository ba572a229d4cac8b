/* case_fields.c: the table of a case's fields, one row each.
 *
 * A row says what a field is called, where in et_case it lives, what values it takes, its default,
 * the cases to which it applies, and what it means. Adding a field to the language of cases is
 * adding a member to et_case and a row here.
 */
#include "ref/step/case_fields.h"
#include "ref/step/case_kinds.h"

#include <float.h>
#include <string.h>

/* ---- the cases to which a field applies ---- */

static bool is_et(const et_case *c)
{
    return is_moe(c) && c->rule == ET_ET;
}

static bool can_have_capacity(const et_case *c)
{
    return is_et(c) || is_tc(c);
}

static bool can_drop(const et_case *c)
{
    return is_tc(c) && c->has_capacity;
}

static bool has_steps(const et_case *c)
{
    return is_moe(c) || is_optimiser(c);
}

static bool has_input(const et_case *c)
{
    return c->input.source != ET_INPUT_NONE;
}

static bool from_checkpoint(const et_case *c)
{
    return c->input.source == ET_INPUT_CHECKPOINT;
}

static bool from_a_layer(const et_case *c)
{
    return from_checkpoint(c) && c->layer != ET_LAYER_CROSS_ENTROPY;
}

static bool is_drawn(const et_case *c)
{
    return has_input(c) && !from_checkpoint(c);
}

static bool from_text(const et_case *c)
{
    return c->input.source == ET_INPUT_TEXT || from_checkpoint(c);
}

static bool from_ties(const et_case *c)
{
    return c->input.source == ET_INPUT_TIES;
}

static bool from_skewed(const et_case *c)
{
    return c->input.source == ET_INPUT_SKEWED;
}

static bool averages_ranks(const et_case *c)
{
    return is_dp(c) && is_ec_or_et(c);
}

/* The sources that begin with normal deviates, to which a mean can be added. */
static bool from_deviates(const et_case *c)
{
    return is_drawn(c) && !from_text(c) && c->input.source != ET_INPUT_INTEGER;
}

/* Ties, repeated text and integers cannot be redrawn until nothing is close: they are the point. */
static bool can_be_decisive(const et_case *c)
{
    return is_moe(c) && from_deviates(c) && !from_ties(c);
}

/* ---- the table of fields ---- */

static const int precisions[] = {ET_F64, ET_F32, ET_BF16, ET_F16};
static const int sources[] = {ET_INPUT_NORMAL, ET_INPUT_TEXT,    ET_INPUT_INTEGER, ET_INPUT_TIES,
                              ET_INPUT_SKEWED, ET_INPUT_OUTLIER, ET_INPUT_TINY,    ET_INPUT_HUGE,
                              ET_INPUT_CHECKPOINT};

#define DOC(name_, type_, initial, scope, meaning)                                                 \
    .doc = {name_, type_, initial, scope, meaning}, .member.name = name_, .member.type = type_
#define AT(field)                                                                                  \
    .member.offset = offsetof(et_case, field),                                                     \
    .member.size = sizeof(((const et_case *)NULL)->field)
#define COUNT_FROM(lo)      .member.kind = ET_COUNT, .member.low = lo, .member.high = INT32_MAX
#define COUNT_TEXT(lo)      "integer from " #lo " to 2147483647"
#define LONG_ANY            .member.kind = ET_LONG, .member.low = 0, .member.high = 9007199254740992.0
#define LONG_TEXT           "integer from 0 to 9007199254740992"
#define NUMBER_IN(lo, hi)   .member.kind = ET_NUMBER, .member.low = lo, .member.high = hi
#define NUMBER_TEXT(lo, hi) "number from " #lo " to " #hi

const et_field et_fields[] = {
    {DOC("name", "1 to 63 letters, digits, '-', '_', '.', the first a letter or digit", "required",
         "every case", "names the case and its bundle's file"),
     AT(name), .member.kind = ET_NAME, .applies = is_any},
    {DOC("hunts", "text of 1 to 159 bytes", "none", "every case", "which bug this case catches"),
     AT(hunts), .member.kind = ET_TEXT, .member.optional = true, .applies = is_any},
    {DOC("layer", "dense|moe|rmsnorm|rope|attention|cross_entropy|adamw|muon", "\"moe\"",
         "every case",
         "one feed-forward network, or experts; a layer of the model around them; an optimiser's "
         "update of one matrix"),
     AT(layer), .member.kind = ET_WORD, .applies = is_any},
    {DOC("rule", "tc|ec|et", "\"et\"", "layer moe",
         "token choice, expert choice or expert threshold"),
     AT(rule), .member.kind = ET_WORD, .applies = is_moe},
    {DOC("mode", "train|eval", "\"train\"", "layers dense and moe",
         "eval: ec and et route by threshold; no capacity, no losses, no change of state"),
     AT(eval), .member.kind = ET_WORD, .applies = is_ffn},
    {DOC("routing", "rule|given", "\"rule\"", "layer moe",
         "given: the assignment is the bundle's (route.*), nothing is decided, and the state "
         "stays"),
     AT(given), .member.kind = ET_WORD, .applies = is_moe, .later = true},
    {DOC("tokens", COUNT_TEXT(1), "required", "every case",
         "N: tokens of the step; rows of an optimiser's matrix"),
     AT(tokens), COUNT_FROM(1), .applies = is_any},
    {DOC("d_model", COUNT_TEXT(1), "required", "every case", "d: width of a token"), AT(d_model),
     COUNT_FROM(1), .applies = is_any},
    {DOC("d_expert", COUNT_TEXT(1), "required", "layers dense and moe",
         "h: hidden width of an expert, or of the dense layer"),
     AT(d_expert), COUNT_FROM(1), .applies = is_ffn, .exclusive = true},
    {DOC("activation", "relu2|swiglu|gelu|gelu_tanh", "\"relu2\"", "layers dense and moe",
         "of every expert: relu(H)^2; silu(x W_gate') H; gelu(H), exact or by its tanh"),
     AT(activation), .member.kind = ET_WORD, .applies = is_ffn, .later = true},
    {DOC("expert_bias", "true|false", "false", "layers dense and moe",
         "x W_up' + b_up, x W_gate' + b_gate, A W_down' + b_down in every expert; y takes w of all "
         "of it"),
     AT(expert_bias), .member.kind = ET_SWITCH, .applies = is_ffn, .later = true},
    {DOC("experts", COUNT_TEXT(1), "required", "layer moe", "n: routed experts"), AT(experts),
     COUNT_FROM(1), .applies = is_moe, .exclusive = true},
    {DOC("top_k", COUNT_TEXT(1), "1", "rule tc", "K: experts that a token takes"), AT(top_k),
     COUNT_FROM(1), .applies = is_tc, .exclusive = true},
    {DOC("select", "logit|gate", "\"logit\"", "rule tc",
         "what a token's choice compares, a bias added: r, or the gate value p (DeepSeek-V3: its "
         "sigmoid)"),
     AT(select_gates), .member.kind = ET_WORD, .applies = is_tc, .later = true},
    {DOC("padding", COUNT_TEXT(0), "0", "layer moe",
         "the last tokens of each micro-batch that are padding: no slot, y = 0, no part in pools, "
         "loads, losses and biases; in.mask"),
     AT(padding), COUNT_FROM(0), .applies = is_moe, .later = true},
    {DOC("groups", COUNT_TEXT(1), "1", "rule tc",
         "groups of experts / groups experts each; a token's K come from the groups_kept best of "
         "them"),
     AT(groups), COUNT_FROM(1), .applies = is_tc, .later = true},
    {DOC("groups_kept", COUNT_TEXT(1), "required", "groups above 1",
         "groups of which a token takes experts"),
     AT(groups_kept), COUNT_FROM(1), .applies = has_groups, .exclusive = true},
    {DOC("group_score", "max|top2", "\"max\"", "groups above 1",
         "of a group: its best score, bias added (DeepSeek-V2), or the sum of its two best "
         "(DeepSeek-V3)"),
     AT(group_score), .member.kind = ET_WORD, .applies = has_groups, .later = true},
    {DOC("granularity", COUNT_TEXT(1), "= 1, tc: top_k", "layer moe",
         "G: routed experts that a token gets on average"),
     AT(granularity), COUNT_FROM(1), .applies = is_moe, .exclusive = true},
    {DOC("target_load", COUNT_TEXT(1), "= floor(pool_tokens * granularity / experts)",
         "rules ec and et", "k: tokens of a pool that an expert is meant to take"),
     AT(target_load), COUNT_FROM(1), .applies = is_ec_or_et, .exclusive = true},
    {DOC("pool_tokens", COUNT_TEXT(1), "= tokens / micro_batches - padding", "rules ec and et",
         "P: tokens among which expert choice chooses; divides a micro-batch's, its padding left "
         "out"),
     AT(pool_tokens), COUNT_FROM(1), .applies = is_ec_or_et, .exclusive = true},
    {DOC("gate", "sigmoid|relu|softmax|softmax_anchor|softmax_anchor_out|softmax_tokens",
         "\"sigmoid\"", "layer moe",
         "from a logit to the weight of an expert's output; under ec and et the shared expert "
         "weighs 1, "
         "the anchor's share (softmax_anchor) or 1/(granularity+1) (softmax_anchor_out)"),
     AT(gate), .member.kind = ET_WORD, .applies = is_moe},
    {DOC("norm", "none|fanout|sum", "\"none\"", "layer moe", "what the weights are divided by"),
     AT(norm), .member.kind = ET_WORD, .applies = is_moe},
    {DOC("routed_scale", "number from 1e-6 to 1e6", "1.0", "layer moe",
         "factor of every routed expert's weight, after the norm"),
     AT(routed_scale), NUMBER_IN(1e-6, 1e6), .applies = is_moe, .later = true},
    {DOC("weigh", "output|input", "\"output\"", "layer moe",
         "what the weight of a routed expert multiplies: its output, w f(x), or its input, f(w x)"),
     AT(weighs_input), .member.kind = ET_WORD, .applies = is_moe, .later = true},
    {DOC("shared", "true|false", "true", "layer moe", "an expert that every token takes"),
     AT(shared), .member.kind = ET_SWITCH, .applies = is_moe, .neutral = "false"},
    {DOC("shared_d_expert", COUNT_TEXT(1), "= d_expert", "shared true",
         "hs: hidden width of the shared expert"),
     AT(shared_d_expert), COUNT_FROM(1), .applies = has_shared, .exclusive = true},
    {DOC("threshold", "strict|inclusive", "\"strict\"", "rules ec and et",
         "a token passes if r > c (the paper) or r >= c (the released code)"),
     AT(inclusive), .member.kind = ET_WORD, .applies = is_ec_or_et},
    {DOC("capacity_factor", "number from 0 to 1e6, or null", "null", "rules tc and et",
         "C, in training: et: a load stays within floor(k(1-C)) and floor(k(1+C)); tc: of an "
         "expert's choices in a "
         "micro-batch ceil(tokens * top_k / experts * C) are kept; null: off"),
     AT(capacity_factor), .member.kind = ET_NUMBER_OR_NULL,
     .member.flag = offsetof(et_case, has_capacity), .member.low = 0, .member.high = 1e6,
     .applies = can_have_capacity, .later_in = is_tc},
    {DOC("drop", "arrival|score", "\"arrival\"", "rule tc with a capacity_factor",
         "what is kept: the first to come, first choices before second ones; or the highest gate "
         "values"),
     AT(drop), .member.kind = ET_WORD, .applies = can_drop, .later = true},
    {DOC("ema_decay", "number from 0, less than 1", "0.999", "rules ec and et",
         "beta: ema <- beta ema + (1-beta) cutoff, after each step"),
     AT(ema_decay), NUMBER_IN(0, 1 - DBL_EPSILON / 2), .applies = is_ec_or_et},
    {DOC("ema_bias_correction", "true|false", "false", "rules ec and et",
         "the threshold is ema / (1 - beta^u), not ema"),
     AT(ema_bias_correction), .member.kind = ET_SWITCH, .applies = is_ec_or_et},
    {DOC("ema_updates", COUNT_TEXT(0), "0", "rules ec and et", "u: updates behind in.ema"),
     AT(ema_updates), COUNT_FROM(0), .applies = is_ec_or_et},
    {DOC("step", COUNT_TEXT(0), "0", "layers moe, adamw and muon", "number of the step, from 0"),
     AT(step), COUNT_FROM(0), .applies = has_steps},
    {DOC("warmup_steps", COUNT_TEXT(0), "0", "rule et",
         "while step is less than this, training routes by expert choice"),
     AT(warmup_steps), COUNT_FROM(0), .applies = is_et},
    {DOC("micro_batches", COUNT_TEXT(1), "= 1, parallel dp: ranks", "layer moe",
         "M: consecutive equal parts of the step, each routed alone; divides tokens"),
     AT(micro_batches), COUNT_FROM(1), .applies = is_moe, .exclusive = true},
    {DOC("parallel", "none|ep|dp", "\"none\"", "layer moe",
         "ep: each rank has experts / ranks of the experts; dp: each routes micro_batches / ranks "
         "micro-batches by itself"),
     AT(parallel), .member.kind = ET_WORD, .applies = is_moe, .later = true},
    {DOC("ranks", COUNT_TEXT(1), "required", "parallel ep and dp",
         "R: divides tokens; under ep experts, under dp micro_batches, too"),
     AT(ranks), COUNT_FROM(1), .applies = has_ranks, .exclusive = true},
    {DOC("sync_after_warmup", "true|false", "false", "parallel dp, rules ec and et",
         "moving averages become the ranks' mean only from step warmup_steps on (the released "
         "code; under ec never)"),
     AT(sync_after_warmup), .member.kind = ET_SWITCH, .applies = averages_ranks},
    {DOC("balance", "none|aux|aux_error|lossfree|proportional", "\"none\"", "rule tc",
         "how loads are evened out: by a loss or by a bias of the selection"),
     AT(balance), .member.kind = ET_WORD, .applies = is_tc},
    {DOC("balance_coef", NUMBER_TEXT(0, 1e6), "0.001", "balance aux and aux_error",
         "alpha: the loss's coefficient"),
     AT(balance_coef), NUMBER_IN(0, 1e6), .applies = has_aux_loss, .neutral = "0.0"},
    {DOC("bias_rate", NUMBER_TEXT(0, 1e6), "0.005", "balance lossfree and proportional",
         "u: how far a step moves the bias"),
     AT(bias_rate), NUMBER_IN(0, 1e6), .applies = has_bias, .neutral = "0.0"},
    {DOC("global_load", "true|false", "false", "rule tc",
         "loads come from in.load, the mean over all micro-batches and ranks"),
     AT(global_load), .member.kind = ET_SWITCH, .applies = is_tc},
    {DOC("z_loss_coef", NUMBER_TEXT(0, 1e6), "0.0", "layer moe", "zeta: coefficient of the z-loss"),
     AT(z_loss_coef), NUMBER_IN(0, 1e6), .applies = is_moe},
    {DOC("heads", COUNT_TEXT(1), "1", "layers rmsnorm, rope and attention",
         "Hq: heads next to each other in a token, each d_model / heads wide"),
     AT(heads), COUNT_FROM(1), .applies = has_heads},
    {DOC("kv_heads", COUNT_TEXT(1), "= heads", "layer attention",
         "Hkv: key and value heads; query head i looks at head floor(i Hkv / Hq)"),
     AT(kv_heads), COUNT_FROM(1), .applies = is_attention, .exclusive = true},
    {DOC("sequence", COUNT_TEXT(1), "= tokens", "layers rope and attention",
         "T: tokens of a sequence; divides tokens"),
     AT(sequence), COUNT_FROM(1), .applies = has_sequences, .exclusive = true},
    {DOC("rms_eps", "number from 1e-300 to 1", "2.220446049250313e-16", "layer rmsnorm",
         "added to the mean of squares"),
     AT(rms_eps), NUMBER_IN(1e-300, 1), .applies = is_rmsnorm},
    {DOC("rope_base", "number from 1e-6 to 1e12", "10000.0", "layer rope",
         "theta = t base^(-2j/width)"),
     AT(rope_base), NUMBER_IN(1e-6, 1e12), .applies = is_rope},
    {DOC("vocab", COUNT_TEXT(1), "required", "layer cross_entropy", "V: words"), AT(vocab),
     COUNT_FROM(1), .applies = is_cross_entropy, .exclusive = true},
    {DOC("softcap", NUMBER_TEXT(0, 1e6), "15.0", "layer cross_entropy",
         "l = cap tanh(z / cap); 0: l = z"),
     AT(softcap), NUMBER_IN(0, 1e6), .applies = is_cross_entropy},
    {DOC("rate", NUMBER_TEXT(0, 1e6), "0.01", "layers adamw and muon", "the learning rate"),
     AT(rate), NUMBER_IN(0, 1e6), .applies = is_optimiser},
    {DOC("beta1", "number from 0, less than 1", "0.9", "layer adamw", "of the mean of g"),
     AT(beta1), NUMBER_IN(0, 1 - DBL_EPSILON / 2), .applies = is_adamw},
    {DOC("beta2", "number from 0, less than 1", "0.95", "layer adamw", "of the mean of g^2"),
     AT(beta2), NUMBER_IN(0, 1 - DBL_EPSILON / 2), .applies = is_adamw},
    {DOC("eps", "number from 1e-300 to 1", "1e-10", "layer adamw", "added to sqrt(v^)"), AT(eps),
     NUMBER_IN(1e-300, 1), .applies = is_adamw},
    {DOC("decay", NUMBER_TEXT(0, 1e6), "0.0", "layer adamw", "w shrinks by rate decay w"),
     AT(decay), NUMBER_IN(0, 1e6), .applies = is_adamw},
    {DOC("momentum", "number from 0, less than 1", "0.95", "layer muon", "mu"), AT(momentum),
     NUMBER_IN(0, 1 - DBL_EPSILON / 2), .applies = is_muon},
    {DOC("precision", "f64|f32|bf16|f16", "\"f64\"", "every case",
         "how the in.* tensors are stored; everything is computed exactly from these values"),
     AT(precision), .member.kind = ET_WORD, .member.values = precisions, .applies = is_any},
    {DOC("input.source", "normal|text|integer|ties|skewed|outlier|tiny|huge|checkpoint", "required",
         "cases with input",
         "how the in.* tensors are drawn; checkpoint: captured from a trained model"),
     AT(input.source), .member.kind = ET_WORD, .member.values = sources, .applies = has_input},
    {DOC("input.seed", LONG_TEXT, "1", "sources other than checkpoint", "of every random stream"),
     AT(input.seed), LONG_ANY, .applies = is_drawn},
    {DOC("input.mean", NUMBER_TEXT(-1e6, 1e6), "0.0",
         "sources other than text, integer and checkpoint", "added to every element of x"),
     AT(input.mean), NUMBER_IN(-1e6, 1e6), .applies = from_deviates},
    {DOC("input.router_mean", NUMBER_TEXT(-1e6, 1e6), "0.0",
         "sources other than text, integer and checkpoint",
         "added, divided by d, to every router weight: with mean it shifts logits"),
     AT(input.router_mean), NUMBER_IN(-1e6, 1e6), .applies = from_deviates},
    {DOC("input.copies", COUNT_TEXT(1), "2", "source ties", "how often each token is repeated"),
     AT(input.copies), COUNT_FROM(1), .applies = from_ties},
    {DOC("input.jitter", NUMBER_TEXT(0, 1), "0.0", "source ties",
         "copy j of a token is scaled by 1 + j * jitter"),
     AT(input.jitter), NUMBER_IN(0, 1), .applies = from_ties},
    {DOC("input.hot", COUNT_TEXT(0), "0", "source skewed",
         "the expert that draws nearly everything"),
     AT(input.hot), COUNT_FROM(0), .applies = from_skewed},
    {DOC("input.text", "text of 1 to 255 bytes", "\"GPL-3\"", "sources text and checkpoint",
         "a file; a name without '/' is looked for among Debian's common licences"),
     AT(input.text), .member.kind = ET_TEXT, .applies = from_text},
    {DOC("input.text_offset", LONG_TEXT, "0", "sources text and checkpoint",
         "first byte of the file that is used"),
     AT(input.text_offset), LONG_ANY, .applies = from_text},
    {DOC("input.checkpoint", "text of 1 to 255 bytes", "required", "source checkpoint",
         "a file of etref train: sizes and switches that the case leaves out are its model's"),
     AT(input.checkpoint), .member.kind = ET_TEXT, .applies = from_checkpoint, .exclusive = true},
    {DOC("input.checkpoint_layer", COUNT_TEXT(0), "required",
         "source checkpoint, layers other than cross_entropy",
         "the layer of the model, from 0; rmsnorm: the norm at its beginning"),
     AT(input.checkpoint_layer), COUNT_FROM(0), .applies = from_a_layer, .exclusive = true},
    {DOC("input.checkpoint_fnv1a", "text of 1 to 19 bytes", "none", "source checkpoint",
         "FNV-1a of the file's bytes, 64 bits as 16 hexadecimal digits: no other file is taken"),
     AT(input.checkpoint_fnv1a), .member.kind = ET_TEXT, .member.optional = true,
     .applies = from_checkpoint},
    {DOC("input.decisive", "true|false", "false",
         "layer moe, sources normal, skewed, outlier, tiny and huge",
         "redraw tokens until no decision is within rounding of its boundary"),
     AT(input.decisive), .member.kind = ET_SWITCH, .applies = can_be_decisive},
};

_Static_assert(sizeof et_fields / sizeof et_fields[0] == ET_FIELDS, "case_fields.h counts them");

const et_field_doc *et_case_field(size_t index)
{
    return index < ET_FIELDS ? &et_fields[index].doc : NULL;
}

_Static_assert(sizeof(et_gate) == sizeof(int) && sizeof(et_dtype) == sizeof(int) &&
                   sizeof(bool) != sizeof(int),
               "json_members.c tells an enum from a bool by its size");

const et_field *et_field_named(const char *name)
{
    for (size_t i = 0; i < ET_FIELDS; i++)
        if (strcmp(et_fields[i].doc.name, name) == 0) return &et_fields[i];
    return NULL;
}
