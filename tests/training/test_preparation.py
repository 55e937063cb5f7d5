"""Before the first batch: options settled, data read with what the base model can take."""

import pytest
import torch

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.soft_prompt import SoftPrompt
from luthier.data_model.records import GenerationTrainRecord
from luthier.data_model.training_options import TrainingOptions
from luthier.errors import CancelledError, InvalidInputError, VerbalizerError
from luthier.resources.base_model import BaseModel
from luthier.training.preparation import read_data, settle_options

RECORD = GenerationTrainRecord(input="a cute dog", output="no complaint")


def _prompt(base: BaseModel) -> SoftPrompt:
    return SoftPrompt(torch.ones(3, base.hidden_size), kind="causal", places=("decoder",))


def test_a_given_seed_stays_and_minus_one_is_drawn() -> None:
    assert settle_options(TrainingOptions(seed=5)).seed == 5
    drawn = {settle_options(TrainingOptions(seed=-1)).seed for _ in range(4)}
    assert len(drawn) > 1
    assert min(drawn) >= 0


def test_options_beyond_a_servers_limits_are_the_callers_business() -> None:
    assert settle_options(TrainingOptions(batch_size=100_000)).batch_size == 100_000
    with pytest.raises(InvalidInputError, match="'batch_size' must be at least 1"):
        settle_options(TrainingOptions(batch_size=0))


def test_the_verbalizer_of_the_options_makes_the_sources(tiny_causal_base: BaseModel) -> None:
    options = TrainingOptions(verbalizer="Tweet: {{input}} Label: ")
    data, validation = read_data(
        tiny_causal_base,
        _prompt(tiny_causal_base),
        [RECORD],
        [RECORD, RECORD],
        options=options,
        should_stop=lambda: False,
    )
    text = tiny_causal_base.tokenizer.decode(data.examples[0].input_ids)
    assert text == "Tweet: a cute dog Label: no complaint</s>"
    assert validation is not None
    assert len(validation) == 2


def test_a_label_shown_by_the_verbalizer_is_refused(tiny_causal_base: BaseModel) -> None:
    with pytest.raises(VerbalizerError, match=r"names {{output}}"):
        read_data(
            tiny_causal_base,
            _prompt(tiny_causal_base),
            [RECORD],
            None,
            options=TrainingOptions(verbalizer="{{input}}{{output}}"),
            should_stop=lambda: False,
        )


def test_without_virtual_tokens_the_first_token_is_not_learned(
    tiny_causal_base: BaseModel,
) -> None:
    record = GenerationTrainRecord(input="", output="yes")
    for adapter, first_is_learned in (
        (_prompt(tiny_causal_base), True),
        (FullWeights(tiny_causal_base.model), False),
    ):
        data, _ = read_data(
            tiny_causal_base,
            adapter,
            [record],
            None,
            options=TrainingOptions(),
            should_stop=lambda: False,
        )
        assert (data.examples[0].labels[0] != -100) is first_is_learned


def test_reading_stops_when_asked(tiny_causal_base: BaseModel) -> None:
    with pytest.raises(CancelledError):
        read_data(
            tiny_causal_base,
            _prompt(tiny_causal_base),
            [RECORD],
            None,
            options=TrainingOptions(),
            should_stop=lambda: True,
        )
