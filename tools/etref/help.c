/* help.c: the help texts. tools/etref/etref.1 says the same at more length. */
#include "tools/etref/help.h"

const char help_generate[] =
    "usage: etref generate [--case FILE|NAME]... [--suite NAME]... [OPTION]...\n\n"
    "Computes a step of each case and writes DIR/NAME.safetensors: its inputs, every value "
    "forward\n"
    "and backward, the routing and the new state. All cases are checked before any is computed.\n\n"
    "  --case FILE|NAME    a built-in case, or a file with one case or an array of them; - reads\n"
    "                      standard input\n"
    "  --suite NAME        a built-in suite: smoke, core, paper\n"
    "  --set FIELD=VALUE   change a field in every case, for example tokens=64 or input.seed=3\n"
    "  --out DIR           where to write; made if missing (default: the current folder)\n"
    "  --engine ENGINE     plain: the same bits on every machine (default); blas: faster\n"
    "  --lean              keep inputs, routing, outputs and gradients; leave out what lies "
    "between\n"
    "  --layout block:M    add layout.*: each expert's slots padded to multiples of M\n"
    "  --text FILE         the bytes from which cases with input source text are drawn\n"
    "  --threads N         threads to compute with\n\n"
    "examples:\n"
    "  etref generate --suite smoke --out goldens\n"
    "  etref generate --case mine.json --set name=mine-64 --set tokens=64\n"
    "  echo '{\"name\":\"a\", \"rule\":\"ec\", \"tokens\":64, \"d_model\":16, \"d_expert\":32, "
    "\"experts\":4,\n"
    "         \"input\":{\"source\":\"normal\"}}' | etref generate --case -\n";

const char help_verify[] =
    "usage: etref verify GOLDEN [OPTION]...\n\n"
    "Recomputes every stored value of a bundle from its inputs and its case, and compares. Values\n"
    "of a bundle that this very etref wrote, and all integers, must be identical; others must "
    "agree\n"
    "to 1e-13 of their tensor's largest element. Exit status 0: all agree; 1: a tensor does "
    "not.\n\n"
    "  --engine ENGINE     plain (default) or blas\n"
    "  --format FORMAT     text (default) or json\n"
    "  --quiet             the verdict only, one line\n"
    "  --threads N         threads to compute with\n\n"
    "Judging a kernel's output (verify GOLDEN CANDIDATE) is not in this version.\n\n"
    "examples:\n"
    "  etref verify data/golden/pencil.safetensors\n"
    "  for f in data/golden/*.safetensors; do etref verify --quiet \"$f\" || exit; done\n";

const char help_show[] =
    "usage: etref show FILE [TENSOR] [OPTION]...\n\n"
    "Shows a bundle: its case, its tensors, the load of each expert and, where it is small, who "
    "goes\n"
    "where. Any other safetensors file is shown as a table of its tensors. With TENSOR: its "
    "values.\n\n"
    "  --all               every tensor's values, in the order of the mathematics; with TENSOR,\n"
    "                      all of its values and not the first 1000\n"
    "  --against OTHER     how far two bundles' routings of the same tokens overlap\n"
    "  --format FORMAT     text (default) or json\n\n"
    "In the picture of a small routing '#' is a token that the expert takes, 'p' one taken below "
    "the\n"
    "threshold to fill up the capacity, 'x' one above the threshold that the capacity drops.\n\n"
    "examples:\n"
    "  etref show data/golden/pencil.safetensors\n"
    "  etref show --all data/golden/pencil.safetensors | less\n"
    "  etref show data/golden/pencil.safetensors fwd.logits --format json\n";

const char help_list[] =
    "usage: etref list [suites|cases|fields|tensors|layers] [--format text|json]\n\n"
    "Names what there is: the built-in suites and their cases (the default), the fields of a case\n"
    "with their defaults, the tensors of a bundle, the layers and their routing rules.\n\n"
    "examples:\n"
    "  etref list\n"
    "  etref list fields\n"
    "  etref list tensors --format json\n";

const char help_bench[] =
    "usage: etref bench [OPTION]...\n\n"
    "Times the layer forward and backward, phase by phase, beside its bare matrix products and "
    "one\n"
    "large product, the best that this machine does.\n\n"
    "  --table TABLE       layer: the paper's d12 layer (default); tokens: it, over the number of\n"
    "                      tokens; granularity: the same arithmetic in ever smaller experts\n"
    "  --engine ENGINE     blas (default) or plain\n"
    "  --rounds N          rounds of which the median is shown, at most 99 (default: 7)\n"
    "  --format FORMAT     text (default) or json\n"
    "  --threads N         threads to compute with\n\n"
    "examples:\n"
    "  etref bench\n"
    "  etref bench --table granularity --rounds 3\n";
