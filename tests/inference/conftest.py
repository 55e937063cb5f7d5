"""Base models and tuned prompts that every engine test uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.prompts.soft_prompt import PromptPlace, SoftPrompt
from luthier.resources.base_model import BaseModel


class GivenPrompt(Adapter):
    """The adapter contract with tensors that a test chooses, broken ones included."""

    method = "given_prompt"

    def __init__(
        self, decoder: torch.Tensor | None = None, encoder: torch.Tensor | None = None
    ) -> None:
        self._tensors = SoftPromptTensors(decoder=decoder, encoder=encoder)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(())

    def soft_prompt(self) -> SoftPromptTensors:
        return self._tensors

    def content_hash(self) -> str:
        parts = (self._tensors.decoder, self._tensors.encoder)
        return "".join("-" if part is None else part.numpy().tobytes().hex() for part in parts)

    def peft_config(self) -> dict[str, Any]:
        return {}

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        return {}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        return self


def random_prompt(
    base_model: BaseModel, *, seed: int, num_virtual_tokens: int = 6, parts: str = ""
) -> SoftPrompt:
    """A soft prompt of N(0, 1) rows, like the tiny models' embeddings.

    ``parts`` is ``decoder``, ``encoder`` or ``both``; by default where the kind usually has it.
    """
    default: PromptPlace = "decoder" if base_model.kind == "causal" else "encoder"
    named: dict[str, tuple[PromptPlace, ...]] = {
        "": (default,),
        "decoder": ("decoder",),
        "encoder": ("encoder",),
        "both": ("encoder", "decoder"),
    }
    places = named[parts]
    generator = torch.Generator().manual_seed(seed)
    shape = (num_virtual_tokens * len(places), base_model.hidden_size)
    rows = torch.randn(shape, generator=generator)
    return SoftPrompt(rows, kind=base_model.kind, places=places)


@pytest.fixture(scope="session")
def make_prompt() -> Callable[..., SoftPrompt]:
    """Makes random soft prompts."""
    return random_prompt


@pytest.fixture(scope="session")
def given_prompt() -> type[GivenPrompt]:
    """Makes soft prompts of given tensors."""
    return GivenPrompt


@pytest.fixture(scope="session")
def causal_base(tiny_causal_dir: Path) -> BaseModel:
    """The tiny Llama-type model."""
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    return BaseModel.from_memory(model, tokenizer, name="tiny-causal")


@pytest.fixture(scope="session")
def seq2seq_base(tiny_seq2seq_dir: Path) -> BaseModel:
    """The tiny T5-type model."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_seq2seq_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_seq2seq_dir)
    return BaseModel.from_memory(model, tokenizer, name="tiny-seq2seq")


@pytest.fixture(params=["causal", "seq2seq"])
def base_model(request: pytest.FixtureRequest) -> BaseModel:
    """Each kind of base model in turn."""
    base: BaseModel = request.getfixturevalue(f"{request.param}_base")
    return base
