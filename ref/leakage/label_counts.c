/* label_counts.c: the least number of labels that causalises a rule. See etref/leakage.h.
 *
 * The recursion. Let S be a set of score sequences of length N that share a prefix and, on it, the
 * same decisions. Sequences that part at the next score may share a label: the decoder tells them
 * apart by what it has seen. Sequences that share the next score a, and differ in its decision, may
 * not. Write S_az for those of S with next score a and next decision z; then
 *
 *     chi(S) = max over a of chi(S_a0) + chi(S_a1),   chi(empty) = 0,   chi(complete) = 1      (1)
 *
 * and the rule's number is chi(all sequences). There are M^N sequences, but few different S.
 *
 *
 * 1. States of exact top-k
 *
 * Levels 1 .. M; ties go to the lower index. After a prefix with decisions z let m tokens and j
 * places be left; H the highest refused level (0 if none is refused), L the lowest taken level (M
 * if none is taken). Later tokens lose ties against the prefix, so
 *
 *     the lowest taken one stays taken      iff at most j later scores are > L,
 *     the highest refused one stays refused iff at least j later scores are > H:
 *
 *     S = { completions with #(r > L) <= j <= #(r > H) }                                       (2)
 *
 * (no token taken: L = M, and the first condition says nothing, as it should). S knows the prefix
 * through (m, j, H, L) alone. In (2) a score above L counts as any other above L, one at or below H
 * as any other there; what is between matters by its order only. So the state is (m, j, D) with
 * D = L - H open levels, and whether there are levels above L and below H at all. A next score
 *
 *     above L                 is taken       -> (m-1, j-1, D)
 *     at or below H           is refused     -> (m-1, j, D)
 *     H + i, 1 <= i <= D      is open:  refused, H moves up  -> (m-1, j, D-i)
 *                                       taken, L moves down  -> (m-1, j-1, i)
 *
 * The level of a taken token stays open (a later equal one may be refused); that of a refused one
 * does not. Let f(m, j, D) be chi of a state that has levels on both sides. f = 0 unless
 * 0 <= j <= m, and f(m, 0, D) = f(m, m, D) = f(m, j, 0) = 1: everything is decided. Otherwise
 *
 *     f(m,j,D) = max{ f(m-1,j-1,D), f(m-1,j,D), max_i f(m-1,j,D-i) + f(m-1,j-1,i) }            (3)
 *
 * No level above (L = M) and j >= 1: a token at level M is always taken, whatever happens later,
 * and moves nothing: it does what a level above L would do, and D - 1 levels are open. No level
 * below (H = 0): the second entry of (3) is missing, all else is the same; lemma 1 shows that it is
 * not needed. At the beginning neither exists, D = M, j = k >= 1, hence
 *
 *     chi(top-k) = f(N, k, M-1).
 *
 *
 * 2. Lemma 1: the recursion solved
 *
 * For 0 < j < m put n = m - j, and let G(m,j) be the multiset
 *
 *     j, n times;     j - s, C(n+s-1, s+1) times, for s = 1 .. j-1.
 *
 * G(m,0) and G(m,m) are empty. Then f(m,j,D) = 1 + the sum of the D largest of G(m,j), or of all of
 * them if there are fewer. All of them add up to C(m,j) - 1: Theorem A.3, without a limit of
 * levels.
 *
 * Proof by induction on m. Let d_1 >= d_2 >= ... be G(m-1,j-1) and e_1 >= e_2 >= ... be G(m-1,j),
 * continued by zeros. First,
 *
 *     G(m,j) = { 1 + d_1, d_2, d_3, ... } and { e_1, e_2, ... } together, zeros left out.      (4)
 *
 * For d_1 = j-1 (0 for j = 1, where G(m-1,0) is empty), so 1 + d_1 is one j more. The j-s are
 *     s = 0   n-1 among the e, and 1 + d_1                     n
 *     s = 1   C(n-1,2) among the e, n-1 left of n among the d  C(n,2)
 *     s > 1   C(n+s-2, s+1) and C(n+s-2, s)                    C(n+s-1, s+1), by Pascal's rule.
 * Second, entry i of the inner maximum of (3) is
 *     1 + e_1 + ... + e_{D-i}  +  1 + d_1 + ... + d_i
 *         = 1 + (1 + d_1) + (d_2 + ... + d_i) + (e_1 + ... + e_{D-i}),
 * whose best i takes the D-1 largest of d_2, ... and e_1, ...; as no element exceeds j = 1 + d_1,
 * it is 1 + the D largest of (4). The first two entries of (3) sum D of the same elements, or D
 * smaller ones: never more.  QED
 *
 * Corollary: no element exceeds k, so chi(top-k) <= (M-1) k + 1, with equality if and only if
 * M - 1 <= n = N - k. Hence chi exceeds M = 2^b, the labels that b bits give, as soon as N = 3,
 * k = 2, M = 2: three labels. Theorem A.2's "at most b bits" needs the ties to be resolved alike.
 *
 * The same bound without the recursion. Let c be the cutoff, the k-th largest score, and s the
 * number of tokens taken at level c, 1 <= s <= k. The advice (c, s) causalises top-k:
 *
 *     z_t = [r_t > c]  or  r_t = c and fewer than s earlier tokens have score c.
 *
 * For c = M no token is above the cutoff, so s = k: (M-1) k + 1 pairs. With b bits, M = 2^b,
 *
 *     L_F <= log2((2^b - 1) k + 1) <= b + log2 k,
 *
 * whatever N is; per token it goes to 0, which is what the paper wants of Theorem A.2.
 *
 *
 * 3. Threshold rule: chi = min(M, C(N,k))
 *
 * Here every score at the cutoff is taken, so M labels suffice: the cutoff itself. So do C(N,k):
 * the set T of the top k with ties to the lower index. A token outside T is taken iff it equals the
 * cutoff; all later members of T are above it (they beat it with a higher index), so it does iff it
 * equals the lowest member of T seen so far (and there is one): causal.
 *
 * Lower bound. After a prefix, D = L - H levels are possible as cutoff (those above H, up to L).
 * Claim: with j = k - (tokens taken so far), 0 <= j <= m, D >= 1, chi >= min(D, C(m,j)). It is at
 * least 1, since a completion exists: j tokens at L, the others at H, or at level 1 if there is no
 * H; its cutoff is L. That is all for j = 0, j = m and D = 1. Otherwise offer the score H + i with
 * 1 <= i < D: taken, it leaves the i cutoffs H+1 .. H+i, refused, the D - i above. By induction
 * chi >= min(i, C(m-1,j-1)) + min(D-i, C(m-1,j)), and i = min(D-1, C(m-1,j-1)) makes that
 * min(D, C(m,j)).  QED
 *
 *
 * 4. Expert threshold with capacity
 *
 * a levels pass the threshold, B = M - a do not. With between lo and up passing tokens the rule
 * takes those; with more, the top up; with fewer, the top lo. Let 1 <= a < M. As long as every
 * passing token was taken and every other refused, call the state neutral: p taken, q refused, L
 * the lowest taken level, H the highest refused one. When a passing token is refused, more than up
 * pass, and the rest is a state of the top up (1): j = up - p, open levels between that token and
 * L. When a token that does not pass is taken, fewer than lo pass, and the rest is a state of the
 * top lo: j = lo - p - 1, open levels between H and that token, and there are levels above. So with
 * m = N - p - q, u passing levels and l others open (the uppermost level, always taken while p <
 * up, left out as in 1: at first u = a - 1, l = B),
 *
 *     V(p,q,u,l) = max{ 1,
 *                       f(m-1, up-p, u-i) + V(p+1, q, i, l),    1 <= i <= u,  if up + q < N,
 *                       f(m-1, lo-p-1, i) + V(p, q+1, u, l-i),  1 <= i <= l,  if lo + q < N }
 *
 * The conditions say that the clamp is still possible. From p = lo on there is no filling, and V is
 * the recursion (3) of the top up; without dropping it is that of the top lo:
 *
 *     V(p,q,u,l) = f(m, up-p, u)   for p >= lo
 *     V(p,q,u,l) = f(m, lo-p, l)   for u = 0 or up + q >= N
 *
 * where f(m,j,.) = 1 for j > m, too (in 1 such a state is empty; here it takes all that is left).
 * With nothing passing (a = 0) the rule is exact top-lo, with everything passing (a = M) exact
 * top-up.
 *
 * Scores above L or at or below H are missing in V, because they only use up a token.
 * Taken: V(p+1,q,u,l), where a score at L gives f(m-1, up-p, 0) = 1 more (and without dropping
 * f(m-1, j-1, l) <= f(m, j, l)).
 * Refused: V(p,q+1,u,l), which is at most V(p,q,u,l), by induction on m in the recursion with these
 * moves left in. For l = 0 that is f growing with m. For l >= 1 set a score at H + 1 against it: it
 * gives f(m-1, lo-p-1, 1) + V(p,q+1,u,l-1), and the former is lo - p. So it remains that one level
 * less costs V(p,q+1,u,.) at most lo - p: take it from any split of a best path. A split of two
 * levels and more loses the smallest element of its f, at most lo - p; one of a single level turns
 * into a refusal at or below H (there is an H by then), and its f of one level, lo - p at most, is lost.
 *
 * Bounds. (a-1) up + (M-a) lo + 1 labels suffice for a >= 1. The advice is the pair (c, s) of the
 * top up or of the top lo, whichever the clamp demands, decoded as above. The former: c a passing
 * level below M with 1 <= s <= up, or (M, up). The latter: c one of the other levels, 1 <= s <= lo.
 * A batch that is not clamped has at most up tokens at the lowest passing level, so it is decoded
 * by the pair of that level and s = up: no label of its own. The recursion attains the bound for
 * N >= up + M - 1: B refusals of one level each at p = 0 give lo labels each; then a taken token
 * that leaves one passing level open gives 1 + (a-2) up, and up - 1 more taken ones give 1 each.
 * Without a limit of levels a path of the recursion adds up to C(N,up) + C(N,lo) - 1 at most: where
 * it refuses a passing token, f is at most the number of selections of up tokens that have shared
 * the path's decisions and refuse this one; where it takes one that does not pass, the same with lo.
 * Selections that leave the path at different steps are different, one of either kind never leaves
 * it, and the path's end adds 1. So ET with capacity leaks as EC with k between lo and up does: more with every bit and place, and not
 * more with N once there are tokens enough.
 *
 * Source: paper, Appendix A, for the notion and Theorems A.2, A.3; lemma and bounds are our own.
 */
#include "etref/leakage.h"
#include "etref/routing.h"
#include "ref/base/float_environment.h"
#include "ref/base/memory.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t MOST = UINT64_C(1) << 32; /* tokens and levels; labels then fit 64 bits */

/* ---- lemma 1 ---- */

/* One class of equal elements of G(m,j): `copies` times `value`, value = j - s. */
typedef struct gain {
    uint64_t n, s, value, copies;
} gain;

static gain first_gain(uint64_t m, uint64_t j)
{
    return (gain){.n = m - j, .s = 0, .value = j, .copies = m - j};
}

/* The next smaller class: n copies, then C(n,2), then C(n+s, s+2) = C(n+s-1, s+1) (n+s) / (s+2).
 * Asked for only where the classes so far have fewer than 2^32 elements, so the product fits:
 * n + s < n + j = m. */
static void next_gain(gain *g)
{
    if (g->s == 0)
        g->copies = g->n * (g->n - 1) / 2;
    else
        g->copies = g->copies * (g->n + g->s) / (g->s + 2);
    g->s++;
    g->value--;
}

/* f(m, j, D), with f = 1 for j >= m. m, D <= 2^32. The number of copies grows as s^(n-2), so few
 * classes are met, but for n = 2, where all of them but the first are single: summed at once. */
static uint64_t labels_of(uint64_t m, uint64_t j, uint64_t D)
{
    uint64_t sum = 1;
    if (j >= m) return sum;
    gain g = first_gain(m, j);
    for (; g.copies < D && g.value > 1 && g.copies > 0; next_gain(&g)) {
        if (g.n == 2 && g.s == 1) {
            uint64_t count = D < g.value ? D : g.value; /* value + (value-1) + ... */
            return sum + count * (2 * g.value - count + 1) / 2;
        }
        sum += g.copies * g.value;
        D -= g.copies;
    }
    return sum + (D < g.copies ? D : g.copies) * g.value;
}

/* f(m, j, D) for D = 0 .. count-1; j <= m. */
static void table_of_labels(uint64_t m, uint64_t j, size_t count, uint64_t *f)
{
    gain g = first_gain(m, j);
    uint64_t left = g.copies;
    f[0] = 1;
    for (size_t D = 1; D < count; D++) {
        if (left == 0 && g.value > 1) {
            next_gain(&g);
            left = g.copies;
        }
        f[D] = f[D - 1] + (left > 0 ? g.value : 0);
        if (left > 0) left--;
    }
}

/* ---- threshold ---- */

/* min(C(N,k), limit), limit <= 2^32. C(N-k+i, i) at least doubles with i <= k <= N/2. */
static uint64_t choose_up_to(uint64_t N, uint64_t k, uint64_t limit)
{
    uint64_t product = 1;
    if (k > N - k) k = N - k;
    for (uint64_t i = 1; i <= k && product < limit; i++) product = product * (N - k + i) / i;
    return product < limit ? product : limit;
}

/* ---- expert threshold with capacity ---- */

/* The recursion V, for one p after another, from lo down to 0: v[q][u][l] holds V(p,q,u,l). q <= Q:
 * each refusal that matters uses a level. */
typedef struct clamped {
    uint64_t N, lo, up;
    size_t Q, U, B;               /* the largest q, u and l */
    uint64_t *v, *best;           /* [Q+1][U+1][B+1]; one row [B+1] */
    uint64_t *dropping, *filling; /* [U+1] f(m-1, up-p, .), [B+1] f(m-1, lo-p-1, .) */
} clamped;

static uint64_t *row_of(const clamped *s, size_t q, size_t u)
{
    return s->v + (q * (s->U + 1) + u) * (s->B + 1);
}

/* best[l] = max(best[l], split + row[l]) for l = 0 .. count-1 */
static void improve(uint64_t *best, uint64_t split, const uint64_t *row, size_t count)
{
    for (size_t l = 0; l < count; l++) {
        uint64_t sum = split + row[l];
        best[l] = sum > best[l] ? sum : best[l];
    }
}

/* V(p,q,u,l) for all l and u >= 1, in place of V(p+1,q,u,l): u falls, smaller ones are read. */
static void step_back(clamped *s, uint64_t p, size_t q)
{
    uint64_t m = s->N - p - q;
    size_t count = s->B - q + 1; /* of l */
    bool dropping = s->up + q < s->N, filling = s->lo + q < s->N;
    if (dropping) table_of_labels(m - 1, s->up - p, s->U + 1, s->dropping);
    if (filling) table_of_labels(m - 1, s->lo - p - 1, s->B + 1, s->filling);
    for (size_t u = s->U; u >= 1; u--) {
        for (size_t l = 0; l < count; l++) s->best[l] = 1;
        for (size_t i = 1; dropping && i <= u; i++)
            improve(s->best, s->dropping[u - i], row_of(s, q, i), count);
        for (size_t i = 1; filling && i < count; i++)
            improve(s->best + i, s->filling[i], row_of(s, q + 1, u), count - i);
        memcpy(row_of(s, q, u), s->best, count * sizeof *s->best);
    }
}

static uint64_t labels_by_recursion(clamped *s)
{
    for (size_t q = 0; q <= s->Q; q++)
        for (size_t u = 1; u <= s->U; u++)
            for (size_t l = 0; l <= s->B - q; l++)
                row_of(s, q, u)[l] = labels_of(s->N - s->lo - q, s->up - s->lo, u);
    for (uint64_t p = s->lo; p-- > 0;)
        for (size_t q = s->Q + 1; q-- > 0;) step_back(s, p, q);
    return row_of(s, 0, s->U)[s->B];
}

static et_status reserve(clamped *s, et_error *error)
{
    const double most_cells = 0x1p26, most_steps = 0x1p36,
                 row = 8; /* a row costs so many steps more */
    double rows = (double)(s->Q + 1) * (double)(s->U + 1), count = (double)(s->B + 1);
    double cells = rows * count;
    double steps = (double)s->lo * rows * (count + row) * (double)(s->U + s->B) / 2;
    if (cells > most_cells || steps > most_steps)
        return et_fail(error, ET_EINVAL,
                       "exact leakage: %.3g states and %.3g steps; at most 2^26 and 2^36: choose "
                       "fewer levels or places, or be content with the bound, %llu labels",
                       cells, steps, (unsigned long long)(s->U * s->up + s->B * s->lo + 1));
    et_status status;
    if ((status =
             et_allocate((void **)&s->v, (size_t)cells, sizeof *s->v, "exact leakage", error)) ||
        (status = et_allocate((void **)&s->best, 2 * (s->B + 1) + s->U + 1, sizeof *s->best,
                              "exact leakage", error)))
        return status;
    s->filling = s->best + s->B + 1;
    s->dropping = s->filling + s->B + 1;
    return ET_OK;
}

/* 1 <= a < M */
static et_status clamped_labels(uint64_t N, et_capacity bounds, uint64_t passing, uint64_t others,
                                uint64_t *labels, et_error *error)
{
    uint64_t lo = bounds.lower, up = bounds.upper, U = passing - 1;
    if (lo == 0) { /* never filled */
        *labels = labels_of(N, up, U);
        return ET_OK;
    }
    if (U == 0 || up >= N) { /* never dropped, or all at one level, by index */
        *labels = labels_of(N, lo, others);
        return ET_OK;
    }
    if (N >= up + passing + others - 1) { /* the bound is met */
        *labels = U * up + others * lo + 1;
        return ET_OK;
    }
    uint64_t Q = others < N - lo ? others : N - lo;
    clamped s = {.N = N, .lo = lo, .up = up, .Q = (size_t)Q, .U = (size_t)U, .B = (size_t)others};
    et_status status = reserve(&s, error);
    if (status == ET_OK) *labels = labels_by_recursion(&s);
    free(s.v);
    free(s.best);
    return status;
}

/* ---- the interface ---- */

static et_status check_case(const et_leakage_case *c, et_error *error)
{
    if (c->rule < ET_LEAKAGE_TOPK || c->rule > ET_LEAKAGE_ET_CAPACITY)
        return et_fail(error, ET_EINVAL, "exact leakage: rule %d is none of the five",
                       (int)c->rule);
    if (c->tokens < 1 || c->tokens > MOST)
        return et_fail(error, ET_EINVAL, "exact leakage: %zu tokens; 1 to 2^32", c->tokens);
    if (c->select < 1 || c->select > c->tokens)
        return et_fail(error, ET_EINVAL, "exact leakage: k = %zu of %zu tokens; 1 to %zu",
                       c->select, c->tokens, c->tokens);
    if (c->levels < 1 || c->levels > MOST)
        return et_fail(error, ET_EINVAL, "exact leakage: %llu levels; 1 to 2^32",
                       (unsigned long long)c->levels);
    if (c->rule != ET_LEAKAGE_ET_CAPACITY) return ET_OK;
    if (c->passing > c->levels)
        return et_fail(error, ET_EINVAL, "exact leakage: %llu of %llu levels pass; at most all",
                       (unsigned long long)c->passing, (unsigned long long)c->levels);
    if (!(c->capacity >= 0 && c->capacity < (double)MOST))
        return et_fail(error, ET_EINVAL, "exact leakage: capacity %g; 0 or more, below 2^32",
                       c->capacity);
    return ET_OK;
}

et_status et_leakage_labels(const et_leakage_case *c, uint64_t *labels, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_case(c, error);
    if (status != ET_OK) return status;
    uint64_t N = c->tokens, k = c->select, M = c->levels;
    switch (c->rule) {
    case ET_LEAKAGE_TOPK: *labels = labels_of(N, k, M - 1); return ET_OK;
    case ET_LEAKAGE_THRESHOLD: *labels = choose_up_to(N, k, M); return ET_OK;
    case ET_LEAKAGE_TC:
    case ET_LEAKAGE_ET: *labels = 1; return ET_OK;
    case ET_LEAKAGE_ET_CAPACITY: break;
    }
    et_capacity bounds = et_capacity_bounds(c->select, c->capacity, c->tokens);
    if (c->passing > 0 && c->passing < M)
        return clamped_labels(N, bounds, c->passing, M - c->passing, labels, error);
    *labels = labels_of(N, c->passing == 0 ? bounds.lower : bounds.upper, M - 1);
    return ET_OK;
}

et_status et_leakage_labels_suffice(const et_leakage_case *c, uint64_t *labels, et_error *error)
{
    ET_ARITHMETIC;
    et_status status = check_case(c, error);
    if (status != ET_OK) return status;
    uint64_t M = c->levels, a = c->passing;
    switch (c->rule) {
    case ET_LEAKAGE_TOPK: *labels = (M - 1) * c->select + 1; return ET_OK;
    case ET_LEAKAGE_THRESHOLD: *labels = M; return ET_OK;
    case ET_LEAKAGE_TC:
    case ET_LEAKAGE_ET: *labels = 1; return ET_OK;
    case ET_LEAKAGE_ET_CAPACITY: break;
    }
    et_capacity bounds = et_capacity_bounds(c->select, c->capacity, c->tokens);
    *labels =
        a == 0 ? (M - 1) * bounds.lower + 1 : (a - 1) * bounds.upper + (M - a) * bounds.lower + 1;
    return ET_OK;
}
