/* dtype.c: element types and their conversions. See etref/dtype.h.
 *
 * Everything is done on bit patterns, in unsigned integers, so that it means the same on every
 * machine, whatever its byte order, and so that a value is rounded once. (Rounding a double to F32
 * and that to F16 is wrong where the first rounding lands on a tie of the second.)
 */
#include "etref/dtype.h"
#include "ref/base/bits.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* exponent_bits and significand are 0 for what is not a float type with values. */
static const struct {
    const char *name;
    size_t size;
    int exponent_bits, significand;
} DTYPES[ET_DTYPE_COUNT] = {
    [ET_F64] = {"F64", 8, 11, 53},       [ET_I64] = {"I64", 8, 0, 0},
    [ET_U64] = {"U64", 8, 0, 0},         [ET_F32] = {"F32", 4, 8, 24},
    [ET_I32] = {"I32", 4, 0, 0},         [ET_U32] = {"U32", 4, 0, 0},
    [ET_F16] = {"F16", 2, 5, 11},        [ET_BF16] = {"BF16", 2, 8, 8},
    [ET_I16] = {"I16", 2, 0, 0},         [ET_U16] = {"U16", 2, 0, 0},
    [ET_I8] = {"I8", 1, 0, 0},           [ET_U8] = {"U8", 1, 0, 0},
    [ET_BOOL] = {"BOOL", 1, 0, 0},       [ET_F8_E4M3] = {"F8_E4M3", 1, 0, 0},
    [ET_F8_E5M2] = {"F8_E5M2", 1, 0, 0},
};

static int known(et_dtype dtype)
{
    return (unsigned)dtype < ET_DTYPE_COUNT;
}

size_t et_dtype_size(et_dtype dtype)
{
    return known(dtype) ? DTYPES[dtype].size : 0;
}

const char *et_dtype_name(et_dtype dtype)
{
    return known(dtype) ? DTYPES[dtype].name : "?";
}

int et_dtype_significand(et_dtype dtype)
{
    return known(dtype) ? DTYPES[dtype].significand : 0;
}

bool et_dtype_is_integer(et_dtype dtype)
{
    return known(dtype) && DTYPES[dtype].significand == 0 && dtype != ET_F8_E4M3 && dtype != ET_F8_E5M2;
}

enum { F64_FRACTION = 52, F64_BIAS = 1023 };
static const uint64_t F64_INFINITY = UINT64_C(0x7ff) << F64_FRACTION;
static const uint64_t F64_SIGN = UINT64_C(1) << 63;

/* m / 2^shift to the nearest integer, ties to even; 0 <= m < 2^53, shift > 0. */
static uint64_t shift_to_nearest(uint64_t m, int shift)
{
    if (shift > 54) return 0; /* m / 2^shift < 1/4 */
    uint64_t floor = m >> shift;
    uint64_t rest = m & ((UINT64_C(1) << shift) - 1);
    uint64_t half = UINT64_C(1) << (shift - 1);
    return floor + (rest > half || (rest == half && floor % 2 == 1));
}

/* The pattern of `value` in a type shorter than F64: `significand` bits, `width` exponent bits.
 *
 * |value| = m 2^(e-52). In the target its last place is worth 2^(E-q), q = significand - 1,
 * E = max(e, emin): so N = m / 2^shift, rounded, with shift = 52 - q + (E - e). A normal N holds
 * the implicit bit 2^q; adding (E - emin) 2^q to it makes the exponent field E - emin + 1. A
 * subnormal N < 2^q has E = emin and the field 0: the same sum. And an N rounded up to 2^(q+1)
 * carries into the field by itself, from the largest finite number into infinity; what is larger
 * still is cut back to that. */
static uint64_t encode_float(double value, int width, int significand)
{
    uint64_t bits = to_bits(value);
    uint64_t magnitude = bits & ~F64_SIGN;
    uint64_t sign = bits >> 63 << (width + significand - 1);
    int q = significand - 1;
    uint64_t infinity = ((UINT64_C(1) << width) - 1) << q;

    if (magnitude > F64_INFINITY) {
        uint64_t payload = (magnitude & ~F64_INFINITY) >> (F64_FRACTION - q);
        return sign | infinity | (payload ? payload : UINT64_C(1) << (q - 1));
    }
    int field = (int)(magnitude >> F64_FRACTION);
    uint64_t m = magnitude & ~F64_INFINITY;
    if (field > 0)
        m |= UINT64_C(1) << F64_FRACTION;
    else
        field = 1; /* subnormals share the exponent of the first normals */
    int e = field - F64_BIAS;
    int emin = 2 - (1 << (width - 1));
    int exponent = e > emin ? e : emin;
    uint64_t n = shift_to_nearest(m, F64_FRACTION - q + (exponent - e));
    uint64_t pattern = n + ((uint64_t)(exponent - emin) << q);
    return sign | (pattern < infinity ? pattern : infinity);
}

/* The value of a pattern, exactly: the reading of the paragraph above from right to left. */
static inline double decode_float(uint64_t pattern, int width, int significand)
{
    int q = significand - 1, up = F64_FRACTION - q;
    uint64_t sign = pattern >> (width + q) << 63;
    uint64_t field = pattern >> q & ((UINT64_C(1) << width) - 1);
    uint64_t fraction = pattern & ((UINT64_C(1) << q) - 1);
    int emin = 2 - (1 << (width - 1));
    if (field == (UINT64_C(1) << width) - 1) return from_bits(sign | F64_INFINITY | fraction << up);
    if (field == 0) return from_bits(sign | to_bits(ldexp((double)fraction, emin - q)));
    uint64_t exponent = field + (uint64_t)(F64_BIAS - 1 + emin);
    return from_bits(sign | exponent << F64_FRACTION | fraction << up);
}

static inline uint64_t load(const unsigned char *bytes, size_t size)
{
    uint64_t pattern = 0;
    for (size_t i = 0; i < size; i++) pattern |= (uint64_t)bytes[i] << (8 * i);
    return pattern;
}

static void store(uint64_t pattern, unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)(pattern >> (8 * i));
}

/* A two's complement integer of `size` bytes. */
static double decode_signed(uint64_t pattern, size_t size)
{
    uint64_t sign = UINT64_C(1) << (8 * size - 1);
    if (pattern < sign) return (double)pattern;
    uint64_t magnitude = (sign - pattern % sign); /* 2^(8 size) - pattern, without the 2^64 */
    return -(double)magnitude;
}

static double decode_other(const unsigned char *bytes, et_dtype dtype)
{
    size_t size = et_dtype_size(dtype);
    uint64_t pattern = load(bytes, size);
    switch (dtype) {
    case ET_I64:
    case ET_I32:
    case ET_I16:
    case ET_I8: return decode_signed(pattern, size);
    case ET_U64:
    case ET_U32:
    case ET_U16:
    case ET_U8: return (double)pattern;
    case ET_BOOL: return pattern != 0;
    default: return NAN;
    }
}

/* A loop for each float type, whose size and layout the compiler then knows: bundles have millions of them. */
void et_dtype_decode_all(const unsigned char *bytes, et_dtype dtype, size_t count, double *values)
{
#define EACH(size, value)                                                                          \
    for (size_t i = 0; i < count; i++) {                                                           \
        const unsigned char *at = bytes + i * (size);                                              \
        values[i] = value;                                                                         \
    }                                                                                              \
    break
    switch (dtype) {
    case ET_F64: EACH(8, from_bits(load(at, 8)));
    case ET_F32: EACH(4, decode_float(load(at, 4), 8, 24));
    case ET_F16: EACH(2, decode_float(load(at, 2), 5, 11));
    case ET_BF16: EACH(2, decode_float(load(at, 2), 8, 8));
    default: EACH(et_dtype_size(dtype), decode_other(at, dtype));
    }
#undef EACH
}

double et_dtype_decode(const unsigned char *bytes, et_dtype dtype)
{
    double value;
    et_dtype_decode_all(bytes, dtype, 1, &value);
    return value;
}

void et_dtype_encode(double value, et_dtype dtype, unsigned char *bytes)
{
    uint64_t pattern = 0;
    switch (dtype) {
    case ET_F64: pattern = to_bits(value); break;
    case ET_F32:
    case ET_F16:
    case ET_BF16:
        pattern = encode_float(value, DTYPES[dtype].exponent_bits, DTYPES[dtype].significand);
        break;
    case ET_I64:
    case ET_U64:
    case ET_I32:
    case ET_U32:
    case ET_I16:
    case ET_U16:
    case ET_I8:
    case ET_U8: pattern = (uint64_t)(int64_t)value; break; /* low bytes: two's complement */
    case ET_BOOL: pattern = value != 0; break;
    case ET_F8_E4M3:
    case ET_F8_E5M2: break;
    }
    store(pattern, bytes, et_dtype_size(dtype));
}

double et_round_to_dtype(double value, et_dtype dtype)
{
    if (et_dtype_significand(dtype) == 0) return NAN;
    unsigned char bytes[8];
    et_dtype_encode(value, dtype, bytes);
    return et_dtype_decode(bytes, dtype);
}
