"""TRL's SFTTrainer as a side of the training benchmark, with its own defaults.

Only one default is changed: bf16 is off, so that both sides compute the same numbers. Gradient
checkpointing stays on, as TRL has it. With packing, TRL fills sequences of 1,024 tokens and so
makes other batches: the losses of its steps cannot be compared one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import SFTConfig, SFTTrainer

from luthier.training.data.examples import Example


def make_trl_training(
    model: Any,
    tokenizer: Any,
    batches: Sequence[Sequence[Example]],
    *,
    learning_rate: float,
    weight_decay: float,
    packing: bool,
) -> Callable[[], list[float]]:
    """Prepare a trainer for one pass over the batches.

    Args:
        model: With PEFT's adapter on it.
        tokenizer: Its own.
        batches: Rows in the order in which they are to be seen.
        learning_rate: At the schedule's start.
        weight_decay: Of AdamW.
        packing: Fill sequences with several rows.

    Returns:
        What trains, and gives the loss of each step.
    """
    rows = [
        {"input_ids": list(example.input_ids), "labels": list(example.labels)}
        for batch in batches
        for example in batch
    ]
    trainer = _InOrder(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            packing=packing,
            num_train_epochs=1,
            per_device_train_batch_size=1 if packing else len(batches[0]),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
        ),
    )

    def train() -> list[float]:
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


class _InOrder(SFTTrainer):  # type: ignore[misc]
    """Takes the rows in the order in which it gets them, and says nothing on stdout."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.log_history.append({**logs, "step": self.state.global_step})
