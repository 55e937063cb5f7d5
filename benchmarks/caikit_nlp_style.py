"""The training loop that a user of caikit-nlp has, with the same options, on the same rows.

What it shares with caikit-nlp's, read from its source: every row is padded to max_source_length +
max_target_length + 1 tokens, gradient checkpointing is always on, logits are made for every
position, PEFT does the prompt tuning, AdamW steps after each batch. The tokens and labels are those
of Luthier, so that both sides learn the same thing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from transformers import get_linear_schedule_with_warmup

from luthier.resources.base_model import BaseModel
from luthier.training.data.examples import IGNORED_LABEL, Example


@dataclass
class FirstStep:
    """The loss of the first batch and its gradient by parameter, before any update."""

    loss: float
    gradients: dict[str, torch.Tensor]


class CaikitNlpStyleLoop:
    """Prompt tuning through PEFT, or full fine-tuning, of an own copy of the base model.

    Args:
        base_model: Copied.
        soft_prompt: The virtual tokens to start from, [P, D]; None tunes every weight.
        row_length: Tokens that every row is padded to.
        learning_rate: Of AdamW, falling linearly per update.
    """

    def __init__(
        self,
        base_model: BaseModel,
        soft_prompt: torch.Tensor | None,
        *,
        row_length: int,
        learning_rate: float,
    ) -> None:
        self._pad_token_id = base_model.pad_token_id
        self._row_length = row_length
        self._learning_rate = learning_rate
        model = copy.deepcopy(base_model.model)
        model.config.use_cache = False
        model.activation_checkpointing_enable()
        if soft_prompt is None:
            self._model: nn.Module = model.requires_grad_(True)
        else:
            config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(soft_prompt))
            self._model = get_peft_model(model, config)
            with torch.no_grad():
                for parameter in self._model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(soft_prompt)
        self._model.train()

    def run(self, examples: Sequence[Example], *, batch_size: int) -> FirstStep:
        """One pass over the rows in their order; the copy keeps what it learned."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self._learning_rate)
        num_updates = -(-len(examples) // batch_size)
        scheduler = get_linear_schedule_with_warmup(optimizer, 0, num_updates)
        first: FirstStep | None = None
        for start in range(0, len(examples), batch_size):
            loss = self._model(**self._collate(examples[start : start + batch_size])).loss
            loss.backward()
            if first is None:
                first = FirstStep(float(loss), self._gradients())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        assert first is not None
        return first

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {
            name: parameter.grad.clone()
            for name, parameter in self._model.named_parameters()
            if parameter.grad is not None
        }

    def _collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        def padded(rows: list[tuple[int, ...]], filler: int) -> torch.Tensor:
            return torch.tensor([[*row, *[filler] * (self._row_length - len(row))] for row in rows])

        inputs = [example.input_ids for example in examples]
        return {
            "input_ids": padded(inputs, self._pad_token_id),
            "attention_mask": padded([(1,) * len(ids) for ids in inputs], 0),
            "labels": padded([example.labels for example in examples], IGNORED_LABEL),
        }
