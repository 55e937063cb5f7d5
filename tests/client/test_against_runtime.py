"""The client against a real runtime with a tiny model: both must mean the same by the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.cli.local_runtime import private_runtime
from luthier.client import AsyncClient, Client, JobState, TrainingMetric
from luthier.errors import (
    BaseModelNotFoundError,
    ConflictError,
    InvalidInputError,
    JobNotFoundError,
    ModelNotFoundError,
    NameNotAllowedError,
    TrainingDataError,
)

ROWS = [
    {"input": "my parcel is late", "output": "delivery"},
    {"input": "I was charged twice", "output": "payment"},
] * 4
TUNING = {"num_virtual_tokens": 4}
OPTIONS = {"num_epochs": 2, "learning_rate": 0.1, "batch_size": 4, "accumulate_steps": 1}
TEXT = "where is it? größe ☕"


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def client(
    models_dir: Path, tiny_base_models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with private_runtime(models_dir, base_models_dir=tiny_base_models_dir) as client:
            yield client


@pytest.fixture(scope="module")
def tuned(client: Client) -> tuple[str, list[TrainingMetric]]:
    """A tuned model's id, and every metric that was reported while it was waited for."""
    metrics: list[TrainingMetric] = []
    job = client.train_prompt(
        "tuned",
        base_model="tiny-causal",
        train_data=ROWS,
        validation_data=ROWS[:2],
        tuning_config=TUNING,
        **OPTIONS,
    )
    status = client.wait(
        job.training_id, on_progress=lambda _, new: metrics.extend(new), timeout_seconds=200
    )
    assert status.state is JobState.COMPLETED
    assert status.completed_at
    return job.model_name, metrics


def test_metrics_tell_the_course_of_the_training(tuned: tuple[str, list[TrainingMetric]]) -> None:
    losses = [metric for metric in tuned[1] if metric.name == "loss"]
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    assert {metric.num_steps for metric in losses} == {4}
    assert all(metric.value > 0 for metric in losses)
    assert [metric.name for metric in tuned[1]].count("validation_loss") == 2


def test_stream_joins_to_the_whole_text(client: Client, tuned: tuple[str, object]) -> None:
    parameters = {"max_new_tokens": 12, "preserve_input_text": False, "generated_tokens": True}
    whole = client.generate(tuned[0], TEXT, **parameters)
    chunks = list(client.stream(tuned[0], TEXT, **parameters))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].finish_reason == whole.finish_reason
    assert chunks[-1].generated_token_count == whole.generated_token_count
    assert [token for chunk in chunks for token in chunk.tokens] == list(whole.tokens)


def test_every_parameter_is_understood(client: Client, tuned: tuple[str, object]) -> None:
    result = client.generate(
        tuned[0],
        TEXT,
        max_new_tokens=6,
        min_new_tokens=1,
        decoding_method="SAMPLING",
        top_k=20,
        top_p=0.9,
        typical_p=0.9,
        temperature=0.7,
        repetition_penalty=1.1,
        max_time=60.0,
        exponential_decay_length_penalty=(2, 1.5),
        stop_sequences=["zzz"],
        seed=2**64 - 1,
        preserve_input_text=False,
        input_tokens=True,
        generated_tokens=True,
        token_logprobs=True,
        token_ranks=True,
        include_stop_sequence=True,
        truncate_input_tokens=3,
    )
    assert result.seed == 2**64 - 1
    assert len(result.input_tokens) == result.input_token_count == 3
    assert len(result.tokens) == result.generated_token_count
    assert all(token.logprob is not None and token.rank for token in result.tokens)


def test_tokens_are_counted(client: Client, tuned: tuple[str, object]) -> None:
    result = client.tokenize(tuned[0], TEXT)
    assert result.token_count == len(result.tokens) > 3


def test_model_is_listed_deployed_again_and_undeployed(
    client: Client, tuned: tuple[str, object], models_dir: Path
) -> None:
    client.deploy("copy", models_dir / tuned[0])
    names = {model.name: model for model in client.models()}
    assert {"tuned", "copy"} <= names.keys()
    assert names["copy"].size_bytes
    assert client.generate("copy", TEXT).text == client.generate(tuned[0], TEXT).text
    with pytest.raises(ConflictError, match="copy"):
        client.deploy("copy", models_dir / tuned[0])
    client.undeploy("copy")
    with pytest.raises(ModelNotFoundError, match="copy"):
        client.generate("copy", TEXT)


def test_training_is_listed_and_cancelled(client: Client) -> None:
    endless = client.train_prompt(
        "endless",
        base_model="tiny-causal",
        train_data=ROWS,
        tuning_config=TUNING,
        **{**OPTIONS, "num_epochs": 1000},
    )
    assert client.cancel_training(endless.training_id).state is JobState.CANCELED
    listed = {status.training_id: status for status in client.trainings()}
    assert listed[endless.training_id].state is JobState.CANCELED
    assert listed[endless.training_id].model_name == "endless"
    assert "endless" not in {model.name for model in client.models()}


def test_lora_is_tuned_and_served(client: Client) -> None:
    job = client.train_lora(
        "low-rank", base_model="tiny-causal", train_data=ROWS, rank=2, alpha=4, num_epochs=1
    )
    client.wait(job.training_id, timeout_seconds=200)
    assert client.generate("low-rank", TEXT, preserve_input_text=False).generated_token_count > 0


def test_whole_model_is_asked_for_on_its_own_route(client: Client) -> None:
    job = client.train_full(
        "whole", base_model="tiny-causal", train_data=ROWS, num_epochs=1, lr=1e-3
    )
    assert client.cancel_training(job.training_id).state in (
        JobState.CANCELED,
        JobState.COMPLETED,
    )


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"train_data": []}, TrainingDataError, "cannot be empty"),
        ({"train_data": [{"input": "a", "output": ""}]}, TrainingDataError, "row 1"),
        ({"base_model": "nope"}, BaseModelNotFoundError, "nope"),
        ({"base_model": "../../etc"}, NameNotAllowedError, "etc"),
        ({"num_epochs": -1}, InvalidInputError, "num_epochs"),
        ({"tuning_config": {}}, InvalidInputError, "num_virtual_tokens"),
        ({"verbalizer": "no placeholder"}, InvalidInputError, "placeholder"),
        ({"num_epoch": 1}, InvalidInputError, "num_epoch"),
    ],
)
def test_refusal_comes_back_as_the_class_that_the_server_raised(
    change: dict, kind: type[Exception], words: str, client: Client
) -> None:
    request = {
        "base_model": "tiny-causal",
        "train_data": ROWS,
        "tuning_config": TUNING,
        **OPTIONS,
        **change,
    }
    with pytest.raises(kind, match=words):
        client.train_prompt("refused", **request)


def test_unknown_training_and_model_are_not_found(client: Client) -> None:
    with pytest.raises(JobNotFoundError):
        client.training("nope")
    with pytest.raises(JobNotFoundError):
        client.training_metrics("nope")
    with pytest.raises(ModelNotFoundError, match="nope"):
        list(client.stream("nope", "x"))


def test_health_and_versions_are_answered(client: Client) -> None:
    assert client.health() == "OK"
    assert client.version()["python_packages"]["torch"]


async def test_asynchronous_client_gets_the_same_answers(
    client: Client, tuned: tuple[str, object]
) -> None:
    async with AsyncClient(client.url) as other:
        expected = client.generate(tuned[0], TEXT, preserve_input_text=False)
        chunks = other.stream(tuned[0], TEXT, preserve_input_text=False)
        assert await other.generate(tuned[0], TEXT, preserve_input_text=False) == expected
        assert "".join([chunk.text async for chunk in chunks]) == expected.text
        with pytest.raises(ModelNotFoundError):
            await other.generate("nope", TEXT)
