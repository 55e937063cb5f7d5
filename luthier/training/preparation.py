"""What happens before the first batch: options settled, records read and tokenized."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping

import alog

from luthier.adapters.added_tokens import grown_tokenizer
from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.data_model.conversations import ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.limits import UNLIMITED
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.data.augmentation import Augmentation, changes_rows, mask_token_of
from luthier.training.data.encoding.conversation_encoding import ConversationEncoder
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.examples import TrainingData
from luthier.training.data.tokenization import (
    RowTokenizer,
    TrainRecord,
    eos_token_id_of,
    tokenize_records,
)
from luthier.training.processes.parallel import current_group

log = alog.use_channel(__name__)

#: Options that decide what is drawn anew each time a row is learned from.
_DRAWN_OPTIONS = (
    "neftune_noise_alpha",
    "padding_quantile",
    "random_parent_probability",
    "skip_parent_probability",
    "token_mask_probability",
)


def settle_options(options: TrainingOptions, *, default_seed: int | None = None) -> TrainingOptions:
    """Check the options, and draw the seed if it is -1.

    Server limits are the caller's business; what no server could want is refused here.

    Args:
        options: As the caller gave them; the same in all processes that train together.
        default_seed: Used for -1 instead of a drawn one: that of the training that goes on.

    Returns:
        The same with a seed >= 0.

    Raises:
        InvalidInputError: For a value of the wrong type, not finite or out of range.
    """
    options.validate(UNLIMITED)
    if options.seed >= 0:
        return options
    drawn = secrets.randbits(31) if default_seed is None else default_seed
    seed = current_group().from_main(drawn)
    return dataclasses.replace(options, seed=seed)


def read_data(
    base_model: BaseModel,
    adapter: Adapter,
    train: Iterable[TrainRecord],
    validation: Iterable[TrainRecord] | None,
    *,
    options: TrainingOptions,
    should_stop: Callable[[], bool],
    dataset: DatasetOptions | None = None,
) -> tuple[TrainingData, TrainingData | None]:
    """Tokenize training and validation records.

    Args:
        base_model: Its tokenizer and limits count.
        adapter: Its virtual tokens take room in the model's context.
        train: Read once.
        validation: Read once; None or empty gives None.
        options: Verbalizer and lengths.
        should_stop: Asked between chunks of records.
        dataset: How records become text, and what is drawn anew in each epoch.

    Returns:
        Training data, and validation data or None.

    Raises:
        VerbalizerError: For a verbalizer without placeholder, one that shows the label, or a
            field that a record lacks.
        TrainingDataError: For empty training data, or a row that cannot be learned from.
        CancelledError: If ``should_stop`` said so.
    """
    dataset = dataset or DatasetOptions()
    dataset.validate()
    verbalizer = Verbalizer(options.verbalizer)
    verbalizer.require_trainable()
    if adapter.class_labels:
        require_readable_classes(dataset)
    key_values = adapter.prefix_key_values()
    row_tokenizer = _row_tokenizer(
        base_model,
        adapter.soft_prompt(),
        options,
        num_cached=0 if key_values is None else key_values.shape[2],
        class_labels=adapter.class_labels,
        added_tokens=adapter.added_tokens(),
        writes_added=adapter.own_tokens() is None,
    )
    conversations: dict[int, ChatTrainRecord] = {}
    if dataset.skip_parent_probability or dataset.random_parent_probability:
        train = list(train)
        conversations = _conversations(train)
    data = tokenize_records(
        train, verbalizer, row_tokenizer, options=dataset, should_stop=should_stop
    )
    data = dataclasses.replace(data, class_labels=adapter.class_labels)
    _report_truncation("train", data)
    if changes_rows(dataset) or dataset.neftune_noise_alpha:
        data = _with_changes(data, row_tokenizer, conversations, dataset, seed=options.seed)
    held_out = list(validation) if isinstance(validation, Iterator) else validation
    if held_out is None or next(iter(held_out), None) is None:
        return data, None
    validation_data = tokenize_records(
        held_out,
        verbalizer,
        row_tokenizer,
        options=dataset,
        name="validation",
        should_stop=should_stop,
    )
    validation_data = dataclasses.replace(validation_data, class_labels=adapter.class_labels)
    _report_truncation("validation", validation_data)
    return data, validation_data


def require_readable_classes(dataset: DatasetOptions) -> None:
    """Refuse ways of writing text that a classification does not read.

    Args:
        dataset: Of the training.

    Raises:
        InvalidInputError: Naming the option.
    """
    for name, value, accepted in (
        ("prompt_format", dataset.prompt_format, ("auto", "verbalizer")),
        ("chat_template", dataset.chat_template, (None,)),
        ("personalize", dataset.personalize, (False,)),
    ):
        if value not in accepted:
            raise InvalidInputError(
                f"{name!r} is {str(value)[:80]!r}; a classification reads texts as the verbalizer "
                "writes them"
            )


def _row_tokenizer(
    base_model: BaseModel,
    prompt: SoftPromptTensors,
    options: TrainingOptions,
    *,
    num_cached: int,
    class_labels: tuple[str, ...],
    added_tokens: Mapping[str, int],
    writes_added: bool,
) -> RowTokenizer:
    num_virtual_tokens = num_cached + max(
        0 if part is None else part.shape[0] for part in (prompt.encoder, prompt.decoder)
    )
    room = base_model.max_positions
    if room is not None:
        room -= num_virtual_tokens
        if room < 2:
            raise InvalidInputError(
                f"{num_virtual_tokens} virtual tokens leave no room for text: base model "
                f"{base_model.name!r} takes {base_model.max_positions} tokens"
            )
    return RowTokenizer(
        tokenizer=grown_tokenizer(base_model.tokenizer, added_tokens),
        is_seq2seq=base_model.kind == "seq2seq",
        eos_token_id=eos_token_id_of(
            base_model.tokenizer, base_model.eos_token_ids, name=base_model.name
        ),
        max_source_length=options.max_source_length,
        max_target_length=options.max_target_length,
        has_virtual_tokens=prompt.decoder is not None,
        max_row_length=room,
        end_token_ids=base_model.eos_token_ids,
        class_labels=class_labels,
        unwritable_ids=() if writes_added else tuple(added_tokens.values()),
    )


def _conversations(records: Iterable[TrainRecord]) -> dict[int, ChatTrainRecord]:
    """Row number -> conversation; their turns are to be skipped or added."""
    found = {
        row: record
        for row, record in enumerate(records, start=1)
        if isinstance(record, ChatTrainRecord)
    }
    if not found:
        raise InvalidInputError(
            "'skip_parent_probability' and 'random_parent_probability' need conversations"
        )
    return found


def _with_changes(
    data: TrainingData,
    row_tokenizer: RowTokenizer,
    conversations: dict[int, ChatTrainRecord],
    dataset: DatasetOptions,
    *,
    seed: int,
) -> TrainingData:
    """The same data, changed each time it is learned from."""
    if dataset.padding_quantile < 1:
        log.warning(
            "batches are cut to the %g quantile of their rows' lengths; "
            "longer rows lose their start",
            dataset.padding_quantile,
        )
    change = Augmentation(
        dataset,
        seed,
        mask_token_of(row_tokenizer.tokenizer),
        row_tokenizer.is_seq2seq,
        conversations,
        ConversationEncoder(row_tokenizer, dataset),
    )
    return dataclasses.replace(
        data,
        change=change if changes_rows(dataset) else None,
        drawn_options={name: getattr(dataset, name) for name in _DRAWN_OPTIONS},
    )


def _report_truncation(name: str, data: TrainingData) -> None:
    if not data.truncation.is_empty:
        log.warning("%s data was truncated: %s", name, data.truncation)
