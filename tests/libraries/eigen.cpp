/* eigen.cpp: products by Eigen, in double, float, Eigen::half and Eigen::bfloat16.
 *
 * Eigen multiplies and adds in the matrices' own type, one term after the other: products of half are rounded
 * to 11 bits and added up in 11 bits, those of bfloat16 in 8. Below the normal range (half: 6e-5) each term
 * and each partial sum is rounded to the grid of subnormals; a partial sum beyond half's range is infinite.
 */
#include "tests/libraries/kernel.hpp"

#include <Eigen/Core>

template <class real, class scalar> class eigen : public products<real>
{
    using matrix = Eigen::Matrix<scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  public:
    explicit eigen(et_dtype format) : type(format)
    {
    }

    void multiply(view<real> a, view<real> b, result, real *out) override
    {
        matrix left = convert(a), right = convert(b), c;
        if (a.turned && b.turned)
            c.noalias() = left.transpose() * right.transpose();
        else if (a.turned)
            c.noalias() = left.transpose() * right;
        else if (b.turned)
            c.noalias() = left * right.transpose();
        else
            c.noalias() = left * right;
        for (Eigen::Index i = 0; i < c.size(); i++) out[i] = real(c.data()[i]);
    }
    real stored(real value) const override
    {
        return real(scalar(value));
    }
    et_dtype storage() const override
    {
        return type;
    }
    et_dtype wide() const override
    {
        return sizeof(real) == sizeof(double) ? ET_F64 : ET_F32;
    }

  private:
    et_dtype type;

    static matrix convert(view<real> from)
    {
        matrix to(from.rows, from.columns);
        for (Eigen::Index i = 0; i < to.size(); i++) to.data()[i] = scalar(from.at[i]);
        return to;
    }
};

template <class real, class scalar> format in_format(const char *name, et_dtype type)
{
    std::string version = std::to_string(EIGEN_WORLD_VERSION) + "." +
                          std::to_string(EIGEN_MAJOR_VERSION) + "." +
                          std::to_string(EIGEN_MINOR_VERSION);
    return {name, "Eigen " + version, [type](const command &c) {
                eigen<real, scalar> with(type);
                compute(c, with);
            }};
}

int main(int count, char **words)
{
    return kernel_main(count, words,
                       {in_format<double, double>("f64", ET_F64),
                        in_format<float, float>("f32", ET_F32),
                        in_format<float, Eigen::half>("f16", ET_F16),
                        in_format<float, Eigen::bfloat16>("bf16", ET_BF16)});
}
