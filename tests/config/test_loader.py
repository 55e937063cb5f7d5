"""The layers of settings: config.yml, files, environment; and what each refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config import load_config
from luthier.errors import ConfigError

REPO_ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "site.yml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def test_defaults_are_those_of_config_yml():
    config = load_config({})
    assert config.runtime.host == "127.0.0.1"
    assert (config.runtime.grpc.port, config.runtime.http.port) == (8085, 8080)
    assert (config.allow_downloads, config.trust_remote_code) == (False, False)
    assert config.allow_pickle_weights is False
    assert config.torch_dtype == "float32"


def test_environment_none_is_the_process_environment(monkeypatch):
    monkeypatch.delenv("CONFIG_FILES", raising=False)
    monkeypatch.setenv("RUNTIME_HTTP_PORT", "1234")
    assert load_config().runtime.http.port == 1234


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("ALLOW_DOWNLOADS", "true", lambda c: c.allow_downloads is True),
        ("ALLOW_DOWNLOADS", "True", lambda c: c.allow_downloads is True),
        ("ALLOW_DOWNLOADS", "1", lambda c: c.allow_downloads is True),
        ("ALLOW_DOWNLOADS", "off", lambda c: c.allow_downloads is False),
        ("TORCH_DTYPE", "bfloat16", lambda c: c.torch_dtype == "bfloat16"),
        ("DEVICE", "cuda:1", lambda c: c.device == "cuda:1"),
        ("BASE_MODELS_DIR", "/models", lambda c: c.base_models_dir == "/models"),
        ("BASE_MODELS_DIR", "", lambda c: c.base_models_dir == ""),
        ("BASE_MODELS_DIR", "0123", lambda c: c.base_models_dir == "0123"),
        ("SOURCE_PROMPT_BASE", "/prompts", lambda c: c.source_prompt_base == "/prompts"),
        ("RUNTIME_HTTP_PORT", "0", lambda c: c.runtime.http.port == 0),
        ("RUNTIME_GRPC_PORT", " 9000 ", lambda c: c.runtime.grpc.port == 9000),
        ("RUNTIME_GRPC_ENABLED", "false", lambda c: not c.runtime.grpc.enabled),
        ("RUNTIME_LOCAL_MODELS_DIR", "/m", lambda c: c.runtime.local_models_dir == "/m"),
        ("RUNTIME_TRAINING_SAVE_WITH_ID", "yes", lambda c: c.runtime.training.save_with_id),
        ("RUNTIME_DRAIN_SECONDS", "5", lambda c: c.runtime.drain_seconds == 5.0),
        ("RUNTIME_DRAIN_SECONDS", "1e-4", lambda c: c.runtime.drain_seconds == 1e-4),
        ("DATA_ROOTS", "/a, /b", lambda c: c.data_roots == ("/a", "/b")),
        ("DATA_ROOTS", '["/a,b"]', lambda c: c.data_roots == ("/a,b",)),
        ("DATA_ROOTS", "", lambda c: c.data_roots == ()),
        ("VERBALIZERS", '{"m": "{{input}}"}', lambda c: c.verbalizers == {"m": "{{input}}"}),
        ("INFERENCE_LIMITS_MAX_NEW_TOKENS", "7", lambda c: c.inference.limits.max_new_tokens == 7),
        ("TRAINING_LIMITS_MAX_ROWS", "9", lambda c: c.training.limits.max_rows == 9),
        ("TRAINING_DATA_LIMIT___DEFAULT__", "3",
         lambda c: c.training_data_limit == {"__default__": 3}),
    ],
)  # fmt: skip
def test_a_variable_overrides_its_key(name, text, read):
    assert read(load_config({name: text}))


def test_an_int_where_a_float_is_wanted_becomes_one():
    assert isinstance(load_config({"RUNTIME_DRAIN_SECONDS": "5"}).runtime.drain_seconds, float)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("RUNTIME_HTTP_PORT", "eighty", "'runtime.http.port' must be int, got 'eighty'"),
        ("RUNTIME_HTTP_PORT", "", "'runtime.http.port' must be int, got ''"),
        ("RUNTIME_HTTP_PORT", "80.0", "'runtime.http.port' must be int, got 80.0"),
        ("RUNTIME_HTTP_PORT", "true", "'runtime.http.port' must be int, got True"),
        ("RUNTIME_HTTP_PORT", "-1", "'runtime.http.port' must be at least 0, got -1"),
        ("RUNTIME_HTTP_PORT", "65536", "'runtime.http.port' must be at most 65535, got 65536"),
        ("RUNTIME_MAX_LOADED_MODELS", "0", "'runtime.max_loaded_models' must be at least 1, got 0"),
        ("INFERENCE_MAX_RUNNING", "9" * 30, "'inference.max_running' must be at most 9223372036"),
        ("INFERENCE_MAX_RUNNING", "9" * 500, "'inference.max_running' must be at most 9223372036"),
        ("RUNTIME_DRAIN_SECONDS", ".nan", "'runtime.drain_seconds' must be a finite number"),
        ("RUNTIME_DRAIN_SECONDS", "1e309", "'runtime.drain_seconds' must be a finite number"),
        ("RUNTIME_DRAIN_SECONDS", "9" * 400, "'runtime.drain_seconds' must be a finite number"),
        ("RUNTIME_DRAIN_SECONDS", "soon", "'runtime.drain_seconds' must be float, got 'soon'"),
        ("INFERENCE_LIMITS_MAX_TIME_SECONDS", "0", "must be greater than 0, got 0"),
        ("ALLOW_DOWNLOADS", "maybe", "'allow_downloads' must be bool, got 'maybe'"),
        ("TORCH_DTYPE", "float23", "'torch_dtype' must be one of float32, bfloat16, float16, got"),
        ("DEVICE", "gpu", "'device' must be auto, cpu, mps, cuda or cuda:<index>, got 'gpu'"),
        ("LOG_LEVEL", "loud", "'log.level' must be one of off, fatal"),
        ("LOG_FILTERS", "httpx", "'log.filters' must be a list like"),
        ("RUNTIME_HTTP_ROUTE_PREFIX", "/api", "'runtime.http.route_prefix' must be a path like"),
        ("RUNTIME_HOST", "", "'runtime.host' must be a text that is not empty, got ''"),
        ("BASE_MODELS_DIR", "a\0b", "'base_models_dir' must not hold a NUL character"),
        ("TRAINING_DATA_LIMIT", "{m: {b: x}}", "'training_data_limit.m.b' must be int, got 'x'"),
        ("TRAINING_DATA_LIMIT", "[1]", "'training_data_limit' must be mapping"),
        ("TRAINING_DATA_LIMIT", "{1: 2}", "'training_data_limit' has the name 1"),
        ("TRAINING_DATA_LIMIT", "{", "'training_data_limit': not YAML"),
        ("TRAINING_DATA_LIMIT", "{a: 1, a: 2}", "'training_data_limit': key 'a' stands twice"),
        ("TRAINING_DATA_LIMIT___DEFAULT__", "-2", "'training_data_limit.__default__' must be at"),
        ("VERBALIZERS", '{"m": 1}', "'verbalizers.m' must be str, got 1"),
        ("DATA_ROOTS", "[1]", "'data_roots[0]' must be str, got 1"),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_variable(name, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config({name: text})
    assert message in str(caught.value)
    assert str(caught.value).endswith(f"(from {name})")


def test_files_are_laid_over_defaults_and_the_environment_over_files(write):
    first = write("runtime: {http: {port: 1}, grpc: {port: 2}}\ndevice: cpu\n", "first.yml")
    second = write("runtime: {http: {port: 3}}\n", "second.yml")
    given_file = write("runtime: {drain_seconds: 4}\ndevice: mps\n", "given.yml")
    environ = {"CONFIG_FILES": f" {first} , {second}, ", "RUNTIME_GRPC_PORT": "9"}
    config = load_config(environ, files=[given_file])
    assert config.runtime.http.port == 3
    assert config.runtime.grpc.port == 9
    assert config.runtime.drain_seconds == 4.0
    assert config.device == "mps"


def test_mappings_merge_and_lists_are_replaced(write):
    first = write(
        "training_data_limit: {m: {__default__: 5, base: 1}}\ndata_roots: [/a]\n", "first.yml"
    )
    second = write("training_data_limit: {m: {base: 2}}\ndata_roots: [/b]\n", "second.yml")
    config = load_config({"TRAINING_DATA_LIMIT": "{n: 7}"}, files=[first, second])
    assert config.training_data_limit == {
        "__default__": -1,
        "m": {"__default__": 5, "base": 2},
        "n": 7,
    }
    assert config.data_roots == ("/b",)


def test_both_variables_of_the_row_limit_count():
    environ = {"TRAINING_DATA_LIMIT": "{m: 7}", "TRAINING_DATA_LIMIT___DEFAULT__": "3"}
    assert load_config(environ).training_data_limit == {"__default__": 3, "m": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runtime: {http: {prot: 1}}", "unknown key 'runtime.http.prot'"),
        ("runtime: {http: {prot: 1}}", "did you mean 'port'?"),
        ("runtime: {http_port: 1}", "did you mean 'runtime.http.port'?"),
        ("max_new_tokens: 3", "did you mean 'inference.limits.max_new_tokens'?"),
        ("alow_downloads: true", "did you mean 'allow_downloads'?"),
        ("xyzzy: 1", "unknown key 'xyzzy' (from"),
        ("5: 1", "unknown key '5' (from"),
        ("runtime: {http: 80}", "'runtime.http' must hold keys and values, got 80"),
        ("runtime: {http: {port: eighty}}", "'runtime.http.port' must be int, got 'eighty' (from"),
        ("runtime: {http: {port: 08080}}", "'runtime.http.port' must be int, got '08080'"),
        ("device:", "'device' must be str, got None"),
        ("device: 3", "'device' must be str, got 3 (put quotes around text)"),
        ("runtime:\n  host: a\n  host: b", "key 'host' stands twice (line 3)"),
        ("- 1", "must hold keys and values, got [1]"),
        ("a: [", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("[" * 5000, "not "),
    ],
)
def test_a_bad_file_is_refused_and_named(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config({}, files=[path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"config file '.*none\.yml' cannot be read: No such"):
        load_config({"CONFIG_FILES": str(tmp_path / "none.yml")})


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.yml"
    path.write_bytes(b"device: \xe4")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config({}, files=[path])


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "runtime:\n  grpc:\n  # port: 1\n", "verbalizers:\n"]
)
def test_a_file_with_everything_commented_out_changes_nothing(write, text):
    assert load_config({}, files=[write(text)]) == load_config({})


def test_equal_ports_are_refused():
    with pytest.raises(ConfigError, match="must differ, both are 8080"):
        load_config({"RUNTIME_GRPC_PORT": "8080"})


def test_equal_ports_are_fine_if_one_server_is_off_or_both_are_free_ones():
    load_config({"RUNTIME_GRPC_PORT": "8080", "RUNTIME_HTTP_ENABLED": "false"})
    load_config({"RUNTIME_GRPC_PORT": "0", "RUNTIME_HTTP_PORT": "0"})


def test_unknown_variables_warn_and_never_stop_a_start(caplog):
    environ = {
        "RUNTIME_HTP_PORT": "1",
        "RUNTIME_LIBRARY": "caikit_nlp",
        "RUNTIME_GRPC_OPTIONS": "{}",
        "TRAINING_FOO": "1",
        "PATH": "/bin",
        "EMBEDDING_RETRIES": "3",
    }
    with caplog.at_level(logging.WARNING):
        config = load_config(environ)
    assert config == load_config({})
    messages = [record.getMessage() for record in caplog.records]
    assert any("RUNTIME_HTP_PORT" in each and "'RUNTIME_HTTP_PORT'?" in each for each in messages)
    assert any("RUNTIME_LIBRARY has no effect" in each for each in messages)
    assert any("set runtime.grpc.max_message_bytes" in each for each in messages)
    assert any("TRAINING_FOO" in each for each in messages)
    assert not any("PATH" in each or "EMBEDDING" in each for each in messages)


def test_harmless_keys_of_caikit_warn(write, caplog):
    text = """
runtime:
  library: caikit_nlp
  lazy_load_local_models: true
  grpc: {enabled: true, server_thread_pool_size: 3}
  metrics: {enabled: true}
  batching: {standalone-model: {size: 4}}
  training: {output_dir: out, save_with_id: true}
unload_tgis_prompt_artifacts: false
"""
    with caplog.at_level(logging.WARNING):
        config = load_config({}, files=[write(text)])
    assert config.runtime.training_output_dir == "out"
    assert config.runtime.training.save_with_id
    messages = " ".join(record.getMessage() for record in caplog.records)
    for key in (
        "runtime.library",
        "runtime.lazy_load_local_models",
        "runtime.metrics",
        "runtime.batching",
        "runtime.grpc.server_thread_pool_size",
        "unload_tgis_prompt_artifacts",
    ):
        assert f"'{key}" in messages


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("runtime: {tls: {server: {key: a}}}", "put a proxy that ends TLS in front"),
        ("runtime: {grpc: {options: {}}}", "set runtime.grpc.max_message_bytes"),
        ("model_management: {trainers: {}}", "runtime.training"),
        ("data_streams: {file_source_base: /d}", "set data_roots"),
    ],
)
def test_keys_of_caikit_that_somebody_may_rely_on_are_refused_with_advice(write, text, advice):
    with pytest.raises(ConfigError, match="is not a setting of Luthier") as caught:
        load_config({}, files=[write(text)])
    assert advice in str(caught.value)


def test_the_deployment_example_loads_as_it_stands():
    load_config({"CONFIG_FILES": str(REPO_ROOT / "runtime_config.yml")})


def test_loading_twice_gives_equal_and_frozen_settings():
    config = load_config({})
    assert config == load_config({})
    with pytest.raises(AttributeError):
        config.device = "cpu"


@given(
    st.sampled_from(["RUNTIME_HTTP_PORT", "RUNTIME_DRAIN_SECONDS", "DATA_ROOTS", "VERBALIZERS",
                     "TRAINING_DATA_LIMIT", "ALLOW_DOWNLOADS", "DEVICE", "LOG_FILTERS"]),
    st.text(max_size=40),
)  # fmt: skip
def test_any_text_in_a_variable_is_read_or_refused_as_a_config_error(name, text):
    try:
        load_config({name: text})
    except ConfigError as error:
        assert name in str(error)
