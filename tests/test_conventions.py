"""Check the style guide where a machine can."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

from diffc.compiler.ir.parse import parse
from tests import graph_sketch, program_sketch, sketch

ROOT = Path(__file__).parent.parent


def is_pass(path: Path) -> bool:
    """Return whether a file is a pass; a technique of several files is the one with the name of its folder."""
    whole = path.with_name(f"{path.parent.name}.py")
    return path.name[0] != "_" and (path == whole or not whole.exists())


PACKAGES = [ROOT / name for name in ("compiler", "passes", "runtime", "plugins") if (ROOT / name).exists()]
PASSES = sorted(path for path in (ROOT / "passes").rglob("*.py") if is_pass(path))
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
COMMITTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
)

SKETCH = re.compile(r"^Before:\n((?:    .+\n)+)\nAfter(?: \((.+)\))?:\n((?:    .+\n)+)", re.M)
CITATION = re.compile(r"^Paper: .+\n +https?://|^Source: .+", re.M)

# The floors of the house, the lowest first: a part imports of floors below its own, and of its own no other part.
FLOORS = (
    ("runtime.errors",),
    (
        "runtime.program",
        "runtime.memory",
        "runtime.rng",
        "runtime.disk_cache",
        "runtime.output_file",
        "runtime.entry_points",
        "runtime.precisions",
    ),
    ("runtime.images", "runtime.plugins"),
    ("runtime.bundle",),
    ("runtime.engines",),
    ("runtime",),
    ("plugins",),
    ("compiler.errors", "compiler.metrics", "compiler.text_table", "compiler.recipe"),
    ("compiler.ir",),
    ("compiler.graph",),
    ("compiler.checkpoint", "compiler.tracing", "compiler.analysis"),
    ("compiler.calibration",),
    ("compiler.quantization", "compiler.feature_cache"),
    ("compiler.backends",),
    ("compiler.bundle",),
    ("passes",),
    ("compiler.driver",),
    ("compiler.commands",),
)
FORBIDDEN_AT_RUN_TIME = ("torch", "onnx", "diffusers", "transformers", "diffc.compiler", "diffc.passes")

MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])/(?:work|root|home|farm)/|\.\./shared|/opt/(?:wheels|pypi)|pypi\.org|python[h]osted"
)

# The language of docs/glossary.md: a docstring begins with a plain verb, and a name says which thing it holds.
DIALECT = re.compile(r"(Give|Say|Let|Tell|Ask)s?\b")
NAMELESS = re.compile(
    "made|found|given|asked|told|wanted|said|lent|drawn|chosen|kept|other|whole|way|thing"
    "|rival|contender|culprit|room|picture|film|drawing|stand_in|lend|settle|settled|codes"
)
# Words that the glossary replaces, in docstrings and messages; old keys and grammar stand in ``backquotes``.
REPLACED = re.compile(
    r"\b(stand-ins?|lends?|lent|settled?|films?|pictures?|told|drawings?|lanes?|rivals?|culprits?|contenders?"
    r"|few bits|whole thing|asked|asks|found as it runs|looked at|nobody|somebody|someone|whoever"
    r"|on its grid|of the grid|kinds? of calls?|who (?:reads|wants|asks)|what (?:is|was) (?:asked|wanted|given))\b",
    re.I,
)
QUOTED = re.compile(r"``[^`]*``|https?://\S+")
# Sentences about something else: a prompt of calibration.
NO_PROSE = ("compiler/calibration/prompts.py",)
# Names that users type: an option of --quant, a key of recipe files.
TYPED_BY_USERS = {"passes/quantize/svdquant.py": {"room"}, "passes/quantize/__init__.py": {"other"}}

# A pass rewrites one graph, or one program, or all of a bundle where they share what it makes, after looking at their
# trajectories or not, or the plan of their quantization.
PASS_FORMS = [
    (["graph"], "Graph"),
    (["program"], "Program"),
    (["programs"], "tuple[Program, ...]"),
    (["programs", "calibrated"], "tuple[Program, ...]"),
    (["programs", "calibrated", "finer"], "Searched"),
    (["plan"], "Plan"),
]

each_pass = pytest.mark.parametrize("path", PASSES, ids=lambda path: path.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def module_name(path: Path) -> str:
    """Name the module that a file is imported as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["diffc", *parts]).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import it by its full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    """Say whether a module, or a name in it, belongs to one of the packages."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@each_pass
def test_a_pass_is_one_public_function_named_after_its_file(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    public = [node for node in body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    assert [function.name for function in public] == [path.stem]
    arguments = public[0].args
    form = [argument.arg for argument in arguments.args], ast.unparse(public[0].returns or ast.Constant(None))
    assert form in PASS_FORMS, "options are keyword-only"


@each_pass
def test_a_pass_cites_its_source(path: Path) -> None:
    assert CITATION.search(importlib.import_module(module_name(path)).__doc__ or ""), "add a Paper: or Source: line"


@each_pass
def test_a_pass_does_what_its_docstring_draws(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    if sketch.SKETCH.search(module.__doc__ or ""):
        sketch.check(module.__doc__ or "", getattr(module, path.stem))
        return
    if program_sketch.SKETCH.search(module.__doc__ or ""):
        program_sketch.check(module.__doc__ or "", path.stem)
        return
    if graph_sketch.SKETCH.search(module.__doc__ or ""):
        graph_sketch.check(module.__doc__ or "", getattr(module, path.stem))
        return
    drawn = SKETCH.search(f"{module.__doc__}\n")
    assert drawn, (
        "draw the rewrite: a 'Before:' block, as tests.sketch, tests.graph_sketch and tests.program_sketch read it,"
        " then an 'After:' block"
    )
    before, options, after = drawn.groups()
    call = eval(f"lambda function, program: function(program, {options or ''})", vars(module).copy())
    program, wanted = parse(before), parse(after)
    zeros = tuple(replace(t, data=np.zeros(t.type.shape, t.type.dtype)) for t in program.tables)
    got = call(getattr(module, path.stem), replace(program, tables=zeros))
    assert (got.ops, got.outputs) == (wanted.ops, wanted.outputs)


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*MODULES, *(path for name in ("tests", "examples", "benchmarks") for path in (ROOT / name).rglob("*.py"))]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@each_module
def test_a_module_has_a_test_in_the_mirror(path: Path) -> None:
    if path.name != "__init__.py":
        assert (ROOT / "tests" / path.relative_to(ROOT)).with_name(f"test_{path.name}").exists()


def floor_of(module: str) -> tuple[int, str] | None:
    """Return the floor of a module and the part of it that the module belongs to, or None for what is no part."""
    parts = [
        (level, part) for level, floor in enumerate(FLOORS) for part in floor if is_within(module, (f"diffc.{part}",))
    ]
    return max(parts, key=lambda found: len(found[1]), default=None)


@each_module
def test_imports_point_down(path: Path) -> None:
    here = floor_of(module_name(path))
    if here is None:
        assert path == ROOT / "compiler" / "__init__.py", "give it a place in FLOORS"
        return
    there = {name: floor_of(name) for name in imports_of(path) if is_within(name, ("diffc",))}
    assert [name for name, floor in there.items() if floor is None or floor[1] != here[1] and floor[0] >= here[0]] == []


def test_no_modules_import_each_other() -> None:
    names = {module_name(path): path for path in MODULES}
    imports = {
        name: {found for module in imports_of(path) for found in (module, module.rpartition(".")[0]) if found in names}
        for name, path in names.items()
    }
    try:
        tuple(TopologicalSorter({name: found - {name} for name, found in imports.items()}).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@each_module
def test_modules_and_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    bare = [] if ast.get_docstring(tree) else [path.name]
    for node in tree.body:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
        if named and not ast.get_docstring(node):
            bare.append(node.name)
    assert bare == []


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each function, class, parameter, variable and attribute that a file binds."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring, those of constants among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


@each_module
def test_docstrings_begin_with_plain_verbs(path: Path) -> None:
    name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    faults = [f"{name}:{line}: {text.split()[0]} …" for line, text in docstrings(tree) if DIALECT.match(text)]
    assert faults == []


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string of several words: docstrings, messages, help."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            for number, line in enumerate(node.value.split("\n")):
                yield node.lineno + number, line


@each_module
def test_texts_use_the_words_of_the_glossary(path: Path) -> None:
    name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    if name not in NO_PROSE:
        words = [(line, REPLACED.search(QUOTED.sub("", text))) for line, text in texts(tree)]
        assert [f"{name}:{line}: {found[0]}" for line, found in words if found] == []


@each_module
def test_names_say_which_thing_they_hold(path: Path) -> None:
    name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    names = [(line, bound) for line, bound in bindings(tree) if bound not in TYPED_BY_USERS.get(name, ())]
    assert [f"{name}:{line}: {bound}" for line, bound in names if NAMELESS.fullmatch(bound)] == []


@pytest.mark.parametrize("module", ["diffc.runtime", "diffc.compiler.commands.cli"])
def test_a_fresh_import_stays_slim(module: str) -> None:
    if not (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").exists() and module != "diffc.runtime":
        pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = FORBIDDEN_AT_RUN_TIME if module == "diffc.runtime" else ("torch", "onnx", "diffusers", "transformers")
    assert [name for name in loaded if is_within(name, heavy)] == []


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = sorted({path.parent for path in MODULES})
    assert sorted(configured["packages"]) == sorted(module_name(folder) for folder in folders)
    assert configured["package-dir"] == {module_name(f): f.relative_to(ROOT).as_posix() for f in folders}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.skipif(COMMITTED.returncode != 0, reason="not a git checkout: which files are committed is not known")
def test_committed_files_name_no_machine() -> None:
    found = []
    for path in filter(Path.is_file, (ROOT / name for name in COMMITTED.stdout.split("\0") if name)):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)
        ]
    assert found == []


def test_constraints_pin_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert [r for r in wanted if re.split(r"[<>=\[;]", r)[0] not in pinned] == []
    assert [line for line in lines if "+" in line or "://" in line] == []
