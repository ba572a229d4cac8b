/* openblas.cpp: products by OpenBLAS: sgemm, and sbgemm where the library was built with it.
 *
 * sbgemm takes bf16 and leaves float; the layer rounds what it stores. OPENBLAS_CORETYPE chooses the
 * kernels before the program starts, and the library says in --list which it took.
 */
#include "tests/libraries/kernel.hpp"

#include <cblas.h>

#include <cstdint>

/* Of builds with BUILD_BFLOAT16; NULL in others. */
extern "C" {
void cblas_sbstobf16(blasint n, const float *in, blasint incin, bfloat16 *out, blasint incout)
    __attribute__((weak));
void cblas_sbgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE transa, enum CBLAS_TRANSPOSE transb,
                  blasint m, blasint n, blasint k, float alpha, const bfloat16 *a, blasint lda,
                  const bfloat16 *b, blasint ldb, float beta, float *c, blasint ldc)
    __attribute__((weak));
}

static CBLAS_TRANSPOSE turn(const view<float> &v)
{
    return v.turned ? CblasTrans : CblasNoTrans;
}

class sgemm : public products<float>
{
  public:
    void multiply(view<float> a, view<float> b, result, float *out) override
    {
        cblas_sgemm(CblasRowMajor, turn(a), turn(b), blasint(a.height()), blasint(b.width()),
                    blasint(a.width()), 1, a.at, blasint(a.columns), b.at, blasint(b.columns), 0,
                    out, blasint(b.width()));
    }
    float stored(float value) const override
    {
        return value;
    }
    et_dtype storage() const override
    {
        return ET_F32;
    }
    et_dtype wide() const override
    {
        return ET_F32;
    }
};

class sbgemm : public products<float>
{
  public:
    void multiply(view<float> a, view<float> b, result as, float *out) override
    {
        size_t count = a.height() * b.width();
        std::vector<bfloat16> left = convert(a), right = convert(b);
        cblas_sbgemm(CblasRowMajor, turn(a), turn(b), blasint(a.height()), blasint(b.width()),
                     blasint(a.width()), 1, left.data(), blasint(a.columns), right.data(),
                     blasint(b.columns), 0, out, blasint(b.width()));
        for (size_t i = 0; i < count && as == result::stored; i++) out[i] = stored(out[i]);
    }
    float stored(float value) const override
    {
        return float(et_round_to_dtype(value, ET_BF16));
    }
    et_dtype storage() const override
    {
        return ET_BF16;
    }
    et_dtype wide() const override
    {
        return ET_F32;
    }

  private:
    static std::vector<bfloat16> convert(view<float> from)
    {
        std::vector<bfloat16> to(from.rows * from.columns);
        cblas_sbstobf16(blasint(to.size()), from.at, 1, to.data(), 1);
        return to;
    }
};

template <class kind> format in_format(const char *name)
{
    std::string config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ... Haswell ..." */
    std::string version = config.substr(0, config.find(' ', config.find(' ') + 1));
    return {name, version + " " + openblas_get_corename(), [](const command &c) {
                kind with;
                compute(c, with);
            }};
}

int main(int count, char **words)
{
    std::vector<format> formats = {in_format<sgemm>("f32")};
    if (cblas_sbgemm && cblas_sbstobf16) formats.push_back(in_format<sbgemm>("bf16"));
    return kernel_main(count, words, formats);
}
