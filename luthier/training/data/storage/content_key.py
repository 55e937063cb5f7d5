"""A name for tokenized data that says what went into it: records, tokenizer and settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from luthier.data_model.conversations import ChatTrainRecord, TextTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import TrainingDataError
from luthier.training.data.encoding.row_tokenizer import RowTokenizer

#: Goes up when the same input shall give other tokens or another layout.
_FORMAT = 1
#: Dataset options that do not change how a record is tokenized. All others do, new ones included.
_WITHOUT_EFFECT = frozenset(
    {
        "train_dataframe",
        "validation_dataframe",
        "validation_strategy",
        "validation_size",
        "data_sample",
        "data_sample_choice",
        "split_seed",
        "prompt_column",
        "prompt_column_separator",
        "system_column",
        "answer_column",
        "id_column",
        "parent_id_column",
        "limit_chained_samples",
        "padding_quantile",
        "token_mask_probability",
        "skip_parent_probability",
        "random_parent_probability",
        "neftune_noise_alpha",
        "number_of_workers",
        "tokenization_cache",
        "max_tokenization_cache_bytes",
        "max_tokens_in_memory",
    }
)


def content_key(
    records: Iterable[object],
    *,
    template: str,
    row_tokenizer: RowTokenizer,
    options: DatasetOptions,
) -> str:
    """A hash of everything that decides about the tokens of records.

    Args:
        records: Read once.
        template: The verbalizer's.
        row_tokenizer: Tokenizer and limits.
        options: Format, loss mask and lengths.

    Returns:
        64 hexadecimal digits.

    Raises:
        TrainingDataError: For a record of an unknown kind; names its row.
    """
    digest = hashlib.sha256()
    settings = {
        "format": _FORMAT,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "template": template,
        "tokenizer": _tokenizer_key(row_tokenizer.tokenizer, options),
        "limits": {
            field.name: getattr(row_tokenizer, field.name)
            for field in dataclasses.fields(row_tokenizer)
            if field.name != "tokenizer"
        },
        "options": {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if field.name not in _WITHOUT_EFFECT
        },
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for row, record in enumerate(records, start=1):
        digest.update(b"\n" + json.dumps(_content_of(record, row)).encode())
    return digest.hexdigest()


def _content_of(record: object, row: int) -> list[object]:
    if isinstance(record, GenerationTrainRecord):
        return ["pair", record.input, record.output]
    if isinstance(record, ClassificationTrainRecord):
        return ["labels", record.text, list(record.labels or ())]
    if isinstance(record, ChatTrainRecord):
        return ["chat", *([m.role, m.content, m.is_learned] for m in record.messages)]
    if isinstance(record, TextTrainRecord):
        return ["text", record.text]
    raise TrainingDataError(f"row {row} is a {type(record).__name__}, not a train record")


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase, options: DatasetOptions) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    chat_template = options.chat_template or str(tokenizer.chat_template)
    parts = [
        type(tokenizer).__name__,
        json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str(),
        json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True),
        chat_template,
    ]
    if "strftime_now" in chat_template:  # Such a template writes today's date.
        parts.append(datetime.now(UTC).date().isoformat())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
