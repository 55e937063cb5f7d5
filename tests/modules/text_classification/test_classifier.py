"""Texts in, classes out, beside others on the same engine."""

import asyncio
import math

import pytest
import torch

from luthier.adapters.heads.building import create_head
from luthier.data_model.caller import Caller, acting_for
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import EngineError, InvalidInputError, NotSupportedError
from luthier.inference import registry
from luthier.modules.environment import environment
from luthier.modules.text_classification.classifier import TextClassifier, require_head
from luthier.training.data.encoding.prompt_style import PromptStyle

LABELS = ("ham", "spam", "other")


@pytest.fixture
def make(here):
    """Makes classifiers, and releases them."""
    made = []

    def make(**options):
        lease = here.base_models.acquire("tiny-causal")
        head = create_head(lease.base_model.model, LABELS, lora=LoraConfig(rank=2), seed=1)
        with torch.no_grad():
            for _, parameter in head.named_parameters():
                parameter.add_(0.1)
        made.append(TextClassifier(lease, environment=environment(), head=head, **options))
        return made[-1]

    yield make
    for classifier in made:
        classifier.release()


def ranked(results):
    return [(each.label, each.score) for each in results.results]


def test_probabilities_are_the_softmax_of_head_and_hidden_state(make):
    classifier = make(style=PromptStyle("SMS: {{input}}"))
    base, head = classifier.base_model, classifier.head
    ids = base.tokenizer("SMS: hello")["input_ids"]
    with torch.no_grad():
        logits = head.tuned_model(base.model)(torch.tensor([ids])).logits[0, -1]
    expected = dict(zip(LABELS, logits.softmax(dim=0).tolist(), strict=True))
    found = ranked(classifier.run("hello"))
    assert dict(found) == pytest.approx(expected, abs=1e-5)
    assert [label for label, _ in found] == sorted(expected, key=expected.get, reverse=True)
    assert math.isclose(sum(score for _, score in found), 1)
    again = ranked(asyncio.run(classifier.arun("hello")))
    assert dict(again) == pytest.approx(dict(found), abs=1e-6)


def test_many_at_once_are_each_as_alone(make):
    classifier = make()
    texts = [f"text number {number} " * (1 + number % 5) for number in range(12)]
    alone = [ranked(classifier.run(text)) for text in texts]

    async def together():
        return await asyncio.gather(*(classifier.arun(text) for text in texts))

    for results, expected in zip(asyncio.run(together()), alone, strict=True):
        assert dict(ranked(results)) == pytest.approx(dict(expected), abs=1e-5)


def test_a_retuned_head_does_not_change_what_is_served(make):
    classifier = make()
    before = ranked(classifier.run("hello"))
    with torch.no_grad():
        classifier.head.score.mul_(-3)
    assert ranked(classifier.run("hello")) == before


def test_a_text_longer_than_the_server_allows_is_refused(make, configured):
    configured(INFERENCE_LIMITS_MAX_PROMPT_TOKENS="4")
    with pytest.raises(InvalidInputError, match="tokens, at most 4 are allowed"):
        make().run("one two three four five")


def test_a_text_must_be_a_string(make):
    for work in (make().run, make().run_tokenizer):
        with pytest.raises(InvalidInputError, match="'text' must be a string, got NoneType"):
            work(None)


def test_the_engine_knows_on_whose_behalf(make):
    with acting_for(Caller(priority=99)), pytest.raises(InvalidInputError, match="priority"):
        make().run("hello")


def test_an_engine_that_is_closed_says_so(make):
    classifier = make()
    classifier.engine.close()
    with pytest.raises(EngineError, match="closed"):
        classifier.run("hello")
    registry.close_all()


def test_a_head_in_memory_stays_there(make):
    classifier = make()
    head = classifier.head
    classifier.shelve()
    assert classifier.head is head
    assert len(classifier.run("hello").results) == 3


def test_only_heads_classify(make):
    classifier = make()
    assert require_head(classifier.head) is classifier.head
    with pytest.raises(NotSupportedError, match="this adapter is lora"):
        require_head(classifier.head.body)
