"""What is refused before any weight is loaded, and that nothing is loaded for it."""

import json

import pytest
from fixtures.train_plans import CONFIG, GOOD, WHOLE, plan, plan_request
from fixtures.train_rows import ROWS

from luthier.data_model.training_settings import TrainingSettings
from luthier.errors import (
    BaseModelNotFoundError,
    InvalidInputError,
    NotSupportedError,
    TrainingDataError,
    UnknownKeyError,
    VerbalizerError,
)
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration, plan_train


@pytest.fixture(autouse=True)
def here(configured):
    """An environment of each test's own, in which a plan loads nothing."""
    own = configured()
    yield own
    assert own.base_models.num_loaded == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_stream": []}, TrainingDataError, "train_stream cannot be empty"),
        ({"train_stream": None}, InvalidInputError, "missing 1 required argument: 'train_stream'"),
        ({"base_model": None}, InvalidInputError, "missing 1 required argument: 'base_model'"),
        ({"tuning_config": None}, InvalidInputError, "required argument: 'tuning_config'"),
        ({"train_stream": [*ROWS, {"input": "a"}]}, TrainingDataError, "row 13.*'output'"),
        ({"train_stream": [{"output": "a"}]}, TrainingDataError, "row 1.*'input'"),
        ({"train_stream": [{"input": "a", "output": ""}]}, TrainingDataError, "row 1.*empty"),
        ({"val_stream": [{"input": "a"}]}, TrainingDataError, "val_stream row 1.*'output'"),
        ({"base_model": "no-such-model"}, BaseModelNotFoundError, "no-such-model"),
        ({"base_model": 7}, InvalidInputError, "'base_model' must be"),
        ({"verbalizer": "no placeholder"}, VerbalizerError, "no renderable placeholders"),
        ({"verbalizer": "{{ input }}"}, VerbalizerError, "no renderable placeholders"),
        ({"verbalizer": "{{label}}"}, VerbalizerError, "row 1.*label"),
        ({"verbalizer": "{{input}} {{output}}"}, VerbalizerError, "output"),
        ({"verbalizer": 5}, VerbalizerError, "invalid type"),
        ({"tuning_type": "LORA"}, NotSupportedError, "LORA tuning type not supported!"),
        ({"tuning_type": "prompt_tuning"}, NotSupportedError, "tuning type not supported!"),
        ({"num_epochs": -1}, InvalidInputError, "'num_epochs' must be at least 0, got -1"),
        ({"num_epochs": 1.5}, InvalidInputError, "'num_epochs' must be int"),
        ({"num_epochs": True}, InvalidInputError, "'num_epochs' must be int"),
        ({"learning_rate": float("nan")}, InvalidInputError, "'learning_rate' must be finite"),
        ({"learning_rate": 0}, InvalidInputError, "'learning_rate' must be greater than 0"),
        ({"batch_size": 0}, InvalidInputError, "'batch_size' must be at least 1"),
        ({"batch_size": 10**30}, InvalidInputError, "'batch_size'"),
        ({"accumulate_steps": 0}, InvalidInputError, "'accumulate_steps'"),
        ({"torch_dtype": "float7"}, InvalidInputError, "'torch_dtype'"),
        ({"device": "tpu"}, InvalidInputError, "'device'"),
        ({"device": "cuda:99"}, InvalidInputError, "'device'"),
        ({"learning_rte": 0.1}, UnknownKeyError, "'learning_rte', did you mean"),
        ({"lr": 0.1, "learning_rate": 0.2}, InvalidInputError, "the same option"),
        ({"metric": None}, UnknownKeyError, "'metric'"),
    ],
)
def test_a_training_that_cannot_work_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        plan(**changes)


def test_every_refusal_holds_for_train_itself():
    with pytest.raises(TrainingDataError, match="cannot be empty"):
        PeftPromptTuning.train("tiny-causal", [], CONFIG)
    with pytest.raises(TrainingDataError, match="cannot be empty"):
        TextGeneration.train("tiny-causal", [])


@pytest.fixture
def named_verbalizers(configured, tmp_path):
    file = tmp_path / "verbalizers.yml"
    content = {"verbalizers": {"tweet": "Tweet: {{input}} Label: "}}
    file.write_text(json.dumps(content), "utf-8")

    def configure(**variables):
        configured(CONFIG_FILES=str(file), **variables)

    configure()
    return configure


def test_a_request_may_name_a_verbalizer_of_the_server(named_verbalizers):
    assert plan_request(verbalizer="tweet").options.verbalizer == "Tweet: {{input}} Label: "
    assert plan_request(verbalizer="Q {{input}}").options.verbalizer == "Q {{input}}"


def test_a_server_may_refuse_verbalizers_that_requests_bring(named_verbalizers):
    named_verbalizers(ALLOW_REQUEST_VERBALIZERS="false")
    assert plan_request(verbalizer="tweet").options.verbalizer == "Tweet: {{input}} Label: "
    assert plan_request().options.verbalizer == "{{input}}"
    with pytest.raises(VerbalizerError, match="not one of those that the server names: tweet"):
        plan_request(verbalizer="Q {{input}}")
    assert plan(verbalizer="Q {{input}}").options.verbalizer == "Q {{input}}"


def test_a_seed_of_minus_one_is_drawn():
    drawn = {plan(seed=-1).options.seed for _ in range(3)}
    assert min(drawn) >= 0
    assert len(drawn) > 1


def test_the_device_that_caikit_nlp_detects_is_the_servers():
    assert plan(device="__DETECT__").options.device is None
    assert plan(device=None).options.device is None
    assert plan(device="cpu").options.device == "cpu"


def test_an_unknown_module_is_refused():
    with pytest.raises(InvalidInputError, match="no module has the id"):
        plan_train("x" * 500, WHOLE)


def test_both_modules_plan():
    assert plan_train(TextGeneration.MODULE_ID, WHOLE).options.num_epochs == 5


CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
] * 4


@pytest.mark.parametrize("module", [PeftPromptTuning, TextGeneration, LoraTuning])
def test_every_other_setting_comes_in_one_message(module):
    arguments = GOOD if module is PeftPromptTuning else WHOLE
    settings = TrainingSettings(weight_decay=0.0, schedule="cosine", mask_prompt_labels=False)
    made = plan_train(module.MODULE_ID, arguments | {"training_options": settings})
    assert (made.options.weight_decay, made.options.schedule) == (0.0, "cosine")
    assert not made.dataset.mask_prompt_labels
    given = {"gradient_clip": 1, "metrics": ["loss", "perplexity"]}
    made = plan_train(module.MODULE_ID, arguments | {"training_options": given})
    assert (made.options.max_grad_norm, made.options.metrics) == (1, ("loss", "perplexity"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"training_options": {"wieght_decay": 1}}, UnknownKeyError, "did you mean 'weight_decay'"),
        ({"training_options": {"weight_decay": -1}}, InvalidInputError, "weight_decay.*at least 0"),
        ({"training_options": {"max_length": 3}}, InvalidInputError, "max_length.*at least 8"),
        (
            {"training_options": {"num_epochs": 4}, "num_epochs": 3},
            InvalidInputError,
            "'num_epochs' is given twice",
        ),
        (
            {"training_options": {"chat_template": "{{ x }}"}, "from_request": True},
            InvalidInputError,
            "allow_request_chat_templates",
        ),
        (
            {"train_stream": CHAT, "verbalizer": "Text: {{input}}"},
            InvalidInputError,
            "train_stream row 1 is a conversation",
        ),
        (
            {"train_stream": CHAT, "training_options": {"prompt_format": "verbalizer"}},
            InvalidInputError,
            "train_stream row 1 is a conversation",
        ),
        (
            {"training_options": {"validation_size": 0.5}, "val_stream": ROWS},
            InvalidInputError,
            "'validation_size' is 0.5, and there is a 'val_stream', too",
        ),
        (
            {
                "training_options": {
                    **{"validation_size": 0.5, "train_validation_data": True},
                    "save_checkpoint": "best",
                }
            },
            InvalidInputError,
            "'train_validation_data' has no use with 'save_checkpoint' best",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        plan(**changes)


def test_a_chat_template_may_come_with_a_request_where_the_operator_says_so(configured):
    configured(ALLOW_REQUEST_CHAT_TEMPLATES="true")
    made = plan_request(training_options={"chat_template": "{{ messages }}"})
    assert made.dataset.chat_template == "{{ messages }}"


def test_rows_are_held_out_where_a_request_says_so_and_only_there():
    settings = TrainingSettings(validation_size=0.25, data_sample_choice=["Train"])
    made = plan_request(training_options=settings)
    assert (len(made.records), len(made.validation_records)) == (9, 3)
    assert made.dataset.data_sample_choice == ("Train",)
    assert not plan_request().validation_records
