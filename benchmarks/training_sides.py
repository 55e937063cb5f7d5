"""The sides of the training benchmark, each in a process of its own.

Every side gets the same rows in the same batches, the same start and options, and trains from the
start each time it is asked. What is timed is training alone: models and adapters are made before.
Luthier reads and tokenizes its records within that time; the others get token ids.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from base_models import load_base
from caikit_nlp_style import train_caikit_nlp_style
from peft_models import peft_lora, peft_prompt, random_prompt
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.data.bucketing import plan_epoch
from luthier.training.data.collation import collate
from luthier.training.data.examples import Example
from luthier.training.loop import tune
from luthier.training.preparation import read_data

OURS, CAIKIT, TRAINER = "luthier", "caikit_nlp_style", "trainer_peft"
TRL, TRL_PACKING = "trl", "trl_packing"
OTHERS = (CAIKIT, TRAINER, TRL, TRL_PACKING)
METHODS = ("prompt_tuning", "lora_qv", "lora_all", "full_fine_tuning")
LORA_RANK, LORA_ALPHA, LORA_SEED = 8, 16, 7


@dataclass(frozen=True)
class Task:
    """What is trained.

    Args:
        method: One of ``METHODS``.
        model: Name of the base model; empty for a tiny one.
        records: Rows to train on, once.
        options: Of the training; batches of ``batch_size`` rows in random order.
        num_virtual_tokens: For prompt tuning.
        row_length: Tokens that the caikit-nlp-style loop pads to.
        threads: Of torch.
    """

    method: str
    model: str
    records: tuple[GenerationTrainRecord, ...]
    options: TrainingOptions
    num_virtual_tokens: int
    row_length: int
    threads: int


def serve_side(connection: Connection, side: str, task: Task) -> None:
    """Load the base model, then train each time something is received, until None is."""
    torch.set_num_threads(task.threads)
    _serve(connection, side, task, load_base(task.model, is_tiny=not task.model))


def _serve(connection: Connection, side: str, task: Task, base_model: BaseModel) -> None:
    batches = make_batches(task, base_model)
    make_training = {
        OURS: _ours,
        CAIKIT: _caikit,
        TRAINER: _trainer,
        TRL: functools.partial(_trl, packing=False),
        TRL_PACKING: functools.partial(_trl, packing=True),
    }[side]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
    loaded_kib = _memory_kib("VmRSS")
    connection.send({"num_tokens": sum(len(e.input_ids) for batch in batches for e in batch)})
    while connection.recv() is not None:
        training = make_training(task, base_model, batches)
        cpu, wall = time.process_time(), time.perf_counter()
        losses = training()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        extra_mib = (_memory_kib("VmHWM") - loaded_kib) / 1024
        connection.send({"cpu": cpu, "wall": wall, "losses": losses, "extra_mib": extra_mib})
        del training
        gc.collect()


def make_batches(task: Task, base_model: BaseModel) -> list[list[Example]]:
    """The batches that Luthier's loop makes of the records, in its order."""
    adapter = make_adapter(task, base_model)
    data, _ = read_data(
        base_model, adapter, task.records, None, options=task.options, should_stop=lambda: False
    )
    windows = plan_epoch(
        data.lengths,
        batch_size=task.options.batch_size,
        accumulate_steps=1,
        seed=task.options.seed,
        epoch=0,
        group_by_length=False,
    )
    return [[data.examples[row] for row in rows] for window in windows for rows in window]


def _ours(task: Task, base_model: BaseModel, batches: Any) -> Callable[[], list[float]]:
    adapter = make_adapter(task, base_model)

    def train() -> list[float]:
        result = tune(base_model, adapter, task.records, options=task.options)
        return [point.value for point in result.losses]

    return train


def _caikit(
    task: Task, base_model: BaseModel, batches: list[list[Example]]
) -> Callable[[], list[float]]:
    model = _peft_model(task, base_model)
    return lambda: train_caikit_nlp_style(
        model,
        batches,
        pad_token_id=base_model.pad_token_id,
        row_length=task.row_length,
        learning_rate=task.options.learning_rate,
    )


def _trainer(
    task: Task, base_model: BaseModel, batches: list[list[Example]]
) -> Callable[[], list[float]]:
    """transformers' Trainer: pads to the longest row of a batch, no checkpointing."""

    def pad(examples: list[Example]) -> dict[str, torch.Tensor]:
        batch = collate(
            examples,
            pad_token_id=base_model.pad_token_id,
            is_seq2seq=False,
            device=torch.device("cpu"),
        )
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
        }

    trainer = _InOrder(
        model=_peft_model(task, base_model),
        args=TrainingArguments(
            output_dir="/nonexistent",
            num_train_epochs=1,
            per_device_train_batch_size=task.options.batch_size,
            learning_rate=task.options.learning_rate,
            weight_decay=task.options.weight_decay,
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=[example for batch in batches for example in batch],
        data_collator=pad,
    )

    def train() -> list[float]:
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


def _trl(
    task: Task, base_model: BaseModel, batches: list[list[Example]], *, packing: bool
) -> Callable[[], list[float]]:
    # Only the environment of ``make bench-peers`` has TRL.
    side = importlib.import_module("peers.trl_side")
    training: Callable[[], list[float]] = side.make_trl_training(
        _peft_model(task, base_model),
        base_model.tokenizer,
        batches,
        learning_rate=task.options.learning_rate,
        weight_decay=task.options.weight_decay,
        packing=packing,
    )
    return training


class _InOrder(Trainer):
    """Takes the rows in the order in which it gets them, and says nothing on stdout."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.state.log_history.append({**logs, "step": self.state.global_step})


def make_adapter(task: Task, base_model: BaseModel) -> Adapter:
    """What the task tunes, at its start."""
    if task.method == "full_fine_tuning":
        return FullWeights(base_model.model)
    if task.method == "prompt_tuning":
        return SoftPrompt(
            random_prompt(base_model, task.num_virtual_tokens, seed=0),
            kind="causal",
            places=("decoder",),
        )
    config = LoraConfig(
        rank=LORA_RANK,
        alpha=LORA_ALPHA,
        target_modules=("q_proj", "v_proj") if task.method == "lora_qv" else None,
    )
    return create_lora(base_model.model, config, seed=LORA_SEED)


def _peft_model(task: Task, base_model: BaseModel) -> nn.Module:
    """What ``make_adapter`` is, as PEFT makes it, with the same numbers."""
    if task.method == "full_fine_tuning":
        return copy.deepcopy(base_model.model).requires_grad_(True)
    if task.method == "prompt_tuning":
        prompt = random_prompt(base_model, task.num_virtual_tokens, seed=0)
        return peft_prompt(base_model, prompt)
    return peft_lora(
        base_model, method=task.method, rank=LORA_RANK, alpha=LORA_ALPHA, seed=LORA_SEED
    )


def _memory_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)
