"""A tuned model is asked as it was taught, token for token."""

from __future__ import annotations

import pytest
from fixtures.tiny_models import CHAT_TEMPLATE, make_tokenizer

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ArtifactError, InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.prompt_style import PromptStyle, PromptWriter
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.tokenization import tokenize_records

TEXT = "The link </s> does not work"
PAIR = GenerationTrainRecord(input=TEXT, output="account")
CHAT = ChatTrainRecord((ChatMessage("user", TEXT), ChatMessage("assistant", "account")))


@pytest.fixture(params=[(False, False), (True, False), (True, True)], ids=["bare", "bos", "both"])
def base(request, tiny_causal_base: BaseModel) -> BaseModel:
    """The tiny model with a tokenizer that adds nothing, BOS, or BOS and EOS."""
    add_bos, add_eos = request.param
    tokenizer = make_tokenizer(add_bos=add_bos, add_eos=add_eos)
    tokenizer.chat_template = CHAT_TEMPLATE
    return BaseModel.from_memory(tiny_causal_base.model, tokenizer, name="tiny")


def read_in_training(record: object, base: BaseModel, dataset: DatasetOptions, verbalizer: str):
    """The tokens before the answer, as the loop gets them."""
    row_tokenizer = RowTokenizer(base.tokenizer, False, 1, 100, 100, has_virtual_tokens=True)
    data = tokenize_records([record], Verbalizer(verbalizer), row_tokenizer, options=dataset)
    (example,) = data.examples
    return example.input_ids[: sum(label == -100 for label in example.labels)]


@pytest.mark.parametrize(
    ("record", "dataset", "verbalizer"),
    [
        (PAIR, DatasetOptions(), "Text: {{input}} Label:"),
        (PAIR, DatasetOptions(prompt_format="markers"), "{{input}}"),
        (PAIR, DatasetOptions(prompt_format="markers"), "</s>: {{input}}"),
        (
            PAIR,
            DatasetOptions(
                prompt_format="markers", text_prompt_start="<s>Q ", add_eos_token_to_prompt=False
            ),
            "{{input}}",
        ),
        (PAIR, DatasetOptions(prompt_format="chat_template"), "Say {{input}}"),
        (CHAT, DatasetOptions(), "{{input}}"),
        (CHAT, DatasetOptions(prompt_format="markers"), "{{input}}"),
        (CHAT, DatasetOptions(chat_template="{{ messages[0].content }}>{{ messages[1].content }}"),
         "{{input}}"),
    ],
)  # fmt: skip
def test_a_prompt_has_the_tokens_that_were_learned(base, record, dataset, verbalizer):
    style = PromptStyle.of_training(verbalizer, dataset, [record], base)
    prompt = PromptWriter(style, base).write(TEXT)
    assert prompt.token_ids == tuple(read_in_training(record, base, dataset, verbalizer))
    again = PromptStyle.from_config(style.verbalizer, style.to_config())
    assert again == style


def test_conversations_without_a_template_are_written_with_markers(tiny_causal_base):
    style = PromptStyle.of_training("{{input}}", DatasetOptions(), [CHAT], tiny_causal_base)
    has_template = bool(tiny_causal_base.tokenizer.chat_template)
    assert style.prompt_format == ("chat_template" if has_template else "markers")


def test_a_prompt_is_cut_to_its_first_tokens(base):
    style = PromptStyle("{{input}}", "chat_template")
    whole = PromptWriter(style, base).write(TEXT)
    cut = PromptWriter(style, base).write(TEXT, max_tokens=3)
    assert cut.token_ids == whole.token_ids[:3]
    assert cut.text == base.tokenizer.decode(cut.token_ids, skip_special_tokens=True)


def test_a_text_that_is_no_unicode_is_refused(base):
    with pytest.raises(InvalidInputError, match="surrogate"):
        PromptWriter(PromptStyle("{{input}}", "markers"), base).write("\ud800")


@pytest.mark.parametrize(
    "given",
    [
        [],
        {"prompt_format": "verbalizer"},
        {"prompt_format": "markers", "other": "x"},
        {"prompt_format": "markers", "text_prompt_start": 3},
        {"prompt_format": "markers", "add_eos_token_to_prompt": "yes"},
        {},
    ],
)
def test_a_damaged_config_is_refused(given):
    with pytest.raises(ArtifactError):
        PromptStyle.from_config("{{input}}", given)
