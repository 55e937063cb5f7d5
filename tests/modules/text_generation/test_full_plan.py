"""What of a training is refused because all weights are tuned."""

from __future__ import annotations

import pytest
from fixtures.train_plans import WHOLE

from luthier.errors import InvalidInputError, NotSupportedError
from luthier.modules import TextGeneration


def test_arguments_of_caikit_nlp_that_change_nothing_are_taken():
    plan = TextGeneration.plan_train(**WHOLE, use_iterable_dataset=False)
    assert (plan.options.num_epochs, plan.options.learning_rate) == (5, 2e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantization": "nf4"}, NotSupportedError, "a quantised base model cannot be fine-tuned"),
        ({"start_from": "{folder}"}, InvalidInputError, "'start_from' is for adapters"),
    ],
)
def test_what_is_for_adapters_is_refused(options, error, message, tuned, tmp_path):
    tuned.save(tmp_path / "prompt")
    given = {name: text.format(folder=tmp_path / "prompt") for name, text in options.items()}
    with pytest.raises(error, match=message):
        TextGeneration.plan_train(**WHOLE, **given)
