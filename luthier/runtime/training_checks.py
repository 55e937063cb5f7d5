"""Asks a module, before a job is made, whether a training could work at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data_model.records import GenerationTrainRecord
from luthier.runtime.jobs.training_call import as_arguments, module_class_of, train_argument_types


def check_training(
    module_id: str,
    parameters: Mapping[str, Any],
    records: list[GenerationTrainRecord],
    validation_records: list[GenerationTrainRecord],
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
    module_class = module_class_of(module_id)
    check = getattr(module_class, "check_training", None)
    if check is not None:
        arguments = as_arguments(parameters, train_argument_types(module_class))
        check(
            train_stream=records,
            val_stream=validation_records or None,
            from_request=True,
            **arguments,
        )
