"""Messages of OpenAI's and ShareGPT's shape become conversations, or are refused by place."""

from typing import Any

import pytest

from luthier.data_model.conversations import (
    ChatMessage,
    ChatTrainRecord,
    TextTrainRecord,
    Turn,
    chat_record,
    checked_chat,
    conversation_of,
    learn_only_last_answer,
)
from luthier.errors import TrainingDataError

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


def test_openai_and_sharegpt_say_the_same() -> None:
    openai = chat_record([{"role": "system", "content": "be kind"}, USER, ANSWER], "f row 1")
    sharegpt = chat_record(
        [
            {"from": "system", "value": "be kind"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello"},
        ],
        "g row 1",
    )
    assert openai == sharegpt
    assert [message.role for message in openai.messages] == ["system", "user", "assistant"]


def test_content_may_come_in_text_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    record = chat_record([USER, {"role": "assistant", "content": parts}], "f")
    assert record.messages[1].content == "hello"


def test_weight_0_makes_an_answer_context() -> None:
    record = chat_record([USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}], "f")
    assert [message.is_learned for message in record.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "must be a list"),
        ([], "must be a list"),
        (["hi"], "message 1 must be an object"),
        ([USER], "last message must be the assistant's, not user's"),
        ([{"role": "boss", "content": "x"}, ANSWER], "message 1: role 'boss' is not one of"),
        ([{"content": "x"}, ANSWER], "message 1: field 'role' is missing"),
        ([USER, {"role": "assistant"}], "message 2: field 'content' is missing"),
        ([USER, {"role": "assistant", "content": ""}], "message 2: the answer is empty"),
        ([USER, {"role": "assistant", "content": 5}], "message 2: field 'content'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "part that is no text"),
        ([USER, {**ANSWER, "tool_calls": [1]}], "'tool_calls' cannot be learned"),
        ([USER, {**ANSWER, "weight": 0.5}], "'weight' must be 0 or 1, got '0.5'"),
        ([USER, {**ANSWER, "weight": 0}], "every answer has weight 0"),
        ([{"from": "alien", "value": "x"}], "'from' is \"'alien'\", not one of"),
        ([USER] * 5000, "5000 messages, at most 4096"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_its_place(messages: Any, message: str) -> None:
    with pytest.raises(TrainingDataError, match=f"^f.*{message}"):
        chat_record(messages, "f")


def test_a_record_made_in_python_is_checked_too() -> None:
    broken = ChatTrainRecord((ChatMessage("user", "x"), ChatMessage("assistant", 5)))  # type: ignore[arg-type]
    with pytest.raises(TrainingDataError, match="message 2: 'content' must be a string"):
        checked_chat(broken, "train row 1")


def test_turns_become_one_conversation_with_the_first_system_text() -> None:
    turns = [Turn("a", "b", system="s"), Turn("c", "d", system="t", place="f row 2")]
    record = conversation_of(turns)
    said = [(message.role, message.content) for message in record.messages]
    assert said == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]
    assert record.place == "f row 2"
    learned = learn_only_last_answer(record).messages
    assert [message.is_learned for message in learned] == [False] * 4 + [True]


def test_the_place_is_no_part_of_what_a_record_says() -> None:
    assert TextTrainRecord("a", "f row 1") == TextTrainRecord("a", "f row 2")
