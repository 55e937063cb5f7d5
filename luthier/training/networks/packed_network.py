"""A causal base model that reads the rows of a batch as one sequence without padding.

The linear layers see all tokens at once, attention goes row by row (``packed_attention``), what
rows have in common is computed once (``data/packing``). Loss and gradient are those of padded rows
up to rounding; whether a model keeps that promise is tried out before it is relied on.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import alog
import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.model_inputs import positions_of
from luthier.adapters.module_tree import own_module_tree
from luthier.errors import NotSupportedError
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL
from luthier.training.data.packing import PackedRows, pack_rows
from luthier.training.networks.fast.fast_layers import drop_unlabelled, with_fast_layers
from luthier.training.networks.label_head import LabelHead
from luthier.training.networks.packed_attention import longest_exact_row, with_packed_attention

log = alog.use_channel(__name__)

#: How far a packed pass may be from a padded one, as a share of the largest hidden number.
_TOLERANCE = 1e-3
_HALF_TOLERANCE = 0.05
#: How far a packed pass by ``fast_layers`` may be from it.
_FAST_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class PackedPart:
    """One batch of a pass.

    Args:
        packed: Its rows.
        prompt: Virtual tokens before them, [P, D], or None.
    """

    packed: PackedRows
    prompt: torch.Tensor | None

    @property
    def num_tokens(self) -> int:
        """Virtual tokens and all others."""
        return self.packed.position_ids.shape[1]


class PackedNetwork:
    """Runs batches through a network of its own around the same tensors.

    Args:
        model: A causal network with a ``LabelHead``, set up for training; not changed.
        shares_text: Whether tokens that all rows begin with are computed once, and those without a
            label only up to the last layer's attention. With dropout, rows would share its noise,
            and where a token stands decides what it gets.
        is_fast: Whether layers take the ways of ``fast_layers``, where they know them.
    """

    def __init__(
        self, model: PreTrainedModel, *, shares_text: bool = True, is_fast: bool = False
    ) -> None:
        self.model = own_module_tree(model)
        self.label_head = _label_head_of(self.model)
        with_packed_attention(self.model)
        #: Whether any layer takes a faster way.
        self.is_fast = is_fast and with_fast_layers(self.model)
        self._drops_unlabelled = self.is_fast and shares_text and drop_unlabelled(self.model)
        self._shares_text = shares_text
        self._longest = longest_exact_row(self.model)
        self._embed: nn.Module = self.model.get_input_embeddings()

    def run(
        self, batch: TokenBatch, prompt: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """One pass.

        Args:
            batch: Right-padded rows.
            prompt: Virtual tokens before the rows, [P, D], or None.

        Returns:
            Logits of the labelled places, [1, N, V], and their labels, [N], row after row; with a
            label head that keeps hidden states, these are in the head and the logits empty. None if
            these rows cannot be packed.
        """
        part = self.pack(batch, prompt, shares_text=self._shares_text)
        return None if part is None else (self.run_parts([part]), part.packed.labels)

    def pack(
        self, batch: TokenBatch, prompt: torch.Tensor | None, *, shares_text: bool
    ) -> PackedPart | None:
        """Lay the rows of a batch end to end.

        Args:
            batch: Right-padded rows.
            prompt: Virtual tokens before the rows, [P, D], or None.
            shares_text: Whether tokens that all rows begin with are computed once.

        Returns:
            A part of a pass; None if these rows cannot be packed.
        """
        num_virtual_tokens = 0 if prompt is None else prompt.shape[0]
        packed = pack_rows(batch, num_virtual_tokens=num_virtual_tokens, shares_text=shares_text)
        if packed is None or (self._longest is not None and packed.layout.longest > self._longest):
            return None
        return PackedPart(packed, prompt)

    def run_parts(self, parts: Sequence[PackedPart]) -> torch.Tensor:
        """One pass for several batches, which do not see each other.

        Args:
            parts: From ``pack``; at least one.

        Returns:
            Logits of the labelled places, part after part, as ``run`` gives them.
        """
        embeddings = self._embed(torch.cat([part.packed.input_ids for part in parts]))
        texts = embeddings.split([len(part.packed.input_ids) for part in parts])
        pieces = []
        for part, text in zip(parts, texts, strict=True):
            if part.prompt is not None:
                pieces.append(part.prompt.to(device=text.device, dtype=text.dtype))
            pieces.append(text)
        starts = itertools.accumulate([part.num_tokens for part in parts], initial=0)
        places = torch.cat(
            [part.packed.places + start for part, start in zip(parts, starts, strict=False)]
        )
        choice = {}
        if self._drops_unlabelled:
            choice["label_places"], places = torch.unique(places, return_inverse=True)
        self.label_head.choose(torch.zeros_like(places), places)
        logits: torch.Tensor = self.model(
            inputs_embeds=torch.cat(pieces)[None],
            position_ids=torch.cat([part.packed.position_ids for part in parts], dim=1),
            row_layouts=tuple(part.packed.layout for part in parts),
            use_cache=False,
            **choice,
        ).logits
        return logits


def pack_if_exact(
    model: PreTrainedModel, prompt: torch.Tensor | None, *, shares_text: bool
) -> PackedNetwork | None:
    """A packed network, if it computes what ``model`` does on two rows of a few tokens.

    Costs a pass through each. Why there is none goes to the log.

    Args:
        model: A network with a ``LabelHead``; not changed.
        prompt: Virtual tokens that will stand before the rows, or None; the first few are tried.
        shares_text: As in ``PackedNetwork``.

    Returns:
        The network in the mode of ``model``, or None.
    """
    if not _may_be_packed(model):
        log.info("rows are padded: model_type=%s has no attention for packing", _type_of(model))
        return None
    few = None if prompt is None else prompt.detach()[:2]
    expected = _padded_hidden(model, few)
    tolerances = {True: _FAST_TOLERANCE, False: _TOLERANCE}
    if model.dtype not in (torch.float32, torch.float64):
        tolerances[False] = _HALF_TOLERANCE
    for is_fast, tolerance in tolerances.items():
        packed = PackedNetwork(model, shares_text=shares_text, is_fast=is_fast)
        if packed.is_fast != is_fast:
            continue
        try:
            difference = _difference(packed, expected, few)
        except (NotSupportedError, TypeError, ValueError, KeyError) as error:
            log.info("rows are padded: model_type=%s cannot pack: %s", _type_of(model), error)
            return None
        if difference <= tolerance:
            log.debug(
                "rows are packed: model_type=%s is_fast=%s difference=%.1e",
                *(_type_of(model), is_fast, difference),
            )
            return packed
        # Not a number is no agreement, either.
        log.info(
            "%s: model_type=%s computes something else packed: difference=%.1e",
            "layers go their own way" if is_fast else "rows are padded",
            *(_type_of(model), difference),
        )
    return None


@torch.no_grad()
def _padded_hidden(model: PreTrainedModel, prompt: torch.Tensor | None) -> torch.Tensor:
    """What stands before the logits of a few tokens, in padded rows, [N, D]."""
    batch = _trial_batch(model.device)
    mask = batch.attention_mask
    rows, columns = torch.nonzero(batch.labels != IGNORED_LABEL, as_tuple=True)
    embeddings = model.get_input_embeddings()(batch.input_ids)
    if prompt is not None:
        virtual = prompt.to(model.device, embeddings.dtype).expand(2, -1, -1)
        embeddings = torch.cat([virtual, embeddings], dim=1)
        mask = nn.functional.pad(mask, (prompt.shape[0], 0), value=1)
    label_head = _label_head_of(model)
    label_head.choose(rows, columns + embeddings.shape[1] - batch.input_ids.shape[1] - 1)
    with _evaluating(model):
        model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions_of(mask),
            use_cache=False,
        )
    assert label_head.hidden is not None
    return label_head.hidden


@torch.no_grad()
def _difference(
    packed: PackedNetwork, expected: torch.Tensor, prompt: torch.Tensor | None
) -> float:
    """The largest difference from ``_padded_hidden``, as a share of its largest number."""
    with _evaluating(packed.model):
        packed.run(_trial_batch(packed.model.device), prompt)
    found = packed.label_head.hidden
    assert found is not None
    return float((expected - found).abs().max() / expected.abs().max())


def _trial_batch(device: torch.device) -> TokenBatch:
    """Two rows, of five tokens and of three; the first of each is not learned."""
    input_ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 0, 0]], device=device)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device)
    labels = torch.where(mask == 1, input_ids, IGNORED_LABEL)
    labels[:, 0] = IGNORED_LABEL
    return TokenBatch((1, 2), input_ids, mask, labels, int(mask.sum()), int(mask.sum()) - 2)


@contextlib.contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """No dropout, for as long as this lasts."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _may_be_packed(model: PreTrainedModel) -> bool:
    """Whether to try: attention comes from outside, positions from the caller, no state."""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return (
        not model.config.is_encoder_decoder
        and model._supports_attention_backend
        and "position_ids" in inspect.signature(model.forward).parameters
        and set(layer_types) <= {"full_attention", "sliding_attention", "chunked_attention"}
    )


def _label_head_of(model: PreTrainedModel) -> LabelHead:
    (label_head,) = (layer for layer in model.modules() if isinstance(layer, LabelHead))
    return label_head


def _type_of(model: PreTrainedModel) -> str:
    return str(model.config.model_type)
