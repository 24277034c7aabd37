"""Bring programs of one's own together in a bundle: each has a name and one result, and graphs of one name are one.

Programs of a build share the graphs of their components. Those of several captures may have graphs of one name that
differ, in weights or in shapes: the later ones, and their component where its weights differ, are renamed. So are
tokenizers of one name that differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffc.compiler.bundle.tokenizer_file import tokenizer_text
from diffc.compiler.errors import BuildError
from diffc.compiler.graph.lazy_weights import read, weight_of
from diffc.compiler.ir.program import TOKENIZER_CALLS, Graph, Literal, Program


def brought_together(
    programs: Sequence[Program], tokenizers: Mapping[str, Any]
) -> tuple[tuple[Program, ...], Mapping[str, Any]]:
    """Return programs whose graphs and tokenizers of one name are equal, and all tokenizers.

    ``tokenizers`` are those of programs that hold none. Raises `BuildError` for what one bundle cannot hold.
    """
    [(name, count)] = Counter(program.name for program in programs).most_common(1) or [("", 0)]
    if count > 1:
        fix = "name each of them: capture(function, components, name=…)"
        raise BuildError(f"{count} programs are named {name}", where="write_bundle", fix=fix)
    for program in programs:
        if len(program.outputs) > 1:
            what = f"{program.name} returns {len(program.outputs)} tensors, and a bundle returns one"
            raise BuildError(what, where="write_bundle", fix="return one tensor; capture a function for each")
        for name in _tokenizers(program).keys() & tokenizers.keys():
            if not _is_same_tokenizer(program.tokenizers[name], tokenizers[name]):
                what = f"{name} is another tokenizer than {program.name} was captured with"
                raise BuildError(what, where="write_bundle", fix="leave tokenizers out, or capture with the same")
    graphs, taken = dict[str, Graph](), dict(tokenizers)
    together = tuple(_with_tokenizers(_with_graphs(program, graphs), taken) for program in programs)
    return together, taken


def _with_graphs(program: Program, taken: dict[str, Graph]) -> Program:
    """Return the program with graphs that agree with those taken so far, and take them."""
    names, renamed = {graph.name for graph in program.graphs}, dict[str, Graph]()
    for graph in program.graphs:
        component = next(c for c in _numbered(graph.component) if _agrees(replace(graph, component=c), taken))
        candidate = replace(graph, component=component)
        name = next(n for n in _numbered(graph.name) if _is_free(n, candidate, taken, names - {graph.name}))
        renamed[graph.name] = taken.setdefault(name, replace(candidate, name=name))
        names.add(name)
    ops = tuple(replace(op, operator=renamed[op.operator].name) if op.operator in renamed else op for op in program.ops)
    return replace(program, ops=ops, graphs=tuple(renamed.values()))


def _with_tokenizers(program: Program, taken: dict[str, Any]) -> Program:
    """Return the program with tokenizers that agree with those taken so far, and take them."""
    renamed = dict[Literal, str]()
    for name, tokenizer in _tokenizers(program).items():
        free = (n for n in _numbered(name) if n not in taken or _is_same_tokenizer(taken[n], tokenizer))
        renamed[name] = next(free)
        taken.setdefault(renamed[name], tokenizer)
    ops = tuple(
        replace(op, attrs=tuple((key, renamed.get(value, value)) for key, value in op.attrs))
        if op.operator in TOKENIZER_CALLS
        else op
        for op in program.ops
    )
    return replace(program, ops=ops)


def _tokenizers(program: Program) -> dict[str, Any]:
    """Map the names of the tokenizers that the program uses to those that it was captured with."""
    return {name: value for name, value in program.tokenizers.items() if name in program.called_tokenizers}


def _is_same_tokenizer(one: Any, two: Any) -> bool:
    return one is two or tokenizer_text("one", one) == tokenizer_text("two", two)


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and the name with numbers from 2 on."""
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _is_free(name: str, graph: Graph, taken: Mapping[str, Graph], others: set[str]) -> bool:
    """Return whether no graph, or an equal one, has the name."""
    if name not in taken:
        return name not in others
    return _is_same(taken[name], replace(graph, name=name))


def _agrees(graph: Graph, taken: Mapping[str, Graph]) -> bool:
    """Return whether no graph of the component so far has different values for a weight of the same name."""
    of_component = [sibling for sibling in taken.values() if sibling.component == graph.component]
    return all(_agree(_weights(graph), _weights(sibling)) for sibling in of_component)


def _is_same(one: Graph, two: Graph) -> bool:
    """Return whether two graphs compute the same with the same weights."""
    if one.body is two.body:
        return one == two
    mine, theirs = _weights(one) | _constants(one), _weights(two) | _constants(two)
    same_code = one == two and one.body.graph_module.code == two.body.graph_module.code
    return bool(same_code) and mine.keys() == theirs.keys() and _agree(mine, theirs)


def _agree(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return all(_is_equal(mine[name], theirs[name]) for name in mine.keys() & theirs.keys())


def _is_equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    return weight_of(one).key == weight_of(two).key or torch.equal(read(one), read(two))


def _weights(graph: Graph) -> dict[str, torch.Tensor]:
    return dict(graph.body.state_dict) if graph.body else {}


def _constants(graph: Graph) -> dict[str, torch.Tensor]:
    constants = graph.body.constants if graph.body else {}
    return {name: value for name, value in constants.items() if isinstance(value, torch.Tensor)}
