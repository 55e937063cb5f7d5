"""Multitask prompt tuning: a shared prompt times a low-rank matrix of each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from luthier.adapters.base import SoftPromptTensors
from luthier.adapters.prompts.soft_prompt import (
    MULTITASK_TYPE,
    BaseModelKind,
    PromptPlace,
    PromptTable,
    multitask_config,
    peft_type_of,
    prompt_config,
    share_out,
)
from luthier.errors import InvalidInputError

NUM_RANKS = 1


class MultitaskSoftPrompt(PromptTable):
    """Virtual tokens ``prompt_embeddings * (columns @ rows)`` of one of several tasks.

    Args:
        prompt: Shared by all tasks, places one after another as in ``SoftPrompt``, [N·P, D].
        task_columns: One matrix per task, [tasks, N·P, R].
        task_rows: One matrix per task, [tasks, R, D].
        kind: Of the base model.
        places: Where the virtual tokens stand.
        task_id: The task whose matrices are used; 0 is PEFT's for a model tuned to one task.

    Raises:
        InvalidInputError: If shapes, places or the task do not fit.

    Source:
        Wang et al. 2023, https://arxiv.org/abs/2303.02861
    """

    method: ClassVar[str] = "multitask_prompt_tuning"

    def __init__(
        self,
        prompt: torch.Tensor,
        task_columns: torch.Tensor,
        task_rows: torch.Tensor,
        *,
        kind: BaseModelKind,
        places: tuple[PromptPlace, ...],
        task_id: int = 0,
    ) -> None:
        super().__init__(prompt, kind=kind, places=places)
        _check_factors(prompt, task_columns, task_rows, task_id=task_id)
        self.task_id = task_id
        self.prefix_task_cols = nn.Parameter(task_columns.detach().clone())
        self.prefix_task_rows = nn.Parameter(task_rows.detach().clone())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``prompt_embeddings`` and the tasks' ``prefix_task_cols`` and ``prefix_task_rows``."""
        yield "prompt_embeddings", self.prompt_embeddings
        yield "prefix_task_cols", self.prefix_task_cols
        yield "prefix_task_rows", self.prefix_task_rows

    def soft_prompt(self) -> SoftPromptTensors:
        """The product for this adapter's task by place, each [P, D]."""
        factors = self.prefix_task_cols[self.task_id] @ self.prefix_task_rows[self.task_id]
        return share_out(self.prompt_embeddings * factors, self.places)

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``MultitaskPromptTuningConfig``."""
        peft_type = peft_type_of(self.kind, self.places, method_type=MULTITASK_TYPE)
        num_tasks, _, rank = self.prefix_task_cols.shape
        config = prompt_config(self, peft_type=peft_type)
        return multitask_config(config, num_tasks=num_tasks, rank=rank)

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """The three parameters, detached."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes)."""
        prompt = self.prompt_embeddings
        if prompt.device == device and prompt.dtype == dtype:
            return self
        return type(self)(
            *(p.detach().to(device=device, dtype=dtype) for _, p in self.named_parameters()),
            kind=self.kind,
            places=self.places,
            task_id=self.task_id,
        )

    def _settings(self) -> list[object]:
        return [self.kind, *self.places, self.task_id]


def _check_factors(
    prompt: torch.Tensor, task_columns: torch.Tensor, task_rows: torch.Tensor, *, task_id: int
) -> None:
    rows, hidden_size = prompt.shape
    columns_shape, rows_shape = list(task_columns.shape), list(task_rows.shape)
    if task_columns.ndim != 3 or task_rows.ndim != 3 or 0 in (*columns_shape, *rows_shape):
        raise InvalidInputError(
            f"task columns and rows must be [tasks, virtual tokens, rank] and [tasks, rank, hidden "
            f"size], got {columns_shape} and {rows_shape}"
        )
    num_tasks, _, rank = columns_shape
    if columns_shape[1] != rows or rows_shape != [num_tasks, rank, hidden_size]:
        raise InvalidInputError(
            f"task columns {columns_shape} and rows {rows_shape} do not fit a prompt of "
            f"{[rows, hidden_size]}"
        )
    if not 0 <= task_id < num_tasks:
        raise InvalidInputError(f"'task_id' {task_id} does not exist, there are {num_tasks} tasks")
