"""How a user's text becomes the prompt of a tuned model: as in its training, token for token.

A verbalizer makes text of a record, to which the tokenizer adds its own special tokens. Markers and
chat templates make a conversation of it, whose tokens come from the template alone. A model that
was tuned one way must be asked the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.adapters.added_tokens import NO_TOKENS
from luthier.data_model.checks import require_unicode
from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import ArtifactError, TrainingDataError
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.conversation_parts import Part, choose_parts
from luthier.training.data.encoding.prompt_encoding import EncodedPrompt, encoder_for
from luthier.training.data.encoding.row_tokenizer import end_texts_of, eos_token_id_of
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER, Verbalizer

#: Stands where the model will write; templates show it, and it is cut off again.
_ANSWER = "?"


@dataclass(frozen=True)
class PromptStyle:
    """What of a training decides how a single prompt is written.

    Args:
        verbalizer: Template from the user's text to the prompt, or to the user's message.
        prompt_format: ``verbalizer``, ``markers`` or ``chat_template``.
        chat_template: In place of the base model's own.
        text_prompt_start: Marker before the message.
        text_answer_separator: Marker after it.
        add_eos_token_to_prompt: Whether EOS stands between the two.
    """

    verbalizer: str = DEFAULT_VERBALIZER
    prompt_format: str = "verbalizer"
    chat_template: str | None = None
    text_prompt_start: str = ""
    text_answer_separator: str = ""
    add_eos_token_to_prompt: bool = False

    @classmethod
    def of_training(
        cls,
        verbalizer: str,
        dataset: DatasetOptions,
        records: Iterable[object],
        base_model: BaseModel,
    ) -> PromptStyle:
        """The style that a training wrote its prompts in.

        Args:
            verbalizer: Its template.
            dataset: Its options; ``auto`` is decided here as the training does.
            records: What it learned from; conversations among them make the style theirs.
            base_model: May bring a chat template.

        Returns:
            The style.
        """
        format_ = dataset.prompt_format
        if format_ == "auto":
            has_template = dataset.chat_template is not None or bool(
                base_model.tokenizer.chat_template
            )
            if dataset.chat_template is None and not _has_conversation(records):
                format_ = "verbalizer"
            else:
                format_ = "chat_template" if has_template else "markers"
        if format_ == "verbalizer":
            return cls(verbalizer)
        if format_ == "chat_template":
            return cls(verbalizer, format_, dataset.chat_template)
        return cls(
            verbalizer,
            format_,
            text_prompt_start=dataset.text_prompt_start,
            text_answer_separator=dataset.text_answer_separator,
            add_eos_token_to_prompt=dataset.add_eos_token_to_prompt,
        )

    @classmethod
    def from_config(cls, verbalizer: str, given: object) -> PromptStyle:
        """Read what ``to_config`` gave.

        Args:
            verbalizer: The model's.
            given: Of a saved model; None for one that has only a verbalizer.

        Returns:
            The style.

        Raises:
            ArtifactError: If it is something else.
        """
        if given is None:
            return cls(verbalizer)
        known = {each.name for each in dataclasses.fields(cls)} - {"verbalizer"}
        if not isinstance(given, Mapping) or not given.keys() <= known:
            raise ArtifactError(f"saved model: 'prompt' must hold {', '.join(sorted(known))}")
        flag = given.get("add_eos_token_to_prompt", False)
        texts = {name: value for name, value in given.items() if name != "add_eos_token_to_prompt"}
        if not isinstance(flag, bool) or not all(isinstance(each, str) for each in texts.values()):
            raise ArtifactError("saved model: a value of 'prompt' is of the wrong type")
        if texts.get("prompt_format") not in ("markers", "chat_template"):
            raise ArtifactError("saved model: 'prompt.prompt_format' is neither markers nor "
                                "chat_template")  # fmt: skip
        return cls(verbalizer, **texts, add_eos_token_to_prompt=flag)

    def to_config(self) -> dict[str, Any] | None:
        """What a saved model needs beside its verbalizer; None where that is all."""
        if self.prompt_format == "verbalizer":
            return None
        values = dataclasses.asdict(self)
        del values["verbalizer"]
        defaults = dataclasses.asdict(PromptStyle())
        return {name: value for name, value in values.items() if value != defaults[name]}


class PromptWriter:
    """Writes prompts in one style for one base model. Thread-safe.

    Args:
        style: As the model was tuned.
        base_model: Its tokenizer counts; it is not kept alive.
        added_tokens: Text and id of tokens that the model has beside the base's.

    Raises:
        VerbalizerError: If the verbalizer has no placeholder.
        ArtifactError: If the tokenizer does not fit the tokens.
        InvalidInputError: If the style is a chat template and there is none.
    """

    def __init__(
        self,
        style: PromptStyle,
        base_model: BaseModel,
        added_tokens: Mapping[str, int] = NO_TOKENS,
    ) -> None:
        self.style = style
        self._verbalizer = Verbalizer(style.verbalizer)
        self._encoder = encoder_for(base_model, added_tokens)
        self._make_parts = None
        if style.prompt_format != "verbalizer":
            dataset = DatasetOptions(
                prompt_format=style.prompt_format,
                chat_template=style.chat_template,
                text_prompt_start=style.text_prompt_start,
                text_answer_separator=style.text_answer_separator,
                add_eos_token_to_prompt=style.add_eos_token_to_prompt,
            )
            eos = eos_token_id_of(
                base_model.tokenizer, base_model.eos_token_ids, name=base_model.name
            )
            end_texts = end_texts_of(base_model.tokenizer, eos, base_model.eos_token_ids)
            self._make_parts = choose_parts(base_model.tokenizer, dataset, end_texts)

    def write(self, text: str, *, max_tokens: int = 0) -> EncodedPrompt:
        """The prompt for a text.

        Args:
            text: The user's.
            max_tokens: Keep the first this many tokens; 0 keeps all.

        Returns:
            Text and tokens.

        Raises:
            VerbalizerError: If the verbalizer names another field than ``input``.
            InvalidInputError: If the text is no valid Unicode, or the template refuses it.
        """
        if self._make_parts is None:
            return self._encoder.encode(self._verbalizer, text, max_tokens=max_tokens)
        said = self._verbalizer.render({"input": require_unicode("text", text)})
        turn = (ChatMessage("user", said), ChatMessage("assistant", _ANSWER))
        parts = self._make_parts(ChatTrainRecord(turn), "text")[:-1]
        ids = [token for part in parts for token in self._ids(part)]
        if max_tokens and len(ids) > max_tokens:
            ids = ids[:max_tokens]
            return EncodedPrompt(self._encoder.decode(ids), tuple(ids))
        shown = "".join(piece.text for part in parts for piece in part.pieces)
        return EncodedPrompt(shown, tuple(ids))

    def _ids(self, part: Part) -> list[int]:
        if part.end:
            raise TrainingDataError("text: the chat template ends the user's message as an answer")
        return self._encoder.encode_pieces(part.pieces)


def _has_conversation(records: Iterable[object]) -> bool:
    return any(isinstance(record, ChatTrainRecord) for record in records)
