"""The training loop that a user of caikit-nlp has, with the same options, on the same rows.

What it shares with caikit-nlp's, read from its source: every row is padded to max_source_length +
max_target_length + 1 tokens, gradient checkpointing is always on, logits are made for every
position, AdamW steps after each batch. The tokens and labels are those of Luthier, so that both
sides learn the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import get_linear_schedule_with_warmup

from luthier.training.data.examples import IGNORED_LABEL, Example


def train_caikit_nlp_style(
    model: Any,
    batches: Sequence[Sequence[Example]],
    *,
    pad_token_id: int,
    row_length: int,
    learning_rate: float,
) -> list[float]:
    """One pass over the batches; the model keeps what it learned.

    Args:
        model: Of transformers or PEFT; what requires a gradient is learned.
        batches: Rows of each step.
        pad_token_id: Fills rows.
        row_length: Tokens that every row is padded to.
        learning_rate: Of AdamW, falling linearly per update.

    Returns:
        The loss of each step, before its update.
    """
    network = model.get_base_model() if isinstance(model, PeftModel) else model
    network.config.use_cache = False
    network.activation_checkpointing_enable()
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    losses = []
    for batch in batches:
        loss = model(**_collate(batch, pad_token_id, row_length)).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def _collate(
    examples: Sequence[Example], pad_token_id: int, row_length: int
) -> dict[str, torch.Tensor]:
    def padded(rows: list[tuple[int, ...]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (row_length - len(row))] for row in rows])

    inputs = [example.input_ids for example in examples]
    return {
        "input_ids": padded(inputs, pad_token_id),
        "attention_mask": padded([(1,) * len(ids) for ids in inputs], 0),
        "labels": padded([example.labels for example in examples], IGNORED_LABEL),
    }
