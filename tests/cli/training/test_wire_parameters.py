"""What a server takes, held against the messages that it has."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.cli.training.wire_parameters import METHODS, WIRE_NAMES, wire_parameters
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.modules.service_package import frozen_numbers

MESSAGES = {
    "lora": "TextGenerationTaskLoraTuningTrainParameters",
    "full_fine_tuning": "TextGenerationTaskTextGenerationTrainParameters",
    "head": "TextClassificationTaskHeadTuningTrainParameters",
}
#: What a run has by other means, or nobody needs.
ELSEWHERE = {
    *("base_model", "train_stream", "val_stream", "tuning_config", "tuning_type"),
    *("training_options", "use_iterable_dataset"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_methods_message_can_be_sent_and_nothing_else(method: str) -> None:
    message = MESSAGES.get(method, "TextGenerationTaskPeftPromptTuningTrainParameters")
    assert set(WIRE_NAMES[method].values()) == frozen_numbers()[message].keys() - ELSEWHERE


def test_tables_are_lists_on_the_wire() -> None:
    parameters = wire_parameters("lora", {"rank_pattern": {"q_proj": 4}, "alpha_pattern": ["v=2"]})
    assert parameters == {"rank_pattern": ["q_proj=4"], "alpha_pattern": ["v=2"]}


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("prompt_tuning", {"rank": 4}, NotSupportedError, "'rank' cannot be sent.*num_epochs"),
        ("head", {"eva_rho": 2.0}, NotSupportedError, "'eva_rho' cannot be sent with method head"),
        ("lora", {"trackers": ["wandb"]}, NotSupportedError, "the operator says where"),
        ("lora", {"compile_model": True}, NotSupportedError, "speed is the operator's business"),
        ("lora", {"lr": 1, "learning_rate": 2}, InvalidInputError, "are the same; give one"),
        ("lora", {"gradient_clip": 1, "max_grad_norm": 2}, InvalidInputError, "give one"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_reason(
    method: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wire_parameters(method, options)
