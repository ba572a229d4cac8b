/* kernel.hpp: a library's program: reads goldens, writes candidates.
 *
 *     kernel-NAME --list                               what this library can do here, a line each:
 *                                                      FORMAT, tab, the library in words
 *     kernel-NAME FORMAT OUT [--gate FACTOR] GOLDEN... writes OUT/NAME.safetensors for each golden;
 *                                                      --gate plants a fault: gates times FACTOR
 *
 * Exit status: 0 done; 2 not.
 */
#ifndef ETREF_TESTS_KERNEL_HPP
#define ETREF_TESTS_KERNEL_HPP

#include "etref/bundle.h"
#include "etref/safetensors.h"
#include "tests/libraries/layer.hpp"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>

/* A format in which a library multiplies, and how to run a command in it. */
struct command {
    std::string out;
    double gate_factor;
    std::vector<std::string> goldens;
};
struct format {
    std::string name, library;
    std::function<void(const command &)> run;
};

inline void must(et_status status, const et_error &error)
{
    if (status != ET_OK) throw std::runtime_error(error.text);
}

/* An open bundle: its inputs, and the routing that it shows. */
class golden
{
  public:
    explicit golden(const std::string &path)
    {
        et_error error = {};
        must(et_bundle_open(&file, &step, path.c_str(), 0, &error), error);
    }
    ~golden()
    {
        et_step_free(&step);
        et_tensor_file_close(&file);
    }
    golden(const golden &) = delete;
    golden &operator=(const golden &) = delete;

    const et_step &inputs() const
    {
        return step;
    }

    template <class integer> std::vector<integer> read(const char *name) const
    {
        et_error error = {};
        const et_tensor_info *info = et_tensor_file_find(&file, name);
        if (!info) throw std::runtime_error(std::string("a golden without ") + name);
        std::vector<double> values(info->count);
        must(et_tensor_file_read(&file, info, 0, info->count, values.data(), &error), error);
        return std::vector<integer>(values.begin(), values.end());
    }

    slots routing() const
    {
        if (step.c.layer == ET_MOE)
            return {read<int32_t>("route.slot_token"), read<int32_t>("route.slot_expert"),
                    read<int32_t>("route.expert_offsets")};
        slots all{{}, {}, {0, int32_t(step.c.tokens)}};
        for (size_t t = 0; t < step.c.tokens; t++) all.token.push_back(int32_t(t));
        return all;
    }

  private:
    et_tensor_file file;
    et_step step;
};

template <class real> et_tensor_out as_out(const shown<real> &t)
{
    et_tensor_out out = {};
    out.name = t.name.c_str();
    out.dtype = t.type;
    out.rank = t.shape.size();
    std::copy(t.shape.begin(), t.shape.end(), out.shape);
    out.values = t.values->data();
    out.source = sizeof(real) == sizeof(double) ? ET_FROM_F64 : ET_FROM_F32;
    return out;
}

template <class real>
void write_candidate(const command &c, const golden &from, const slots &routing,
                     const layer<real> &computed)
{
    const et_case &of = from.inputs().c;
    std::vector<et_tensor_out> tensors;
    std::vector<shown<real>> all = computed.show();
    for (const auto &each : all) tensors.push_back(as_out(each));
    std::vector<uint8_t> mask;
    if (of.layer == ET_MOE) {
        mask = from.read<uint8_t>("route.mask");
        tensors.push_back(
            {"route.mask", ET_U8, 2, {of.tokens, of.experts}, mask.data(), ET_FROM_U8});
        size_t count = routing.token.size();
        tensors.push_back(
            {"route.slot_token", ET_I32, 1, {count}, routing.token.data(), ET_FROM_I32});
        tensors.push_back(
            {"route.slot_expert", ET_I32, 1, {count}, routing.expert.data(), ET_FROM_I32});
    }
    et_error error = {};
    std::string path = c.out + "/" + of.name + ".safetensors";
    must(et_tensor_file_write(path.c_str(), tensors.data(), tensors.size(), nullptr, &error),
         error);
}

/* The command, with this library's products. */
template <class real> void compute(const command &c, products<real> &with)
{
    for (const std::string &path : c.goldens) {
        golden from(path);
        slots routing = from.routing();
        layer<real> one(from.inputs(), routing, with, c.gate_factor);
        one.run();
        write_candidate(c, from, routing, one);
    }
}

inline int kernel_main(int count, char **words, const std::vector<format> &formats)
{
    std::vector<std::string> given(words + 1, words + count);
    if (given.size() == 1 && given[0] == "--list") {
        for (const format &f : formats) printf("%s\t%s\n", f.name.c_str(), f.library.c_str());
        return 0;
    }
    try {
        if (given.size() < 2)
            throw std::runtime_error("usage: FORMAT OUT [--gate FACTOR] GOLDEN...");
        command c{given[1], 1, {}};
        size_t at = 2;
        if (given.size() > 3 && given[2] == "--gate") c.gate_factor = std::stod(given[3]), at = 4;
        c.goldens.assign(given.begin() + at, given.end());
        for (const format &f : formats)
            if (f.name == given[0]) return f.run(c), 0;
        throw std::runtime_error("no format " + given[0] + " in this library");
    } catch (const std::exception &error) {
        fprintf(stderr, "%s: %s\n", words[0], error.what());
        return 2;
    }
}

#endif
