"""GGUF files, dequantised once into a folder in Hugging Face format.

transformers' own conversion of a ``gpt2`` tokenizer guesses: it takes another pre-tokenizer, adds
a beginning-of-sequence token and mistakes the end-of-sequence one. The tokenizer here is rebuilt
from the file's metadata, and refused where that does not determine it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

import alog
import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from luthier.errors import ArtifactError, ConflictError, NotSupportedError
from luthier.files.atomic_folder import write_folder_atomically

log = alog.use_channel(__name__)

_T = TypeVar("_T")

#: Part of the cache key: raise it when the same file shall give other tensors or another tokenizer.
_FORMAT = 1
_GGUF_MAGIC = b"GGUF"
#: ``tokenizer.ggml.token_type`` of tokens that text is never split into.
_CONTROL_TOKEN = 3
_USER_DEFINED_TOKEN = 4
_GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def dequantise_to_folder(path: Path, *, cache_dir: Path | None = None) -> Path:
    """The folder with the dequantised model of a GGUF file, made if it is not there yet.

    Dequantising costs seconds per hundred million parameters and four bytes each on disk. The
    folder is complete or absent, so several processes may do this at once.

    Args:
        path: The GGUF file.
        cache_dir: Where such folders are kept; None is ``~/.cache/luthier``.

    Returns:
        A folder in Hugging Face format with float32 safetensors.

    Raises:
        ArtifactError: If the file is no GGUF file or is damaged.
        NotSupportedError: If its architecture or tokenizer is one that is not known here.
    """
    root = (cache_dir or default_cache_dir()) / "gguf"
    stat = path.stat()
    key = f"{_FORMAT}:{os.path.realpath(path)}:{stat.st_size}:{stat.st_mtime_ns}"
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        free_bytes = shutil.disk_usage(root).free
    except OSError as error:
        root = Path(tempfile.mkdtemp(prefix="luthier-gguf-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        log.warning("the cache of dequantised models cannot be written: %s", error.strerror)
        folder, free_bytes = root / folder.name, shutil.disk_usage(root).free
    log.info("dequantising %s (%d bytes, %d free)", path.name, stat.st_size, free_bytes)
    try:
        with write_folder_atomically(folder) as partial:
            convert_gguf(path, partial)
    except ConflictError:
        log.debug("another process has dequantised %s meanwhile", path.name)
    return folder


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the dequantised model and the tokenizer of a GGUF file into ``folder``.

    Args:
        path: The GGUF file.
        folder: Exists; files are added.

    Raises:
        ArtifactError: If the file is no GGUF file or is damaged.
        NotSupportedError: If its architecture or tokenizer is one that is not known here.
    """
    tokenizer = read_gguf_tokenizer(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, OSError, KeyError, RuntimeError, IndexError) as error:
        raise ArtifactError(f"{path.name!r} cannot be dequantised: {error}") from error
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    # transformers still calls the model quantised, though every weight is a float32 now.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Rebuild the tokenizer of a GGUF file from its metadata.

    Args:
        path: The GGUF file.

    Returns:
        A fast tokenizer that adds nothing to a text by itself.

    Raises:
        ArtifactError: If the metadata is damaged or incomplete.
        NotSupportedError: If the pre-tokenizer is one that is not known here.
    """
    with path.open("rb") as file:
        if file.read(4) != _GGUF_MAGIC:
            raise ArtifactError(f"{path.name!r} is not a GGUF file")
    try:
        reader = GGUFReader(path)
        fields = {
            key.removeprefix("tokenizer."): field.contents()
            for key, field in reader.fields.items()
            if key.startswith("tokenizer.")
        }
        return _build_tokenizer(fields, name=path.name)
    except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path.name!r} has damaged tokenizer metadata: {error}") from error


def _build_tokenizer(fields: dict[str, object], *, name: str) -> PreTrainedTokenizerFast:
    model, pre = fields.get("ggml.model"), fields.get("ggml.pre")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise NotSupportedError(
            f"{name!r} has a tokenizer of type {model!r} / {pre!r}; known are 'gpt2' with "
            f"{sorted(_PRE_TOKENIZERS)}. Use the model's safetensors instead"
        )
    tokens = _list_of(fields["ggml.tokens"], str)
    ids = {token: index for index, token in enumerate(tokens)}
    merges = []
    for merge in _list_of(fields["ggml.merges"], str):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise ValueError(f"merge {merge[:80]!r} is of unknown tokens")
        merges.append((left, right))
    types = _list_of(fields["ggml.token_type"], int)
    bpe = models.BPE(ids, merges, fuse_unk=False)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    added = (_CONTROL_TOKEN, _USER_DEFINED_TOKEN)
    for token, kind in zip(tokens, types, strict=True):
        if kind in added:
            special = AddedToken(token, special=kind == _CONTROL_TOKEN, normalized=False)
            (tokenizer.add_special_tokens if special.special else tokenizer.add_tokens)([special])
    words = {
        word: tokens[index]
        for word, key in _SPECIAL_TOKENS.items()
        if isinstance(index := fields.get(key), int)
    }
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **words
    )
    template = fields.get("chat_template")
    if isinstance(template, str):
        result.chat_template = template
    if fields.get("ggml.add_bos_token"):
        raise NotSupportedError(f"{name!r} wants a beginning-of-sequence token before every text")
    return result


_SPECIAL_TOKENS = {
    "bos_token": "ggml.bos_token_id",
    "eos_token": "ggml.eos_token_id",
    "unk_token": "ggml.unknown_token_id",
    "pad_token": "ggml.padding_token_id",
}


def _smollm_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _gpt2_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT2_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_PRE_TOKENIZERS = {"smollm": _smollm_pre_tokenizer, "gpt-2": _gpt2_pre_tokenizer}


def _list_of(values: object, kind: type[_T]) -> list[_T]:
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"not a list of {kind.__name__}")
    return values


def default_cache_dir() -> Path:
    """Where files are kept that can be made again: ``$XDG_CACHE_HOME/luthier`` or
    ``~/.cache/luthier``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"
