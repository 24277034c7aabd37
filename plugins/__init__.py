"""Fused operators, one per folder: a definition in torch, a form in ONNX, and a library for each engine.

A plugin is a `Plugin` in the entry-point group ``diffc.plugins``; other packages register theirs in the same way.
"""

from diffc.runtime.plugins import CustomOperator, Plugin

__all__ = ["CustomOperator", "Plugin"]
