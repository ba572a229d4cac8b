/* products.hpp: what a library has to give for a layer: matrix products, and the numbers it stores.
 *
 * The layer holds every array in `real`; values that a kernel of the library would store in a shorter
 * format are numbers of that format. The conversions on the way into a product and back are exact,
 * or they are the roundings that the library itself makes of its operands and results.
 */
#ifndef ETREF_TESTS_PRODUCTS_HPP
#define ETREF_TESTS_PRODUCTS_HPP

#include "etref/dtype.h"

#include <cstddef>

/* A row-major matrix in somebody's memory; turned: its transpose is meant. */
template <class real> struct view {
    const real *at;
    size_t rows, columns;
    bool turned = false;

    view t() const
    {
        return {at, rows, columns, !turned};
    }
    size_t height() const
    {
        return turned ? columns : rows;
    }
    size_t width() const
    {
        return turned ? rows : columns;
    }
};

enum class result {
    stored, /* in the storage format, rounded once by whoever writes it */
    wide    /* as accumulated, where the library can leave it so */
};

template <class real> class products
{
  public:
    virtual ~products() = default;

    /* out [a.height, b.width] = a b, a.width = b.height; no size is 0. */
    virtual void multiply(view<real> a, view<real> b, result as, real *out) = 0;

    /* The nearest number of the storage format. */
    virtual real stored(real value) const = 0;

    /* The types in which a kernel of the library writes results that are stored, and those that are wide. */
    virtual et_dtype storage() const = 0;
    virtual et_dtype wide() const = 0;
};

#endif
