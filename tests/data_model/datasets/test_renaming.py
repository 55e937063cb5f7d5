"""New names for an assistant and its makers, in every kind of row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.data_model.conversations import ChatTrainRecord
from luthier.data_model.datasets.dataset import load_dataset
from luthier.data_model.datasets.renaming import NewNames
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord

NAMES = NewNames("Fiddle", "the Workshop")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am Open Assistant, made by LAION.", "I am Fiddle, made by the Workshop."),
        ("Open Assitan is no ChatGPT", "Fiddle is no Fiddle"),
        ("open-assistant and OpenAssistant by LAION-AI", "Fiddle and Fiddle by the Workshop"),
        ("OpenAI, openai and open ai", "the Workshop, the Workshop and the Workshop"),
        ("an assistant of the laity", "an assistant of the laity"),
        ("Open Assitans", "Open Assitans"),
    ],
)
def test_names_are_replaced_as_they_are_spelled(text: str, expected: str) -> None:
    assert NAMES.in_text(text) == expected


def test_what_is_put_in_is_not_replaced_again() -> None:
    names = NewNames("My Assistant", "Open AI and me")
    assert names.in_text("Open Assistant of LAION") == "My Assistant of Open AI and me"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who is ChatGPT?", "response": "Ask OpenAI."},
        {"prompt": "Who is ChatGPT?", "response": "Ask OpenAI.", "system": "Not ChatGPT."},
        {
            "messages": [
                {"role": "system", "content": "Not ChatGPT."},
                {"role": "user", "content": "Who is ChatGPT?"},
                {"role": "assistant", "content": "Ask OpenAI."},
            ]
        },
    ],
    ids=["pair", "turn", "messages"],
)
def test_prompts_and_answers_of_every_shape_get_the_new_names(
    row: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    options = DatasetOptions(
        train_dataframe=str(file),
        validation_size=0,
        personalize=True,
        chatbot_name="Fiddle",
        chatbot_author="the Workshop",
    )
    (record,) = load_dataset(options).train
    if isinstance(record, GenerationTrainRecord):
        said = [record.input, record.output]
    else:
        assert isinstance(record, ChatTrainRecord)
        said = [message.content for message in record.messages]
    assert said[-2:] == ["Who is Fiddle?", "Ask the Workshop."]
    assert said[:-2] in ([], ["Not ChatGPT."])


def test_plain_text_gets_the_new_names_too(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("A book about ChatGPT.", encoding="utf-8")
    options = DatasetOptions(train_dataframe=str(file), validation_size=0, personalize=True)
    (record,) = load_dataset(options).train
    assert record.text == "A book about h2oGPT."  # type: ignore[union-attr]
