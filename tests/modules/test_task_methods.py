"""Inherited task methods are served as if each module had written them."""

from __future__ import annotations

from typing import Any

import pytest
from caikit.core.signature_parsing.module_signature import CaikitMethodSignature
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.modules import HeadTuning, LoraTuning, PeftPromptTuning, TextGeneration
from luthier.modules.task_methods import arguments_of


@pytest.mark.parametrize("module", [LoraTuning, PeftPromptTuning, TextGeneration])
def test_caikit_finds_whole_and_streamed_generation_of_each_module(module: Any) -> None:
    found = module._TASK_INFERENCE_SIGNATURES[TextGenerationTask]
    assert [(streams, signature.method_name) for _, streams, signature in found] == [
        (False, "run"),
        (True, "run_stream_out"),
    ]
    assert all(signature.module is module for _, _, signature in found)


@pytest.mark.parametrize("module", [HeadTuning, LoraTuning, PeftPromptTuning, TextGeneration])
def test_caikit_finds_the_tokenizer_of_each_module(module: Any) -> None:
    ((_, _, signature),) = module._TASK_INFERENCE_SIGNATURES[TokenizationTask]
    assert isinstance(signature, CaikitMethodSignature)
    assert (signature.method_name, signature.parameters) == ("run_tokenizer", {"text": str})


def test_arguments_are_those_of_the_call() -> None:
    class Module:
        @classmethod
        def train(cls, base: str, rank: int = 8, **kwargs: Any) -> dict[str, Any]:
            return arguments_of(locals())

    assert Module.train("tiny", alpha=2) == {"base": "tiny", "rank": 8, "alpha": 2}
