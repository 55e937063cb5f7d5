"""The door through which config comes to the modules."""

import dataclasses
import threading

import pytest

from luthier.config import load_config
from luthier.errors import ConfigError
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.modules import environment as environment_module
from luthier.modules.environment import configure, environment


def test_config_becomes_plain_values(tmp_path, tiny_base_models_dir):
    made = configure(
        load_config(
            {
                "BASE_MODELS_DIR": str(tiny_base_models_dir),
                "SOURCE_PROMPT_BASE": str(tmp_path),
                "ALLOW_DOWNLOADS": "true",
                "TORCH_DTYPE": "bfloat16",
                "INFERENCE_LIMITS_MAX_NEW_TOKENS": "77",
                "INFERENCE_LIMITS_MAX_PROMPT_TOKENS": "78",
                "INFERENCE_MAX_WAITING": "79",
                "TRAINING_LIMITS_MAX_EPOCHS": "80",
                "TRAINING_LIMITS_MAX_ROWS": "81",
                "TRAINING_LIMITS_MAX_UNPACK_RATIO": "82",
                "ALLOW_REQUEST_VERBALIZERS": "false",
            }
        )
    )
    assert made.base_models.sources.base_models_dir == tiny_base_models_dir
    assert made.base_models.sources.allow_downloads
    assert not made.base_models.sources.trust_remote_code
    assert made.base_models.sources.default_dtype == "bfloat16"
    assert made.source_prompt_base == tmp_path
    assert made.sampling_limits.max_new_tokens == 77
    assert made.max_prompt_tokens == 78
    assert made.engine_options.max_waiting == 79
    assert made.training_limits.max_epochs == 80
    assert made.stream_limits.max_rows == 81
    assert made.stream_limits.max_unpack_ratio == 82
    assert made.stream_limits.max_json_bytes == 1 << 30
    assert made.stream_limits.data_roots == ()
    assert not made.allow_request_verbalizers


def test_every_option_of_an_engine_can_be_set_from_outside():
    variables = {
        "INFERENCE_MAX_RUNNING": "3",
        "INFERENCE_MAX_BEAM_ROWS": "2",
        "INFERENCE_MAX_WAITING": "5",
        "INFERENCE_MAX_WAITING_PER_TENANT": "4",
        "INFERENCE_TENANT_WEIGHTS": "{acme: 3}",
        "INFERENCE_MAX_PRIORITY": "2",
        "INFERENCE_AGEING_STEPS": "7",
        "INFERENCE_TURN_TOKENS": "9",
        "INFERENCE_MAX_STEP_TOKENS": "50",
        "INFERENCE_MAX_STEP_SECONDS": "60",
        "INFERENCE_PROMPT_LOOKUP_TOKENS": "8",
        "INFERENCE_PROMPT_LOOKUP_MAX_ROWS": "6",
        "INFERENCE_WEIGHTS": "int8",
        "INFERENCE_MAX_KV_BYTES": "1000",
        "INFERENCE_MAX_PREFIX_BYTES": "0",
        "INFERENCE_NUM_THREADS": "2",
        "INFERENCE_ADAPTERS_MAX_DEVICE_BYTES": "2000",
        "INFERENCE_ADAPTERS_MAX_HOST_BYTES": "3000",
        "INFERENCE_ADAPTERS_MAX_LOAD_SECONDS": "70",
        "INFERENCE_ADAPTERS_MERGE_AFTER_STEPS": "6",
        "INFERENCE_ADAPTERS_MAX_MERGED_BYTES": "4000",
        "INFERENCE_PROCESS_ENABLED": "true",
    }
    defaults = dataclasses.asdict(EngineOptions())
    assert dataclasses.asdict(configure(load_config({})).engine_options) == defaults
    changed = dataclasses.asdict(configure(load_config(variables)).engine_options)
    assert [name for name, value in changed.items() if value == defaults[name]] == []


def test_python_users_get_the_environment_of_the_process(monkeypatch, tiny_base_models_dir):
    monkeypatch.setattr(environment_module, "_current", None)
    monkeypatch.setenv("BASE_MODELS_DIR", str(tiny_base_models_dir))
    assert environment().base_models.sources.base_models_dir == tiny_base_models_dir


def test_there_is_one_environment_however_many_threads_ask_first(monkeypatch):
    monkeypatch.setattr(environment_module, "_current", None)
    found = []
    threads = [threading.Thread(target=lambda: found.append(environment())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1


def test_a_bad_setting_is_refused_when_it_is_first_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(environment_module, "_current", None)
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="base_models_dir"):
        environment()


def test_weights_are_shared_if_engines_are_processes():
    for is_enabled in (False, True):
        made = configure(load_config({"INFERENCE_PROCESS_ENABLED": str(is_enabled).lower()}))
        assert made.base_models.sources.shares_memory is is_enabled
    limits = {"INFERENCE_PROCESS_ENABLED": "true", "INFERENCE_PROCESS_RESTART_SECONDS": "7"}
    options = configure(load_config(limits)).engine_options.process
    assert options == ProcessOptions(restart_seconds=7.0)
    configure(load_config({}))
