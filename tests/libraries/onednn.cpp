/* onednn.cpp: products by oneDNN's matmul primitive, in float and in bf16.
 *
 * In bf16 a result is written in bf16 where the layer stores it, and in float where it does not: one
 * primitive either way. Floats are turned into bf16 by the library's reorder. On processors that have it,
 * products are the instruction vdpbf16ps: pairs of terms, the odd one first, each added with one rounding;
 * operands and partial sums that are subnormal are taken as 0.
 */
#include "tests/libraries/kernel.hpp"

#include <oneapi/dnnl/dnnl.hpp>

using dnnl::memory;

class onednn : public products<float>
{
  public:
    explicit onednn(bool narrow) : low(narrow ? memory::data_type::bf16 : memory::data_type::f32)
    {
    }

    void multiply(view<float> a, view<float> b, result as, float *out) override
    {
        memory left = operand(a), right = operand(b);
        memory::dims shape = {memory::dim(a.height()), memory::dim(b.width())};
        auto type = as == result::stored ? low : memory::data_type::f32;
        memory product({shape, type, memory::format_tag::ab}, engine);
        dnnl::matmul::primitive_desc how(
            dnnl::matmul::desc(left.get_desc(), right.get_desc(), product.get_desc()), engine);
        dnnl::matmul(how).execute(
            stream, {{DNNL_ARG_SRC, left}, {DNNL_ARG_WEIGHTS, right}, {DNNL_ARG_DST, product}});
        memory result({shape, memory::data_type::f32, memory::format_tag::ab}, engine, out);
        dnnl::reorder(product, result).execute(stream, product, result);
        stream.wait();
    }
    float stored(float value) const override
    {
        return float(et_round_to_dtype(value, storage()));
    }
    et_dtype storage() const override
    {
        return low == memory::data_type::bf16 ? ET_BF16 : ET_F32;
    }
    et_dtype wide() const override
    {
        return ET_F32;
    }

  private:
    memory::data_type low;
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};

    /* The matrix in the low type. */
    memory operand(view<float> from)
    {
        memory::dims shape = {memory::dim(from.height()), memory::dim(from.width())};
        auto tag = from.turned ? memory::format_tag::ba : memory::format_tag::ab;
        memory given({shape, memory::data_type::f32, tag}, engine, const_cast<float *>(from.at));
        memory taken({shape, low, tag}, engine);
        dnnl::reorder(given, taken).execute(stream, given, taken);
        stream.wait();
        return taken;
    }
};

static format in_format(const char *name, bool narrow)
{
    const dnnl_version_t *v = dnnl_version();
    std::string version =
        std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
    return {name, "oneDNN " + version, [narrow](const command &c) {
                onednn with(narrow);
                compute(c, with);
            }};
}

/* Products in bf16 ask for AVX-512. */
static bool has_bf16()
{
    try {
        const float one = 1;
        float product;
        onednn(true).multiply({&one, 1, 1}, {&one, 1, 1}, result::stored, &product);
        return true;
    } catch (const dnnl::error &) {
        return false;
    }
}

int main(int count, char **words)
{
    std::vector<format> formats = {in_format("f32", false)};
    if (has_bf16()) formats.push_back(in_format("bf16", true));
    return kernel_main(count, words, formats);
}
