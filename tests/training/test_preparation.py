"""Before the first batch: options settled, data read with what the base model can take."""

from typing import Any

import pytest
import torch
from fixtures.marker_tokens import marker_lora, markers_of

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import CancelledError, InvalidInputError, VerbalizerError
from luthier.resources.base_model import BaseModel
from luthier.training.data.examples import TrainingData
from luthier.training.data.tokenization import TrainRecord
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


def _read(base: BaseModel, records: list[TrainRecord], **given: Any) -> TrainingData:
    data, _ = read_data(
        base,
        _prompt(base),
        records,
        None,
        options=TrainingOptions(),
        dataset=DatasetOptions(**given),
        should_stop=lambda: False,
    )
    return data


def test_conversations_end_where_the_base_model_stops(tiny_causal_base: BaseModel) -> None:
    record = ChatTrainRecord((ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello")))
    (example,) = _read(tiny_causal_base, [record]).examples
    text = tiny_causal_base.tokenizer.decode(example.input_ids)
    assert text == "<|user|>Hi</s><|assistant|>Hello</s>"


def test_markers_that_a_model_cannot_write_are_read_and_never_learned(
    tiny_causal_base: BaseModel,
) -> None:
    base = tiny_causal_base
    larger = FullWeights(base.model)
    larger.add_tokens(markers_of(base))
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "So?"), ("assistant", "So.")]
    record = ChatTrainRecord(tuple(ChatMessage(*turn) for turn in turns))
    for adapter, are_learned in ((marker_lora(base), False), (larger, True)):
        data, _ = read_data(
            base,
            adapter,
            [record],
            None,
            options=TrainingOptions(),
            dataset=DatasetOptions(prompt_format="markers", mask_prompt_labels=False),
            should_stop=lambda: False,
        )
        (example,) = data.examples
        places = [place for place, token in enumerate(example.input_ids) if token in (401, 402)]
        assert len(places) == 4
        for place, (token, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
            is_open = place > 0 and (are_learned or place not in places)
            assert label == (token if is_open else -100)


def test_dataset_options_are_checked_first(tiny_causal_base: BaseModel) -> None:
    with pytest.raises(InvalidInputError, match="'padding_quantile' must be at most 1"):
        _read(tiny_causal_base, [], padding_quantile=2.0)


def test_rows_are_changed_only_where_that_was_asked_for(tiny_causal_base: BaseModel) -> None:
    plain = _read(tiny_causal_base, [RECORD])
    assert plain.change is None
    assert plain.drawn_options == {}
    masked = _read(tiny_causal_base, [RECORD], token_mask_probability=0.9)
    assert masked.examples == plain.examples
    assert masked.batch([0], epoch=0) != list(plain.examples)
    assert masked.drawn_options["token_mask_probability"] == 0.9
    noisy = _read(tiny_causal_base, [RECORD], neftune_noise_alpha=5.0)
    assert noisy.change is None
    assert noisy.drawn_options["neftune_noise_alpha"] == 5.0


def test_other_parents_need_conversations(tiny_causal_base: BaseModel) -> None:
    with pytest.raises(InvalidInputError, match="need conversations"):
        _read(tiny_causal_base, [RECORD], skip_parent_probability=0.5)
