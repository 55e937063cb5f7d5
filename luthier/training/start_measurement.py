"""What an adapter that begins from data is shown: the first batches of its training.

Rows go through the bare base model one by one, without dropout and without padding, so that what a
layer reads is what is there, for encoders and decoders alike. Every process of a training looks at
the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import alog
import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.base import Adapter
from luthier.adapters.model_inputs import prepare_inputs
from luthier.adapters.module_tree import own_module_tree
from luthier.adapters.start_probe import AnyProbe, GradientProbe, InputProbe
from luthier.adapters.storage import read_adapter_files
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import CancelledError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.checkpoints import ADAPTER_FOLDER
from luthier.training.data.bucketing import Batch
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL, TrainingData
from luthier.training.data.row_share import RowShare, batch_of
from luthier.training.losses import cross_entropy_sum
from luthier.training.objective import label_weights, num_units
from luthier.training.processes.parallel import ProcessGroup

log = alog.use_channel(__name__)


def begin_from_data(
    base_model: BaseModel,
    adapter: Adapter,
    data: TrainingData,
    options: TrainingOptions,
    *,
    group: ProcessGroup,
    should_stop: Callable[[], bool],
    checkpoint: Path | None = None,
) -> None:
    """Give an adapter the first numbers that depend on data, if it has such.

    Args:
        base_model: Not changed.
        adapter: Changed, if it has a ``start_probe``.
        data: Of the training.
        options: Of the training.
        group: The processes that train together; each calls this.
        should_stop: Asked before each row.
        checkpoint: The one that the training goes on from: it knows how the adapter began. None
            looks at the data.

    Raises:
        TrainingDataError: If the data does not suffice.
        CancelledError: If ``should_stop`` said so.
        ArtifactError: If the checkpoint is not of such a training.
    """
    probe = adapter.start_probe()
    if probe is None:
        return
    if checkpoint is not None:
        probe.resume(*read_adapter_files(checkpoint / ADAPTER_FOLDER))
        return
    batches = _first_batches(data, RowShare(base_model, options), probe.num_batches)
    log.info("the start of the adapter is measured: batches=%d", len(batches))
    with _WatchedModel(base_model, probe, options) as model:
        for batch in batches:
            rows = [batch_of([index], data, base_model, epoch=0) for index in batch]
            units = sum(num_units(row, options.loss_function) for row in rows)
            for row in rows:
                if group.any(should_stop()):
                    raise CancelledError("training was cancelled before its first update")
                model.show(row, units)
            probe.end_batch()
    probe.begin()
    group.copy_from_main(probe.start_tensors())


def _first_batches(data: TrainingData, share: RowShare, count: int) -> list[Batch]:
    windows = share.windows(data.lengths, epoch=0)
    return [batch for window in windows for batch in window][:count]


class _WatchedModel:
    """The bare base model, with hooks on the layers that a probe asks for.

    Works on layers of its own around the base's tensors.
    """

    def __init__(self, base_model: BaseModel, probe: AnyProbe, options: TrainingOptions) -> None:
        self._base_model = base_model
        self._probe = probe
        self._options = options
        self._model: PreTrainedModel = own_module_tree(base_model.model).eval()
        self._is_label: torch.Tensor | None = None
        #: What layers read in the row under way, so that equal inputs are one object.
        self._read: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> _WatchedModel:
        for path in self._probe.paths:
            layer = self._model.get_submodule(path)
            self._hooks.append(layer.register_forward_hook(self._hook_of(path)))
        if isinstance(self._probe, GradientProbe):
            # No weight asks for a gradient, so what the layers read must.
            embeddings = [each for each in self._model.modules() if isinstance(each, nn.Embedding)]
            self._hooks += [each.register_forward_hook(_require_gradient) for each in embeddings]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def show(self, row: TokenBatch, units: float) -> None:
        """Run one row, backward too if gradients are asked for.

        Args:
            row: A batch of one.
            units: What the losses of its batch are divided by.
        """
        is_causal = self._base_model.kind == "causal"
        columns = torch.nonzero(row.labels[0] != IGNORED_LABEL).flatten()
        self._is_label = row.labels[0] != IGNORED_LABEL if is_causal else None
        self._read = []
        inputs = prepare_inputs(
            self._base_model,
            None,
            row.input_ids,
            row.attention_mask,
            decoder_input_ids=None if is_causal else self._shifted_right(row.labels),
        ).as_kwargs()
        if isinstance(self._probe, InputProbe):
            with torch.no_grad():
                self._model(use_cache=False, **inputs)
            return
        with torch.enable_grad():
            inputs["inputs_embeds"] = inputs["inputs_embeds"].detach().requires_grad_()
            logits = self._model(use_cache=False, **inputs).logits[0]
            # A causal model's state at one token predicts the next.
            places = columns - int(is_causal)
            weights = label_weights(row, self._options.loss_function)
            loss_sum = cross_entropy_sum(logits[places], row.labels[0, columns], weights)
            (loss_sum / units).backward()

    def _hook_of(self, path: str) -> Callable[[nn.Module, Sequence[torch.Tensor], Any], None]:
        probe = self._probe

        def look(_: nn.Module, arguments: Sequence[torch.Tensor], output: torch.Tensor) -> None:
            inputs = self._flat(arguments[0])
            if isinstance(probe, InputProbe):
                fits = self._is_label is not None and len(self._is_label) == len(inputs)
                probe.see_inputs(path, inputs, self._is_label if fits else None)
            elif output.requires_grad:
                output.register_hook(
                    lambda grad: probe.see_gradients(path, inputs, grad.reshape(-1, grad.shape[-1]))
                )

        return look

    def _flat(self, read: torch.Tensor) -> torch.Tensor:
        """[N, in] of what a layer read, the same object for the same tensor."""
        for seen, flat in self._read:
            if seen is read:
                return flat
        flat = read.detach().reshape(-1, read.shape[-1])
        self._read.append((read, flat))
        return flat

    def _shifted_right(self, labels: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = self._model.prepare_decoder_input_ids_from_labels(labels)
        return shifted


def _require_gradient(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_()
