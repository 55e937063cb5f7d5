"""What keeps a head from being served."""

import pytest
import torch

from luthier.adapters.heads.building import create_head
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError
from luthier.inference.base import Engine, GenerationChunk
from luthier.inference.batched_engine import BatchedEngine
from luthier.modules.text_classification.conformance import check_head_conformance

LABELS = ("ham", "spam", "other")


@pytest.fixture(scope="module")
def engine(tiny_causal_base):
    engine = BatchedEngine(tiny_causal_base)
    yield engine
    engine.close()


@pytest.fixture
def head(tiny_causal_base):
    head = create_head(tiny_causal_base.model, LABELS, lora=LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for _, parameter in head.named_parameters():
            parameter.add_(0.1)
    return head


class Skewed(Engine):
    """An engine that adds to the score of one class."""

    def __init__(self, engine):
        self._engine = engine

    def submit(self, request):
        (chunk,) = self._engine.submit(request)
        scores = (chunk.scores[0] + 0.5, *chunk.scores[1:])
        return iter([GenerationChunk("", scores=scores, finish_reason=chunk.finish_reason)])

    def status(self):
        return self._engine.status()

    def close(self):
        """Nothing is its own."""


def test_a_head_that_is_served_as_it_was_tuned_passes(tiny_causal_base, head, engine):
    check_head_conformance(tiny_causal_base, head, engine)
    alone = create_head(tiny_causal_base.model, LABELS, seed=0)
    check_head_conformance(tiny_causal_base, alone, engine)


def test_an_engine_that_computes_something_else_is_found(tiny_causal_base, head, engine):
    with pytest.raises(ArtifactError, match="the engine and the training code disagree"):
        check_head_conformance(tiny_causal_base, head, Skewed(engine))


def test_a_head_that_prefers_no_class_is_refused(tiny_causal_base, head, engine):
    with torch.no_grad():
        head.score.zero_()
    with pytest.raises(ArtifactError, match="every class has the same score"):
        check_head_conformance(tiny_causal_base, head, engine)


def test_a_head_that_gives_no_numbers_is_refused(tiny_causal_base, head, engine):
    with torch.no_grad():
        head.score[1, 2] = float("nan")
    with pytest.raises(ArtifactError, match=r"cannot be served: .*not finite"):
        check_head_conformance(tiny_causal_base, head, engine)
