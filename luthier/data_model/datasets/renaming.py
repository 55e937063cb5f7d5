"""Other names for an assistant and its makers in the texts that are learned from.

Meant for conversations collected for Open Assistant, which speak of it and of LAION by name. The
spellings are those that H2O LLM Studio replaces, misspelled ones of the data included.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from luthier.data_model.conversations import ChatTrainRecord, TextTrainRecord, Turn
from luthier.data_model.datasets.shapes import DatasetRow
from luthier.data_model.records import GenerationTrainRecord

_ASSISTANTS = (
    *("Open Assistant", "Open-Assistant", "open-assistant", "OpenAssistant", "open assistant"),
    *("Open Assistand", "Open Assitant", "Open Assistent", "Open Assisstant", "Open Assitent"),
    *("Open Assitiant", "Open Assistiant", "Open Asistant", "Open Assiant"),
    *("Assistant", "ChatGPT"),
)
#: Words cut short, where a space follows.
_CUT_ASSISTANTS = ("Open Assitan", "Open Assistan")
_MAKERS = ("LAION AI", "LAION-AI", "LAION.ai", "LAION", "Laion AI")
_OTHER_MAKERS = ("OpenAI", "Open AI", "openai", "open ai")


def _any_of(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in words)


_NAMES = re.compile(
    f"(?P<assistant>{_any_of(_ASSISTANTS)}|(?:{_any_of(_CUT_ASSISTANTS)})(?= ))"
    f"|{_any_of(_MAKERS)}|{_any_of(_OTHER_MAKERS)}"
)


@dataclass(frozen=True)
class NewNames:
    """What stands in the place of the names.

    Args:
        chatbot: Of the assistant.
        author: Of its makers.
    """

    chatbot: str
    author: str

    def in_text(self, text: str) -> str:
        """A text with the new names.

        Args:
            text: Any; what is put in is not looked at again.

        Returns:
            The text.
        """
        return _NAMES.sub(lambda found: self.chatbot if found["assistant"] else self.author, text)

    def in_row(self, row: DatasetRow) -> DatasetRow:
        """A row with the new names in what is asked and answered; system texts stay.

        Args:
            row: Of a data set.

        Returns:
            Another one of its kind.
        """
        if isinstance(row, GenerationTrainRecord):
            return GenerationTrainRecord(
                input=self.in_text(row.input or ""), output=self.in_text(row.output or "")
            )
        if isinstance(row, Turn):
            return dataclasses.replace(
                row, prompt=self.in_text(row.prompt), answer=self.in_text(row.answer)
            )
        if isinstance(row, TextTrainRecord):
            return dataclasses.replace(row, text=self.in_text(row.text))
        return self._in_conversation(row)

    def _in_conversation(self, row: ChatTrainRecord) -> ChatTrainRecord:
        messages = tuple(
            message
            if message.role in ("system", "developer")
            else dataclasses.replace(message, content=self.in_text(message.content))
            for message in row.messages
        )
        return dataclasses.replace(row, messages=messages)
