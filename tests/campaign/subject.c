/* subject.c: a case with its reference, and what is said about a candidate for it: the verdict, and what
 * the tolerances say that are in use elsewhere. See campaign.h.
 *
 *     torch   torch.testing.assert_close: |e| <= atol + rtol |want| for every element, with the
 *             defaults of the type in which such a kernel stores the tensor:
 *             bf16 1.6e-2, 1e-5; f16 1e-3, 1e-5; f32 1.3e-6, 1e-5; f64 1e-7, 1e-7; integers equal
 *     ggml    its test of operators: sum e^2 / sum want^2 <= 5e-4, tensor by tensor
 *
 * Both know nothing of routing: another choice of experts is an error to them, legal or not.
 */
#include "etref/capture.h"
#include "ref/diagnose/explain.h"
#include "tests/campaign/campaign.h"
#include "tests/run_case.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- cases ---- */

et_case *cp_suite(const char *data, const char *name, size_t *count, et_error *error)
{
    char path[4096];
    size_t length = 0;
    enum { MOST = 1 << 20 };
    snprintf(path, sizeof path, "%s/cases/%s", data, name);
    FILE *file = fopen(path, "rb");
    char *text = file ? malloc(MOST) : NULL;
    et_case *cases = NULL;
    if (text) {
        length = fread(text, 1, MOST, file);
        et_capture_cases(&cases, count, text, length, path, path, error);
    } else {
        et_fail(error, ET_EIO, "%s cannot be read", path);
    }
    if (file) fclose(file);
    free(text);
    return cases;
}

et_status cp_case(et_case *c, const char *json, et_error *error)
{
    char text[2048];
    size_t length = strlen(json);
    if (length >= sizeof text) return et_fail(error, ET_EINVAL, "a case of %zu bytes", length);
    memcpy(text, json, length + 1);
    double_the_quotes(text);
    return et_case_parse(c, text, length, "campaign", error);
}

et_case cp_reseeded(const et_case *c, size_t seed)
{
    et_case other = *c;
    if (c->input.source == ET_INPUT_CHECKPOINT)
        other.input.text_offset += 64 * seed;
    else
        other.input.seed += 1000 * seed;
    return other;
}

/* ---- rows ---- */

size_t cp_tensor_row(const char *name)
{
    const et_tensor_doc *doc;
    size_t i = 0;
    while ((doc = et_tensor_doc_at(i)) != NULL && strcmp(doc->name, name) != 0) i++;
    return i;
}

size_t cp_profile_row(const char *name)
{
    size_t i = 0;
    while (i + 1 < CP_PROFILES && strcmp(et_profile_at(i)->name, name) != 0) i++;
    return i;
}

size_t cp_kernel_row(const char *name)
{
    size_t i = 0;
    while (cd_kernel_at(i) && strcmp(cd_kernel_at(i)->name, name) != 0) i++;
    return i;
}

/* ---- subjects ---- */

/* The plain engine for small ones: its bits are defined. */
static et_engine engine_for(const et_case *c)
{
    double work = (double)c->tokens * (double)c->d_model * (double)c->d_expert;
    return work < 1e7 ? ET_PLAIN : ET_BLAS;
}

et_status cp_subject_open(cp_subject *s, const et_case *c, et_error *error)
{
    *s = (cp_subject){0};
    et_status status = et_step_create(&s->golden, c, 0, error);
    if (status != ET_OK) return status;
    status = et_capture_inputs(&s->golden, 0, error);
    if (status == ET_OK) cp_take_habit(c, &s->golden.in);
    if (status != ET_OK || (status = et_step_check_inputs(&s->golden, error)) ||
        (status = et_step_run(&s->golden, engine_for(c), NULL, NULL, error)))
        cp_subject_close(s);
    return status;
}

et_status cp_subject_profile(cp_subject *s, const et_profile *p, et_error *error)
{
    s->profile = p;
    if (s->shelf == NULL && (s->shelf = calloc(1, sizeof *s->shelf)) == NULL)
        return et_fail(error, ET_ENOMEM, "no memory for error bars");
    s->shelf->golden = &s->golden;
    return ET_OK;
}

void cp_subject_close(cp_subject *s)
{
    if (s->shelf) et_shelf_free(s->shelf);
    free(s->shelf);
    et_step_free(&s->golden);
}

const et_bars *cp_subject_bars(const cp_subject *s)
{
    et_shelved *taken;
    if (et_shelf_take(s->shelf, NULL, s->profile, 0, NULL, NULL, &taken, NULL) != ET_OK)
        return NULL;
    et_shelf_give_back(s->shelf, taken);
    return &taken->bars;
}

et_status cp_judge(et_verdict *verdict, const cp_subject *s, const et_tensor_out *tensors,
                   size_t count, bool explain, cp_groups *groups, et_error *error)
{
    et_verify_options o = {.profile = s->profile, .explain = explain};
    const et_aside aside = {s->shelf, groups ? cp_groups_visit : NULL, groups, et_explain};
    et_status status = et_verify_with(verdict, &s->golden, tensors, count, &o, &aside, error);
    if (status == ET_OK && groups) cp_groups_elements(groups, verdict);
    return status;
}

/* ---- others ---- */

typedef struct tolerance {
    double relative, absolute;
} tolerance;

/* What assert_close takes for a kernel that rounds as the profile says. */
static tolerance tolerance_of(const et_profile *p, const et_tensor_out *t)
{
    int bits = p->bits[et_tensor_place(t->name)];
    if (!et_tensor_is_real(t)) return (tolerance){0, 0};
    if (bits > 24) return (tolerance){1e-7, 1e-7};
    if (bits <= 8) return (tolerance){1.6e-2, 1e-5};
    if (bits <= 11 && p->exponent_bits == 5) return (tolerance){1e-3, 1e-5};
    return (tolerance){1.3e-6, 1e-5};
}

static void ask_about(cp_peers *peers, const et_tensor_out *got, const et_tensor_out *want,
                      tolerance t)
{
    double errors = 0, sizes = 0;
    for (size_t i = 0; i < et_tensor_count(got); i++) {
        double u = et_tensor_element(want, i), g = et_tensor_element(got, i), e = g - u;
        if (g == u) e = 0; /* infinities */
        if (!(fabs(e) <= t.absolute + t.relative * fabs(u))) peers->torch = false;
        errors += e * e;
        sizes += isfinite(u) ? u * u : 0;
    }
    if (!(errors <= 5e-4 * sizes)) peers->ggml = false;
}

cp_peers cp_ask_peers(const cp_subject *s, const et_tensor_out *tensors, size_t count)
{
    cp_peers peers = {true, true};
    et_tensor_out own[ET_MAX_STEP_TENSORS];
    size_t have = et_step_tensors(&s->golden, false, own);
    for (size_t i = 0; i < count; i++) {
        const et_tensor_out *want = et_tensor_named(own, have, tensors[i].name);
        if (!want || !et_same_shape(&tensors[i], want))
            peers.torch = peers.ggml = false;
        else
            ask_about(&peers, &tensors[i], want, tolerance_of(s->profile, &tensors[i]));
    }
    return peers;
}

/* ---- words ---- */

void cp_blur(const char *text, char *blurred, size_t room)
{
    size_t used = 0;
    for (const char *at = text; *at && used + 1 < room;) {
        bool name = at > text && (isalnum((unsigned char)at[-1]) || at[-1] == '_');
        if (isdigit((unsigned char)*at) && !name) {
            at += strspn(at, "0123456789.e+-");
            blurred[used++] = '#';
        } else {
            blurred[used++] = *at == '\n' || *at == '\t' ? ' ' : *at;
            at++;
        }
    }
    blurred[used] = '\0';
}
