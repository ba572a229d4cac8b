/* test_et.cu: the CUDA layer of et.cu, judged by libetref in memory.
 *
 *     test_et [--cpu] [--bf16] [--break FAULT] [GOLDEN | CASE.json]...
 *
 * Each golden bundle brings a case with its inputs; each case as JSON has them drawn; without
 * either, a built-in case is taken. etref computes the step in double, the kernels compute it on the
 * GPU (--cpu: the same kernels as loops on the CPU), and et_verify says whether what came out is
 * what a kernel of this precision may give: profile f32, or bf16 with --bf16.
 * FAULT: factor-two, gate-forgotten, last-tile-dropped.
 *
 * Exit status: 0 pass, 1 mismatch, 2 error, 3 inconclusive, 77 no CUDA device: nothing was run.
 *
 * The same way is open to any kernel: fill et_tensor_out with name, shape, type and values, and
 * call et_verify.
 */
#include "block.h"
#include "et.h"

#include <etref/etref.h>

static const char builtin[] =
    "{\"name\": \"built-in\", \"rule\": \"et\", \"tokens\": 300, \"d_model\": 80, \"d_expert\": 56,"
    " \"experts\": 8, \"ema_updates\": 4000, \"capacity_factor\": 0.5, \"precision\": \"bf16\","
    " \"input\": {\"source\": \"normal\", \"seed\": 7}}";

struct choices {
    bool cpu, bf16;
    et_fault fault;
    const et_profile *profile;
};

static int refuse(const char *what, const char *why)
{
    fprintf(stderr, "test_et: %s: %s\n", what, why);
    return 2;
}

/* ---- a step to compare with ---- */

static bool read_text(const char *path, std::string &text)
{
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    char buffer[4096];
    size_t got;
    while ((got = fread(buffer, 1, sizeof buffer, file)) > 0) text.append(buffer, got);
    bool good = !ferror(file);
    fclose(file);
    return good;
}

static et_status step_from_json(et_step *step, const char *json, size_t length, const char *where,
                                et_error *error)
{
    et_case c;
    et_status status = et_case_parse(&c, json, length, where, error);
    if (status == ET_OK) status = et_step_create(step, &c, 0, error);
    if (status == ET_OK && (status = et_step_draw_inputs(step, error)) != ET_OK) et_step_free(step);
    return status;
}

static et_status step_from_bundle(et_step *step, const char *path, et_error *error)
{
    et_tensor_file file;
    et_status status = et_bundle_open(&file, step, path, 0, error);
    if (status == ET_OK) et_tensor_file_close(&file);
    return status;
}

/* path NULL: the built-in case. On success the caller frees the step. */
static et_status make_step(et_step *step, const char *path, et_error *error)
{
    if (!path) return step_from_json(step, builtin, strlen(builtin), "built-in case", error);
    size_t length = strlen(path);
    if (length < 5 || strcmp(path + length - 5, ".json") != 0)
        return step_from_bundle(step, path, error);
    std::string text;
    if (!read_text(path, text)) {
        snprintf(error->text, sizeof error->text, "%s: cannot be read", path);
        return ET_EIO;
    }
    return step_from_json(step, text.data(), text.size(), path, error);
}

/* NULL, or what the kernels lack for this case. */
static const char *unsupported(const et_case &c)
{
    if (c.layer != ET_MOE || !et_case_routes_by_threshold(&c))
        return "the kernels route by threshold";
    if (c.gate != ET_GATE_SIGMOID) return "the kernels have sigmoid gates only";
    if (c.norm != ET_NORM_NONE) return "the kernels have norm none only";
    if (c.micro_batches != 1) return "the kernels take one micro-batch";
    if (c.z_loss_coef != 0 && !c.eval) return "the kernels have no losses";
    return nullptr;
}

static et_problem problem_of(const et_step &s, et_fault fault)
{
    const et_case &c = s.c;
    et_problem p = {};
    p.N = c.tokens, p.d = c.d_model, p.h = c.d_expert, p.n = c.experts;
    p.hs = c.shared ? c.shared_d_expert : 0;
    p.x = s.in.x, p.dy = s.in.dy, p.router = s.in.router, p.up = s.in.up, p.down = s.in.down;
    p.shared_up = s.in.shared_up, p.shared_down = s.in.shared_down, p.ema = s.in.ema;
    p.weight = c.ema_bias_correction ? et_ema_weight(c.ema_decay, c.ema_updates) : 1;
    p.inclusive = c.inclusive, p.training = !c.eval;
    p.k = c.target_load, p.ema_decay = c.ema_decay;
    et_capacity bounds = {0, p.N};
    if (c.has_capacity) bounds = et_capacity_bounds(c.target_load, c.capacity_factor, c.tokens);
    p.lower = bounds.lower, p.upper = bounds.upper;
    p.fault = fault;
    return p;
}

/* ---- the verdict ---- */

/* What the kernels stored in bf16: everything but logits, gates, weights, thresholds and state. */
static bool is_stored(const std::string &name)
{
    const char *floats[] = {"route.", "state.", "fwd.logits", "fwd.gates", "bwd.logits", "weight"};
    for (const char *part : floats)
        if (name.find(part) != std::string::npos) return false;
    return true;
}

/* Describes the results as a writer would: shapes are those of the golden's tensors. */
static std::vector<et_tensor_out> candidate_of(const et_step &golden, const et_result &result,
                                               std::vector<uint8_t> &mask, bool bf16)
{
    et_tensor_out all[ET_MAX_STEP_TENSORS];
    size_t count = et_step_tensors(&golden, false, all);
    std::vector<et_tensor_out> out;
    for (size_t i = 0; i < count; i++) {
        et_result::const_iterator found = result.find(all[i].name);
        if (found == result.end()) continue;
        et_tensor_out tensor = all[i];
        const std::vector<float> &values = found->second;
        tensor.dtype = bf16 && is_stored(tensor.name) ? ET_BF16 : ET_F32;
        tensor.values = values.data();
        tensor.source = ET_FROM_F32;
        if (strcmp(tensor.name, "route.mask") == 0) {
            mask.assign(values.begin(), values.end());
            tensor.dtype = ET_U8;
            tensor.values = mask.data();
            tensor.source = ET_FROM_U8;
        } else if (strstr(tensor.name, ".slot_")) {
            /* where the kernels chose other slots than the golden, there are more or fewer */
            size_t row = tensor.rank > 1 ? tensor.shape[1] : 1;
            tensor.shape[0] = values.size() / row;
        }
        out.push_back(tensor);
    }
    return out;
}

static void print_verdict(const et_verdict &v, const char *name)
{
    printf("%s, profile %s\n", name, v.profile.name);
    printf("  %-20s %s, %zu of %zu open, %zu differ\n", "routing",
           et_outcome_name(v.routing.outcome), v.routing.open, v.routing.decisions,
           v.routing.differing);
    for (size_t i = 0; i < v.tensor_count; i++) {
        const et_tensor_verdict &t = v.tensors[i];
        printf("  %-20s %-12s %8zu elements, largest error %.2f sigma of %.2f, spread %.3f%s%s\n",
               t.name, et_outcome_name(t.outcome), t.elements, t.largest_sigmas, t.limit_sigmas,
               t.whole.spread, t.reason[0] ? ": " : "", t.reason);
    }
    for (size_t i = 0; i < v.explanation_count; i++)
        printf("  explained by: %s, %s: %s\n", v.explanations[i].name, v.explanations[i].scope,
               v.explanations[i].sentence);
    if (v.residual[0]) printf("  not explained: %s\n", v.residual);
    printf("%s\n", v.line);
}

/* Runs the kernels on a step that etref has run, and judges them. Returns the exit status. */
static int judge(const et_step &golden, const choices &how)
{
    et_problem problem = problem_of(golden, how.fault);
    et_result result =
        how.bf16 ? et_layer_bf16(problem, !how.cpu) : et_layer_f32(problem, !how.cpu);
    std::vector<uint8_t> mask;
    std::vector<et_tensor_out> candidate = candidate_of(golden, result, mask, how.bf16);
    et_verify_options options = {};
    options.profile = how.profile;
    options.explain = true;
    et_verdict verdict;
    et_error error;
    if (et_verify(&verdict, &golden, candidate.data(), candidate.size(), &options, &error) != ET_OK)
        return refuse(golden.c.name, error.text);
    print_verdict(verdict, golden.c.name);
    et_outcome outcome = verdict.outcome;
    et_verdict_free(&verdict);
    return outcome == ET_PASS ? 0 : outcome == ET_MISMATCH ? 1 : 3;
}

static int test(const char *path, const choices &how)
{
    et_step step;
    et_error error;
    if (make_step(&step, path, &error) != ET_OK) return refuse("no step", error.text);
    int status = 2;
    const char *lacking = unsupported(step.c);
    if (lacking)
        refuse(step.c.name, lacking);
    else if (et_step_run(&step, ET_PLAIN, NULL, NULL, &error) != ET_OK)
        refuse(step.c.name, error.text);
    else
        status = judge(step, how);
    et_step_free(&step);
    return status;
}

/* ---- the command line ---- */

static bool choose_fault(const char *name, et_fault *fault)
{
    const char *names[] = {"", "factor-two", "gate-forgotten", "last-tile-dropped"};
    for (int i = 1; i < 4; i++)
        if (name && strcmp(name, names[i]) == 0) {
            *fault = (et_fault)i;
            return true;
        }
    return false;
}

int main(int argc, char **argv)
{
    choices how = {};
    std::vector<const char *> paths;
    for (int i = 1; i < argc; i++) {
        std::string word = argv[i];
        if (word == "--cpu")
            how.cpu = true;
        else if (word == "--bf16")
            how.bf16 = true;
        else if (word == "--break" && choose_fault(i + 1 < argc ? argv[i + 1] : NULL, &how.fault))
            i++;
        else if (word[0] == '-')
            return refuse(argv[i],
                          "usage: test_et [--cpu] [--bf16] [--break factor-two|gate-forgotten|"
                          "last-tile-dropped] [GOLDEN | CASE.json]...");
        else
            paths.push_back(argv[i]);
    }
    how.profile = et_profile_find(how.bf16 ? "bf16" : "f32");
    if (!how.cpu && !have_gpu()) {
        fprintf(stderr,
                "test_et: no CUDA device: nothing was run (--cpu runs the kernels as loops)\n");
        return 77;
    }
    if (paths.empty()) paths.push_back(NULL);
    int worst = 0;
    for (const char *path : paths) {
        int status = test(path, how);
        if (worst == 0 || status == 2 || (status == 1 && worst == 3)) worst = status;
    }
    return worst;
}
