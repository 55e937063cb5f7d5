from __future__ import annotations

import pytest

from luthier.inference.runners.base import Runner, RunnerLimits
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.runners.seq2seq.encoder_decoder_runner import EncoderDecoderRunner
from luthier.resources.base_model import BaseModel


@pytest.mark.parametrize(
    ("runner_class", "kind"), [(PackedRunner, "causal"), (EncoderDecoderRunner, "seq2seq")]
)
def test_a_runner_holds_as_many_tokens_as_its_bytes_allow_and_not_more(
    runner_class: type[Runner], kind: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(f"{kind}_base")
    held = [
        runner_class(base, RunnerLimits(max_kv_bytes=size, max_rows=2)).memory.allocator.num_tokens
        for size in (2**16, 2**17)
    ]
    assert held[0] > 0
    assert held[1] == 2 * held[0]
