from __future__ import annotations

from luthier.config.loader import load_config
from luthier.inference.options import EngineOptions


def test_defaults_are_those_of_the_config() -> None:
    config, options = load_config({}).inference, EngineOptions()
    assert options.max_running == config.max_running
    assert options.max_waiting == config.max_waiting
