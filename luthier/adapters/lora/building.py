"""LoRA adapters made for a model: new ones, and PEFT's saved ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.added_tokens import NO_TOKENS, AddedTokens
from luthier.adapters.lora.fresh_factors import factor_dtype, fresh_factors
from luthier.adapters.lora.initialisation import starting_factors
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.peft_format import check_state, read_config, without_added
from luthier.adapters.lora.saved_modules import SavedModule
from luthier.adapters.lora.starts.choice import measured_start
from luthier.adapters.lora.targets import (
    LoraTarget,
    find_targets,
    is_inside,
    portable_target_names,
    saved_module_paths,
    unfrozen_parameters,
)
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.token_rows import (
    TokenRows,
    added_token_rows,
    blank_token_rows,
    find_token_rows,
)
from luthier.data_model.options.lora import LoraConfig, LoraLimits
from luthier.data_model.options.lora_starts import DEFAULT_INIT
from luthier.errors import InvalidInputError


def create_lora(
    model: PreTrainedModel,
    config: LoraConfig,
    *,
    seed: int,
    limits: LoraLimits | None = None,
    original: PreTrainedModel | None = None,
    added: AddedTokens | None = None,
) -> LoraAdapter:
    """A new adapter, ready to be trained; one whose start looks at data has a ``start_probe``.

    The same model, config and seed give the same tensors; for the starts that PEFT draws, those
    that PEFT gives after ``torch.manual_seed(seed)``.

    Args:
        model: The base model's network; not changed.
        config: What is asked for.
        seed: Of the random starts.
        limits: Caps; the class's defaults if None.
        original: For ``loftq``: the model before it was quantised; only read.
        added: Tokens that the adapter adds to the vocabulary, or None.

    Returns:
        Factors in fp32, or fp64 for such a base, on the base's device.

    Raises:
        InvalidInputError: If the config cannot be meant, or does not fit the model.
        NotSupportedError: If it needs what is not offered.
    """
    config.validate(limits or LoraLimits())
    targets = find_targets(model, config)
    generator = torch.Generator().manual_seed(seed % 2**63)
    factors = {
        path: _new_factors(model, config, target, generator, original=original)
        for path, target in targets.items()
    }
    saved, token_rows = _saved_modules(model, config), _token_rows(model, config, added)
    _require_rows_apart(token_rows, saved)
    adapter = _adapter(model, config, targets, factors, saved, token_rows)
    probe = measured_start(adapter, model, targets, seed=seed)
    if probe is not None:
        adapter.begin_with(probe)
    return adapter


def read_lora(
    content: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    model: PreTrainedModel,
    *,
    limits: LoraLimits | None = None,
    added_ids: Mapping[str, int] = NO_TOKENS,
) -> LoraAdapter:
    """An adapter as PEFT saved it.

    Args:
        content: ``adapter_config.json``, parsed.
        state: ``adapter_model.safetensors``.
        model: The base model's network; not changed.
        limits: Caps; the class's defaults if None.
        added_ids: Text and id of each token that the adapter adds to the vocabulary.

    Returns:
        An adapter that gives PEFT's logits, of the base model's vocabulary.

    Raises:
        ArtifactError: If config or tensors are not exactly those of a LoRA for this model.
        NotSupportedError: If it needs what is not offered.
    """
    if added_ids:
        content = without_added(content, added_ids)
    config = read_config(content, task_type=_task_type(model), limits=limits)
    targets = find_targets(model, config, is_strict=False)
    saved = _saved_modules(model, config, is_strict=False)
    token_rows = _token_rows(model, config)
    if added_ids:
        token_rows = blank_token_rows(model, added_ids, dtype=factor_dtype(model))
    expected = _expected_shapes(config, targets, saved)
    if token_rows is not None:
        expected[token_rows.name] = tuple(token_rows.rows.shape)
    tensors = check_state(state, expected)
    factors = {
        path: _read_factors(model, config, target, tensors) for path, target in targets.items()
    }
    for path, module in saved.items():
        own = {name: tensors[f"{path}.{name}"] for name in module.network.state_dict()}
        module.network.load_state_dict(own)
    if token_rows is not None:
        with torch.no_grad():
            token_rows.rows.copy_(tensors[token_rows.name])
    return _adapter(model, config, targets, factors, saved, token_rows)


def _adapter(
    model: PreTrainedModel,
    config: LoraConfig,
    targets: Mapping[str, LoraTarget],
    factors: Mapping[str, LoraFactors],
    saved: Mapping[str, SavedModule],
    token_rows: TokenRows | None,
) -> LoraAdapter:
    return LoraAdapter(
        config=config,
        task_type=_task_type(model),
        target_names=portable_target_names(model, config, targets),
        is_transposed=all(target.is_transposed for target in targets.values()),
        factors=factors,
        saved=saved,
        token_rows=token_rows,
    )


def _require_rows_apart(token_rows: TokenRows | None, saved: Mapping[str, SavedModule]) -> None:
    if token_rows is None:
        return
    for path in (token_rows.path, *(token_rows.tied_paths if token_rows.texts else ())):
        if is_inside(path, saved):
            option = "add_prompt_answer_tokens" if token_rows.texts else "trainable_token_indices"
            raise InvalidInputError(
                f"'{option}' means rows of {path!r}, which 'modules_to_save' "
                "or 'unfreeze_layers' trains whole; give one of them"
            )


def _token_rows(
    model: PreTrainedModel, config: LoraConfig, added: AddedTokens | None = None
) -> TokenRows | None:
    if added is not None:
        if config.trainable_token_indices:
            raise InvalidInputError(
                "'trainable_token_indices' and 'add_prompt_answer_tokens' are both rows of the "
                "embeddings, of which PEFT's format has one table; give one of them"
            )
        return added_token_rows(model, added, dtype=factor_dtype(model))
    if not config.trainable_token_indices:
        return None
    return find_token_rows(model, config.trainable_token_indices, dtype=factor_dtype(model))


def _new_factors(
    model: PreTrainedModel,
    config: LoraConfig,
    target: LoraTarget,
    generator: torch.Generator,
    *,
    original: PreTrainedModel | None = None,
) -> LoraFactors:
    layer = model.get_submodule(target.path)
    start = starting_factors(
        layer,
        target,
        scaling=config.scaling(target.rank, target.alpha),
        initialisation=config.initialisation,
        generator=generator,
        original=None if original is None else original.get_submodule(target.path),
    )
    return fresh_factors(
        start,
        layer,
        scaling=config.scaling(target.rank, target.alpha),
        use_dora=config.use_dora,
        dtype=factor_dtype(model),
    )


def _read_factors(
    model: PreTrainedModel,
    config: LoraConfig,
    target: LoraTarget,
    tensors: Mapping[str, torch.Tensor],
) -> LoraFactors:
    device, dtype = model.get_submodule(target.path).weight.device, factor_dtype(model)

    def read(name: str) -> nn.Parameter:
        tensor = tensors[f"{target.path}.{name}"]
        return nn.Parameter(tensor.detach().to(device=device, dtype=dtype, copy=True))

    factors = LoraFactors(
        lora_a=read("lora_A.weight"),
        lora_b=read("lora_B.weight"),
        scaling=config.scaling(target.rank, target.alpha),
        magnitude=read("lora_magnitude_vector") if config.use_dora else None,
    )
    if config.initialisation == DEFAULT_INIT:
        return factors
    # PEFT takes the first delta of PiSSA and OLoRA out of the base weight when it loads them.
    plain = dataclasses.replace(config, use_dora=False)
    start = _new_factors(model, plain, target, torch.Generator().manual_seed(0))
    return dataclasses.replace(factors, start_a=start.start_a, start_b=start.start_b)


def _saved_modules(
    model: PreTrainedModel, config: LoraConfig, *, is_strict: bool = True
) -> dict[str, SavedModule]:
    """Copies of the modules that are trained beside the deltas."""
    unfrozen = unfrozen_parameters(model, config, is_strict=is_strict)
    paths = saved_module_paths(model, config, is_strict=is_strict)
    # One memo for what shall stay tied: unfreeze_layers means parameters, wherever they are used,
    # and a model's embeddings are one. modules_to_save means modules, as in PEFT.
    memo: dict[int, Any] = {}
    saved: dict[str, SavedModule] = {}
    for path in paths:
        base = model.get_submodule(path)
        stays_tied = is_strict and (path in unfrozen or isinstance(base, nn.Embedding))
        network = copy.deepcopy(base, memo if stays_tied else {})
        names = {name for name, _ in network.named_parameters()}
        learned = unfrozen.get(path, frozenset(names))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in learned)
        saved[path] = SavedModule(network, learned)
    return saved


def _expected_shapes(
    config: LoraConfig, targets: Mapping[str, LoraTarget], saved: Mapping[str, SavedModule]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path, target in targets.items():
        shapes[f"{path}.lora_A.weight"] = (target.rank, target.in_features)
        shapes[f"{path}.lora_B.weight"] = (target.out_features, target.rank)
        if config.use_dora:
            shapes[f"{path}.lora_magnitude_vector"] = (target.out_features,)
    for path, module in saved.items():
        for name, tensor in module.network.state_dict().items():
            shapes[f"{path}.{name}"] = tuple(tensor.shape)
    return shapes


def _task_type(model: PreTrainedModel) -> str:
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
