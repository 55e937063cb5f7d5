import json
import signal
from pathlib import Path

import httpx
import pytest

ROUTE = "POST /api/v1/TextGenerationTaskPeftPromptTuningTrain"
FULL_ROUTE = "POST /api/v1/TextGenerationTaskTextGenerationTrain"
ACCEPTED = httpx.Response(200, json={"training_id": "t1", "model_name": "intents"})
STATUS = "GET /management/trainings"
METRICS = "GET /management/trainings/metrics"


def state(word: str, **more: object) -> httpx.Response:
    return httpx.Response(200, json={"training_id": "t1", "state": word, **more})


def metrics(*lines: dict) -> httpx.Response:
    return httpx.Response(200, json={"metrics": list(lines)})


DONE = {
    STATUS: state("COMPLETED"),
    METRICS: metrics(
        *(
            {"name": "loss", "step": step, "num_steps": 20, "value": 3.0 - step / 10}
            for step in range(1, 21)
        ),
        {"name": "validation_loss", "epoch": 0, "step": 20, "value": 0.75},
    ),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "train.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n')
    return file


def options(data: Path) -> tuple[object, ...]:
    return (
        "--model-name", "intents", "--base-model", "base", "--train-data", data,
        "--num-virtual-tokens", 4,
    )  # fmt: skip


def test_train_sends_the_run_and_shows_the_loss(run, serve, data) -> None:
    url, api = serve({ROUTE: ACCEPTED, **DONE})
    result = run("train", *options(data), "--init-text", "Name it", "--num-epochs", 2, "--url", url)
    assert result.code == 0, result.err
    assert result.out == "tuned intents; 'luthier generate intents TEXT' uses it\n"
    assert result.err.splitlines() == [
        "step 10/20  loss 2.0000",
        "step 20/20  loss 1.0000",
        "epoch 1: validation loss 0.7500",
    ]
    body = json.loads(api.requests[0].content)
    assert body["parameters"] == {
        "base_model": "base",
        "train_stream": {
            "data_stream": {"data": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}
        },
        "tuning_config": {
            "num_virtual_tokens": 4,
            "prompt_tuning_init_method": "TEXT",
            "prompt_tuning_init_text": "Name it",
        },
        "num_epochs": 2,
    }


def test_set_gives_any_other_key_as_yaml(run, serve, data) -> None:
    url, api = serve({ROUTE: ACCEPTED, **DONE})
    result = run(
        "train", *options(data), "--url", url, "--set", "max_source_length=64",
        "--set", "tuning_config.output_model_types=[DECODER]",
    )  # fmt: skip
    assert result.code == 0, result.err
    parameters = json.loads(api.requests[0].content)["parameters"]
    assert parameters["max_source_length"] == 64
    assert parameters["tuning_config"]["output_model_types"] == ["DECODER"]


def test_run_file_is_enough(run, serve, data) -> None:
    file = data.with_name("run.yml")
    file.write_text("model_name: m\nbase_model: b\ntrain_data: train.jsonl\n"
                    "method: full_fine_tuning\nlr: 1e-4\n")  # fmt: skip
    url, api = serve({FULL_ROUTE: ACCEPTED, **DONE})
    assert run("train", "-f", file, "--url", url).code == 0
    assert json.loads(api.requests[0].content)["parameters"]["lr"] == 1e-4


def test_lora_goes_to_its_own_route(run, serve, data) -> None:
    url, api = serve({"POST /api/v1/TextGenerationTaskLoraTuningTrain": ACCEPTED, **DONE})
    result = run(
        "train", "--method", "lora", "--model-name", "m", "--base-model", "b", "--train-data",
        data, "--validation-data", data, "--set", "rank=4", "--url", url,
    )  # fmt: skip
    assert result.code == 0, result.err
    parameters = json.loads(api.requests[0].content)["parameters"]
    assert parameters["rank"] == 4
    assert len(parameters["val_stream"]["data_stream"]["data"]) == 2
    assert "tuning_config" not in parameters


def test_detach_does_not_wait(run, serve, data) -> None:
    url, api = serve({ROUTE: ACCEPTED})
    result = run("train", *options(data), "--url", url, "--detach", "--json")
    assert json.loads(result.out) == {
        "training_id": "t1",
        "model_name": "intents",
        "is_completed": False,
        "path": None,
    }
    assert len(api.requests) == 1


def test_failed_training_exits_with_1_and_the_reason(run, serve, data) -> None:
    url, _ = serve(
        {ROUTE: ACCEPTED, STATUS: state("ERRORED", reasons=["loss is NaN"]), METRICS: metrics()}
    )
    result = run("train", *options(data), "--url", url)
    assert result.code == 1
    assert result.err == "luthier: training 't1' failed: loss is NaN\n"


def test_training_cancelled_by_somebody_exits_with_130(run, serve, data) -> None:
    url, _ = serve({ROUTE: ACCEPTED, STATUS: state("CANCELED"), METRICS: metrics()})
    assert run("train", *options(data), "--url", url).code == 130


def test_interrupt_cancels_the_training(run, serve, data) -> None:
    def interrupt(request: httpx.Request) -> httpx.Response:
        signal.raise_signal(signal.SIGINT)
        return state("RUNNING")

    url, api = serve(
        {ROUTE: ACCEPTED, STATUS: interrupt, METRICS: metrics(),
         "DELETE /management/trainings": state("CANCELED")}
    )  # fmt: skip
    result = run("train", *options(data), "--url", url)
    assert result.code == 130
    assert api.requests[-1].method == "DELETE"
    assert "cancelled t1" in result.err


def test_misspelled_key_is_refused_before_anything_is_sent(run, serve, data) -> None:
    url, api = serve({})
    result = run("train", *options(data), "--url", url, "--set", "num_epoch=3")
    assert result.code == 2
    assert result.err == "luthier: unknown key 'num_epoch', did you mean 'num_epochs'?\n"
    assert api.requests == []


def test_row_without_output_is_named(run, serve, data) -> None:
    data.write_text('{"input": "a", "output": "b"}\n{"input": "c"}\n')
    url, api = serve({})
    result = run("train", *options(data), "--url", url)
    assert result.code == 2
    assert "2" in result.err
    assert "output" in result.err
    assert api.requests == []


def test_servers_refusal_is_misuse(run, serve, data) -> None:
    body = {"details": "'num_epochs' must be at most 1000, got 2000", "error": "invalid_input"}
    url, _ = serve({ROUTE: httpx.Response(400, json=body)})
    result = run("train", *options(data), "--num-epochs", 2000, "--url", url)
    assert (result.code, result.err) == (
        2,
        "luthier: 'num_epochs' must be at most 1000, got 2000\n",
    )


@pytest.mark.parametrize("setting", ["num_epochs", "=3"])
def test_set_without_key_or_value_is_refused(setting: str, run, data) -> None:
    result = run("train", *options(data), "--set", setting)
    assert result.code == 2
    assert "--set wants key=value" in result.err


def test_local_and_detach_exclude_each_other(run, data) -> None:
    result = run("train", *options(data), "--local", "--detach")
    assert result.code == 2
    assert "exclude each other" in result.err


def test_a_head_is_tuned_on_labelled_rows(run, serve, tmp_path) -> None:
    file = tmp_path / "sms.csv"
    file.write_text("text,label\nyou win,spam\nsee you,ham\n")
    route = "POST /api/v1/TextClassificationTaskHeadTuningTrain"
    url, api = serve({route: ACCEPTED, **DONE})
    result = run(
        "train", "--method", "head", "--model-name", "intents", "--base-model", "base",
        "--train-data", file, "--set", "use_lora=false", "--set", "validation_size=0.5",
        "--url", url,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.out == "tuned intents; 'luthier classify intents TEXT' uses it\n"
    assert json.loads(api.requests[0].content)["parameters"] == {
        "base_model": "base",
        "train_stream": {
            "data_stream": {
                "data": [
                    {"text": "you win", "labels": ["spam"]},
                    {"text": "see you", "labels": ["ham"]},
                ]
            }
        },
        "use_lora": False,
        "training_options": {"validation_size": 0.5},
    }
