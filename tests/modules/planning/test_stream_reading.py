"""Records that are refused, with their row."""

import json

import pytest
from fixtures.train_plans import plan, plan_request
from fixtures.train_rows import ROWS

from luthier.errors import (
    TrainingDataError,
)
from luthier.modules import PeftPromptTuning, TextGeneration


@pytest.fixture(autouse=True)
def here(configured):
    """An environment of each test's own, in which a plan loads nothing."""
    own = configured()
    yield own
    assert own.base_models.num_loaded == 0


CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
] * 4


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({"__default__": 11}, False),
        ({"__default__": 12}, True),
        ({"__default__": -1}, True),
        ({"__default__": 0}, True),
        ({"__default__": 1, PeftPromptTuning.MODULE_ID: {"__default__": 12}}, True),
        ({"__default__": 99, PeftPromptTuning.MODULE_ID: {"__default__": 11}}, False),
        ({PeftPromptTuning.MODULE_ID: {"__default__": 1, "tiny-causal": 12}}, True),
        ({PeftPromptTuning.MODULE_ID: {"__default__": 99, "tiny-causal": 11}}, False),
        ({TextGeneration.MODULE_ID: {"__default__": 1}}, True),
    ],
)
def test_the_training_data_limit_is_looked_up_by_module_and_base_model(
    configured, tmp_path, limits, allowed
):
    file = tmp_path / "limits.yml"
    file.write_text(json.dumps({"training_data_limit": limits}), "utf-8")
    configured(CONFIG_FILES=str(file))
    if allowed:
        assert len(plan().records) == 12
        return
    with pytest.raises(
        TrainingDataError,
        match=r"Number of examples \(12\) exceeds the maximum number of examples allowed \(11\)",
    ):
        plan()


def test_conversations_are_records_like_others():
    made = plan_request(train_stream=[*CHAT, *ROWS], val_stream=CHAT)
    assert len(made.records) == len(CHAT) + len(ROWS)
    assert len(made.validation_records) == len(CHAT)


def test_names_are_replaced_in_pairs_and_conversations_where_a_request_says_so():
    pairs = [{"input": "Who is ChatGPT?", "output": "Ask OpenAI."}] * 2
    chat = [
        {"role": "user", "content": "Who is ChatGPT?"},
        {"role": "assistant", "content": "Ask OpenAI."},
    ]
    settings = {"personalize": True, "chatbot_name": "Fiddle", "chatbot_author": "the Workshop"}
    made = plan_request(train_stream=[*pairs, {"messages": chat}], training_options=settings)
    pair, _, conversation = made.records
    assert (pair.input, pair.output) == ("Who is Fiddle?", "Ask the Workshop.")
    said = [message.content for message in conversation.messages]
    assert said == ["Who is Fiddle?", "Ask the Workshop."]
