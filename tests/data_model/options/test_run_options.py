from __future__ import annotations

import pytest

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.prompt_words import PromptTuningInit
from luthier.data_model.options.run_options import INIT_METHODS, PromptOptions
from luthier.data_model.tuning import TuningConfig
from luthier.errors import InvalidInputError


def test_a_soft_prompt_of_a_size_is_enough() -> None:
    PromptOptions(num_virtual_tokens=4).validate(TrainingLimits())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PromptOptions(), "num_virtual_tokens' must be given"),
        (PromptOptions(num_virtual_tokens=2000), "must be at most 1024, got 2000"),
        (PromptOptions(4, prompt_tuning_init_method="TXT"), "did you mean 'TEXT'"),
        (PromptOptions(4, output_model_types=("ENC",)), "must be of ENCODER, DECODER, got 'ENC'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: PromptOptions, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        options.validate(TrainingLimits())


def test_names_and_words_are_those_of_the_wire() -> None:
    assert set(PromptOptions.__dataclass_fields__) == set(TuningConfig.fields)
    assert set(INIT_METHODS) == set(PromptTuningInit.__members__)
