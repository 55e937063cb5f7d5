"""Conversations as train records: chat messages, and rows that name the row before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from luthier.data_model.formats.row import shown
from luthier.errors import TrainingDataError

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Most messages of one conversation.
MAX_MESSAGES = 4096
#: ShareGPT's names of the speakers -> ours.
_SPEAKERS: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """What one speaker said.

    Args:
        role: One of ``ROLES``.
        content: The text.
        is_learned: False for an answer that is context only.
    """

    role: str
    content: str
    is_learned: bool = True


@dataclass(frozen=True, slots=True)
class ChatTrainRecord:
    """One conversation; the model learns to write the assistant's messages.

    Args:
        messages: Ends with the assistant's.
        place: File and row for messages, or "".
    """

    messages: tuple[ChatMessage, ...]
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TextTrainRecord:
    """A piece of plain text to continue pretraining on: every token is learned.

    Args:
        text: The document.
        place: File and row for messages, or "".
    """

    text: str
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """One row of a table of prompts and answers, which may continue another row.

    Args:
        prompt: What is asked.
        answer: What shall be written.
        system: Put before the first prompt; "" puts nothing.
        turn_id: Other rows refer to it; None where rows stand alone.
        parent_id: The row before this one, None for the first of a conversation.
        place: File and row for messages.
    """

    prompt: str
    answer: str
    system: str = ""
    turn_id: str | None = None
    parent_id: str | None = None
    place: str = field(default="", compare=False)


def chat_record(messages: object, place: str) -> ChatTrainRecord:
    """A conversation as OpenAI (``role``, ``content``) or ShareGPT (``from``, ``value``) write it.

    ``content`` may be a list of text parts; ``weight`` 0 makes an answer context only.

    Args:
        messages: What a row holds.
        place: File and row for messages.

    Returns:
        A conversation that ends with an answer and has one to learn.

    Raises:
        TrainingDataError: For anything else; names place and message.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise TrainingDataError(f"{place}: a conversation must be a list of one or more messages")
    if len(messages) > MAX_MESSAGES:
        raise TrainingDataError(
            f"{place}: {len(messages)} messages, at most {MAX_MESSAGES} are allowed"
        )
    return checked_chat(
        ChatTrainRecord(
            tuple(
                _message(message, f"{place} message {number}")
                for number, message in enumerate(messages, start=1)
            ),
            place,
        ),
        place,
    )


def checked_chat(record: ChatTrainRecord, place: str) -> ChatTrainRecord:
    """Give a conversation back if the model can learn from it.

    Args:
        record: From anywhere.
        place: For messages.

    Returns:
        The record.

    Raises:
        TrainingDataError: If it does not end with an answer, has none to learn, an unknown role or
            a content that is no text.
    """
    for number, message in enumerate(record.messages, start=1):
        if message.role not in ROLES:
            raise TrainingDataError(
                f"{place} message {number}: role {shown(str(message.role))} is not one of "
                f"{', '.join(ROLES)}"
            )
        if not isinstance(message.content, str):
            raise TrainingDataError(f"{place} message {number}: 'content' must be a string")
        if message.role == "assistant" and not message.content:
            raise TrainingDataError(f"{place} message {number}: the answer is empty")
    if not record.messages or record.messages[-1].role != "assistant":
        last = record.messages[-1].role if record.messages else "nothing"
        raise TrainingDataError(f"{place}: the last message must be the assistant's, not {last}'s")
    if not any(message.role == "assistant" and message.is_learned for message in record.messages):
        raise TrainingDataError(f"{place}: every answer has weight 0, so nothing can be learned")
    return record


def conversation_of(turns: Sequence[Turn]) -> ChatTrainRecord:
    """Turns in their order as one conversation; the first one's system text counts.

    Args:
        turns: At least one.

    Returns:
        A conversation with the last turn's place.
    """
    messages = [ChatMessage("system", turns[0].system)] if turns[0].system else []
    for turn in turns:
        messages += [ChatMessage("user", turn.prompt), ChatMessage("assistant", turn.answer)]
    return ChatTrainRecord(tuple(messages), turns[-1].place)


def learn_only_last_answer(record: ChatTrainRecord) -> ChatTrainRecord:
    """The same conversation with every answer but the last as context."""
    *earlier, last = record.messages
    return replace(
        record, messages=(*(replace(message, is_learned=False) for message in earlier), last)
    )


def _message(message: object, place: str) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise TrainingDataError(f"{place} must be an object with 'role' and 'content'")
    if "role" not in message and "from" in message:
        return ChatMessage(_speaker(message["from"], place), _content(message, "value", place))
    role = message.get("role")
    if not isinstance(role, str):
        raise TrainingDataError(f"{place}: field 'role' is missing or no string")
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise TrainingDataError(f"{place}: '{key}' cannot be learned from yet")
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise TrainingDataError(f"{place}: 'weight' must be 0 or 1, got {shown(repr(weight))}")
    return ChatMessage(role, _content(message, "content", place), is_learned=weight != 0)


def _speaker(name: object, place: str) -> str:
    role = _SPEAKERS.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        known = ", ".join(_SPEAKERS)
        raise TrainingDataError(f"{place}: 'from' is {shown(repr(name))}, not one of {known}")
    return role


def _content(message: Mapping[object, object], key: str, place: str) -> str:
    content = message.get(key)
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise TrainingDataError(f"{place}: field '{key}' is missing or no string")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(text, str):
            raise TrainingDataError(f"{place}: '{key}' holds a part that is no text")
        texts.append(text)
    return "".join(texts)
