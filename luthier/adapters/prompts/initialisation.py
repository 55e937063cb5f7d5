"""The first virtual tokens: PEFT's definitions, drawn from a seed of their own.

PEFT draws from torch's global generator; here a generator of its own is seeded, so a training
neither disturbs nor is disturbed by others. ``torch.manual_seed(seed)`` before PEFT's constructor
gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.adapters.prompts.key_values import prefix_shape_of
from luthier.adapters.prompts.multitask_soft_prompt import NUM_RANKS, MultitaskSoftPrompt
from luthier.adapters.prompts.p_tuning import PTuning, new_p_tuning, require_input_place
from luthier.adapters.prompts.prefix_tuning import PrefixTuning, new_prefix_tuning
from luthier.adapters.prompts.soft_prompt import (
    MAX_VIRTUAL_TOKENS,
    PromptPlace,
    SoftPrompt,
    check_places,
)
from luthier.adapters.prompts.source_prompt import SourcePrompt
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    PromptTuningInit,
    TuningType,
)
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError

if TYPE_CHECKING:
    from luthier.resources.base_model import BaseModel

#: What a tuning of prompts learns.
AnyPrompt = SoftPrompt | MultitaskSoftPrompt | PTuning | PrefixTuning
#: Standard deviation of PEFT's task matrices.
_TASK_STD = 0.02
_PLACES: dict[PromptOutputModelType, PromptPlace] = {
    PromptOutputModelType.ENCODER: "encoder",
    PromptOutputModelType.DECODER: "decoder",
}


def make_adapter(
    base_model: BaseModel,
    *,
    tuning_type: TuningType,
    num_virtual_tokens: int,
    init_method: PromptTuningInit = PromptTuningInit.RANDOM,
    init_text: str | None = None,
    source_prompt: SourcePrompt | None = None,
    source_task: int = 0,
    output_model_types: Sequence[PromptOutputModelType] = (),
    encoder: PromptEncoderOptions | None = None,
    seed: int,
) -> AnyPrompt:
    """Make a fresh adapter, in float32 on the base model's device.

    Args:
        base_model: What it will be tuned for; only read.
        tuning_type: Its method.
        num_virtual_tokens: P, in each place.
        init_method: Where the virtual tokens start.
        init_text: For TEXT: tokenised with special tokens, cut or repeated to all rows.
        source_prompt: For the methods that start from one.
        source_task: For EXACT_SOURCE_TASK: which task's matrices.
        output_model_types: Where virtual tokens stand; empty is the decoder of a causal model and
            the encoder of a seq2seq one. A prefix of keys and values always stands in the decoder.
        encoder: The network that P-tuning and prefix tuning may learn through; PEFT's defaults if
            None.
        seed: Fixes every random number.

    Returns:
        An adapter whose parameters require gradients.

    Raises:
        InvalidInputError: If something needed is missing or does not fit, naming both sides.
        NotSupportedError: If the method does not work with this base model or in these places.
    """
    if tuning_type.learns_through_a_network:
        return _learned_through_a_network(
            base_model,
            tuning_type,
            num_virtual_tokens,
            output_model_types,
            encoder or PromptEncoderOptions(),
            init_method,
            seed,
        )
    default: PromptPlace = "decoder" if base_model.kind == "causal" else "encoder"
    places = check_places(
        tuple(_PLACES[PromptOutputModelType(word)] for word in output_model_types) or (default,),
        kind=base_model.kind,
    )
    _require_size(num_virtual_tokens)
    shape = (num_virtual_tokens * len(places), base_model.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    # NOTE: PEFT draws the prompt first, whatever replaces it afterwards; so must this.
    prompt = torch.empty(shape).normal_(generator=generator)
    device = base_model.device
    if init_method is PromptTuningInit.TEXT:
        prompt = embed_text(base_model, init_text, num_rows=shape[0])
    if init_method is PromptTuningInit.SAMPLE_VOCAB:
        prompt = _sampled_embeddings(base_model, shape[0], generator)
    if tuning_type is TuningType.PROMPT_TUNING:
        if init_method.needs_source:
            raise InvalidInputError(
                f"init method {init_method.value} needs tuning type MULTITASK_PROMPT_TUNING"
            )
        return SoftPrompt(prompt.to(device), kind=base_model.kind, places=places)
    columns = torch.empty(1, shape[0], NUM_RANKS).normal_(std=_TASK_STD, generator=generator)
    rows = torch.empty(1, NUM_RANKS, shape[1]).normal_(std=_TASK_STD, generator=generator)
    if init_method.needs_source:
        if source_prompt is None:
            raise InvalidInputError(f"init method {init_method.value} needs a source prompt")
        prompt = _source_embeddings(source_prompt, shape, num_places=len(places))
        if init_method is not PromptTuningInit.ONLY_SOURCE_SHARED:
            columns, rows = _source_factors(source_prompt, init_method, source_task)
    tensors = (tensor.to(device) for tensor in (prompt, columns, rows))
    return MultitaskSoftPrompt(*tensors, kind=base_model.kind, places=places)


def _learned_through_a_network(
    base_model: BaseModel,
    tuning_type: TuningType,
    num_virtual_tokens: int,
    output_model_types: Sequence[PromptOutputModelType],
    encoder: PromptEncoderOptions,
    init_method: PromptTuningInit,
    seed: int,
) -> PTuning | PrefixTuning:
    """P-tuning or prefix tuning, whose numbers start at random."""
    _require_size(num_virtual_tokens)
    encoder.validate()
    if init_method is not PromptTuningInit.RANDOM:
        raise InvalidInputError(
            f"tuning type {tuning_type.value} starts at random, got init method {init_method.value}"
        )
    places = tuple(_PLACES[PromptOutputModelType(word)] for word in output_model_types)
    generator = torch.Generator().manual_seed(seed)
    kind = base_model.kind
    made: PTuning | PrefixTuning
    if tuning_type is TuningType.P_TUNING:
        if places:
            require_input_place(places, kind=kind)
        made = new_p_tuning(
            num_virtual_tokens,
            base_model.hidden_size,
            kind=kind,
            options=encoder,
            generator=generator,
        )
        return made.placed_on(base_model.device)
    if "encoder" in places:
        raise NotSupportedError(
            f"prefix tuning puts keys and values into the decoder, got {list(places)}"
        )
    made = new_prefix_tuning(
        num_virtual_tokens,
        prefix_shape_of(base_model),
        kind=kind,
        options=encoder,
        generator=generator,
    )
    return made.placed_on(base_model.device)


def _require_size(num_virtual_tokens: int) -> None:
    if not 1 <= num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
        raise InvalidInputError(
            f"'num_virtual_tokens' must be from 1 to {MAX_VIRTUAL_TOKENS}, got {num_virtual_tokens}"
        )


def _sampled_embeddings(
    base_model: BaseModel, num_rows: int, generator: torch.Generator
) -> torch.Tensor:
    """The embeddings of tokens drawn from the whole vocabulary, in float32."""
    embed = base_model.model.get_input_embeddings()
    ids = torch.randint(0, embed.weight.shape[0], (num_rows,), generator=generator)
    with torch.no_grad():
        embeddings: torch.Tensor = embed(ids.to(base_model.device))
    return embeddings.float()


def embed_text(base_model: BaseModel, text: str | None, *, num_rows: int) -> torch.Tensor:
    """The embeddings of a text's tokens, cut or repeated to [num_rows, D], in float32.

    Args:
        base_model: Its tokenizer and embeddings are used.
        text: What the virtual tokens shall mean at first.
        num_rows: N·P.

    Returns:
        [num_rows, D] on the base model's device.

    Raises:
        InvalidInputError: If the text is missing or holds no token.
    """
    if not text:
        raise InvalidInputError("init method TEXT needs a text (prompt_tuning_init_text)")
    ids = list(base_model.tokenizer(text)["input_ids"])
    if not ids:
        raise InvalidInputError("the text for init method TEXT holds no token")
    ids = (ids * math.ceil(num_rows / len(ids)))[:num_rows]
    if max(ids) >= base_model.vocab_size:
        raise InvalidInputError(
            f"the text for init method TEXT has token {max(ids)}, the base model only "
            f"{base_model.vocab_size} embeddings"
        )
    embed = base_model.model.get_input_embeddings()
    with torch.no_grad():
        embeddings: torch.Tensor = embed(torch.tensor(ids, device=base_model.device))
    return embeddings.float()


def _source_embeddings(
    source: SourcePrompt, shape: tuple[int, int], *, num_places: int
) -> torch.Tensor:
    rows, hidden_size = source.prompt_embeddings.shape
    if hidden_size != shape[1]:
        raise InvalidInputError(
            f"source prompt {source.name!r} has hidden size {hidden_size}, "
            f"the base model has {shape[1]}"
        )
    if rows != shape[0]:
        raise InvalidInputError(
            f"'num_virtual_tokens' is {shape[0] // num_places} in {num_places} place(s), "
            f"but source prompt {source.name!r} has {rows} virtual tokens"
        )
    return source.prompt_embeddings


def _source_factors(
    source: SourcePrompt, init_method: PromptTuningInit, task: int
) -> tuple[torch.Tensor, torch.Tensor]:
    columns, rows = source.task_columns, source.task_rows
    if columns is None or rows is None or len(columns) != len(rows) or len(columns) == 0:
        raise ArtifactError(
            f"source prompt {source.name!r} lacks matching 'prefix_task_cols' and "
            f"'prefix_task_rows', which {init_method.value} needs"
        )
    if init_method is PromptTuningInit.EXACT_SOURCE_TASK:
        if not 0 <= task < len(columns):
            raise InvalidInputError(
                f"source task {task} does not exist, source prompt {source.name!r} has "
                f"{len(columns)} tasks"
            )
        return columns[task : task + 1], rows[task : task + 1]
    return columns.mean(0, keepdim=True), rows.mean(0, keepdim=True)
