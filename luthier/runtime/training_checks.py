"""Asks a module, before a job is made, whether a training could work at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data_model.streams import StreamRecord
from luthier.modules import plan_train
from luthier.runtime.jobs.training_call import (
    TRAIN_STREAM,
    VALIDATION_STREAM,
    as_arguments,
    module_class_of,
    train_argument_types,
)


def check_training(
    module_id: str,
    parameters: Mapping[str, Any],
    records: list[StreamRecord],
    validation_records: list[StreamRecord],
) -> None:
    """Refuse what the module's ``train`` would refuse before it loads weights.

    Args:
        module_id: The module to train.
        parameters: As the request set them.
        records: Training data, already read.
        validation_records: Likewise; may be empty.

    Raises:
        LuthierError: Naming the parameter, its value and the limit, or the row.
    """
    types = train_argument_types(module_class_of(module_id))
    arguments = as_arguments(parameters, types)
    arguments[TRAIN_STREAM] = records
    arguments[VALIDATION_STREAM] = validation_records or None
    plan_train(module_id, arguments | {"from_request": True})
