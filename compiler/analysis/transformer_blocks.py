"""Find the transformer blocks of a captured graph, and the features that a span of them adds to its streams.

    x0 ──┬────────────── + ──┬──────── + ── x1 ── …
         └─ attention ───┘   └─ layers ┘

A value runs through the blocks, and each adds a residual to it. In models with two streams, tokens of the
image and of the text, there are two such values. A block begins where the tokens of a value attend to each other: at a
product of values that both depend on the latents, computed from the results of the block before. Names play no
part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from diffc.compiler.analysis.features import Feature
from diffc.compiler.analysis.stages import LATENT, stages_of_nodes, stages_of_ports
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.errors import PassError
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.graph.body import body_of, needed
from diffc.compiler.ir.program import Graph, Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Stream:
    """Name a value before a block and after it; it ``follows`` the value after an earlier block if it is of one shape.

    A value that is known before the loop has no name ``before``: it is the same in every call.
    """

    before: str
    after: str
    follows: str = ""


@dataclass(frozen=True)
class TransformerBlock:
    """Name the streams of a block and its products of tokens, and count its multiply-adds."""

    streams: tuple[Stream, ...]
    products: tuple[str, ...]
    multiply_adds: int


@dataclass(frozen=True)
class Transformer:
    """Hold the blocks of a graph in order, and all that the graph computes in multiply-adds."""

    body: fx.GraphModule
    blocks: tuple[TransformerBlock, ...]
    multiply_adds: int

    @property
    def share(self) -> float:
        """Compute the fraction of the work that is done in blocks."""
        return sum(block.multiply_adds for block in self.blocks) / max(1, self.multiply_adds)

    def width(self, stream: Stream) -> int:
        """Count the channels of a stream, its last axis."""
        (value,) = (node.meta["val"] for node in self.body.graph.nodes if node.name == stream.after)
        return int(value.shape[-1])

    def features(self, *spans: range) -> list[tuple[Feature, ...]]:
        """Name the residual of each span of blocks, for calls that reuse all ``spans``; unread ones are left out.

        Where a span has streams of several shapes, as where two become one, it has a feature for each.
        """
        features = [tuple(_added(self.blocks[at] for at in span)) for span in spans]
        by_name = {feature.node: feature for each in features for feature in each}
        nodes = {node.name: node for node in self.body.graph.nodes}
        ends, read = {self.body.graph.output_node()}, set[str]()
        while True:
            inside = needed(self.body.graph, ends, [nodes[name] for name in by_name])
            more = {name for name in by_name if nodes[name] in inside} - read
            if not more:
                return [tuple(feature for feature in each if feature.node in read) for each in features]
            read |= more
            ends |= {nodes[by_name[name].base] for name in more if by_name[name].base}


def _added(blocks: Iterable[TransformerBlock]) -> Iterator[Feature]:
    """Follow the streams through blocks."""
    open_ = dict[str, str]()
    for block in blocks:
        for stream in block.streams:
            open_[stream.after] = open_.pop(stream.follows, stream.before)
    return (Feature(after, before) for after, before in open_.items())


def transformer(graph: Graph, programs: Sequence[Program]) -> Transformer:
    """Find the blocks of a graph; there are none in one that is no transformer."""
    body = body_of(graph)
    search = _Search(body, graph, stages_of_ports(graph, programs))
    return Transformer(body, tuple(search.blocks()), sum(search.work.values()))


def isotropic(graph: Graph, programs: Sequence[Program], cache: str) -> Transformer:
    """Find the blocks of a graph that does most of its work in blocks of one width.

    Raises `PassError` for another, in the name of a cache of such blocks.
    """
    model = transformer(graph, programs)
    widths = {model.width(stream) for block in model.blocks for stream in block.streams}
    if len(model.blocks) < 2 or len(widths) > 1 or model.share < 0.5:
        work = f"{len(model.blocks)} transformer blocks of {len(widths)} widths do {model.share:.0%} of the work"
        fix = "choose deepcache, faster-diffusion, cachequant or a-sdm, which are for UNets"
        raise PassError(f"{cache}: the denoiser is no transformer: {work}", where=graph.name, fix=fix)
    return model


@dataclass(frozen=True)
class _Sum:
    """Hold a sum of a stream and a branch computed from it."""

    node: fx.Node
    stream: fx.Node
    branch: fx.Node


class _Search:
    """Walk a graph once. Sets of nodes are integers whose bits are indices in the graph.

    ``above`` is a node and all that it is computed from, ``heavy`` all from which it is computed with a product, and
    ``light`` the node and what it is computed from without any: parts, views, norms, and sums of its own shape.
    """

    def __init__(self, body: fx.GraphModule, graph: Graph, ports: Mapping[str, frozenset[str]]) -> None:
        self.body, self.stages = body, stages_of_nodes(body, graph, ports)
        self.nodes: list[fx.Node] = list(body.graph.nodes)
        self.place = {node: at for at, node in enumerate(self.nodes)}
        self.work = {node: multiply_adds(node) for node in self.nodes if self._late(node)}
        self.above: dict[fx.Node, int] = {}
        self.heavy: dict[fx.Node, int] = {}
        self.light: dict[fx.Node, int] = {}
        self.sums: dict[fx.Node, _Sum] = {}
        for node in self.nodes:
            self._visit(node)
        self._drop_sums_inside()

    def _late(self, node: fx.Node) -> bool:
        return self.stages[node] >= LATENT

    def _visit(self, node: fx.Node) -> None:
        sources, bit = node.all_input_nodes, 1 << self.place[node]
        self.above[node] = bit | _union(self.above, sources)
        self.heavy[node] = _union(self.above if self.work.get(node) else self.heavy, sources)
        pointwise = has(node.target, Trait.POINTWISE)
        same_shape = [s for s in sources if not pointwise or _shape(s) == _shape(node)]
        self.light[node] = bit | (0 if self.work.get(node) else _union(self.light, same_shape))
        if node.target is aten.add.Tensor and len(sources) == 2 and self._late(node) and same_shape == sources:
            pairs = [(a, b) for a, b in (sources, sources[::-1]) if self._is_made_of(b, a)]
            if len(pairs) == 1:
                self.sums[node] = _Sum(node, *pairs[0])

    def _is_made_of(self, branch: fx.Node, stream: fx.Node) -> bool:
        """Return whether a branch has products of a stream, or of its sources, in the stream's shape.

        A product of a request's values alone is computed before the loop, and the branch begins elsewhere.
        """
        if not self._late(stream):
            return "request" in self.stages[stream] and any(map(self._looks, self._at(self.above[branch])))
        return any(_shape(n) == _shape(stream) for n in self._at(self.light[stream] & self.heavy[branch]))

    def _looks(self, node: fx.Node) -> bool:
        """Return whether a node is a product of two values that depend on the latents."""
        return bool(self.work.get(node)) and sum(map(self._late, node.all_input_nodes)) > 1

    def _at(self, bits: int) -> Iterator[fx.Node]:
        while bits:
            low = bits & -bits
            yield self.nodes[low.bit_length() - 1]
            bits ^= low

    def _drop_sums_inside(self) -> None:
        """Drop a sum that is part of the branch of another sum of the same stream, and that nothing follows."""
        followed = {before.node for each in self.sums.values() for before in self._before(each)}
        for one in list(self.sums.values()):
            siblings = [each for each in self.sums.values() if each.stream is one.stream and each is not one]
            if one.node not in followed and any(
                self._has(self.above[sibling.branch], one.node) for sibling in siblings
            ):
                del self.sums[one.node]

    def _has(self, bits: int, node: fx.Node) -> bool:
        return bool(bits >> self.place[node] & 1)

    def _before(self, each: _Sum) -> list[_Sum]:
        """List the sums that a sum's stream comes from, the nearest on each way."""
        nearest, seen, left = list[_Sum](), set[fx.Node](), [each.stream]
        while left:
            node = left.pop()
            if node in seen or not self._has(self.light[each.stream], node):
                continue
            seen.add(node)
            if node in self.sums:
                nearest.append(self.sums[node])
            elif not self.work.get(node):
                left += node.all_input_nodes
        return [one for one in nearest if not any(self._has(self.heavy[later.node], one.node) for later in nearest)]

    def _products(self, each: _Sum) -> int:
        """Find the products of tokens with tokens in a sum's branch."""
        inside = self.above[each.branch] & ~self.above[each.stream]
        return _bits(self.place[node] for node in self._at(inside) if self._looks(node))

    def blocks(self) -> Iterator[TransformerBlock]:
        """Return the blocks of those chains of sums that contain attention between tokens."""
        some, products, done = list[_Sum](), 0, 0
        for each in self._looking():
            mine, earlier = self._products(each), _bits(self.place[s.node] for s in some)
            if any(self.above[node] & earlier for node in self._at(mine & ~products)):
                yield self._block(some, products, done)
                done |= _union(self.above, [one.node for one in some])
                some, products = [], 0
            some.append(each)
            products |= mine
        if some:
            yield self._block(some, products, done)

    def _looking(self) -> list[_Sum]:
        """List the sums of chains in which there is a sum with such a product."""
        chain = dict[fx.Node, set[fx.Node]]()
        for each in self.sums.values():
            chain[each.node] = {each.node}.union(*(chain[before.node] for before in self._before(each)))
            for node in chain[each.node]:
                chain[node] = chain[each.node]
        return [each for each in self.sums.values() if any(self._products(self.sums[n]) for n in chain[each.node])]

    def _block(self, sums: Sequence[_Sum], products: int, done: int) -> TransformerBlock:
        first, last = dict[fx.Node, _Sum](), dict[fx.Node, _Sum]()
        for each in sums:
            before = self._before(each)
            begin = first.pop(before[0].node, each) if len(before) == 1 else each
            first[each.node], last[each.node] = begin, each
        done |= _union(self.above, [begin.stream for begin in first.values()])
        inside = _union(self.above, list(first)) & ~done
        work = sum(self.work.get(node, 0) for node in self._at(inside))
        streams = tuple(self._stream(begin, last[node]) for node, begin in first.items())
        return TransformerBlock(streams, tuple(node.name for node in self._at(products)), work)

    def _stream(self, begin: _Sum, end: _Sum) -> Stream:
        before = self._before(begin)
        one = len(before) == 1 and _shape(before[0].node) == _shape(end.node)
        start = begin.stream.name if self._late(begin.stream) else ""
        return Stream(start, end.node.name, before[0].node.name if one else "")


def _union(sets: Mapping[fx.Node, int], nodes: Sequence[fx.Node]) -> int:
    union = 0
    for node in nodes:
        union |= sets[node]
    return union


def _bits(places: Iterable[int]) -> int:
    return sum(1 << place for place in set(places))


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
