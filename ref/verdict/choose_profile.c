/* choose_profile.c: which profile a candidate is judged by where the caller names none; whether the one that judged was
 * too coarse to see anything; under which other one a rejected candidate would pass.
 *
 * A kernel cannot be finer than the numbers that it writes. So the profile is the tightest that asks no tensor
 * for more bits than its numbers have:
 *
 *     f64, f32, f16, bf16, bf16-low        bits(place of the tensor) <= bits(numbers of the tensor)
 *
 * The inputs' precision says less: most kernels of f32 are tried on inputs of bf16. It decides only where no tensor
 * of the candidate is real.
 *
 * The numbers, and not their type alone: a tensor is often widened before it is saved, since numpy has no bf16. One
 * that is stored as F32 and holds numbers of BF16 alone, where the right ones are none, has been rounded to 8 bits.
 *
 * Left out: what is rounded inside and written in more bits. A kernel that multiplies in bf16 and writes F32 is first
 * judged by f32, fails, and is told that it passes by bf16: better than to pass a kernel of f32 by bars of bf16, which
 * hide a gate that is wrong by 1e-3.
 */
#include "etref/dtype.h"
#include "ref/step/tensors.h"
#include "ref/verdict/judge.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the numbers of a tensor ---- */

/* By chance a number of 24 bits is one of 8 once in 2^16. */
enum { SURE = 8 };

bool et_holds_alone(const et_tensor_out *t, et_dtype format)
{
    size_t count = et_tensor_count(t);
    for (size_t i = 0; i < count; i++) {
        double value = et_tensor_element(t, i);
        if (!(et_round_to_dtype(value, format) == value)) return false;
    }
    return true;
}

/* Are some of the right values no numbers of the format, so that holding such alone means something? */
static bool is_telling(const et_tensor_out *right, et_dtype format)
{
    size_t count = right ? et_tensor_count(right) : 0, others = 0;
    for (size_t i = 0; i < count && others < SURE; i++) {
        double value = et_tensor_element(right, i);
        others += isfinite(value) && et_round_to_dtype(value, format) != value;
    }
    return others == SURE;
}

/* The type that a tensor's numbers have: its own, or a narrower one that holds them all. */
static et_dtype format_of(const et_tensor_out *t, const et_tensor_out *right)
{
    static const et_dtype formats[] = {ET_BF16, ET_F16, ET_F32};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (et_dtype_significand(formats[i]) < et_dtype_significand(t->dtype) &&
            et_holds_alone(t, formats[i]) && is_telling(right, formats[i]))
            return formats[i];
    return t->dtype;
}

/* The candidate's tensor of that name, if it is real and et_verify would take it. */
static const et_tensor_out *real_named(const et_tensor_out *candidate, size_t count,
                                       const char *name)
{
    for (size_t i = 0; i < count; i++) {
        const et_tensor_out *t = &candidate[i];
        if (t->name && strcmp(t->name, name) == 0 && t->values && t->rank <= ET_MAX_RANK &&
            et_tensor_is_real(t) && et_dtype_significand(t->dtype) > 0)
            return t;
    }
    return NULL;
}

static const et_tensor_out *shown_by(const et_judgement *j)
{
    return j->shown ? j->shown : j->candidate;
}

/* A real output: the type that it is stored as, and the one that its numbers have. */
typedef struct shown {
    const char *name;
    et_dtype stored, format;
} shown;

/* All of them, in the order of the table of tensors; returns how many. */
static size_t list_shown(const et_step *golden, const et_tensor_out *candidate, size_t count,
                         shown list[ET_MAX_STEP_TENSORS])
{
    size_t listed = 0;
    for (et_tensor_id id = ET_LAST_INPUT + 1; id < ET_TENSORS; id++) {
        const et_tensor_out *t = real_named(candidate, count, et_tensors[id].doc.name);
        if (!t) continue;
        et_tensor_out own = et_tensor_view(golden, id);
        et_dtype format = format_of(t, own.values ? &own : NULL);
        list[listed++] = (shown){et_tensors[id].doc.name, t->dtype, format};
    }
    return listed;
}

/* ---- the choice ---- */

/* Those of tf32 are never chosen: what they write has the bits of f32. */
static const char *const tightest_first[] = {"f64", "f32",  "tf32",    "tf32-rz",
                                             "f16", "bf16", "bf16-low"};

enum { CHOICES = sizeof tightest_first / sizeof *tightest_first };

/* The first tensor of which this choice asks more bits than its numbers have, NULL if there is none; the loosest asks for
 * nothing. */
static const shown *who_lacks_bits(size_t choice, const shown *list, size_t shows)
{
    const et_profile *p = et_profile_find(tightest_first[choice]);
    for (size_t i = 0; choice + 1 < CHOICES && i < shows; i++) {
        et_place place = et_tensor_place(list[i].name);
        int bits = et_dtype_significand(list[i].format);
        /* sums have 24 bits and more in all of them, whatever the type of a loss or of the state */
        if (place == ET_ACCUMULATOR && bits < 24) bits = 24;
        if (p->bits[place] > bits) return &list[i];
    }
    return NULL;
}

/* Where no tensor says anything the choice goes by the precision in which the case stores its inputs. */
et_profile_choice et_profile_for(const et_step *golden, const et_tensor_out *candidate,
                                 size_t count)
{
    shown list[ET_MAX_STEP_TENSORS];
    et_profile_choice out = {0};
    et_dtype type = golden->c.precision;
    size_t shows = list_shown(golden, candidate, count, list), room = sizeof out.reason, choice = 0;
    bool any = shows > 0;
    if (!any) list[shows++] = (shown){"fwd.y", type, type};
    const shown *why = &list[0], *lacks;
    for (; (lacks = who_lacks_bits(choice, list, shows)) != NULL; choice++) why = lacks;
    out.profile = et_profile_find(tightest_first[choice]);
    if (!any)
        snprintf(out.reason, room,
                 "the candidate shows no real numbers, and the inputs are stored as %s",
                 et_dtype_name(type));
    else if (why->format == why->stored)
        snprintf(out.reason, room, "%s is stored as %s", why->name, et_dtype_name(why->stored));
    else
        snprintf(out.reason, room, "%s, stored as %s, holds numbers of %s alone", why->name,
                 et_dtype_name(why->stored), et_dtype_name(why->format));
    return out;
}

/* Gradients of weights are often summed and kept in 24 bits, whatever else is rounded. */
static bool is_weight_gradient(const char *name)
{
    const et_tensor_row *row = &et_tensors[et_tensor_find(name)];
    return row->place == ET_OUTPUTS && row->stage != ET_AT_Y && row->stage != ET_AT_DX;
}

/* Results and intermediates are rounded most coarsely: logits are of 24 bits in most profiles. */
static bool is_stored_coarsely(const char *name)
{
    et_place place = et_tensor_place(name);
    return place == ET_OUTPUTS || place == ET_INTERMEDIATES;
}

bool et_has_numbers_of(const et_judgement *j, const et_profile *p)
{
    shown list[ET_MAX_STEP_TENSORS];
    size_t shows = list_shown(j->golden, shown_by(j), j->count, list), seen = 0;
    for (size_t i = 0; i < shows; i++) {
        if (is_weight_gradient(list[i].name) || !is_stored_coarsely(list[i].name)) continue;
        seen++;
        if (et_dtype_significand(list[i].format) > p->bits[et_tensor_place(list[i].name)])
            return false;
    }
    return seen > 0;
}

/* ---- too coarse ---- */

/* A tensor is far inside its bars if its largest error is below a tenth of one deviation: of so many elements a
 * kernel that rounds as the profile says has one beyond two. */
enum { MANY = 100 };
static const double far_inside = 0.1;

/* The next finer kind of arithmetic: where a profile has fewer than 24 bits somewhere f32, else f64. */
static const char *finer_than(const et_profile *p)
{
    int least = p->bits[0], sums = p->bits[ET_ACCUMULATOR];
    for (int i = 0; i < ET_PLACES; i++)
        if (p->bits[i] < least) least = p->bits[i];
    return least < 24 ? "f32" : sums < 53 ? "f64" : NULL;
}

static bool tells_exactness(const et_verdict *v, const et_tensor_verdict *t)
{
    return is_stored_coarsely(t->name) && t->judged >= t->exact + MANY && t->limit_sigmas > 0 &&
           v->profile.bits[et_tensor_place(t->name)] < 53;
}

void et_note_exactness(et_verdict *v)
{
    const char *finer = finer_than(&v->profile);
    const et_tensor_verdict *nearest = NULL;
    double elements = 0;
    if (v->outcome != ET_PASS || finer == NULL) return;
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        if (!tells_exactness(v, t)) continue;
        if (!(t->largest_sigmas < far_inside)) return;
        elements += (double)t->judged;
        if (!nearest || t->largest_sigmas > nearest->largest_sigmas) nearest = t;
    }
    if (nearest == NULL) return;
    snprintf(v->note, sizeof v->note,
             "far more exact than %s (of %.0f elements none errs by more than %.1g deviations), so "
             "mistakes pass unseen: judge it by profile %s",
             v->profile.name, elements, nearest->largest_sigmas, finer);
}

/* ---- another profile ---- */

/* Does `a` round at least as coarsely as `b` wherever that rounds? */
static bool covers(const et_profile *a, const et_profile *b)
{
    for (int i = 0; i < ET_PLACES; i++)
        if (a->bits[i] > b->bits[i]) return false;
    bool range = a->exponent_bits <= b->exponent_bits && (a->ftz || !b->ftz);
    bool operands = a->truncate_operands || !b->truncate_operands ||
                    a->bits[ET_OPERANDS] < b->bits[ET_OPERANDS];
    bool sums = a->truncate_accumulator || !b->truncate_accumulator ||
                a->bits[ET_ACCUMULATOR] < b->bits[ET_ACCUMULATOR];
    return range && operands && sums;
}

static et_status judge_by(et_outcome *outcome, const et_profile *p, const et_judgement *j,
                          et_error *error)
{
    et_verdict v;
    et_verify_options options = *j->options;
    options.profile = p;
    options.explain = false;
    options.require_count = 0;
    options.progress = NULL;
    const et_aside aside = {.shelf = j->shelf};
    et_status status =
        et_verify_with(&v, j->golden, shown_by(j), j->count, &options, &aside, error);
    if (status != ET_OK) return status;
    *outcome = v.outcome;
    et_verdict_free(&v);
    return ET_OK;
}

et_status et_find_passing_profile(const et_profile **found, const et_judgement *j,
                                  bool (*goes_on)(void *user), void *user, et_error *error)
{
    const et_profile *own = j->options->profile, *failed = NULL;
    const et_profile *loosest = et_profile_find(tightest_first[CHOICES - 1]);
    et_outcome outcome = ET_MISMATCH, at_loosest = ET_INCONCLUSIVE;
    et_status status = ET_OK;
    shown list[ET_MAX_STEP_TENSORS];
    size_t shows = list_shown(j->golden, shown_by(j), j->count, list);
    *found = NULL;
    if (!covers(own, loosest)) {
        if (!goes_on(user)) return ET_OK;
        status = judge_by(&at_loosest, loosest, j, error);
        if (at_loosest == ET_MISMATCH) failed = loosest;
    }
    for (size_t i = 0; status == ET_OK && !*found && i + 1 < CHOICES; i++) {
        const et_profile *p = et_profile_find(tightest_first[i]);
        if (covers(own, p) || (failed && covers(failed, p)) || who_lacks_bits(i, list, shows))
            continue;
        if (!goes_on(user)) return ET_OK;
        outcome = ET_MISMATCH;
        status = judge_by(&outcome, p, j, error);
        if (outcome == ET_PASS) *found = p;
    }
    if (status == ET_OK && !*found && at_loosest == ET_PASS) *found = loosest;
    return status;
}
