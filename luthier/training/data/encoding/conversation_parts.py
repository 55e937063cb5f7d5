"""From a conversation to its parts: what the model reads, and what it learns to write.

Two ways lead there: a chat template, and markers around prompts and answers. Either way the parts
joined are the whole text, and an answer's part holds its text and the end that the model must learn
to write, and nothing else::

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello    | <|im_end|>
                       prompt                              | answer   | its end
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.formats.row import shown
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import InvalidInputError, TrainingDataError
from luthier.training.data.encoding.prompt_encoding import TextPiece

PartKind: TypeAlias = Literal["system", "prompt", "answer"]

#: Characters for private use, which mark where contents begin and end if no message has them.
_MARK_CODES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a conversation that is tokenized by itself.

    Args:
        kind: Decides which end is kept if it is too long.
        pieces: Its text.
        end: Control token that follows, perhaps after a space; "" for none.
        is_learned: Whether this is an answer that the model shall learn to write.
    """

    kind: PartKind
    pieces: tuple[TextPiece, ...]
    end: str = ""
    is_learned: bool = False


#: Cuts one conversation into parts; the last is an answer.
PartMaker: TypeAlias = Callable[[ChatTrainRecord, str], list[Part]]


@dataclass(frozen=True)
class TemplateParts:
    """Parts by a chat template, which transformers runs in a sandbox.

    Args:
        tokenizer: Whose template counts if there is no other.
        chat_template: Jinja text, or None.
        end_texts: Spellings of the tokens that end an answer; at least one. The first is put after
            a last answer that the template does not end.
        adds_end: Whether it is.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    end_texts: tuple[str, ...]
    adds_end: bool = True

    def __call__(self, record: ChatTrainRecord, place: str) -> list[Part]:
        """Cut a conversation.

        Args:
            record: Ends with an answer.
            place: For messages.

        Returns:
            Parts; the last is an answer.

        Raises:
            TrainingDataError: If the template refuses the messages, leaves one out or changes what
                one says.
        """
        plain = self._render(record.messages, place)
        open_marks, close_marks = _marks(record, place)
        for keeps_blanks in (True, False):
            marked = self._render(
                [
                    _marked(message, first, last, keeps_blanks=keeps_blanks)
                    for message, first, last in zip(
                        record.messages, open_marks, close_marks, strict=True
                    )
                ],
                place,
            )
            pieces = list(_pieces(marked, open_marks, close_marks))
            if "".join(text for text, _ in pieces) == plain:
                return self._parts(pieces, record, place)
        raise TrainingDataError(
            f"{place}: the chat template changes what a message says, so it cannot be told which "
            "tokens are its answers; give another 'chat_template' or 'prompt_format' markers"
        )

    def _parts(
        self, pieces: Sequence[tuple[str, int | None]], record: ChatTrainRecord, place: str
    ) -> list[Part]:
        seen = [number for _, number in pieces if number is not None]
        for number in range(len(record.messages)):
            if seen.count(number) != 1:
                times = "leaves out" if number not in seen else "repeats"
                raise TrainingDataError(
                    f"{place}: the chat template {times} message {number + 1} "
                    f"({record.messages[number].role})"
                )
        return self._ended(self._grouped(list(pieces), record))

    def _grouped(self, pieces: list[tuple[str, int | None]], record: ChatTrainRecord) -> list[Part]:
        parts: list[Part] = []
        prompt: list[TextPiece] = []
        for index, (text, number) in enumerate(pieces):
            if number is None or record.messages[number].role != "assistant":
                prompt.append(TextPiece(text, is_data=number is not None))
                continue
            if prompt:
                parts.append(Part("prompt", tuple(prompt)))
                prompt = []
            following, follower = pieces[index + 1] if index + 1 < len(pieces) else ("", None)
            end = self._end_at(following) if follower is None else ""
            if end:  # What follows the end is met next, without it.
                pieces[index + 1] = (following[len(end) :], None)
            answer = (TextPiece(text, is_data=True),)
            parts.append(Part("answer", answer, end, record.messages[number].is_learned))
        return parts

    def _ended(self, parts: list[Part]) -> list[Part]:
        last = parts[-1]
        if not last.end and self.adds_end:
            parts[-1] = Part(last.kind, last.pieces, self.end_texts[0], last.is_learned)
        return parts

    def _end_at(self, text: str) -> str:
        match = re.match(rf"\s*(?:{'|'.join(map(re.escape, self.end_texts))})", text)
        return match[0] if match else ""

    def _render(self, messages: Iterable[ChatMessage], place: str) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                chat_template=self.chat_template,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TrainingDataError(
                f"{place}: the chat template refuses the conversation: {shown(str(error))}"
            ) from error
        return str(rendered)


@dataclass(frozen=True)
class MarkerParts:
    """Parts by markers, as H2O LLM Studio writes them.

    Args:
        options: Markers, and where EOS stands.
        end_text: Spelling of the end-of-sequence token.
    """

    options: DatasetOptions
    end_text: str

    def __call__(self, record: ChatTrainRecord, place: str) -> list[Part]:
        """Cut a conversation.

        Args:
            record: Ends with an answer.
            place: For messages.

        Returns:
            Parts, one per message.

        Raises:
            TrainingDataError: For a role that there is no marker for.
        """
        return [self._part(message, place) for message in record.messages]

    def _part(self, message: ChatMessage, place: str) -> Part:
        options, said = self.options, TextPiece(message.content, is_data=True)
        if message.role in ("system", "developer"):
            start = TextPiece(options.text_system_start, is_data=False)
            end = self.end_text if options.add_eos_token_to_system else ""
            return Part("system", (start, said), end)
        if message.role == "user":
            start = TextPiece(options.text_prompt_start, is_data=False)
            end = self.end_text if options.add_eos_token_to_prompt else ""
            closing = TextPiece(end + options.text_answer_separator, is_data=False)
            return Part("prompt", (start, said, closing))
        if message.role == "assistant":
            end = self.end_text if options.add_eos_token_to_answer else ""
            return Part("answer", (said,), end, message.is_learned)
        raise TrainingDataError(f"{place}: there is no marker for the role '{message.role}'")


def choose_parts(
    tokenizer: PreTrainedTokenizerBase, options: DatasetOptions, end_texts: tuple[str, ...]
) -> PartMaker:
    """The way that options name, or the base model's own.

    Args:
        tokenizer: The base model's.
        options: ``prompt_format``, ``chat_template`` and markers.
        end_texts: Spellings of the tokens that end an answer; at least one.

    Returns:
        Cuts conversations.

    Raises:
        InvalidInputError: If a chat template is asked for and there is none, or conversations shall
            go through a verbalizer.
    """
    if options.prompt_format == "verbalizer":
        raise InvalidInputError(
            "'prompt_format' is verbalizer, which has no place for a conversation's messages"
        )
    has_template = options.chat_template is not None or bool(tokenizer.chat_template)
    if options.prompt_format == "markers" or (options.prompt_format == "auto" and not has_template):
        return MarkerParts(options, end_texts[0])
    if not has_template:
        raise InvalidInputError(
            "'prompt_format' is chat_template, but the base model has none; give 'chat_template'"
        )
    return TemplateParts(
        tokenizer, options.chat_template, end_texts, adds_end=options.add_eos_token_to_answer
    )


def _marks(record: ChatTrainRecord, place: str) -> tuple[list[str], list[str]]:
    """Two characters per message that none of the messages has."""
    used = set().union(*(message.content for message in record.messages))
    unused = (mark for mark in map(chr, itertools.chain(*_MARK_CODES)) if mark not in used)
    marks = list(itertools.islice(unused, 2 * len(record.messages)))
    if len(marks) < 2 * len(record.messages):
        raise TrainingDataError(f"{place}: the conversation uses up the characters for private use")
    return marks[::2], marks[1::2]


def _marked(message: ChatMessage, first: str, last: str, *, keeps_blanks: bool) -> ChatMessage:
    """The message with marks around its content, or around what a template that trims leaves."""
    content = message.content
    if keeps_blanks:
        return ChatMessage(message.role, f"{first}{content}{last}")
    core = content.strip()
    start = content.index(core)
    end = start + len(core)
    return ChatMessage(message.role, f"{content[:start]}{first}{core}{last}{content[end:]}")


def _pieces(
    marked: str, opening: Sequence[str], closing: Sequence[str]
) -> Iterable[tuple[str, int | None]]:
    """The text between marks: of a message with its number, of the template with None."""
    number_of = {mark: number for number, mark in enumerate(opening)}
    ends = set(closing)
    marks = re.compile(f"[{''.join((*opening, *closing))}]")
    position, current = 0, None
    for match in marks.finditer(marked):
        text = marked[position : match.start()]
        if text or current is not None:
            yield text, current
        current = None if match[0] in ends else number_of[match[0]]
        position = match.end()
    if marked[position:]:
        yield marked[position:], current
