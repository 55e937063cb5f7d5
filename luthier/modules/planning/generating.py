"""Texts for the metrics of a training, by the engine that would serve the tuned model.

Training and inference do not know each other; here they meet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from luthier.adapters.added_tokens import grown_tokenizer
from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.module_tree import own_module_tree
from luthier.data_model.sampling import SamplingParams
from luthier.errors import CancelledError
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.options import EngineOptions
from luthier.inference.registry import engine_for
from luthier.resources.base_model import BaseModel
from luthier.training.evaluation.row_scoring import Generate

#: Rows that the engine is given at once.
_ROWS = 16


def generate_with(
    base_model: BaseModel,
    adapter: Adapter,
    *,
    max_new_tokens: int,
    options: EngineOptions | None = None,
    should_stop: Callable[[], bool] = bool,
) -> Generate:
    """A function that writes greedily with the adapter as it is when it is called.

    Args:
        base_model: The frozen base.
        adapter: What is being learned.
        max_new_tokens: Per row.
        options: Of the engine, if it is not running yet.
        should_stop: Asked between groups of rows.

    Returns:
        From token ids to texts; raises ``CancelledError`` if it was to stop.
    """
    sampling = SamplingParams(max_new_tokens=max_new_tokens, preserve_input_text=False)
    # What is being learned changes all the time and dies with the training: nothing to hand over.
    in_this_process = None if options is None else dataclasses.replace(options, process=None)

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        model, delta = base_model, adapter
        if isinstance(adapter, FullWeights):
            # A model of its own for each evaluation, so that nothing of older weights is reused.
            # It goes on learning, so unlike other base models it is not frozen.
            model = dataclasses.replace(
                base_model,
                model=own_module_tree(adapter.model).eval(),
                tokenizer=grown_tokenizer(base_model.tokenizer, adapter.added_tokens()),
                shared=None,
            )
        engine = engine_for(model, options=in_this_process)
        requests = [
            GenerationRequest(
                input_ids=tuple(prompt),
                sampling=sampling,
                adapter=None if isinstance(adapter, FullWeights) else delta,
            )
            for prompt in prompts
        ]
        texts: list[str] = []
        for start in range(0, len(requests), _ROWS):
            if should_stop():
                raise CancelledError("training was cancelled while it was evaluated")
            texts += _texts(engine, requests[start : start + _ROWS])
        return texts

    return generate


def _texts(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str]:
    streams = [engine.submit(request) for request in requests]
    return ["".join(chunk.text for chunk in stream) for stream in streams]
