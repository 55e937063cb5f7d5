"""What generators and classifiers share: tokens of a text, and a lease that comes back."""

from __future__ import annotations

import asyncio
import time

import pytest

from luthier.errors import ConflictError, InvalidInputError
from luthier.modules.text_runner import TextRunner, checked_text, fits_on_loop
from luthier.training.data.encoding.prompt_style import PromptStyle


class Reader(TextRunner):
    """Only reads."""

    def shelve(self) -> None:
        """Nothing is tuned."""


@pytest.fixture
def reader(here):
    lease = here.base_models.acquire("tiny-causal")
    made = Reader(lease, environment=here, style=PromptStyle("Text: {{input}}"))
    yield made
    made.release()


def test_a_text_is_split_as_the_tokenizer_does(reader):
    tokenizer = reader.base_model.tokenizer
    found = reader.run_tokenizer("where is it?")
    assert found.token_count == len(tokenizer("where is it?")["input_ids"])
    assert "".join(token.text for token in found.results).endswith("it?")
    assert asyncio.run(reader.arun_tokenizer("where is it?")).to_json() == found.to_json()
    assert reader.encode("it") == tuple(tokenizer("Text: it")["input_ids"])
    assert reader.verbalizer == "Text: {{input}}"


def test_a_long_text_is_split_elsewhere_than_on_the_loop(reader):
    text = "long " * 2000
    assert not fits_on_loop(text)
    found = asyncio.run(reader.arun_tokenizer(text))
    assert found.token_count == reader.run_tokenizer(text).token_count


@pytest.mark.parametrize("text", [None, 3, b"bytes"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(InvalidInputError, match="'text' must be a string"):
        checked_text(text)


def test_a_runner_that_nobody_holds_gives_its_base_model_back(configured):
    own = configured()
    lease = own.base_models.acquire("tiny-causal", dtype="bfloat16")
    runner = Reader(lease, environment=own, style=PromptStyle())
    del runner
    deadline = time.monotonic() + 60
    while own.base_models.num_loaded and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ConflictError):
        lease.base_model  # noqa: B018
