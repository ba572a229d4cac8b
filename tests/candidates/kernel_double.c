/* kernel_double.c: the kernel of kernel_impl.h in double: an accumulator of 53 bits as it is, any other
 * emulated one operation at a time. */
typedef double num;
#define GEMM         cblas_dgemm
#define EXPORT(name) name##_double
#include "tests/candidates/kernel_impl.h"
