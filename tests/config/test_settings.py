"""Keys, variables and suggestions derive from the schema."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from luthier.config.loader import DEFAULTS_FILE
from luthier.config.schema import Config, HttpConfig
from luthier.config.settings import all_settings, env_name, fields_of, is_level, suggest


def test_no_two_keys_share_a_variable():
    counts = Counter(setting.env_name for setting in all_settings())
    assert [name for name, count in counts.items() if count > 1] == []


def test_config_yml_has_exactly_the_keys_of_the_schema():
    def leaves(content, path=()):
        for name, value in content.items():
            here = (*path, name)
            if isinstance(value, dict) and value:
                yield from leaves(value, here)
            else:
                yield here

    in_file = set(leaves(yaml.safe_load(DEFAULTS_FILE.read_text())))
    in_schema = {setting.path for setting in all_settings()} - {("training_data_limit",)}
    assert in_file == in_schema


@pytest.mark.parametrize(
    "name",
    ["ALLOW_DOWNLOADS", "TORCH_DTYPE", "DEVICE", "BASE_MODELS_DIR", "SOURCE_PROMPT_BASE",
     "RUNTIME_HTTP_PORT", "RUNTIME_GRPC_PORT", "RUNTIME_LOCAL_MODELS_DIR",
     "RUNTIME_TRAINING_OUTPUT_DIR", "RUNTIME_TRAINING_SAVE_WITH_ID", "RUNTIME_GRPC_ENABLED",
     "TRAINING_DATA_LIMIT___DEFAULT__", "LOG_LEVEL", "LOG_FILTERS", "LOG_FORMATTER"],
)  # fmt: skip
def test_variables_that_users_of_caikit_nlp_know_are_there(name):
    assert name in {setting.env_name for setting in all_settings()}


def test_letters_that_no_variable_may_hold_become_underscores():
    assert env_name("a.b-c.d") == "A_B_C_D"


def test_levels_hold_keys_and_leaves_hold_values():
    assert is_level(fields_of(Config)["runtime"])
    assert not is_level(fields_of(Config)["verbalizers"])


@pytest.mark.parametrize(
    ("path", "tail"),
    [
        (("runtime", "http", "prot"), ", did you mean 'port'?"),
        (("runtime", "grpc_port"), ", did you mean 'runtime.grpc.port'?"),
        (("RUNTIME_GRPC_PORT",), ", did you mean 'runtime.grpc.port'?"),
        (("http", "reflection_enabled"), ", did you mean 'runtime.grpc.reflection_enabled'?"),
        (("zzzzzz",), ""),
    ],
)  # fmt: skip
def test_a_suggestion_names_the_nearest_key(path, tail):
    assert suggest(path, fields_of(HttpConfig)) == tail
