"""Prompt tuning: learned virtual tokens before the input embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.errors import InvalidInputError

#: Before which stack virtual tokens stand. A causal model is a decoder without an encoder.
PromptPlace = Literal["encoder", "decoder"]
BaseModelKind = Literal["causal", "seq2seq"]
PEFT_TASK_TYPES: dict[BaseModelKind, str] = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
MAX_VIRTUAL_TOKENS = 4096
PROMPT_TUNING_TYPE = "PROMPT_TUNING"
MULTITASK_TYPE = "MULTITASK_PROMPT_TUNING"
DECODER_ONLY_TYPE = "LUTHIER_DECODER_PROMPT_TUNING"


class PromptTable(Adapter):
    """An adapter whose virtual tokens are rows of one table, places one after another.

    Args:
        prompt: The rows, [N·P, D] for N places; copied.
        kind: Of the base model.
        places: Where the virtual tokens stand.

    Raises:
        InvalidInputError: If places and kind do not fit, or the rows cannot be shared out.
    """

    def __init__(
        self, prompt: torch.Tensor, *, kind: BaseModelKind, places: tuple[PromptPlace, ...]
    ) -> None:
        self.kind: BaseModelKind = kind
        self.places = check_places(places, kind=kind)
        check_prompt(prompt, num_places=len(places))
        self.prompt_embeddings = nn.Parameter(prompt.detach().clone())

    @property
    def num_virtual_tokens(self) -> int:
        """P, in each place."""
        return self.prompt_embeddings.shape[0] // len(self.places)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.prompt_embeddings.shape[1]


class SoftPrompt(PromptTable):
    """P virtual tokens before the input of the encoder, the decoder, or of each.

    Args:
        prompt: Rows of every place one after another, the encoder's first, [N·P, D] with N the
            number of places. Copied.
        kind: Of the base model.
        places: Where the virtual tokens stand; ``("decoder",)`` for a causal model.

    Raises:
        InvalidInputError: If places and kind do not fit, or the rows cannot be shared out.

    Source:
        Lester et al. 2021, https://arxiv.org/abs/2104.08691
    """

    method: ClassVar[str] = "prompt_tuning"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The virtual tokens: ``prompt_embeddings``, [N·P, D]."""
        yield "prompt_embeddings", self.prompt_embeddings

    def soft_prompt(self) -> SoftPromptTensors:
        """The virtual tokens by place, each [P, D]."""
        return share_out(self.prompt_embeddings, self.places)

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``PromptTuningConfig``; before encoder and decoder both, its
        ``MultitaskPromptTuningConfig`` with factors of one, which computes the same."""
        peft_type = peft_type_of(self.kind, self.places, method_type=PROMPT_TUNING_TYPE)
        config = prompt_config(self, peft_type=peft_type)
        return multitask_config(config, num_tasks=1, rank=1) if len(self.places) == 2 else config

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """``prompt_embeddings``, and factors of one where ``peft_config`` is a multitask one."""
        prompt = self.prompt_embeddings.detach()
        state = {"prompt_embeddings": prompt}
        if len(self.places) == 2:
            state["prefix_task_cols"] = prompt.new_ones(1, prompt.shape[0], 1)
            state["prefix_task_rows"] = prompt.new_ones(1, 1, prompt.shape[1])
        return state

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes)."""
        prompt = self.prompt_embeddings
        if prompt.device == device and prompt.dtype == dtype:
            return self
        return type(self)(
            prompt.detach().to(device=device, dtype=dtype), kind=self.kind, places=self.places
        )

    def _settings(self) -> list[object]:
        return [self.kind, *self.places]


def check_places(places: tuple[PromptPlace, ...], *, kind: str) -> tuple[PromptPlace, ...]:
    """Put places into order, the encoder first.

    Args:
        places: In any order.
        kind: Of the base model.

    Returns:
        The same places, the encoder first.

    Raises:
        InvalidInputError: If there is none, one is unknown, or a causal model gets an encoder's.
    """
    known: tuple[PromptPlace, ...] = ("decoder",) if kind == "causal" else ("encoder", "decoder")
    if not places or len(set(places)) != len(places) or not set(places) <= set(known):
        raise InvalidInputError(
            f"virtual tokens can stand before {' and '.join(known)} of a {kind} base model, "
            f"got {list(places)}"
        )
    return tuple(place for place in known if place in places)


def check_prompt(prompt: torch.Tensor, *, num_places: int) -> None:
    """Refuse what is no soft prompt.

    Args:
        prompt: Rows of every place.
        num_places: How many places share them.

    Raises:
        InvalidInputError: Naming the shape or dtype.
    """
    if prompt.ndim != 2 or not prompt.is_floating_point() or 0 in prompt.shape:
        raise InvalidInputError(
            f"a soft prompt must be float numbers of shape [virtual tokens, hidden size], "
            f"got {prompt.dtype} {list(prompt.shape)}"
        )
    num_virtual_tokens, rest = divmod(prompt.shape[0], num_places)
    if rest or num_virtual_tokens > MAX_VIRTUAL_TOKENS:
        raise InvalidInputError(
            f"{prompt.shape[0]} rows of virtual tokens do not fit {num_places} place(s) of at most "
            f"{MAX_VIRTUAL_TOKENS} each"
        )


def share_out(rows: torch.Tensor, places: tuple[PromptPlace, ...]) -> SoftPromptTensors:
    """Split [N·P, D] by place."""
    by_place = dict(zip(places, rows.chunk(len(places)), strict=True))
    return SoftPromptTensors(decoder=by_place.get("decoder"), encoder=by_place.get("encoder"))


def peft_type_of(kind: str, places: tuple[PromptPlace, ...], *, method_type: str) -> str:
    """The ``peft_type`` under which PEFT computes what the adapter computes.

    PEFT's prompt tuning puts virtual tokens before a seq2seq encoder only; its multitask prompt
    tuning can put them before encoder and decoder. The decoder alone it cannot express, so the
    folder gets a type that PEFT refuses, rather than one it would run as something else.
    """
    if kind == "seq2seq" and places == ("decoder",):
        return DECODER_ONLY_TYPE
    return MULTITASK_TYPE if len(places) == 2 else method_type


def prompt_config(prompt: Any, *, peft_type: str) -> dict[str, Any]:
    """The keys that PEFT's prompt tuning configs share."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "num_attention_heads": None,
        "num_layers": None,
        "num_transformer_submodules": len(prompt.places),
        "num_virtual_tokens": prompt.num_virtual_tokens,
        "peft_type": peft_type,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": PEFT_TASK_TYPES[prompt.kind],
        "token_dim": prompt.hidden_size,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }


def multitask_config(config: dict[str, Any], *, num_tasks: int, rank: int) -> dict[str, Any]:
    """``config`` with the keys that PEFT's multitask prompt tuning adds."""
    return {
        **config,
        "num_ranks": rank,
        "num_tasks": num_tasks,
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": 0,
    }
