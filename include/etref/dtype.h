/* dtype.h: the element types of a safetensors file, and the conversions between them and double.
 *
 * A float type of p significand bits (the implicit one included) and w exponent bits holds the
 * numbers N * 2^(e-p+1) with |N| < 2^p and emin <= e <= emax = 2^(w-1) - 1 = 1 - emin; below 2^emin
 * they are evenly spaced (subnormals). F64: p = 53, w = 11; F32: 24, 8; F16: 11, 5; BF16: 8, 8.
 * Source: IEEE 754-2019, section 3.4; BF16 is F32 without its low 16 bits.
 *
 * Left out: the values of the F8 types.
 */
#ifndef ETREF_DTYPE_H
#define ETREF_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* clang-format off */
typedef enum et_dtype {
    ET_F64, ET_I64, ET_U64, ET_F32, ET_I32, ET_U32, ET_F16, ET_BF16, ET_I16, ET_U16,
    ET_I8, ET_U8, ET_BOOL, ET_F8_E4M3, ET_F8_E5M2
} et_dtype;
/* clang-format on */

enum { ET_DTYPE_COUNT = ET_F8_E5M2 + 1 };

/* Bytes of one element; 0 if `dtype` is none of the above. */
size_t et_dtype_size(et_dtype dtype);

/* "F64", ... as the format spells it; "?" if `dtype` is none of the above. */
const char *et_dtype_name(et_dtype dtype);

/* Significand bits, the implicit one included, of a float type: 53, 24, 11 or 8; 0 for others. */
int et_dtype_significand(et_dtype dtype);

/* Whether it is an integer type, or BOOL. */
bool et_dtype_is_integer(et_dtype dtype);

/* Rounds to the nearest value of the type, ties to even, overflow to infinity; NaN stays NaN. The
 * result is the value itself, exactly representable in the type. Only float types; any other gives
 * NaN. One rounding, straight from double: never by way of F32. */
double et_round_to_dtype(double value, et_dtype dtype);

/* One element, et_dtype_size(dtype) bytes, little-endian, as a double. Exact, but 64-bit integers
 * round to nearest; BOOL gives 0 or 1 (any byte but 0); a NaN keeps sign and payload. F8: NaN. */
double et_dtype_decode(const unsigned char *bytes, et_dtype dtype);
/* The same of `count` elements, one after the other. */
void et_dtype_decode_all(const unsigned char *bytes, et_dtype dtype, size_t count, double *values);

/* The other way round. Float types round as et_round_to_dtype does; a NaN keeps its sign and the
 * upper bits of its payload (quiet if those are zero). Integer types want an integer of the type's
 * range with |value| < 2^63; BOOL: 0 gives 0, anything else 1. F8: all bytes 0. */
void et_dtype_encode(double value, et_dtype dtype, unsigned char *bytes);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
