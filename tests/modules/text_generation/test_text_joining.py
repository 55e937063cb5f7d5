"""Prompt and continuation are one text, as if they had been decoded together."""

import copy

import pytest
import torch
from fixtures.tiny_models import make_tiny_causal, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.modules import TextGeneration
from luthier.modules.text_generation.text_joining import TextJoiner, drops_first_space
from luthier.resources.base_model import BaseModel
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelLocation, BaseModelSources

WORDS = "the capital of France is Paris and that of Spain is Madrid"


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """A tiny causal model with a tokenizer of the sentencepiece family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([WORDS, WORDS.title()] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    folder = make_tiny_causal(tmp_path_factory.mktemp("sp") / "model")
    loaded = load_base_model(
        BaseModelLocation("sp", folder, "path"), sources=BaseModelSources()
    ).model
    with torch.no_grad():  # ids beyond this small vocabulary are never chosen
        loaded.lm_head.weight[len(wrapped) :] = 0
        loaded.lm_head.weight[: len(wrapped)] *= 5
    return BaseModel.from_memory(loaded, wrapped, name="sp")


@pytest.mark.parametrize("prompt", ["the capital of", "France", "Spain is Madrid and", "of the is"])
def test_prompt_and_text_are_decoded_together(here, sentencepiece_model, prompt):
    tokenizer = sentencepiece_model.tokenizer
    model = TextGeneration.bootstrap(sentencepiece_model)
    result = model.run(prompt, max_new_tokens=8, generated_tokens=True)
    pieces = [token.text for token in result.tokens]
    ids = [*tokenizer(prompt)["input_ids"], *tokenizer.convert_tokens_to_ids(pieces)]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert result.generated_text == whole
    stream = model.run_stream_out(prompt, max_new_tokens=8)
    assert "".join(piece.generated_text for piece in stream) == whole
    alone = model.run(prompt, max_new_tokens=8, preserve_input_text=False).generated_text
    assert prompt + alone == whole


def test_a_tokenizer_shows_whether_it_drops_the_space(sentencepiece_model):
    assert drops_first_space(sentencepiece_model.tokenizer)
    assert not drops_first_space(make_tokenizer())
    keeping = copy.deepcopy(sentencepiece_model.tokenizer)
    keeping.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    assert not drops_first_space(keeping)


def test_the_space_before_the_first_word_is_not_lost():
    joiner = TextJoiner(restores_space=True, cleans_up_spaces=False)
    assert joiner.prompt("is") == "is"
    assert joiner.push("", first_piece="▁") == ""
    assert joiner.push("Paris", first_piece="Paris") == " Paris"
    assert joiner.push("and", first_piece="▁and") == "and"


@pytest.mark.parametrize(
    ("restores_space", "piece", "text", "expected"),
    [
        (False, "▁Paris", "Paris", "Paris"),
        (True, "Ġis", " is", " is"),
        (True, "ris", "ris", "ris"),
    ],
)
def test_nothing_is_added_where_nothing_is_missing(restores_space, piece, text, expected):
    joiner = TextJoiner(restores_space=restores_space, cleans_up_spaces=False)
    joiner.prompt("")
    assert joiner.push(text, first_piece=piece) == expected


def test_spaces_are_cleaned_up_across_the_border():
    joiner = TextJoiner(restores_space=True, cleans_up_spaces=True)
    given = joiner.prompt("Well ") + joiner.push(", it", first_piece=",") + joiner.flush()
    assert given == "Well, it"
