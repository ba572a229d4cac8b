// judge.cpp: a kernel in C++17, judged in memory.
//
//     judge [broken]
//
// The kernel is a dense layer's forward, y = relu(x W_up')^2 W_down', in float; broken, it forgets
// the square. Exit status: 0 pass, 1 mismatch, 2 error, 3 inconclusive.
//
//     c++ -std=c++17 judge.cpp $(pkg-config --cflags --libs etref) -o judge
//     cmake -B build -DCMAKE_PREFIX_PATH=$HOME/.local && cmake --build build
// (CMakeLists.txt)
#include <etref/golden.h>

#include <algorithm>
#include <cstddef>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

et_error error;

void check(et_status status)
{
    if (status != ET_OK) throw std::runtime_error(error.text);
}

struct closer {
    void operator()(et_golden *golden) const { et_golden_close(golden); }
};
using golden_ptr = std::unique_ptr<et_golden, closer>;

// A tensor of the golden, as float. Goldens hold doubles.
struct matrix {
    std::size_t rows = 0, columns = 0;
    std::vector<float> values;
};

matrix read(et_golden *golden, const std::string &name)
{
    et_array array;
    for (std::size_t i = 0;; i++) {
        check(et_golden_tensor(golden, i, &array, &error));
        if (array.name == nullptr) throw std::runtime_error("no tensor " + name);
        if (name == array.name) break;
    }
    const auto *values = static_cast<const double *>(array.values);
    const std::size_t rows = array.shape[0], columns = array.shape[1];
    return {rows, columns, std::vector<float>(values, values + rows * columns)};
}

// a b'
matrix product(const matrix &a, const matrix &b)
{
    matrix out{a.rows, b.rows, std::vector<float>(a.rows * b.rows)};
    for (std::size_t i = 0; i < a.rows; i++)
        for (std::size_t j = 0; j < b.rows; j++) {
            float sum = 0;
            for (std::size_t k = 0; k < a.columns; k++)
                sum += a.values[i * a.columns + k] * b.values[j * b.columns + k];
            out.values[i * b.rows + j] = sum;
        }
    return out;
}

matrix layer(const matrix &x, const matrix &up, const matrix &down, bool broken)
{
    matrix H = product(x, up);
    for (float &h : H.values) {
        h = std::max(h, 0.0F);
        if (!broken) h *= h;
    }
    return product(H, down);
}

int judge(bool broken)
{
    et_golden *opened = nullptr;
    check(et_golden_of_case(&opened, "smoke-dense", 0, &error));
    const golden_ptr golden(opened);
    const matrix x = read(opened, "in.x"), up = read(opened, "in.w_up");
    const matrix y = layer(x, up, read(opened, "in.w_down"), broken);
    const et_array kernel = {"fwd.y", ET_F32, 2, {y.rows, y.columns}, y.values.data()};
    char *json = nullptr, *text = nullptr;
    check(et_judge(opened, &kernel, 1, R"({"profile": "f32"})", &json, &text, &error));
    const std::string report = json;
    std::cout << text;
    et_release(json);
    et_release(text);
    if (report.find("\"verdict\": \"pass\"") != std::string::npos) return 0;
    return report.find("\"verdict\": \"mismatch\"") != std::string::npos ? 1 : 3;
}

} // namespace

int main(int argc, char **argv)
{
    try {
        return judge(argc > 1 && std::string(argv[1]) == "broken");
    } catch (const std::exception &problem) {
        std::cerr << "judge: " << problem.what() << "\n";
        return 2;
    }
}
