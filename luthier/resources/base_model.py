"""The frozen base model that any number of adapters share."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from luthier.data_model.options.quantisation import NONE
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError, UnsafeWeightsError
from luthier.files.tensor_files import check_safetensors_header
from luthier.files.torch_files import read_torch_file
from luthier.resources.gguf import dequantise_to_folder
from luthier.resources.hardware import parse_device, parse_dtype
from luthier.resources.names import BaseModelLocation, BaseModelSources
from luthier.resources.quantisation import parse_quantisation, quantise, quantised_copy

log = alog.use_channel(__name__)

_RECURRENT_MODEL_TYPES = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})

BaseModelKind = Literal["causal", "seq2seq"]
_CLASSES = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
#: Attention by distance: these have no largest position, whatever their config says.
_UNBOUNDED_TYPES = frozenset({"t5", "mt5", "umt5", "longt5", "bloom", "mpt"})
#: transformers builds models under process-wide switches; two loads at once corrupt each other.
_LOADING = threading.Lock()
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """Pretrained weights with their tokenizer: frozen, never changed in place, shared.

    Args:
        name: What finds it again (``resolve_base_model``); never a local path.
        kind: ``causal`` or ``seq2seq``.
        model: In evaluation mode, no parameter requires a gradient.
        tokenizer: Pads and truncates on the right where it is asked to. Encoding is thread-safe
            as long as nobody passes ``padding`` or ``truncation``, which change its state.
        eos_token_ids: Tokens that end a text: those of the generation config, then the
            tokenizer's.
        pad_token_id: For filling rows; the tokenizer's end-of-sequence where it has no padding.
        max_positions: Tokens it can attend to, or None if nothing bounds them.
        quantization: How the weights of its linear layers are held, a word of ``QUANTISATIONS``.
    """

    name: str
    kind: BaseModelKind
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_positions: int | None
    quantization: str = NONE

    @classmethod
    def from_memory(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        quantization: str = NONE,
    ) -> BaseModel:
        """Wrap live objects. Takes them over: freezes ``model``, puts it into evaluation mode and
        gives ``tokenizer`` a padding token if it has none.

        Args:
            model: A causal or seq2seq language model.
            tokenizer: Its tokenizer.
            name: What callers shall ask for.
            quantization: How its linear layers are held already.

        Returns:
            The wrapped model, not a copy.

        Raises:
            NotSupportedError: If the model is neither causal nor seq2seq.
        """
        kind = kind_of(model.config, name=name)
        model.requires_grad_(False)
        model.eval()
        _settle_tokenizer(tokenizer, name=name)
        return cls(
            name=name,
            kind=kind,
            model=model,
            tokenizer=tokenizer,
            eos_token_ids=_eos_token_ids(model, tokenizer),
            pad_token_id=int(tokenizer.pad_token_id),
            max_positions=_max_positions(model.config),
            quantization=quantization,
        )

    def quantised(self, word: str | None) -> BaseModel:
        """This model with its linear layers quantised; all other tensors are shared.

        Args:
            word: One of ``QUANTISATIONS``; None is none.

        Returns:
            A new one, or self if that is what it is.

        Raises:
            InvalidInputError: For another word.
            NotSupportedError: If bitsandbytes is not installed, or it is quantised in another way.
        """
        word = parse_quantisation(word)
        if word in (NONE, self.quantization):
            return self
        if self.quantization != NONE:
            raise NotSupportedError(
                f"base model {self.name!r} is quantised as {self.quantization}, not as {word}"
            )
        model = quantised_copy(self.model, word)
        return BaseModel.from_memory(model, self.tokenizer, name=self.name, quantization=word)

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and so of everything that flows through."""
        return self.embedding_weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.embedding_weight.device

    @property
    def embedding_weight(self) -> torch.Tensor:
        """Input embeddings, [V, D]."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def hidden_size(self) -> int:
        """D, of the input embeddings."""
        return self.embedding_weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """V, rows of the input embeddings; may exceed the tokenizer's."""
        return self.embedding_weight.shape[0]


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
    return BaseModel.from_memory(model, tokenizer, name=name, quantization=word)


def save_base_model(base_model: BaseModel, folder: Path) -> None:
    """Write model and tokenizer into ``folder`` in Hugging Face format, safetensors only.

    Not atomic by itself: call it inside ``write_folder_atomically``.
    """
    base_model.model.save_pretrained(folder)
    base_model.tokenizer.save_pretrained(folder)


def kind_of(config: PretrainedConfig, *, name: str) -> BaseModelKind:
    """Whether a config describes a causal or a seq2seq language model.

    Args:
        config: The model's.
        name: Of the model, for the message.

    Returns:
        ``causal`` or ``seq2seq``.

    Raises:
        NotSupportedError: If it describes neither, such as BERT, or keeps a recurrent state, which
            no engine here can hand from one token to the next.
    """
    model_type = config.model_type
    if model_type in _RECURRENT_MODEL_TYPES:
        raise NotSupportedError(
            f"base model {name!r} is of type {model_type!r}, which keeps a recurrent state instead "
            "of keys and values; attention-based language models are supported"
        )
    if config.is_encoder_decoder:
        if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            return "seq2seq"
    elif model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        # NOTE: transformers lists BERT and its family as causal too; without ``is_decoder`` each
        # token sees the ones after it, so they cannot generate.
        model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False)
    ):
        return "causal"
    raise NotSupportedError(
        f"base model {name!r} is of type {model_type!r}, which generates no text; "
        "causal and seq2seq language models are supported"
    )


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


def _settle_tokenizer(tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ArtifactError(f"base model {name!r}: its tokenizer has no end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token


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


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    generation_config = getattr(model, "generation_config", None)
    declared = getattr(generation_config, "eos_token_id", None)
    if declared is None:
        declared = getattr(model.config, "eos_token_id", None)
    ids: Iterable[int | None] = declared if isinstance(declared, list | tuple) else [declared]
    ordered = dict.fromkeys([*ids, tokenizer.eos_token_id])
    return tuple(int(token) for token in ordered if token is not None)


def _max_positions(config: PretrainedConfig) -> int | None:
    if config.model_type in _UNBOUNDED_TYPES or getattr(config, "alibi", False):
        return None
    for key in _POSITION_KEYS:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def require_tokens_exist(base_model: BaseModel, token_ids: Iterable[int]) -> None:
    """Refuse ids outside the embeddings, which would crash or read foreign memory on a GPU.

    Args:
        base_model: Whose vocabulary counts.
        token_ids: Any number.

    Raises:
        InvalidInputError: Naming the id and the vocabulary size.
    """
    for token_id in token_ids:
        if not 0 <= token_id < base_model.vocab_size:
            raise InvalidInputError(
                f"token id {token_id} is outside the vocabulary of {base_model.vocab_size} tokens"
            )
