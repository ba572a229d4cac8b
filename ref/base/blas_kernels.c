/* blas_kernels.c: OpenBLAS's kernels beside what the processor can run. See blas_kernels.h.
 *
 * Source: OpenBLAS issue 4267; the names are those of its driver/others/dynamic.c. Left out: which model a
 * processor is. Its features decide, so that models to come are no matter.
 */
#include "ref/base/blas_kernels.h"
#include "etref/matmul.h"

#include <cblas.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Classes of kernels, by the instructions that their products use. */
enum { SSE, AVX, AVX2_FMA, HIGHEST };

static const struct {
    const char *name;
    int class;
} kernels[] = {
    {"Katmai", SSE},         {"Coppermine", SSE},   {"Northwood", SSE},  {"Prescott", SSE},
    {"Banias", SSE},         {"Atom", SSE},         {"Core2", SSE},      {"Penryn", SSE},
    {"Dunnington", SSE},     {"Nehalem", SSE},      {"Athlon", SSE},     {"Opteron", SSE},
    {"Opteron_SSE3", SSE},   {"Barcelona", SSE},    {"Bobcat", SSE},     {"Nano", SSE},
    {"Sandybridge", AVX},    {"Bulldozer", AVX},    {"Piledriver", AVX}, {"Steamroller", AVX},
    {"Excavator", AVX2_FMA}, {"Haswell", AVX2_FMA}, {"Zen", AVX2_FMA}};

/* Kernels that are not in the table have AVX-512, or another kind of processor. */
static int class_in_use(void)
{
    const char *name = et_kernels_in_use();
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (strcmp(kernels[i].name, name) == 0) return kernels[i].class;
    return HIGHEST;
}

#if defined(__x86_64__) || defined(__i386__)
/* OpenBLAS's tables of functions; a build without these kernels lacks the symbol, whose address is then
 * NULL. A name that a build does not have must not be asked for: it takes other kernels then, which the
 * processor may not be able to run. */
extern const char gotoblas_HASWELL[] __attribute__((weak));
extern const char gotoblas_SKYLAKEX[] __attribute__((weak));

/* Also whether the operating system saves the long registers: gcc and clang ask that, too. */
static bool runs_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static bool runs_avx2_fma(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const char *et_better_kernels(void)
{
    int class = class_in_use();
    if (class < HIGHEST && runs_avx512() && gotoblas_SKYLAKEX != NULL) return "SkylakeX";
    if (class < AVX2_FMA && runs_avx2_fma() && gotoblas_HASWELL != NULL) return "Haswell";
    return NULL;
}
#else
const char *et_better_kernels(void)
{
    return NULL;
}
#endif

const char *et_kernels_in_use(void)
{
    return openblas_get_corename();
}

#define SENTENCE(has, could, name)                                                                 \
    "OpenBLAS multiplies with kernels for " has ", where this processor can run those for " could  \
    ", which are faster: set OPENBLAS_CORETYPE=" name " before the program starts"

const char *et_engine_warning(void)
{
    const char *better = et_better_kernels();
    bool old = class_in_use() < AVX2_FMA;
    if (better == NULL) return NULL;
    if (strcmp(better, "Haswell") == 0) return SENTENCE("SSE or AVX", "AVX2", "Haswell");
    if (old) return SENTENCE("SSE or AVX", "AVX-512", "SkylakeX");
    return SENTENCE("AVX2", "AVX-512", "SkylakeX");
}
