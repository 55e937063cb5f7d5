import json

import pytest
from fixtures.train_command import (
    ACCEPTED,
    DONE,
    FULL_ROUTE,
    ROUTE,
    options,
)


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


def test_misspelled_key_is_refused_before_anything_is_sent(run, serve, data) -> None:
    url, api = serve({})
    result = run("train", *options(data), "--url", url, "--set", "num_epoch=3")
    assert result.code == 2
    assert result.err == "luthier: unknown key 'num_epoch', did you mean 'num_epochs'?\n"
    assert api.requests == []


@pytest.mark.parametrize("setting", ["num_epochs", "=3"])
def test_set_without_key_or_value_is_refused(setting: str, run, data) -> None:
    result = run("train", *options(data), "--set", setting)
    assert result.code == 2
    assert "--set wants key=value" in result.err


def test_local_and_detach_exclude_each_other(run, data) -> None:
    result = run("train", *options(data), "--local", "--detach")
    assert result.code == 2
    assert "exclude each other" in result.err
