"""Training records of a request or a Python caller, refused row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from luthier.data_model.conversations import ChatTrainRecord
from luthier.data_model.datasets.renaming import NewNames
from luthier.data_model.datasets.shapes import DatasetRow
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import ClassificationTrainRecord, to_generation_record
from luthier.data_model.streams import StreamLimits, StreamRecord, read_train_records
from luthier.errors import (
    InvalidInputError,
    TrainingDataError,
)
from luthier.modules.environment import Environment
from luthier.modules.planning.hooks import TrainingHooks
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER, Verbalizer


@dataclass(frozen=True)
class StreamReader:
    """Reads records of which each can be written as text and has something to learn.

    Args:
        template: That pairs are written by.
        dataset: How conversations are.
        hooks: Say whose records they are.
        environment: Has the limits.
        reads_classes: Whether each record is a text with one label.
    """

    template: str
    dataset: DatasetOptions
    hooks: TrainingHooks
    environment: Environment
    reads_classes: bool

    def read(self, stream: Any, name: str) -> tuple[StreamRecord, ...]:
        """The records of a stream; none of None.

        Args:
            stream: As ``train`` takes it.
            name: Of the argument, for messages.

        Returns:
            The records, each checked.

        Raises:
            LuthierError: Naming the row and what is wrong with it.
        """
        if stream is None:
            return ()
        limits = self.environment.stream_limits if self.hooks.from_request else StreamLimits()
        records = read_train_records(stream, limits, name=name, keeps_labels=self.reads_classes)
        if self.reads_classes:
            records = [
                _with_one_label(record, f"{name} row {row}")
                for row, record in enumerate(records, start=1)
            ]
        verbalizer = Verbalizer(self.template)
        for row, record in enumerate(records, start=1):
            if isinstance(record, ChatTrainRecord):
                self._require_conversations(f"{name} row {row}")
                continue
            verbalizer.render({"input": record.input, "output": record.output}, row=row)
            if not record.output:
                raise TrainingDataError(
                    f"{name} row {row}: field 'output' is empty, so there is nothing to learn"
                )
        return tuple(self._renamed(record) for record in records)

    def _renamed(self, record: StreamRecord) -> StreamRecord:
        if not self.dataset.personalize:
            return record
        names = NewNames(self.dataset.chatbot_name, self.dataset.chatbot_author)
        return cast(StreamRecord, names.in_row(cast(DatasetRow, record)))

    def _require_conversations(self, place: str) -> None:
        if self.template != DEFAULT_VERBALIZER or self.dataset.prompt_format == "verbalizer":
            raise InvalidInputError(
                f"{place} is a conversation, for which a 'verbalizer' has no place; leave it out, "
                "and 'prompt_format' verbalizer, too"
            )


def _with_one_label(record: StreamRecord, place: str) -> StreamRecord:
    """A text with its label as a pair."""
    if not isinstance(record, ClassificationTrainRecord):
        raise TrainingDataError(
            f"{place} is a conversation; a classification is learned from texts with a label"
        )
    if len(record.labels) != 1:
        raise TrainingDataError(
            f"{place} has {len(record.labels)} labels; a classification gives each text one"
        )
    return to_generation_record(record)


def check_row_limit(
    num_rows: int, module_id: str, base_model_names: set[str], environment: Environment
) -> None:
    """Refuse more rows than the operator allows.

    Args:
        num_rows: Of the training data.
        module_id: What is to be trained.
        base_model_names: As the base model may be called in the limits.
        environment: Has the limits.

    Raises:
        TrainingDataError: Saying both numbers.
    """
    limits = [
        environment.max_training_rows(module_id=module_id, base_model=name)
        for name in base_model_names
    ]
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is not None and num_rows > limit:
        raise TrainingDataError(
            f"Number of examples ({num_rows}) exceeds the maximum number of examples allowed "
            f"({limit}) for this model"
        )
