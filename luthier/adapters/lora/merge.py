"""LoRA merged into the base weights: a whole model that needs no adapter."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.adapters.added_tokens import AddedTokens, grow_embeddings
from luthier.adapters.lora.layers import oriented_weight
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora_factors import LoraFactors
from luthier.errors import InvalidInputError, NotSupportedError


@torch.no_grad()
def merged_state(adapter: LoraAdapter, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of ``model`` with the adapter in it.

    Sums are formed in fp32 and rounded once. What the adapter does not touch is the base's own
    tensor, not a copy.

    Args:
        adapter: Made for this model.
        model: The base's network; not changed. Tokens that the adapter adds are its already.

    Returns:
        Name to tensor, names and dtypes of ``model.state_dict()``.

    Raises:
        NotSupportedError: If a layer's weights are quantised: rounding would eat the delta.
        InvalidInputError: If a merged weight is too large for the base's dtype.
    """
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    for path, factors in adapter.factors.items():
        layer = model.get_submodule(path)
        if hasattr(layer, "dequantised_weight"):
            raise NotSupportedError(
                f"the weight of layer {path!r} is quantised: rounding would eat the delta. Load "
                "the adapter beside the base model without quantization, and merge there"
            )
        weight = oriented_weight(layer)
        merged = _merged_weight(weight, factors).to(weight.dtype)
        if not torch.isfinite(merged).all():
            raise InvalidInputError(f"merging layer {path!r} exceeds what {weight.dtype} can hold")
        state[f"{path}.weight"] = (merged.T if isinstance(layer, Conv1D) else merged).contiguous()
    if adapter.token_rows is not None and not adapter.token_rows.texts:
        rows = adapter.token_rows
        merged = rows.merged(state[f"{rows.path}.weight"])
        for path in (rows.path, *rows.tied_paths):
            state[f"{path}.weight"] = merged
    for path, module in adapter.saved.items():
        for name, tensor in module.network.state_dict().items():
            base = state[f"{path}.{name}"]
            state[f"{path}.{name}"] = tensor.detach().to(device=base.device, dtype=base.dtype)
    return state


def save_merged(
    adapter: LoraAdapter,
    model: PreTrainedModel,
    folder: Path,
    *,
    added: AddedTokens | None = None,
) -> None:
    """Write the merged model in Hugging Face format, safetensors only; the tokenizer is not ours.

    Not atomic by itself: call it inside ``write_folder_atomically``.

    Args:
        adapter: Made for this model.
        model: The base's network; not changed.
        folder: Where.
        added: What the tokens that the adapter adds were before; None if it adds none. The merged
            model's vocabulary has them, so it could write them as well; as likely, at first, as
            their pieces.

    Raises:
        NotSupportedError: If weights are quantised, or tied ones that only the head or the input
            embeddings may leave have come apart.
        InvalidInputError: If a merged weight is too large for the base's dtype.
    """
    if added is not None:
        model = _with_tokens(adapter, model, added)
    state = merged_state(adapter, model)
    is_untied = _is_untied(model, state)
    model.save_pretrained(folder, state_dict=state)
    if is_untied:
        _say_untied(model, folder / "config.json")


@torch.no_grad()
def _with_tokens(
    adapter: LoraAdapter, model: PreTrainedModel, added: AddedTokens
) -> PreTrainedModel:
    """A network around the base's tensors, but for tables of tokens, which are larger copies."""
    rows = adapter.token_rows
    assert rows is not None
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = {id(each) for layer in layers if layer is not None for each in layer.parameters()}
    tensors = [*model.parameters(), *model.buffers()]
    grown = copy.deepcopy(model, {id(each): each for each in tensors if id(each) not in tables})
    grow_embeddings(grown, added)
    places = list(rows.indices)
    for path in (rows.path, *rows.tied_paths):
        weight: torch.Tensor = grown.get_submodule(path).weight
        if weight.shape[0] <= max(places):
            raise NotSupportedError(
                f"{path} is a table of its own, beside the input embeddings; a model with added "
                "tokens there cannot be saved merged"
            )
        weight[places] = rows.rows.detach().to(weight)
    return grown


def _merged_weight(weight: torch.Tensor, factors: LoraFactors) -> torch.Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    lora_a, lora_b = (tensor.to(weight.device, dtype) for tensor in factors.stacked())
    merged = torch.addmm(weight.to(dtype), lora_b, lora_a, alpha=factors.scaling)
    if factors.magnitude is None:
        return merged
    lengths = torch.linalg.norm(merged, dim=1, keepdim=True)
    scale: torch.Tensor = factors.magnitude.to(weight.device, dtype)[:, None] / lengths
    return merged * scale


def _is_untied(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the head has left the input embeddings that it is one tensor with in the base."""
    names_of: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        names_of.setdefault(tensor.data_ptr(), []).append(name)
    head = model.get_output_embeddings()
    is_untied = False
    for names in names_of.values():
        first, *others = sorted(names, key=lambda name: _layer_of(model, name) is head)
        for name in others:
            if torch.equal(state[name], state[first]):
                continue
            if _layer_of(model, name) is not head:
                raise NotSupportedError(
                    f"{first} and {name} are one tensor in the base model and differ in the "
                    "adapter; such a model cannot be saved merged"
                )
            is_untied = True
    return is_untied


def _say_untied(model: PreTrainedModel, path: Path) -> None:
    """Let the saved config say that head and embeddings differ, if saying so changes nothing else.

    T5 takes the same word for whether outputs are scaled. There transformers sees two tensors in
    the file that differ, and keeps both.
    """
    known = model.config.to_dict()
    wanted = {**known, "tie_word_embeddings": False}
    if type(model.config).from_dict(dict(wanted)).to_dict() == wanted:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tie_word_embeddings"] = False
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _layer_of(model: PreTrainedModel, name: str) -> nn.Module:
    layer: nn.Module = model.get_submodule(name.rpartition(".")[0])
    return layer
