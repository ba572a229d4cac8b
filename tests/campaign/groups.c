/* groups.c: how near honest kernels come to the limits of groups. See campaign.h, ref/verdict/group_limits.c.
 *
 * Limits are T_e deviations of an element, T_g of a group, beyond what replicas have by design. They are to be one and a
 * half times what honest kernels needed: told as a share of the limit.
 */
#include "tests/campaign/campaign.h"

#include <math.h>
#include <string.h>

const char *const cp_kinds[CP_KINDS] = {"element", "tensor", "expert", "row",
                                        "column",  "block",  "tile",   "part"};

size_t cp_kind_row(const char *name)
{
    size_t i = 0;
    while (i + 1 < CP_KINDS && strcmp(cp_kinds[i], name) != 0) i++;
    return i;
}

void cp_groups_visit(void *groups, const char *tensor, const et_group *g)
{
    cp_groups *all = groups;
    if (tensor != all->last) all->row = cp_tensor_row(tensor);
    all->last = tensor;
    cp_sums *s = &all->of[all->row][cp_kind_row(g->kind)];
    s->count++;
    s->share = fmax(s->share, g->deviations / g->allowed);
}

void cp_groups_elements(cp_groups *all, const et_verdict *v)
{
    for (size_t i = 0; i < v->tensor_count; i++) {
        const et_tensor_verdict *t = &v->tensors[i];
        cp_sums *s = &all->of[cp_tensor_row(t->name)][0];
        s->count += (double)t->judged;
        if (t->limit_sigmas > 0) s->share = fmax(s->share, t->largest_sigmas / t->limit_sigmas);
    }
}

void cp_groups_print(const cp_groups *g, const char *profile, FILE *lines)
{
    for (size_t i = 0; et_tensor_doc_at(i) != NULL; i++)
        for (size_t k = 0; k < CP_KINDS; k++) {
            const cp_sums *s = &g->of[i][k];
            if (s->count > 0)
                fprintf(lines, "group\t%s\t%s\t%s\t%.0f\t%.4g\n", profile,
                        et_tensor_doc_at(i)->name, cp_kinds[k], s->count, s->share);
        }
}

cp_sums cp_groups_read(const cp_reader *r)
{
    return (cp_sums){cp_number(r, 4), cp_number(r, 5)};
}

void cp_sums_add(cp_sums *to, const cp_sums *more)
{
    to->count += more->count;
    to->share = fmax(to->share, more->share);
}
