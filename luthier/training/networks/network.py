"""The base model as training sees it: a batch of tokens in, the sum of its label losses out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.model_inputs import prepare_inputs
from luthier.adapters.module_tree import own_module_tree
from luthier.data_model.options.quantisation import NONE
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL
from luthier.training.losses import (
    cross_entropy_sum,
    projected_label_losses,
    projected_token_scores,
    token_scores,
)
from luthier.training.networks.compilation import compile_layers
from luthier.training.networks.dropout import set_dropout
from luthier.training.networks.embedding_noise import EmbeddingNoise
from luthier.training.networks.label_head import LabelHead, install_label_head
from luthier.training.networks.packed_network import pack_if_exact
from luthier.training.processes.parallel import ProcessGroup
from luthier.training.processes.sharding import ShardedModel

#: Decoder-only models for which a test holds loss and gradient of a prompt computed once per batch
#: against a prompt in every row. Others get it in every row.
SHARED_PREFIX_MODEL_TYPES = frozenset(
    {"bloom", "gpt2", "gpt_neox", "granite", "llama", "mistral", "opt", "phi", "qwen2", "qwen3"}
)
#: Prompt tokens that must be saved for one more, small pass through the model to pay.
_MIN_SAVED_TOKENS = 16


class TrainingNetwork:
    """Runs batches through a base model with an adapter.

    Works on layers of its own around the same tensors; neither the base model's object nor the
    adapter's is changed, and what happens to the adapter's tensors is seen at once.

    Args:
        base_model: The frozen base.
        adapter: What is learned.
        base_dropout: Whether the model's own dropout is active.
        intermediate_dropout: Share that is dropped wherever the model can, instead; 0 for none.
        gradient_checkpointing: Whether activations are computed twice instead of kept.
        shares_prefix: Whether the virtual tokens of a causal model may be computed once per batch
            instead of once per row. Loss and gradient are the same up to rounding.
        packs_rows: Whether the rows of a causal batch may be laid end to end instead of padded,
            where the model gives the same then. Loss and gradient are the same up to rounding.
        embedding_noise: Added to the embeddings of tokens while it is applied, or None. Rows are
            padded then, because each has noise of its own.
        computes_in: Half precision that layers compute in where rounding harms little, or None for
            the weights' own.
        is_compiled: Whether the model's layers are compiled. Rows are padded then: packed ones have
            another layout in each batch, and each would be compiled anew.
        sharing: The processes that the weights are shared out among, or None. Rows are padded then,
            and ``learned`` has the shares of what is learned.
        learned: What will be learned of the weights, by name; counts with ``sharing``.

    Raises:
        InvalidInputError: If the model has no dropout and some is asked for.
        NotSupportedError: If the base model has no checkpointing or no output layer to speak of.
    """

    def __init__(
        self,
        base_model: BaseModel,
        adapter: Adapter,
        *,
        base_dropout: bool = False,
        intermediate_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        shares_prefix: bool = True,
        packs_rows: bool = True,
        embedding_noise: EmbeddingNoise | None = None,
        computes_in: torch.dtype | None = None,
        is_compiled: bool = False,
        sharing: ProcessGroup | None = None,
        learned: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._base_model = base_model
        self._adapter = adapter
        self._model = own_module_tree(adapter.tuned_model(base_model.model)).eval()
        self._label_head = install_label_head(self._model)
        if intermediate_dropout:
            if not set_dropout(self._model, intermediate_dropout):
                raise InvalidInputError(
                    f"'intermediate_dropout' is {intermediate_dropout}, but base model "
                    f"{base_model.name!r} has no layer that drops anything"
                )
            base_dropout = True
        self._is_training = base_dropout or gradient_checkpointing
        self._model.train(self._is_training)
        if gradient_checkpointing:
            if not self._model.supports_gradient_checkpointing:
                raise NotSupportedError(
                    f"base model {base_model.name!r} does not offer gradient checkpointing"
                )
            self._model.activation_checkpointing_enable()
            if not base_dropout:
                set_dropout(self._model, 0.0)
        self._embed: nn.Module = self._model.get_input_embeddings()
        if embedding_noise is not None:
            embedding_noise.listen_to(self._embed)
        self._shares_prefix = (
            shares_prefix
            and sharing is None
            and not is_compiled
            and not gradient_checkpointing
            and base_model.kind == "causal"
            and self._model.config.model_type in SHARED_PREFIX_MODEL_TYPES
        )
        self._packed = None
        has_prefix = adapter.prefix_key_values() is not None
        if has_prefix and gradient_checkpointing:
            raise NotSupportedError(
                "prefix tuning has no gradient checkpointing: activations would be computed again "
                "without the cache that the prefix is in"
            )
        may_pack = not (embedding_noise or has_prefix or sharing or is_compiled)
        if packs_rows and base_model.kind == "causal" and may_pack:
            has_dropout = base_dropout or adapter.has_dropout
            prompt = adapter.soft_prompt().decoder
            self._packed = pack_if_exact(self._model, prompt, shares_text=not has_dropout)
        self._computes_in = computes_in
        if is_compiled:
            compile_layers(self._model)
        self._sharded = None
        if sharing is not None:
            if base_model.quantization != NONE:
                raise NotSupportedError(
                    f"'use_fsdp' shares out numbers, and base model {base_model.name!r} is "
                    f"quantised to {base_model.quantization}"
                )
            is_full = isinstance(adapter, FullWeights)
            self._sharded = ShardedModel(
                self._model,
                sharing,
                learned=learned if is_full and learned is not None else {},
                whole=set() if is_full else {each for _, each in adapter.named_parameters()},
            )

    @property
    def packs_rows(self) -> bool:
        """Whether rows are laid end to end; a batch that cannot be is padded all the same."""
        return self._packed is not None

    @property
    def learned_shares(self) -> Mapping[str, nn.Parameter]:
        """The shares of what is learned, by name; empty where weights are whole."""
        return {} if self._sharded is None else self._sharded.learned

    def loss_sum(
        self, batch: TokenBatch, label_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-entropy of the batch's labels, summed.

        Args:
            batch: Rows.
            label_weights: What each of the N labels counts, row after row, fp32 [N]; 1 if None.

        Returns:
            A scalar in fp32, or fp64 if the model is, differentiable in the adapter's parameters.
        """
        if self._sharded is not None:
            return self._sharded.run(lambda: self._loss_sum(batch, label_weights))
        return self._loss_sum(batch, label_weights)

    def _loss_sum(self, batch: TokenBatch, label_weights: torch.Tensor | None) -> torch.Tensor:
        label_head, logits, labels = self._run(batch)
        projection = self._projection(label_head)
        if projection is not None:
            total, _ = projected_label_losses(*projection, labels, label_weights)
            return total
        return cross_entropy_sum(logits[0], labels, label_weights)

    def token_scores(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of each label, and the model's first choice in its place.

        Args:
            batch: Rows.

        Returns:
            fp32 [N], or fp64 if the model is, and int64 [N], row after row; without gradients.
        """
        if self._sharded is not None:
            return self._sharded.run(lambda: self._token_scores(batch))
        return self._token_scores(batch)

    def _token_scores(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        label_head, logits, labels = self._run(batch)
        projection = self._projection(label_head)
        if projection is not None:
            return projected_token_scores(*projection, labels)
        return token_scores(logits[0], labels)

    def _projection(
        self, label_head: LabelHead
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        """Hidden states, weight and bias whose product are the logits; None if there are logits."""
        head, hidden = label_head.head, label_head.hidden
        if not (label_head.keeps_hidden and isinstance(head, nn.Linear)):
            return None
        assert hidden is not None
        weight, bias = head.weight, head.bias
        if self._computes_in is None:
            return hidden, weight, bias
        dtype = self._computes_in
        return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

    def _run(self, batch: TokenBatch) -> tuple[LabelHead, torch.Tensor, torch.Tensor]:
        """``_pass`` in the precision that was asked for."""
        dtype, device = self._computes_in, batch.input_ids.device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            return self._pass(batch)

    def _pass(self, batch: TokenBatch) -> tuple[LabelHead, torch.Tensor, torch.Tensor]:
        """One pass in the cheapest way there is: the head that has seen the labelled places, the
        logits that it gave, [1, N, V], and the labels, row after row, [N]."""
        if self._packed is not None:
            passed = self._packed.run(batch, self._adapter.soft_prompt().decoder)
            if passed is not None:
                return self._packed.label_head, *passed
        rows, columns = torch.nonzero(batch.labels != IGNORED_LABEL, as_tuple=True)
        labels = batch.labels[rows, columns]
        is_causal = self._base_model.kind == "causal"
        if is_causal:
            logits = self._logits_with_shared_prefix(batch, rows, columns)
            if logits is not None:
                return self._label_head, logits, labels
        inputs = prepare_inputs(
            self._base_model,
            self._adapter,
            batch.input_ids,
            batch.attention_mask,
            decoder_input_ids=None
            if is_causal
            else shifted_right(batch.labels, self._model.config),
            embed=self._embed,
        )
        # A causal model's state at one token predicts the next; a decoder reads shifted labels.
        places = columns + inputs.num_prefix_positions - int(is_causal)
        self._label_head.choose(rows, places)
        return self._label_head, self._logits(**inputs.as_kwargs()), labels

    def _logits(self, **inputs: object) -> torch.Tensor:
        """One pass through the model."""
        logits: torch.Tensor = self._model(use_cache=False, **inputs).logits
        return logits

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout and no gradients, for as long as this lasts."""
        models = [self._model, *([self._packed.model] if self._packed else [])]
        for model in models:
            model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for model in models:
                model.train(self._is_training)

    def _logits_with_shared_prefix(
        self, batch: TokenBatch, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor | None:
        """A pass with the virtual tokens computed once, or None where that cannot be."""
        prompt = self._adapter.soft_prompt().decoder if self._shares_prefix else None
        if prompt is None or prompt.shape[0] * (len(batch.rows) - 1) < _MIN_SAVED_TOKENS:
            return None
        if bool((columns == 0).any()):
            return None  # A label in the first column is predicted from the last virtual token.
        embeddings = self._embed(batch.input_ids)
        cache = self._prefix_cache(prompt.to(embeddings.dtype), num_rows=len(batch.rows))
        if cache is None:
            return None
        self._label_head.choose(rows, columns - 1)
        return self._logits(
            inputs_embeds=embeddings,
            attention_mask=nn.functional.pad(batch.attention_mask, (prompt.shape[0], 0), value=1),
            past_key_values=cache,
        )

    def _prefix_cache(self, prompt: torch.Tensor, *, num_rows: int) -> DynamicCache | None:
        """Keys and values of the virtual tokens for every row, or None if the model keeps others.

        The rows' keys are views of one tensor, so their gradients add up in it.
        """
        nothing = torch.zeros(0, dtype=torch.long, device=prompt.device)
        self._label_head.choose(nothing, nothing)
        cache = self._model(inputs_embeds=prompt[None], use_cache=True).past_key_values
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return None
        for layer in cache.layers:
            layer.keys = layer.keys.expand(num_rows, -1, -1, -1)
            layer.values = layer.values.expand(num_rows, -1, -1, -1)
        kept: DynamicCache = cache
        return kept


def shifted_right(labels: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """What a decoder reads to write labels: its start token, then all labels but the last.

    Args:
        labels: [B, U].
        config: Of a seq2seq model.

    Returns:
        Token ids, [B, U].
    """
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED_LABEL, config.pad_token_id)
