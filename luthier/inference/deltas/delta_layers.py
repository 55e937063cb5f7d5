"""Layers that do, token by token, what the token's adapter does to them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.adapters.wrapped_linear import WrappedLinear
from luthier.inference.batch_rows import RowInput, RowSlice
from luthier.inference.deltas.delta_kernel import KernelStep, narrow_dtypes
from luthier.inference.deltas.delta_steps import AdapterSpan, LayerStep, choose_spans, plan_step
from luthier.inference.deltas.delta_table import Product
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.merged_adapter import HotAdapter, MergedLayer, MergeOptions
from luthier.inference.deltas.pass_watch import PassWatch
from luthier.inference.deltas.whole_modules import LoneStep, OwnSpan, SpanLayer, WholeStep
from luthier.resources.quantised_layers import QuantisedLinear

#: Tokens of one row in a pass.
Part = TypeVar("Part", bound="RowSlice | RowInput")
#: What is done to one linear layer in a pass.
DeltaStep = KernelStep | LayerStep | MergedLayer | Product


class DeltaLinear(WrappedLinear):
    """A frozen linear layer of the batched engine's network, and the place for what is done to it.

    Args:
        base: ``nn.Linear`` or ``Conv1D``; kept, shared, not changed.
        path: The layer's.
        steps: What is done in the pass, by path; of all layers.

    Shape:
        forward: [1, N, in] -> [1, N, out]; of a lone row [..., in] -> [..., out].
    """

    def __init__(self, base: nn.Module, path: str, steps: Mapping[str, DeltaStep]) -> None:
        super().__init__(base)
        self._path, self._steps = path, steps
        self.whole: WholeStep | LoneStep | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output with the step's deltas, or those of adapters' own layers."""
        step, whole = self._steps.get(self._path), self.whole
        layer = step.layer if isinstance(step, MergedLayer) else self.base
        output: torch.Tensor = layer(x) if whole is None else whole.run(layer, x)
        if isinstance(step, KernelStep):
            step.add(output, x, self.bias if step.needs_bias else None)
        elif isinstance(step, LayerStep):
            step.add(output, x, self.bias)
        elif isinstance(step, Product):
            tokens = x.reshape(-1, x.shape[-1])
            step.add(output.view(-1, output.shape[-1]), tokens, self.bias)
        return output


class DeltaLayers:
    """The layers of a network, the linear ones wrapped in place, and what adapters do to them.

    Made in three moves, because what a layer sees is learned from a pass: the layers are wrapped,
    ``watching`` looks at a pass, and then ``tables`` takes deltas of the layers that qualify, and
    whole layers in the place of those that do.

    Args:
        model: A network of its own, whose tensors are shared; its layers are replaced.
        merging: When the adapter that all rows use is merged.
    """

    def __init__(self, model: PreTrainedModel, merging: MergeOptions | None = None) -> None:
        head = model.get_output_embeddings()
        self._model = model
        self._head_path = next((path for path, each in model.named_modules() if each is head), "")
        self._steps: dict[str, DeltaStep] = {}
        self._layers = {
            path: DeltaLinear(layer, path, self._steps)
            for path, layer in model.named_modules()
            # The head sees only the tokens whose logits are needed.
            if isinstance(layer, nn.Linear | Conv1D) and layer is not head
        }
        for path, layer in self._layers.items():
            model.set_submodule(path, layer)
        embeddings: torch.Tensor = model.get_input_embeddings().weight
        self.tables = DeltaTables({}, dtype=embeddings.dtype, device=embeddings.device)
        self._merging = merging or MergeOptions()
        self._usable: dict[str, nn.Module] = {}
        self._hosted: dict[str, nn.Module] = {}
        self._span_layers: dict[str, SpanLayer] = {}
        self._hot = HotAdapter(self._usable, self.tables, self._merging)
        self._planned_for: tuple[object, ...] = ()
        self._plan: Mapping[str, KernelStep | LayerStep] = {}

    @contextmanager
    def watching(self, num_tokens: int) -> Iterator[set[str]]:
        """Learn from one pass of ``num_tokens`` tokens which layers see every token just once.

        Those can be replaced by an adapter's own. Linear ones can have deltas, if their weights are
        plain numbers in the model's precision, or quantised by ``resources.quantised_layers``.
        Layers that an earlier pass found stay usable.

        Args:
            num_tokens: More than other parts of the pass see.

        Yields:
            A set that holds the paths of the layers found, once the pass is over.
        """
        found: set[str] = set()
        others = self._other_layers()
        watch = PassWatch({**self._layers, **others})
        with watch.watching():
            yield found
        found |= {path for path in self._layers if watch.rows_seen(path, num_tokens)}
        found |= {path for path in others if watch.takes_each_token(path, num_tokens)}
        self._learn(found, others)

    @contextmanager
    def watching_lone(self, part: nn.Module) -> Iterator[set[str]]:
        """Learn from a pass what can be changed where ``adding_to_all`` is all there is.

        There a layer may see tokens in any shape or number: all are of one row. So every linear one
        qualifies, whether it is called or not, and every other that is called with a tensor.

        Args:
            part: Of the network; only its passes are like that.

        Yields:
            As ``watching``.
        """
        found: set[str] = set()
        members = set(part.modules()) - {self._model.get_input_embeddings()}
        inside = {path for path, layer in self._model.named_modules() if layer in members}
        others = {path: each for path, each in self._other_layers().items() if path in inside}
        watch = PassWatch(others)
        with watch.watching():
            yield found
        found |= self._layers.keys() & inside
        found |= {path for path in others if watch.was_called(path)}
        self._learn(found, others)

    def _learn(self, found: Collection[str], others: Mapping[str, nn.Module]) -> None:
        """Let adapters do something to the layers found, those found before included."""
        for path in found:
            layer = self._layers[path].base if path in self._layers else others[path]
            self._hosted[path] = layer
            if path in self._layers and _is_readable(layer, self.tables.dtype):
                self._usable[path] = layer
        dtype, device = self.tables.dtype, self.tables.device
        head = self._hosted.get(self._head_path)
        takes_delta = isinstance(head, nn.Linear | Conv1D) and _is_readable(head, dtype)
        self.tables = DeltaTables(
            self._usable,
            dtype=dtype,
            device=device,
            narrow=narrow_dtypes(dtype, device),
            hosted=self._hosted,
            head=self._head_path if takes_delta else "",
        )
        self._hot = HotAdapter(self._usable, self.tables, self._merging)

    def arrange(self, slices: Sequence[Part]) -> tuple[list[Part], list[AdapterSpan]]:
        """Put slices of one adapter together, and those with deltas first.

        Args:
            slices: Of a step, in any order; or what an encoder reads for rows.

        Returns:
            The slices, and the spans of adapters that they begin with.
        """
        by_key: dict[str, list[Part]] = {}
        others = []
        for each in slices:
            if self.tables.has(each.row.adapter_key):
                by_key.setdefault(each.row.adapter_key, []).append(each)
            else:
                others.append(each)
        counts = {key: sum(each.count for each in own) for key, own in by_key.items()}
        spans = choose_spans(counts, self.tables)
        arranged = [each for span in spans for each in by_key[span.key]]
        return [*arranged, *others], spans

    @contextmanager
    def adding(
        self,
        spans: Sequence[AdapterSpan],
        *,
        num_tokens: int,
        paths: Collection[str] | None = None,
        kept: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Let the layers do what adapters do, to the tokens of the passes made meanwhile.

        Args:
            spans: Of the first tokens, from ``arrange``.
            num_tokens: All of a pass.
            paths: The layers that see these tokens; None is all.
            kept: The tokens that the output layer sees, in order; None is all.
        """
        plan = self._hot.layers_for(spans, num_tokens) or self._plan_for(spans, num_tokens)
        wholes = self._whole_steps(spans, num_tokens, kept)
        used = [path for path in plan if paths is None or path in paths]
        replaced = [path for path in wholes if paths is None or path in paths]
        self._steps.update((path, plan[path]) for path in used)
        try:
            for path in replaced:
                self._replace(path, wholes[path])
            yield
        finally:
            for path in used:
                self._steps.pop(path, None)
            for path in replaced:
                self._restore(path)

    @contextmanager
    def adding_to_all(self, key: str, paths: Collection[str]) -> Iterator[None]:
        """Let the layers do what one adapter does to all tokens of the passes made meanwhile.

        Args:
            key: The adapter's; nothing is done if it is not stored.
            paths: The layers that see these tokens.
        """
        wholes = {
            path: LoneStep(layer)
            for path, layer in self.tables.whole.of(key).items()
            if path in paths
        }
        products = {
            path: product for path, product in self.tables.products(key).items() if path in paths
        }
        self._steps.update(products)
        try:
            for path, step in wholes.items():
                self._replace(path, step)
            yield
        finally:
            for path in products:
                self._steps.pop(path, None)
            for path in wholes:
                self._restore(path)

    def close(self) -> None:
        """Let a merged copy go. No pass may run meanwhile."""
        self._hot.close()

    def _whole_steps(
        self, spans: Sequence[AdapterSpan], num_tokens: int, kept: Sequence[int] | None
    ) -> dict[str, WholeStep]:
        """What goes through layers of adapters' own, by path."""
        own: dict[str, list[OwnSpan]] = {}
        first = 0
        for span in spans:
            start, stop = first, first + span.count
            first = stop
            for path, layer in self.tables.whole.of(span.key).items():
                where = (start, stop)
                if kept is not None and path == self._head_path:
                    where = (bisect_left(kept, start), bisect_left(kept, stop))
                if where[0] < where[1]:
                    own.setdefault(path, []).append(OwnSpan(*where, layer))
        num_kept = num_tokens if kept is None else len(kept)
        return {
            path: WholeStep(each, num_kept if path == self._head_path else num_tokens)
            for path, each in own.items()
        }

    def _replace(self, path: str, step: WholeStep | LoneStep) -> None:
        if path in self._layers:
            self._layers[path].whole = step
            return
        if path not in self._span_layers:
            parent, _, name = path.rpartition(".")
            self._span_layers[path] = SpanLayer(self._model.get_submodule(parent), name)
        self._span_layers[path].enter(step)

    def _restore(self, path: str) -> None:
        if path in self._layers:
            self._layers[path].whole = None
        elif path in self._span_layers:
            self._span_layers[path].leave()

    def _other_layers(self) -> dict[str, nn.Module]:
        """Layers with tensors that deltas are not added to, by path."""
        wrapped = {id(layer.base) for layer in self._layers.values()}
        return {
            path: layer
            for path, layer in self._model.named_modules()
            if id(layer) not in wrapped
            and any(True for _ in layer.parameters(recurse=False))
            and not any(True for _ in layer.children())
        }

    def _plan_for(
        self, spans: Sequence[AdapterSpan], num_tokens: int
    ) -> Mapping[str, KernelStep | LayerStep]:
        """The last plan if it still fits: rows join and leave less often than steps are made."""
        wanted = (self.tables.version, num_tokens, *spans)
        if wanted != self._planned_for:
            self._plan = plan_step(self.tables, spans, num_tokens=num_tokens) if spans else {}
            self._planned_for = wanted
        return self._plan


def _is_readable(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a layer's numbers can be known; libraries that quantise keep theirs in subclasses."""
    weight = layer.weight
    is_plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype == dtype
    return isinstance(layer, QuantisedLinear) or is_plain
