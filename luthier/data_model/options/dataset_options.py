"""The settings of a data set: which columns mean what, how rows become text, what is held out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from luthier.data_model.checks import require_text
from luthier.data_model.options.limits import UNLIMITED
from luthier.data_model.options.setting import MAX_TEXT_CHARS, Setting, option
from luthier.errors import InvalidInputError

VALIDATION_STRATEGIES = ("automatic", "custom")
PROMPT_FORMATS = ("auto", "verbalizer", "chat_template", "markers")
SAMPLED_PARTS = ("Train", "Validation")
MAX_COLUMNS = 100


def _column(meaning: str) -> Any:
    return option(None, "text", meaning, is_optional=True)


def _share(default: float, meaning: str, **known: Any) -> Any:
    return option(default, "number", meaning, **{"minimum": 0, "maximum": 1, **known})


@dataclass(frozen=True)
class DatasetOptions:
    """Every setting of reading, splitting and rendering a data set, and of augmenting it.

    The names are H2O LLM Studio's, groups ``dataset``, ``tokenizer`` and ``augmentation``. Building
    one checks nothing; ``validate`` does. The fields' meaning is in their ``Setting``.
    """

    train_dataframe: str = option(
        "", "text", "File, folder or zip with the training rows: csv, json, jsonl, parquet, txt."
    )
    validation_strategy: str = option(
        "automatic",
        "choice",
        "automatic holds out a share of the training rows, custom reads validation_dataframe.",
        choices=VALIDATION_STRATEGIES,
    )
    validation_dataframe: str = option(
        "", "text", "Rows to validate with, in the same shape; custom strategy only."
    )
    validation_size: float = _share(
        0.01,
        "Share of the rows, or of the groups of chained rows, to hold out; 0 holds out none.",
        maximum=0.95,
    )
    train_validation_data: bool = option(
        False,
        "bool",
        "Learn the validation rows as well; what is measured on them then says little.",
    )
    data_sample: float = _share(
        1.0, "Share of the rows, or of whole groups of chained rows, to use.", minimum=0.001
    )
    data_sample_choice: tuple[str, ...] = option(
        SAMPLED_PARTS, "choices", "Which parts data_sample applies to.", choices=SAMPLED_PARTS
    )
    split_seed: int = option(
        1337,
        "int",
        "Chooses the rows to hold out and to sample; the order of training has its own seed.",
        minimum=0,
        maximum=2**63 - 1,
    )

    prompt_column: tuple[str, ...] | None = option(
        None,
        "texts",
        "Columns that make the prompt; one by itself needs no list. None detects the shape of the "
        "rows; an empty list learns the answer column as plain text.",
        is_optional=True,
    )
    prompt_column_separator: str = option(
        "\n\n", "text", "Stands between several prompt columns; columns without text are left out."
    )
    system_column: str | None = _column("Column with the system text; of a chain the first counts.")
    answer_column: str | None = _column("Column with what the model shall write.")
    id_column: str | None = _column("Column that parent ids refer to; 'id' if none is given.")
    parent_id_column: str | None = _column("Column that says which row comes before this one.")
    limit_chained_samples: bool = option(
        False,
        "bool",
        "True makes one conversation of every last row of a chain, False one of every row.",
    )

    personalize: bool = option(
        False,
        "bool",
        "Replace the names of Open Assistant, ChatGPT, LAION and OpenAI in prompts and answers by "
        "chatbot_name and chatbot_author: for data of Open Assistant. System texts stay.",
    )
    chatbot_name: str = option("h2oGPT", "text", "Name of the assistant with personalize.")
    chatbot_author: str = option("H2O.ai", "text", "Name of its makers with personalize.")

    prompt_format: str = option(
        "auto",
        "choice",
        "How rows become text. auto: pairs by the verbalizer; conversations by the chat template "
        "if the base model has one, else by the markers below.",
        choices=PROMPT_FORMATS,
    )
    chat_template: str | None = option(
        None,
        "text",
        "Jinja template in place of the base model's own. From operators and local files only.",
        is_optional=True,
    )
    text_system_start: str = option("<|system|>", "text", "Marker before the system text.")
    text_prompt_start: str = option("<|prompt|>", "text", "Marker before a prompt.")
    text_answer_separator: str = option("<|answer|>", "text", "Marker between prompt and answer.")
    add_prompt_answer_tokens: bool = option(
        False,
        "bool",
        "Make tokens of the markers that the vocabulary lacks, with embeddings of their own that "
        "start as the mean of the markers' pieces and are learned; needs prompt_format markers. "
        "lora keeps them in the adapter, and its model reads them and never writes them; "
        "full_fine_tuning enlarges the model's vocabulary. Other methods have no place for them.",
    )
    add_eos_token_to_system: bool = option(True, "bool", "End the system text with EOS.")
    add_eos_token_to_prompt: bool = option(
        True, "bool", "End a prompt with EOS, before the answer marker."
    )
    add_eos_token_to_answer: bool = option(True, "bool", "End an answer with EOS, and learn it.")
    mask_prompt_labels: bool = option(
        True, "bool", "True learns the answers alone, False every token."
    )
    only_last_answer: bool = option(False, "bool", "Learn the last answer of a conversation alone.")

    max_length: int | None = option(
        None,
        "int",
        "Tokens of a conversation: an answer keeps its first, a prompt its last, and the whole its "
        "last this many. None cuts nothing and refuses rows that the base model cannot take. Of "
        "plain text, the tokens of one example; None is 512 there.",
        minimum=8,
        maximum=2**31,
        is_optional=True,
    )
    max_length_prompt: int | None = option(
        None,
        "int",
        "Tokens of one prompt, of which the last are kept, and of a system text, of which the "
        "first are; in conversations. None leaves it to max_length.",
        minimum=1,
        maximum=2**31,
        is_optional=True,
    )
    max_length_answer: int | None = option(
        None,
        "int",
        "Tokens of one answer, of which the first are kept, and its end; in conversations. None "
        "leaves it to max_length.",
        minimum=1,
        maximum=2**31,
        is_optional=True,
    )
    padding_quantile: float = _share(
        1.0,
        "Batches are as long as this quantile of their rows; longer rows lose their start (labels "
        "of seq2seq models their end). 1 keeps everything.",
        minimum=0.01,
    )
    token_mask_probability: float = _share(
        0.0, "Training tokens hidden from the model at random, each time anew.", maximum=0.9
    )
    skip_parent_probability: float = _share(
        0.0, "Chance of each earlier turn of a conversation to be left out, each time anew."
    )
    random_parent_probability: float = _share(
        0.0, "Chance that the first earlier turn is one of another conversation, each time anew."
    )
    neftune_noise_alpha: float = option(
        0.0,
        "number",
        "Uniform noise of alpha / sqrt(tokens x hidden size) on input embeddings (NEFTune).",
        minimum=0,
        maximum=1000,
    )
    number_of_workers: int = option(1, "int", "Threads that tokenize.", minimum=1, maximum=256)
    max_tokens_in_memory: int = option(
        2**22,
        "int",
        "Tokens and labels that a training without tokenization_cache keeps in memory, about 70 "
        "bytes each; more data goes to a file of the system's temporary folder (TMPDIR), which is "
        "gone with the training.",
        minimum=0,
        maximum=2**60,
    )
    tokenization_cache: str | None = option(
        None,
        "text",
        "Folder that keeps tokenized data under a hash of its content; none keeps nothing.",
        is_optional=True,
    )
    max_tokenization_cache_bytes: int = option(
        20 * 2**30,
        "int",
        "Bytes that tokenization_cache may hold; what was not used for longest is deleted first, "
        "what was used last never is.",
        minimum=0,
        maximum=2**60,
    )

    def validate(self) -> None:
        """Refuse options that cannot be meant; changes nothing.

        Raises:
            InvalidInputError: For a value of the wrong type or out of range, or options that
                contradict each other; the message names the option, the value and the limit.
        """
        for field in dataclasses.fields(self):
            setting: Setting = field.metadata["setting"]
            value = getattr(self, field.name)
            if setting.kind in ("texts", "choices"):
                _check_texts(field.name, value, setting)
            else:
                setting.check(field.name, value, UNLIMITED)
        self._check_together()

    def _check_together(self) -> None:
        if self.validation_strategy == "custom" and not self.validation_dataframe:
            raise InvalidInputError("'validation_strategy' custom needs 'validation_dataframe'")
        if self.validation_strategy == "automatic" and self.validation_dataframe:
            raise InvalidInputError(
                "'validation_dataframe' is given, but 'validation_strategy' is automatic; "
                "make it custom"
            )
        if self.prompt_column is not None and self.answer_column is None:
            raise InvalidInputError("'prompt_column' needs 'answer_column'")
        if self.answer_column is not None and self.prompt_column is None:
            raise InvalidInputError(
                "'answer_column' needs 'prompt_column'; an empty list learns plain text"
            )
        if self.id_column is not None and self.parent_id_column is None:
            raise InvalidInputError("'id_column' has no use without 'parent_id_column'")
        for name in ("system_column", "parent_id_column"):
            if getattr(self, name) is not None and not self.prompt_column:
                raise InvalidInputError(f"'{name}' needs 'prompt_column' and 'answer_column'")
        if self.only_last_answer and not self.mask_prompt_labels:
            raise InvalidInputError("'only_last_answer' needs 'mask_prompt_labels'")
        if self.add_prompt_answer_tokens and self.prompt_format != "markers":
            raise InvalidInputError(
                f"'add_prompt_answer_tokens' needs 'prompt_format' markers, it is "
                f"{self.prompt_format}, which writes none"
            )
        if self.chat_template is not None and self.prompt_format not in ("auto", "chat_template"):
            raise InvalidInputError(
                f"'chat_template' has no use with 'prompt_format' {self.prompt_format}"
            )


def _check_texts(name: str, value: object, setting: Setting) -> None:
    if value is None and setting.is_optional:
        return
    if not isinstance(value, tuple | list) or len(value) > MAX_COLUMNS:
        found = f"{len(value)}" if isinstance(value, tuple | list) else f"{value!r:.80}"
        raise InvalidInputError(
            f"'{name}' must be a list of at most {MAX_COLUMNS} names, got {found}"
        )
    for text in value:
        require_text(name, text, max_chars=MAX_TEXT_CHARS)
        if setting.choices and text not in setting.choices:
            raise InvalidInputError(
                f"'{name}' must be of {', '.join(setting.choices)}, got {text[:80]!r}"
            )
    if len(set(value)) < len(value):
        raise InvalidInputError(f"'{name}' names {value[0][:80]!r} or another one twice")
