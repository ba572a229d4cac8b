/* kernel_float.c: the kernel of kernel_impl.h in float: an accumulator of 24 bits, as it is. */
typedef float num;
#define GEMM         cblas_sgemm
#define EXPORT(name) name##_float
#include "tests/candidates/kernel_impl.h"
