"""A full fine-tuning before it starts: the plan of any training, without what is for adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data_model.options.quantisation import NONE
from luthier.data_model.options.training_options import FULL_FINE_TUNING_DEFAULTS
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.modules.environment import Environment
from luthier.modules.planning.train_plan import TrainingPlan, plan_training

#: Arguments for callers of caikit-nlp, which change nothing.
_WITHOUT_EFFECT = ("use_iterable_dataset",)


def plan_full_fine_tuning(
    arguments: Mapping[str, Any], *, module_id: str, environment: Environment
) -> TrainingPlan:
    """Plan a full fine-tuning; takes and raises what ``plan_training`` does."""
    plan = plan_training(
        {name: value for name, value in arguments.items() if name not in _WITHOUT_EFFECT},
        module_id=module_id,
        defaults=FULL_FINE_TUNING_DEFAULTS,
        environment=environment,
        tunes_all_weights=True,
    )
    if plan.start is not None:
        raise InvalidInputError(
            "'start_from' is for adapters; a whole model is gone on from as 'base_model'"
        )
    if plan.options.quantization != NONE:
        raise NotSupportedError(
            f"'quantization' {plan.options.quantization!r}: the weights of a quantised base "
            "model cannot be fine-tuned; tune a LoRA or a prompt"
        )
    return plan
