"""A base model from its folder on disk."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alog
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from luthier.errors import ArtifactError, NotSupportedError, UnsafeWeightsError
from luthier.files.tensor_files import check_safetensors_header
from luthier.files.torch_files import read_torch_file
from luthier.resources.base_model import BaseModel, BaseModelKind, kind_of
from luthier.resources.gguf import dequantise_to_folder
from luthier.resources.hardware import parse_device, parse_dtype
from luthier.resources.model_copy import model_tensors
from luthier.resources.names import BaseModelLocation, BaseModelSources
from luthier.resources.quantisation import parse_quantisation, quantise
from luthier.resources.shared_tensors import SharedTensors

log = alog.use_channel(__name__)

_CLASSES = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
#: transformers builds models under process-wide switches; two loads at once corrupt each other.
_LOADING = threading.Lock()


def load_base_model(
    location: BaseModelLocation,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    sources: BaseModelSources,
) -> BaseModel:
    """Read a base model from disk, all checks before the first weight. One at a time per process.

    Args:
        location: From ``resolve_base_model``.
        dtype: A word of ``hardware.DTYPES``; None is ``sources.default_dtype``.
        device: None is ``sources.default_device``.
        quantization: A word of ``QUANTISATIONS``; None is none. The weights are read in ``dtype``
            and quantised layer by layer on the device.
        sources: What the operator allows.

    Returns:
        A frozen model on its device.

    Raises:
        InvalidInputError: If the dtype or device word means nothing here.
        NotSupportedError: If the model is of another kind, needs code of its own, or is to be
            quantised without bitsandbytes.
        UnsafeWeightsError: If only unpickling could read the weights.
        ArtifactError: If files are missing, corrupt, or do not fit the config.
    """
    torch_dtype = parse_dtype(dtype or sources.default_dtype)
    torch_device = parse_device(device or sources.default_device)
    word = parse_quantisation(quantization)
    name, folder = location.name, location.path
    if location.is_gguf:
        with _LOADING:
            folder = dequantise_to_folder(location.path, cache_dir=sources.cache_dir)
    _refuse_own_code(folder, name=name, sources=sources)
    config = _read_config(folder, name=name, sources=sources)
    kind = kind_of(config, name=name)
    tokenizer = _read_tokenizer(folder, name=name, sources=sources)
    model = _read_model(folder, config, kind, dtype=torch_dtype, name=name, sources=sources)
    _refuse_unfinished_numbers(model, name=name)
    quantise(model, word, device=torch_device)
    base_model = BaseModel.from_memory(model, tokenizer, name=name, quantization=word)
    if not sources.shares_memory or torch_device.type != "cpu":
        return base_model
    # Nobody else has the model yet, so its tensors may move.
    shared = SharedTensors(model_tensors(model), takes_over=True)
    return dataclasses.replace(base_model, shared=shared)


def save_base_model(base_model: BaseModel, folder: Path) -> None:
    """Write model and tokenizer into ``folder`` in Hugging Face format, safetensors only.

    Not atomic by itself: call it inside ``write_folder_atomically``.
    """
    base_model.model.save_pretrained(folder)
    base_model.tokenizer.save_pretrained(folder)


def _refuse_own_code(folder: Path, *, name: str, sources: BaseModelSources) -> None:
    for file_name in ("config.json", "tokenizer_config.json"):
        path = folder / file_name
        content = _read_json(path, name=name) if path.is_file() else {}
        if "auto_map" in content and not sources.trust_remote_code:
            raise NotSupportedError(
                f"base model {name!r}: {file_name} asks to run code of its own (auto_map); only "
                "the operator can allow that, with 'trust_remote_code: true'"
            )
    if (folder / "adapter_config.json").exists():
        raise NotSupportedError(f"base model {name!r} holds an adapter of another base model")


def _read_json(path: Path, *, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"base model {name!r}: {path.name} is not readable JSON") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"base model {name!r}: {path.name} is not a JSON object")
    return content


def _read_config(folder: Path, *, name: str, sources: BaseModelSources) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=sources.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"base model {name!r}: config.json is not usable: {error}") from error


def _read_tokenizer(
    folder: Path, *, name: str, sources: BaseModelSources
) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=sources.trust_remote_code
        )
    # NOTE: the tokenizers library raises bare Exception for a malformed tokenizer.json.
    except Exception as error:
        raise ArtifactError(f"base model {name!r}: its tokenizer is not usable: {error}") from error


def _read_model(
    folder: Path,
    config: PretrainedConfig,
    kind: BaseModelKind,
    *,
    dtype: torch.dtype,
    name: str,
    sources: BaseModelSources,
) -> PreTrainedModel:
    weights = _weight_arguments(folder, name=name, sources=sources)
    try:
        with _LOADING, _without_progress_bar():
            model, info = _network_class(config, kind).from_pretrained(
                None if "state_dict" in weights else folder,
                config=config,
                dtype=dtype,
                attn_implementation=_attention(config, kind),
                local_files_only=True,
                trust_remote_code=sources.trust_remote_code,
                output_loading_info=True,
                **weights,
            )
    except ImportError as error:
        raise NotSupportedError(f"base model {name!r} needs a package: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"base model {name!r}: its weights are corrupt or do not fit its config: {error}"
        ) from error
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            shown = sorted(str(key) for key in info[problem])[:3]
            raise ArtifactError(
                f"base model {name!r}: {len(info[problem])} {problem.replace('_', ' ')} in its "
                f"weights, such as {', '.join(shown)}"
            )
    if info["unexpected_keys"]:
        log.warning("base model %s: %d unused weights", name, len(info["unexpected_keys"]))
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Loading is logged by the store; a bar per model would only litter a server's output."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _network_class(config: PretrainedConfig, kind: BaseModelKind) -> Any:
    """transformers' own class for this config; the Auto class if the model brings its code."""
    mapping = _CLASSES[kind]._model_mapping
    return mapping[type(config)] if type(config) in mapping else _CLASSES[kind]


def _attention(config: PretrainedConfig, kind: BaseModelKind) -> str:
    """``sdpa`` where the architecture has it. Always said outright, because a config could
    otherwise name a kernel to fetch from the hub."""
    return "sdpa" if getattr(_network_class(config, kind), "_supports_sdpa", False) else "eager"


def _weight_arguments(folder: Path, *, name: str, sources: BaseModelSources) -> dict[str, Any]:
    """How ``from_pretrained`` gets the weights: ``use_safetensors``, or a ready ``state_dict``."""
    safetensors = sorted(folder.glob("*.safetensors"))
    if safetensors:
        for path in safetensors:
            check_safetensors_header(path)
        return {"use_safetensors": True}
    pickles = sorted(folder.glob("pytorch_model*.bin")) or sorted(folder.glob("*.pt"))
    if not pickles:
        raise ArtifactError(f"base model {name!r}: its folder holds no weights (*.safetensors)")
    if not sources.allow_pickle_weights:
        raise UnsafeWeightsError(
            f"base model {name!r}: {pickles[0].name} is a pickle. Convert it with 'python -m "
            "luthier.resources.convert_weights OLD_FOLDER NEW_FOLDER', or let the operator set "
            "'allow_pickle_weights: true'"
        )
    state: dict[str, torch.Tensor] = {}
    for path in pickles:
        state.update(read_torch_file(path))
    return {"state_dict": state}


def _refuse_unfinished_numbers(model: PreTrainedModel, *, name: str) -> None:
    for key, parameter in model.named_parameters():
        # A sum is one pass without a mask; it may overflow, so a suspect is looked at properly.
        if not parameter.sum(dtype=torch.float32).isfinite() and not parameter.isfinite().all():
            raise ArtifactError(f"base model {name!r}: {key} holds NaN or infinite numbers")
