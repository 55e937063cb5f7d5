"""The loop through its one door: what is learned, what is repeatable, what is refused."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.prompts.soft_prompt import PromptPlace, SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import (
    CancelledError,
    InvalidInputError,
    TrainingDataError,
    TrainingFailedError,
    VerbalizerError,
)
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import (
    BatchEvent,
    EpochEvent,
    StartEvent,
    StepEvent,
    TrainingCallback,
)
from luthier.training.loop import tune
from luthier.training.results import EvaluationPoint, TrainingResult

LABELS = {"charged twice": "billing", "forgot my password": "account", "black screen": "technical"}
RECORDS = [
    GenerationTrainRecord(input=f"{text} {'please ' * (number % 5)}", output=label)
    for number in range(8)
    for text, label in LABELS.items()
]
LORA = LoraConfig(rank=4, alpha=8)
BOTH_KINDS = pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])


def _options(**changes: Any) -> TrainingOptions:
    settings: dict[str, Any] = {
        "num_epochs": 2,
        "learning_rate": 0.05,
        "batch_size": 4,
        "accumulate_steps": 1,
        **changes,
    }
    return TrainingOptions(**settings)


def _soft_prompt(
    base: BaseModel, *, num_virtual_tokens: int = 6, places: tuple[PromptPlace, ...] = ()
) -> SoftPrompt:
    places = places or (("decoder",) if base.kind == "causal" else ("encoder",))
    generator = torch.Generator().manual_seed(4)
    prompt = torch.randn(num_virtual_tokens * len(places), base.hidden_size, generator=generator)
    return SoftPrompt(prompt, kind=base.kind, places=places)


def _soft_prompt_everywhere(base: BaseModel) -> SoftPrompt:
    places: tuple[PromptPlace, ...] = ("encoder", "decoder")
    return _soft_prompt(base, places=("decoder",) if base.kind == "causal" else places)


def _multitask(base: BaseModel) -> MultitaskSoftPrompt:
    generator = torch.Generator().manual_seed(5)
    plain = _soft_prompt_everywhere(base)
    return MultitaskSoftPrompt(
        plain.prompt_embeddings,
        torch.randn(1, len(plain.prompt_embeddings), 1, generator=generator),
        torch.randn(1, 1, base.hidden_size, generator=generator),
        kind=base.kind,
        places=plain.places,
    )


def _parameters(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}


class _Recorder(TrainingCallback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.num_closed = 0

    def on_start(self, event: StartEvent) -> None:
        self.events.append(event)

    def on_batch(self, event: BatchEvent) -> None:
        self.events.append(event)

    def on_step(self, event: StepEvent) -> None:
        self.events.append(event)

    def on_evaluation(self, point: EvaluationPoint) -> None:
        self.events.append(point)

    def on_epoch_end(self, event: EpochEvent) -> None:
        self.events.append(event)

    def on_finish(self, result: TrainingResult) -> None:
        self.events.append(result)

    def close(self) -> None:
        self.num_closed += 1


@BOTH_KINDS
@pytest.mark.parametrize(
    ("make_adapter", "learning_rate"),
    [
        (_soft_prompt_everywhere, 0.1),
        (_multitask, 0.5),
        (lambda base: FullWeights(base.model), 3e-3),
        (lambda base: create_lora(base.model, LORA, seed=0), 1e-2),
    ],
    ids=["prompt_tuning", "multitask_prompt_tuning", "full_fine_tuning", "lora"],
)
def test_every_method_learns(
    base_name: str,
    make_adapter: Callable[[BaseModel], Adapter],
    learning_rate: float,
    request: pytest.FixtureRequest,
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    adapter = make_adapter(base)
    records = [GenerationTrainRecord(input=record.input, output="yes") for record in RECORDS]
    options = _options(num_epochs=10, learning_rate=learning_rate)
    result = tune(base, adapter, records, validation=records[:6], options=options)
    assert result.validation_losses[-1].value < 0.85 * result.losses[0].value
    last_epoch = [point.value for point in result.losses if point.epoch == 9]
    assert sum(last_epoch) / len(last_epoch) < 0.85 * result.losses[0].value
    assert result.num_steps == len(result.losses) == 10 * 6


@BOTH_KINDS
@pytest.mark.parametrize("group_by_length", [True, False])
def test_k_batches_of_b_rows_give_the_adapter_of_one_batch_of_k_times_b(
    base_name: str, group_by_length: bool, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    runs = []
    for batch_size, accumulate_steps in [(12, 1), (4, 3), (1, 12)]:
        adapter = _soft_prompt(base)
        options = _options(
            batch_size=batch_size,
            accumulate_steps=accumulate_steps,
            group_by_length=group_by_length,
            learning_rate=0.003,
        )
        runs.append((tune(base, adapter, RECORDS, options=options), _parameters(adapter)))
    (whole, expected), *others = runs
    assert whole.num_steps == 4
    for result, parameters in others:
        assert [point.value for point in result.losses] == pytest.approx(
            [point.value for point in whole.losses], rel=1e-4
        )
        torch.testing.assert_close(
            parameters["prompt_embeddings"],
            expected["prompt_embeddings"],
            rtol=1e-4,
            atol=1e-4,
        )


def test_the_rows_left_over_at_an_epochs_end_are_learned_by_their_own_tokens(
    tiny_causal_base: BaseModel,
) -> None:
    recorder = _Recorder()
    options = _options(batch_size=5, accumulate_steps=2, num_epochs=1)
    tune(
        tiny_causal_base,
        _soft_prompt(tiny_causal_base),
        RECORDS,
        options=options,
        callbacks=[recorder],
    )
    steps = [event for event in recorder.events if isinstance(event, StepEvent)]
    assert sorted(event.num_rows for event in steps) == [4, 10, 10]
    assert sum(isinstance(event, BatchEvent) for event in recorder.events) == 5


@BOTH_KINDS
def test_the_same_seed_gives_the_same_adapter_bit_for_bit(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    adapters = [_soft_prompt(base) for _ in range(3)]
    for adapter, seed in zip(adapters, (1, 1, 2), strict=True):
        tune(base, adapter, RECORDS, options=_options(seed=seed))
    hashes = [adapter.content_hash() for adapter in adapters]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_drawn_seed_is_reported_and_repeats_the_run(tiny_causal_base: BaseModel) -> None:
    drawn, repeated = _soft_prompt(tiny_causal_base), _soft_prompt(tiny_causal_base)
    result = tune(tiny_causal_base, drawn, RECORDS, options=_options(seed=-1))
    assert result.seed >= 0
    tune(tiny_causal_base, repeated, RECORDS, options=_options(seed=result.seed))
    assert drawn.content_hash() == repeated.content_hash()


def test_dropout_of_an_adapter_repeats_with_the_seed_and_leaves_the_global_generator_alone(
    tiny_causal_base: BaseModel,
) -> None:
    state = torch.random.get_rng_state()
    config = LoraConfig(rank=4, alpha=8, dropout=0.3)
    adapters = [create_lora(tiny_causal_base.model, config, seed=0) for _ in range(2)]
    for adapter in adapters:
        tune(tiny_causal_base, adapter, RECORDS, options=_options(num_epochs=1))
    assert adapters[0].content_hash() == adapters[1].content_hash()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_repeats_with_the_seed_and_leaves_the_global_generator_alone(
    tiny_seq2seq_base: BaseModel,
) -> None:
    state = torch.random.get_rng_state()
    adapters = [_soft_prompt(tiny_seq2seq_base) for _ in range(3)]
    for adapter, dropout in zip(adapters, (True, True, False), strict=True):
        tune(tiny_seq2seq_base, adapter, RECORDS, options=_options(base_dropout=dropout))
    hashes = [adapter.content_hash() for adapter in adapters]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def _fingerprint(base: BaseModel) -> str:
    digest = hashlib.sha256()
    for tensor in base.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    modes = [layer.training for layer in base.model.modules()]
    flags = [parameter.requires_grad for parameter in base.model.parameters()]
    layers = [id(layer) for layer in base.model.modules()]
    config = base.model.config.to_json_string(use_diff=False)
    digest.update(repr((modes, flags, layers, config, base.tokenizer.padding_side)).encode())
    return digest.hexdigest()


@BOTH_KINDS
@pytest.mark.parametrize("method", ["prompt_tuning", "full_fine_tuning"])
def test_training_leaves_the_base_model_as_it_was(
    base_name: str, method: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    adapter: Adapter = _soft_prompt(base) if method == "prompt_tuning" else FullWeights(base.model)
    before = _fingerprint(base)
    options = _options(gradient_checkpointing=True, base_dropout=True, num_epochs=1)
    tune(base, adapter, RECORDS, options=options)
    assert _fingerprint(base) == before
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert all(parameter.grad is None for _, parameter in adapter.named_parameters())


def test_the_learning_rate_falls_with_every_update_to_almost_nothing(
    tiny_causal_base: BaseModel,
) -> None:
    options = _options(batch_size=2, accumulate_steps=4, num_epochs=2, learning_rate=0.6)
    result = tune(tiny_causal_base, _soft_prompt(tiny_causal_base), RECORDS, options=options)
    rates = [point.learning_rate for point in result.losses]
    assert rates == pytest.approx([0.6 * (6 - step) / 6 for step in range(6)])


@BOTH_KINDS
def test_the_validation_loss_is_the_mean_over_all_label_tokens(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    adapter = _soft_prompt(base)
    # A learning rate of almost nothing, so that the loss after the epoch is that of now.
    options = _options(num_epochs=1, learning_rate=1e-12, weight_decay=0.0)
    result = tune(base, adapter, RECORDS, validation=RECORDS, options=options)
    whole = tune(base, adapter, RECORDS, options=_options(batch_size=24, learning_rate=1e-12))
    (point,) = result.validation_losses
    assert point.value == pytest.approx(whole.losses[0].value, rel=1e-5)
    assert (point.epoch, point.step) == (0, 6)


def test_an_empty_validation_stream_is_no_validation(tiny_causal_base: BaseModel) -> None:
    result = tune(
        tiny_causal_base,
        _soft_prompt(tiny_causal_base),
        RECORDS,
        validation=iter(()),
        options=_options(num_epochs=1),
    )
    assert result.validation_losses == ()
    assert result.validation_truncation is None


def test_zero_epochs_train_nothing_and_fail_nothing(tiny_causal_base: BaseModel) -> None:
    adapter = _soft_prompt(tiny_causal_base)
    before = adapter.content_hash()
    result = tune(tiny_causal_base, adapter, RECORDS, options=_options(num_epochs=0))
    assert adapter.content_hash() == before
    assert result.losses == ()


def test_what_was_cut_is_in_the_result(tiny_causal_base: BaseModel) -> None:
    options = _options(num_epochs=1, max_source_length=4, max_target_length=1)
    result = tune(
        tiny_causal_base,
        _soft_prompt(tiny_causal_base),
        RECORDS,
        validation=RECORDS[:2],
        options=options,
    )
    assert result.truncation.num_source_rows == len(RECORDS)
    assert result.truncation.first_source_rows == (1, 2, 3, 4, 5)
    assert result.validation_truncation is not None
    assert result.validation_truncation.num_target_rows == 2


def test_callbacks_hear_of_everything_in_order(tiny_causal_base: BaseModel) -> None:
    recorder = _Recorder()
    options = _options(num_epochs=2, batch_size=6, accumulate_steps=2)
    result = tune(
        tiny_causal_base,
        _soft_prompt(tiny_causal_base),
        RECORDS,
        validation=RECORDS[:3],
        options=options,
        callbacks=[recorder],
    )
    epoch = [BatchEvent, BatchEvent, StepEvent] * 2 + [EvaluationPoint, EpochEvent]
    assert [type(event) for event in recorder.events] == [
        StartEvent,
        *epoch,
        *epoch,
        TrainingResult,
    ]
    assert recorder.num_closed == 1
    start = recorder.events[0]
    assert isinstance(start, StartEvent)
    assert (start.num_rows, start.num_steps, start.num_batches) == (24, 4, 8)
    assert start.num_trainable == 6 * tiny_causal_base.hidden_size
    steps = [event for event in recorder.events if isinstance(event, StepEvent)]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    assert [event.loss for event in steps] == [point.value for point in result.losses]
    assert sum(event.num_input_tokens for event in steps) == result.num_input_tokens
    epochs = [event for event in recorder.events if isinstance(event, EpochEvent)]
    weighted = sum(event.loss * event.num_label_tokens for event in steps[:2])
    assert epochs[0].loss == pytest.approx(
        weighted / sum(event.num_label_tokens for event in steps[:2])
    )


@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_a_training_stops_between_batches_when_asked(
    num_batches: int, tiny_causal_base: BaseModel
) -> None:
    recorder = _Recorder()

    def should_stop() -> bool:
        return sum(isinstance(event, BatchEvent) for event in recorder.events) >= num_batches

    with pytest.raises(CancelledError, match="training was cancelled"):
        tune(
            tiny_causal_base,
            _soft_prompt(tiny_causal_base),
            RECORDS,
            options=_options(accumulate_steps=3),
            callbacks=[recorder],
            should_stop=should_stop,
        )
    assert sum(isinstance(event, BatchEvent) for event in recorder.events) == num_batches
    assert recorder.num_closed == 1
    assert not any(isinstance(event, TrainingResult) for event in recorder.events)


def test_a_loss_that_is_no_number_fails_with_step_and_rows(tiny_causal_base: BaseModel) -> None:
    adapter = _soft_prompt(tiny_causal_base)
    with torch.no_grad():
        adapter.prompt_embeddings[0, 0] = float("nan")
    recorder = _Recorder()
    with pytest.raises(TrainingFailedError, match=r"step 1: the loss is not finite in rows \d+, "):
        tune(tiny_causal_base, adapter, RECORDS, options=_options(), callbacks=[recorder])
    assert recorder.num_closed == 1
    assert not any(isinstance(event, StepEvent) for event in recorder.events)


def test_only_the_rows_of_the_broken_batch_are_named(tiny_causal_base: BaseModel) -> None:
    weights = copy.deepcopy(tiny_causal_base.model)
    (token,) = tiny_causal_base.tokenizer("☕", add_special_tokens=False)["input_ids"][:1]
    with torch.no_grad():
        weights.get_input_embeddings().weight[token] = float("inf")
    base = BaseModel.from_memory(weights, tiny_causal_base.tokenizer, name="broken")
    records = [*RECORDS[:6], GenerationTrainRecord(input="☕", output="cup"), *RECORDS[6:]]
    options = _options(batch_size=1, accumulate_steps=25)
    with pytest.raises(TrainingFailedError, match=r"step 1: the loss is not finite in rows 7;"):
        tune(base, _soft_prompt(base), records, options=options)


def test_a_gradient_clip_bounds_the_update(tiny_causal_base: BaseModel) -> None:
    moved = []
    for max_grad_norm in (0.0, 1e-9):
        adapter = _soft_prompt(tiny_causal_base)
        before = _parameters(adapter)["prompt_embeddings"]
        # With an epsilon as large as this AdamW moves in proportion to the gradient.
        options = _options(num_epochs=1, batch_size=24, adam_epsilon=1.0, weight_decay=0.0)
        tune(
            tiny_causal_base,
            adapter,
            RECORDS,
            options=TrainingOptions(**{**vars(options), "max_grad_norm": max_grad_norm}),
        )
        moved.append((_parameters(adapter)["prompt_embeddings"] - before).norm().item())
    assert moved[0] > 1e-4
    assert moved[1] < 1e-8


def test_classification_records_train(tiny_causal_base: BaseModel) -> None:
    records = [ClassificationTrainRecord(text="charged twice", labels=["billing"])] * 4
    result = tune(tiny_causal_base, _soft_prompt(tiny_causal_base), records, options=_options())
    assert result.num_rows == 4


@pytest.mark.parametrize(
    ("records", "changes", "error", "message"),
    [
        ([], {}, TrainingDataError, "train data cannot be empty"),
        ([GenerationTrainRecord(input="a", output="")], {}, TrainingDataError, "train row 1"),
        (RECORDS, {"verbalizer": "no placeholder"}, VerbalizerError, "no renderable"),
        (RECORDS, {"verbalizer": "{{input}} {{output}}"}, VerbalizerError, "names {{output}}"),
        (RECORDS, {"verbalizer": "{{topic}}"}, VerbalizerError, "row 1: .*{{topic}}"),
        (RECORDS, {"learning_rate": float("nan")}, InvalidInputError, "'learning_rate'"),
        (RECORDS, {"batch_size": -1}, InvalidInputError, "'batch_size'"),
        (RECORDS, {"num_epochs": 10**30}, InvalidInputError, "'num_epochs'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_changed(
    records: Iterable[GenerationTrainRecord],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    tiny_causal_base: BaseModel,
) -> None:
    adapter = _soft_prompt(tiny_causal_base)
    before = adapter.content_hash()
    with pytest.raises(error, match=message):
        tune(tiny_causal_base, adapter, records, options=_options(**changes))
    assert adapter.content_hash() == before


def test_bad_validation_rows_are_named_as_such(tiny_causal_base: BaseModel) -> None:
    with pytest.raises(TrainingDataError, match="validation row 2 has no output"):
        tune(
            tiny_causal_base,
            _soft_prompt(tiny_causal_base),
            RECORDS,
            validation=[RECORDS[0], GenerationTrainRecord(input="a", output="")],
            options=_options(),
        )


def test_more_virtual_tokens_than_the_model_has_room_for_are_refused(
    tiny_causal_base: BaseModel,
) -> None:
    assert tiny_causal_base.max_positions == 1024
    adapter = _soft_prompt(tiny_causal_base, num_virtual_tokens=1023)
    with pytest.raises(InvalidInputError, match="1023 virtual tokens leave no room"):
        tune(tiny_causal_base, adapter, RECORDS, options=_options())
    adapter = _soft_prompt(tiny_causal_base, num_virtual_tokens=1020)
    with pytest.raises(TrainingDataError, match="the base model takes at most 4"):
        tune(tiny_causal_base, adapter, RECORDS, options=_options())


@pytest.mark.parametrize("is_silent", [True, False])
def test_the_progress_bar_can_be_silenced(
    is_silent: bool, tiny_causal_base: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _options(num_epochs=1, silence_progress_bars=is_silent)
    tune(tiny_causal_base, _soft_prompt(tiny_causal_base), RECORDS, options=options)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("6/6" in captured.err) is not is_silent
