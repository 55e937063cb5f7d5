"""What is refused before any weight is loaded, and that nothing is loaded for it."""

import json
import shutil

import pytest
from fixtures.train_rows import ROWS

from luthier.data_model.training_settings import TrainingSettings
from luthier.data_model.tuning import TuningConfig
from luthier.errors import (
    ArtifactError,
    BaseModelNotFoundError,
    InvalidInputError,
    NameNotAllowedError,
    NotSupportedError,
    TrainingDataError,
    UnknownKeyError,
    VerbalizerError,
)
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration, plan_train
from luthier.resources.base_model import BaseModel

CONFIG = TuningConfig(num_virtual_tokens=5)
GOOD = {"base_model": "tiny-causal", "train_stream": ROWS, "tuning_config": CONFIG}
WHOLE = {"base_model": "tiny-causal", "train_stream": ROWS}


def plan(**changes):
    return plan_train(PeftPromptTuning.MODULE_ID, GOOD | changes)


def plan_request(**changes):
    return plan(from_request=True, **changes)


@pytest.fixture(autouse=True)
def here(configured):
    """An environment of each test's own, in which a plan loads nothing."""
    own = configured()
    yield own
    assert own.base_models.num_loaded == 0


@pytest.mark.parametrize("base", ["tiny-causal", "tiny-seq2seq"])
def test_a_plan_knows_the_kind_from_the_config_alone(base):
    made = plan(base_model=base)
    assert (made.base_model_name, made.kind) == (base, base.removeprefix("tiny-"))
    assert len(made.records) == len(ROWS)


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


@pytest.mark.parametrize(
    "name", ["../x", "a/../../b", "a\0b", "x" * 10_000, "", "~/x", "\\x", "con", "a b"]
)
def test_names_that_leave_the_folder_are_refused_for_a_request(name):
    with pytest.raises(NameNotAllowedError) as caught:
        plan_request(base_model=name)
    assert len(str(caught.value)) < 400


def test_an_absolute_path_is_refused_for_a_request_and_works_in_python(tiny_causal_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_causal_dir, elsewhere)
    assert plan(base_model=str(elsewhere)).kind == "causal"
    with pytest.raises(NameNotAllowedError):
        plan_request(base_model=str(elsewhere))


def test_a_name_from_a_request_is_no_folder_of_the_working_directory(
    tiny_causal_dir, tmp_path, monkeypatch
):
    shutil.copytree(tiny_causal_dir, tmp_path / "trap")
    monkeypatch.chdir(tmp_path)
    assert plan(base_model="trap").kind == "causal"
    with pytest.raises(BaseModelNotFoundError):
        plan_request(base_model="trap")


def test_a_base_model_that_generates_nothing_is_refused(configured, tiny_causal_dir, tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    configured(BASE_MODELS_DIR=str(tmp_path))
    with pytest.raises(NotSupportedError, match="bert"):
        plan(base_model="bert")
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        plan(base_model="bert")


def test_the_limits_of_the_server_hold_for_requests(configured):
    configured(
        TRAINING_LIMITS_MAX_EPOCHS="3",
        TRAINING_LIMITS_MAX_ROWS="5",
        TRAINING_LIMITS_MAX_VIRTUAL_TOKENS="4",
    )
    for changes, message in [
        ({"num_epochs": 4}, "'num_epochs' must be at most 3"),
        ({"num_epochs": 3}, "more than 5 records"),
        ({"num_epochs": 3, "train_stream": ROWS[:5]}, "num_virtual_tokens' must be at most 4"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            plan_request(**changes)
    assert plan(num_epochs=4).options.num_epochs == 4


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


def test_an_in_memory_model_is_found_by_its_name(here):
    with here.base_models.acquire("tiny-causal") as loaded:
        resource = BaseModel.from_memory(loaded.model, loaded.tokenizer, name="in-memory")
        here.base_models.add(resource)
        try:
            assert plan(base_model="in-memory").kind == "causal"
        finally:
            here.base_models.remove("in-memory")


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
    ],
)
def test_settings_that_cannot_be_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        plan(**changes)


def test_a_chat_template_may_come_with_a_request_where_the_operator_says_so(configured):
    configured(ALLOW_REQUEST_CHAT_TEMPLATES="true")
    made = plan_request(training_options={"chat_template": "{{ messages }}"})
    assert made.dataset.chat_template == "{{ messages }}"


def test_conversations_are_records_like_others():
    made = plan_request(train_stream=[*CHAT, *ROWS], val_stream=CHAT)
    assert len(made.records) == len(CHAT) + len(ROWS)
    assert len(made.validation_records) == len(CHAT)
