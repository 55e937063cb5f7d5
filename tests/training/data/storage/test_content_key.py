"""The key changes with everything that changes tokens, and with nothing else."""

import dataclasses
from typing import Any

import pytest
from fixtures.tiny_models import EOS_ID, make_tokenizer

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord, TextTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import TrainingDataError
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.storage import content_key as content_key_file
from luthier.training.data.storage.content_key import content_key

PAIR = GenerationTrainRecord(input="a", output="b")
CHAT = ChatTrainRecord((ChatMessage("user", "a"), ChatMessage("assistant", "b")), "f row 1")


def _row_tokenizer(**changes: Any) -> RowTokenizer:
    known: dict[str, Any] = {
        "tokenizer": make_tokenizer(),
        "is_seq2seq": False,
        "eos_token_id": EOS_ID,
        "max_source_length": 8,
        "max_target_length": 8,
    }
    return RowTokenizer(**{**known, **changes})


def _key(
    *records: object,
    template: str = "{{input}}",
    limits: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    return content_key(
        records or (PAIR, CHAT),
        template=template,
        row_tokenizer=_row_tokenizer(**(limits or {})),
        options=DatasetOptions(**options),
    )


def test_the_same_content_has_the_same_key() -> None:
    elsewhere = dataclasses.replace(CHAT, place="g row 7")
    assert _key() == _key(GenerationTrainRecord(input="a", output="b"), elsewhere)
    assert len(_key()) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"template": "Q: {{input}}"},
        {"limits": {"max_source_length": 9}},
        {"limits": {"has_virtual_tokens": True}},
        {"limits": {"tokenizer": make_tokenizer(add_bos=True)}},
        {"max_length": 8},
        {"prompt_format": "markers"},
        {"text_prompt_start": "Q"},
        {"only_last_answer": True},
        {"chat_template": "x"},
    ],
    ids=str,
)
def test_another_setting_has_another_key(changed: dict[str, Any]) -> None:
    assert _key(**changed) != _key()


def test_what_changes_no_token_changes_no_key() -> None:
    same = {"number_of_workers": 4, "token_mask_probability": 0.5, "tokenization_cache": "x"}
    same["max_tokenization_cache_bytes"] = same["max_tokens_in_memory"] = 1
    assert _key(**same) == _key()


@pytest.mark.parametrize(
    "records",
    [
        (CHAT, PAIR),
        (PAIR,),
        (PAIR, CHAT, PAIR),
        (GenerationTrainRecord(input="ab", output=""), CHAT),
        (ClassificationTrainRecord(text="a", labels=["b"]), CHAT),
        (PAIR, TextTrainRecord("a")),
        (
            PAIR,
            ChatTrainRecord((ChatMessage("user", "a"), ChatMessage("assistant", "b", False))),
        ),
    ],
)
def test_other_records_have_another_key(records: tuple[object, ...]) -> None:
    assert _key(*records) != _key()


def test_every_option_without_effect_exists() -> None:
    names = {field.name for field in dataclasses.fields(DatasetOptions)}
    assert names >= content_key_file._WITHOUT_EFFECT


def test_a_stranger_among_the_records_is_named() -> None:
    with pytest.raises(TrainingDataError, match="row 2 is a str, not a train record"):
        _key(PAIR, "text")
