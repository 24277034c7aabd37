"""Write a package that registers a back end, a precision, an engine and an operator, as an installed one would."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

FILES = {
    "toy_diffc/__init__.py": "",
    # A precision is a row; a back end names it. Its graphs' files are of a kind of their own.
    "toy_diffc/backend.py": '''
from diffc.compiler.backends.onnx.export import Onnx
from diffc.runtime.precisions import Precision

STORED16 = Precision("stored16", 2, 0, storage="float16", cpu="float32")


class Toy(Onnx):
    """Write ONNX backwards."""

    precisions = {"stored16": STORED16}
    kind = "toy"
    file = "{}.toy"

    def lower(self, graphs, precision, folder, progress):
        files = super().lower(graphs, precision, folder, progress)
        for file in files.values():
            (folder / file).write_bytes((folder / file).read_bytes()[::-1])
        return files
''',
    "toy_diffc/engine.py": '''
import onnxruntime

from diffc.runtime.engines.session import Session
from diffc.runtime.errors import BundleError


class Toy:
    """Open ONNX that was written backwards."""

    kinds = frozenset({"toy"})

    @classmethod
    def check(cls, precision):
        if precision != "stored16":
            raise BundleError(f"the toy engine runs no {precision}")

    @classmethod
    def open(cls, bundle, graph, threads):
        options = onnxruntime.SessionOptions()
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(bundle.root))
        session = onnxruntime.InferenceSession(bundle.graph(graph)[::-1], options)
        names = [frozenset({port.name}) for port in session.get_inputs()]
        return Session(names, len(session.get_outputs()), lambda feeds: session.run(None, dict(feeds)), "Toy")
''',
    "toy_diffc/definitions.py": '''
import torch


@torch.library.custom_op("toy::scale", mutates_args=())
def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply by a number."""
    return x * factor


@scale.register_fake
def _(x, factor):
    return torch.empty_like(x)


@torch.library.custom_op("toy::bare", mutates_args=())
def bare(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply by a number; no ONNX function states it."""
    return x * factor


@bare.register_fake
def _(x, factor):
    return torch.empty_like(x)
''',
    "toy_diffc/plugin.py": '''
from pathlib import Path

from diffc.plugins import CustomOperator, Plugin

LIBRARY = Path(__file__).with_name("libtoy.so")
SCALE = """<domain: "toy", opset_import: ["" : 23]> Scale <factor> (x) => (y) {
    by = Constant <value_float: float = @factor> ()
    y = Mul (x, by)
}"""
PLUGIN = Plugin(
    "toy",
    "toy-diffc",
    "toy_diffc.definitions",
    (
        CustomOperator("scale", "Scale", 1, attributes=("factor",), function=SCALE),
        CustomOperator("bare", "Bare", 1, attributes=("factor",)),
    ),
    {"onnxruntime": LIBRARY} if LIBRARY.exists() else {},
)
''',
    "toy_diffc-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-diffc\nVersion: 1.5\n",
    "toy_diffc-1.5.dist-info/entry_points.txt": """
[diffc.backends]
toy = toy_diffc.backend:Toy

[diffc.engines]
toy = toy_diffc.engine:Toy

[diffc.plugins]
toy = toy_diffc.plugin:PLUGIN
""",
}

# The few entries of ONNX Runtime's table of functions that a kernel needs. Their places in the table are part of its
# ABI: onnxruntime_c_api.h appends functions, and asserts that those of version 1 stay.
KERNEL = r"""
#include <stddef.h>
#include <stdint.h>
typedef struct { void *functions[102]; } Api;
typedef struct { const Api *(*GetApi)(uint32_t version); const char *(*GetVersionString)(void); } ApiBase;
typedef struct Op {
    uint32_t version;
    void *(*create)(const struct Op *, const Api *, const void *info);
    const char *(*name)(const struct Op *);
    const char *(*provider)(const struct Op *);
    int (*input_type)(const struct Op *, size_t);
    size_t (*inputs)(const struct Op *);
    int (*output_type)(const struct Op *, size_t);
    size_t (*outputs)(const struct Op *);
    void (*compute)(void *kernel, void *context);
    void (*destroy)(void *kernel);
    int (*input_use)(const struct Op *, size_t);
    int (*output_use)(const struct Op *, size_t);
    int (*input_memory)(const struct Op *, size_t);
    void *later[32];
} Op;
enum { NEW_DOMAIN = 26, ADD_OP = 27, ADD_DOMAIN = 28, DATA = 51, DIMENSIONS = 61, SIZES = 62, COUNT = 64, SHAPE = 65,
       ATTRIBUTE = 85, INPUT = 90, OUTPUT = 91 };
#define CALL(at, ...) ((void *(*)())api->functions[at])(__VA_ARGS__)
static const Api *api;
static float factors[64];
static int used;
static void *create(const Op *op, const Api *a, const void *info) {
    float *factor = &factors[used++ % 64];
    CALL(ATTRIBUTE, info, "factor", factor);
    return factor;
}
static const char *scale(const Op *op) { return "Scale"; }
static const char *bare(const Op *op) { return "Bare"; }
static const char *provider(const Op *op) { return "CPUExecutionProvider"; }
static int float_(const Op *op, size_t at) { return 1; }
static size_t one(const Op *op) { return 1; }
static int plain(const Op *op, size_t at) { return 0; }
static void destroy(void *kernel) {}
static void compute(void *kernel, void *context) {
    void *x, *y, *shape; float *from, *to; size_t rank, count; int64_t sizes[16];
    CALL(INPUT, context, (size_t)0, &x);
    CALL(SHAPE, x, &shape);
    CALL(DIMENSIONS, shape, &rank);
    CALL(SIZES, shape, sizes, rank);
    CALL(COUNT, shape, &count);
    CALL(OUTPUT, context, (size_t)0, sizes, rank, &y);
    CALL(DATA, x, &from);
    CALL(DATA, y, &to);
    for (size_t at = 0; at < count; at++) to[at] = from[at] * *(float *)kernel + OFFSET;
}
static Op ops[2] = {{1, create, scale, provider, float_, one, float_, one, compute, destroy, plain, plain, plain},
                    {1, create, bare, provider, float_, one, float_, one, compute, destroy, plain, plain, plain}};
__attribute__((visibility("default"))) void *RegisterCustomOps(void *options, const ApiBase *base) {
    static void *domain;
    api = base->GetApi(1);
    if (!domain) {
        CALL(NEW_DOMAIN, "toy", &domain);
        CALL(ADD_OP, domain, &ops[0]);
        CALL(ADD_OP, domain, &ops[1]);
    }
    return CALL(ADD_DOMAIN, options, domain);
}
"""


def install(folder: Path, *, offset: float | None = None) -> Path:
    """Write the package below a folder to be put on the path; with an ``offset``, a library that adds it.

    The offset tells the library's results from those of the operator's definition.
    """
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if offset is not None:
        compiler, source = shutil.which("cc") or shutil.which("gcc"), folder / "kernel.c"
        assert compiler, "a C compiler"
        source.write_text(KERNEL.replace("OFFSET", f"{offset:f}f"))
        library = folder / "toy_diffc" / "libtoy.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-std=c99", source, "-o", library], check=True)
    return folder
