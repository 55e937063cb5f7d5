import json
import signal

import httpx
from fixtures.train_command import (
    ACCEPTED,
    DONE,
    METRICS,
    ROUTE,
    STATUS,
    metrics,
    options,
    state,
)


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
