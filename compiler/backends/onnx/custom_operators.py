"""Export the operators of plugins as nodes of their own domain, and choose the library or function that computes them.

Before:
    y = toy.Scale<factor = 2.0>(x)

After, where the engine has the plugin's library:
    y = toy.Scale<factor = 2.0>(x)              with the function toy.Scale in the file, if the plugin has one

After, where it has none:
    y = Mul(x, 2.0)                             the function's body
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import onnx
import onnx_ir
import torch
from onnx.defs import OpSchema
from onnx_ir.passes import common
from onnxscript import values
from torch.export import ExportedProgram

from diffc.compiler.errors import BackendError
from diffc.runtime.entry_points import registered
from diffc.runtime.plugins import GROUP, CustomOperator, Plugin, find_plugin

TYPES = ("float", "float16", "bfloat16", "int8", "uint8", "float8e4m3fn", "float8e5m2")
ATTRIBUTES = {"int": OpSchema.AttrType.INT, "float": OpSchema.AttrType.FLOAT, "str": OpSchema.AttrType.STRING}

Entries = dict[str, dict[str, Any]]
"""The manifest's entries for one graph, by domain."""


def plugins_of(body: ExportedProgram) -> list[Plugin]:
    """Import the plugins whose operators a graph calls."""
    targets = {node.target for node in body.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    return [
        find_plugin(domain, BackendError) for domain in sorted({op.namespace for op in targets} & {*registered(GROUP)})
    ]


def translations(body: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """Return the exporter's table for the operators of plugins: each becomes one node."""
    table: dict[Any, Callable[..., Any]] = {}
    for plugin in plugins_of(body):
        import_module(plugin.definitions)
        for operator in plugin.operators:
            overload = getattr(getattr(torch.ops, plugin.domain), operator.torch).default
            table[overload] = _translation(plugin.domain, operator, overload._schema)
    return table


def _translation(domain: str, operator: CustomOperator, schema: Any) -> Callable[..., Any]:
    names = [argument.name for argument in schema.arguments]
    kinds = {argument.name: ATTRIBUTES.get(str(argument.type)) for argument in schema.arguments}
    emit = _emitter(domain, operator, {name: kinds[name] for name in operator.attributes})

    def translate(*args: Any, **kwargs: Any) -> Any:
        values_ = dict(zip(names, args, strict=False)) | kwargs
        inputs = [values_[name] for name in names[: operator.inputs + operator.optional]]
        return emit(*inputs, **{name: values_[name] for name in operator.attributes})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=Any) for name in names]
    translate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return translate


def _emitter(domain: str, operator: CustomOperator, attributes: dict[str, Any]) -> values.Op:
    options, inputs = OpSchema.FormalParameterOption, operator.inputs
    parameters = [
        OpSchema.FormalParameter(
            f"input{at}", f"T{at}", param_option=options.Single if at < inputs else options.Optional
        )
        for at in range(inputs + operator.optional)
    ]
    types = [f"tensor({name})" for name in TYPES]
    schema = OpSchema(
        operator.onnx,
        domain,
        1,
        inputs=parameters,
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        type_constraints=[(parameter.type_str, types, "") for parameter in parameters],
        attributes=[OpSchema.Attribute(name, kind) for name, kind in attributes.items()],
    )
    return values.Op(values.Opset(domain, 1), operator.onnx, schema)


def resolve(model: onnx_ir.Model, engine: str) -> Entries:
    """Keep the operators that an engine's library computes, write others out, and return the entries of the kept.

    ``engine`` is empty where graphs are to run in any engine. Raises `BackendError` for one that nothing computes.
    """
    plugins = {domain: find_plugin(domain, BackendError) for domain in sorted(_domains(model) & {*registered(GROUP)})}
    computed = {domain: plugin for domain, plugin in plugins.items() if engine in plugin.libraries}
    for domain in plugins.keys() - computed.keys():
        for operator in _used(model, plugins[domain]):
            if not operator.function:
                libraries = ", ".join(plugins[domain].libraries) or "no engine"
                fix = (
                    f"choose a target whose engine has a library: {plugins[domain].package} brings one for {libraries}"
                )
                raise BackendError(f"nothing computes {domain}.{operator.onnx} for this target", fix=fix)
            _add_function(model, operator)
    if plugins.keys() - computed.keys():
        common.InlinePass()(model)
        common.NameFixPass()(model)
        for domain in plugins.keys() - computed.keys():
            model.opset_imports.pop(domain, None)
    entries: Entries = {}
    for domain, plugin in computed.items():
        used = list(_used(model, plugin))
        for operator in used:
            if operator.function:
                _add_function(model, operator)
        model.opset_imports[domain] = 1
        entries[domain] = plugin.entry({operator.onnx for operator in used}, engine)
    return entries


def _domains(model: onnx_ir.Model) -> set[str]:
    return {node.domain for node in model.graph}


def _used(model: onnx_ir.Model, plugin: Plugin) -> Iterator[CustomOperator]:
    names = {node.op_type for node in model.graph if node.domain == plugin.domain}
    return (operator for operator in plugin.operators if operator.onnx in names)


def _add_function(model: onnx_ir.Model, operator: CustomOperator) -> None:
    function: Any = onnx_ir.from_proto(onnx.parser.parse_function(operator.function))
    model.functions[function.identifier()] = function
