"""Which of a request's records are learned from, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data_model.datasets.splitting import Units, hold_out, sample
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.streams import StreamRecord
from luthier.errors import InvalidInputError


def divide(
    train: Sequence[StreamRecord], validation: Sequence[StreamRecord], dataset: DatasetOptions
) -> tuple[tuple[StreamRecord, ...], tuple[StreamRecord, ...]]:
    """Hold out and sample as a file's rows would be: the same seed chooses the same rows.

    Args:
        train: All records to learn from, at least one.
        validation: Those that came apart from them; may be empty.
        dataset: Says how many, and which.

    Returns:
        Records to learn from, and records to validate with.

    Raises:
        InvalidInputError: If the options and what came contradict each other.
        TrainingDataError: If there are too few to hold any out.
    """
    if validation and dataset.validation_size:
        raise InvalidInputError(
            f"'validation_size' is {dataset.validation_size}, and there is a 'val_stream', too; "
            "give one of them"
        )
    learned, measured = hold_out(range(len(train)), dataset, name="train_stream")
    source = train
    if validation:
        source, measured = validation, range(len(validation))
    if dataset.train_validation_data and not measured:
        raise InvalidInputError(
            "'train_validation_data' has no use without a 'val_stream' or a 'validation_size'"
        )
    to_learn = _chosen(train, sample(learned, "Train", dataset))
    held_out = _chosen(source, sample(measured, "Validation", dataset))
    return (to_learn + held_out if dataset.train_validation_data else to_learn), held_out


def _chosen(records: Sequence[StreamRecord], units: Units) -> tuple[StreamRecord, ...]:
    return tuple(records[unit] for unit in units if isinstance(unit, int))
