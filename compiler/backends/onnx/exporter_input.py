"""Hand PyTorch's exporter a captured graph in the form in which it translates it well, with no second trace of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputKind, OutputSpec, TensorArgument

from diffc.compiler.backends.onnx.decompositions import decompose
from diffc.compiler.graph.aten import Trait, has

aten = torch.ops.aten
VIEWS = (
    aten.reshape.default,
    aten.contiguous.default,
    aten.chunk.default,
    aten.flatten.using_ints,
    aten.narrow.default,
)
"""Composite views that the exporter knows as they are."""


class ExporterInput(ExportedProgram):
    """Copy a captured graph for the exporter; it is traced anew only where an operator is known by its parts."""

    @staticmethod
    def of(body: ExportedProgram) -> ExporterInput:
        """Copy a captured graph; weights are shared."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(body.graph, {}))
        for node in graph.nodes:
            node.args = _scalars_of_one_type(node.target, node.args)
        decompose(graph)
        return ExporterInput(
            root=body.graph_module,
            graph=graph,
            graph_signature=_signature(body, graph),
            state_dict=body.state_dict,
            range_constraints=body.range_constraints,
            module_call_graph=body.module_call_graph,
            constants=body.constants,
        )

    def run_decompositions(
        self, decomp_table: Any = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """Take apart the operators of a table and composite ones; `graphs.export` left nothing else to do."""
        operators = {node.target for node in self.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
        known = all(op not in decomp_table and (op in VIEWS or not _is_composite_view(op)) for op in operators)
        return self if known else super().run_decompositions(decomp_table, decompose_custom_triton_ops)


def _signature(body: ExportedProgram, graph: fx.Graph) -> ExportGraphSignature:
    """Return the signature of a graph whose results are those of another graph, under names of their own."""
    results: Any = graph.output_node().args[0]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    return ExportGraphSignature(body.graph_signature.input_specs, outputs)


def _scalars_of_one_type(target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments whose scalars are floats where any is, which the exporter's type promotion depends on."""
    schema = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
    scalars = [at for at, (_, argument) in enumerate(zip(args, schema, strict=False)) if "number" in str(argument.type)]
    if not any(isinstance(args[at], float) for at in scalars):
        return args
    return tuple(float(arg) if at in scalars and type(arg) is int else arg for at, arg in enumerate(args))


def _is_composite_view(op: torch._ops.OpOverload) -> bool:
    """Return whether PyTorch decomposes an operator without a table, as it does composite views."""
    key = "CompositeImplicitAutograd"
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)  # type: ignore[no-untyped-call]
    return composite and has(op, Trait.VIEW)
