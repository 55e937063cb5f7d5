"""The virtual tokens of a plan: what fits the base model and the source prompt."""

import pytest
import torch
from fixtures.train_rows import QUICK, ROWS
from safetensors.torch import save_file

from luthier.data_model.options.prompt_words import TuningType
from luthier.data_model.tuning import TuningConfig
from luthier.errors import (
    InvalidInputError,
    NameNotAllowedError,
    NotFoundError,
    NotSupportedError,
    UnknownKeyError,
    UnsafeWeightsError,
)
from luthier.modules import PeftPromptTuning

HIDDEN = 32


def plan(base="tiny-causal", tuning_type="PROMPT_TUNING", from_request=True, **config):
    return PeftPromptTuning.plan_train(
        base_model=base,
        train_stream=ROWS,
        tuning_type=tuning_type,
        tuning_config=TuningConfig(**config),
        from_request=from_request,
    )


@pytest.fixture
def source_prompts(configured, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    torch.manual_seed(3)
    tensors = {
        "prompt_embeddings": torch.randn(4, HIDDEN),
        "prefix_task_cols": torch.randn(3, 4, 1),
        "prefix_task_rows": torch.randn(3, 1, HIDDEN),
    }
    save_file(tensors, folder / "four.safetensors")
    torch.save(tensors, folder / "four.bin")
    configured(SOURCE_PROMPT_BASE=str(folder))
    return tensors


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, InvalidInputError, "num_virtual_tokens not provided in tuning_config"),
        ({"num_virtual_tokens": 0}, InvalidInputError, "num_virtual_tokens not provided"),
        ({"num_virtual_tokens": -1}, InvalidInputError, "must be at least 1, got -1"),
        ({"num_virtual_tokens": 10**12}, InvalidInputError, "must be at most 1024"),
        (
            {"num_virtual_tokens": 3, "prompt_tuning_init_method": "TEXT"},
            InvalidInputError,
            "prompt_tuning_init_text' must be given",
        ),
        (
            {"num_virtual_tokens": 3, "prompt_tuning_init_method": "GUESS"},
            InvalidInputError,
            r"Init method \[GUESS\] not in allowed init methods",
        ),
        (
            {"num_virtual_tokens": 3, "output_model_types": ["ENCODER"]},
            InvalidInputError,
            "not supported for base model type",
        ),
        (
            {"num_virtual_tokens": 3, "output_model_types": ["FOO"]},
            InvalidInputError,
            "is not a valid PromptOutputModelType",
        ),
        (
            {"num_virtual_tokens": 3, "prompt_tuning_init_method": "ONLY_SOURCE_SHARED"},
            InvalidInputError,
            "prompt_tuning_init_source_model' must be given",
        ),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        plan(**config)


def test_a_mapping_is_a_config_and_its_keys_are_known():
    made = PeftPromptTuning.plan_train(
        base_model="tiny-causal", train_stream=ROWS, tuning_config={"num_virtual_tokens": 3}
    )
    assert made.num_virtual_tokens == 3
    with pytest.raises(UnknownKeyError, match=r"tuning_config\.num_virtual_token'.*did you mean"):
        PeftPromptTuning.plan_train(
            base_model="tiny-causal", train_stream=ROWS, tuning_config={"num_virtual_token": 3}
        )
    with pytest.raises(InvalidInputError, match="'tuning_config' must be a TuningConfig"):
        PeftPromptTuning.plan_train(base_model="tiny-causal", train_stream=ROWS, tuning_config=[3])


@pytest.mark.parametrize("word", ["PROMPT_TUNING", TuningType.PROMPT_TUNING, None, ""])
def test_a_tuning_type_is_a_word_or_a_member(word):
    assert plan(tuning_type=word, num_virtual_tokens=3).tuning_type is TuningType.PROMPT_TUNING


def test_other_tuning_types_are_refused_in_caikit_nlps_words():
    with pytest.raises(NotSupportedError, match="LORA tuning type not supported!"):
        plan(tuning_type="LORA", num_virtual_tokens=3)


@pytest.mark.parametrize("name", ["four.safetensors", "four.bin"])
@pytest.mark.parametrize(
    "method", ["ONLY_SOURCE_SHARED", "AVERAGE_SOURCE", "AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK"]
)
def test_a_source_prompt_starts_a_multitask_prompt(source_prompts, name, method):
    made = plan(
        tuning_type="MULTITASK_PROMPT_TUNING",
        num_virtual_tokens=4,
        prompt_tuning_init_method=method,
        prompt_tuning_init_source_model=name,
    )
    lease = made.acquire()
    adapter = made.make_adapter(lease.base_model)
    lease.release()
    assert torch.equal(adapter.prompt_embeddings, source_prompts["prompt_embeddings"])
    columns = source_prompts["prefix_task_cols"]
    if method.startswith("AVERAGE"):
        assert torch.allclose(adapter.prefix_task_cols, columns.mean(0, keepdim=True))
    if method.startswith("EXACT"):
        assert torch.equal(adapter.prefix_task_cols, columns[:1])


def test_an_exact_source_task_can_be_chosen(source_prompts):
    model = PeftPromptTuning.train(
        "tiny-causal",
        ROWS,
        TuningConfig(
            num_virtual_tokens=4,
            prompt_tuning_init_method="EXACT_SOURCE_TASK",
            prompt_tuning_init_source_model="four.safetensors",
        ),
        tuning_type="MULTITASK_PROMPT_TUNING",
        source_task=2,
        num_epochs=0,
    )
    columns = source_prompts["prefix_task_cols"]
    assert torch.equal(model.adapter.prefix_task_cols, columns[2:])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"num_virtual_tokens": 5},
            InvalidInputError,
            "'num_virtual_tokens' is 5.*has 4 virtual tokens",
        ),
        ({"tuning_type": "PROMPT_TUNING"}, InvalidInputError, "needs tuning type MULTITASK"),
        ({"prompt_tuning_init_source_model": "gone.bin"}, NotFoundError, "does not exist"),
        ({"prompt_tuning_init_source_model": "../four.bin"}, NameNotAllowedError, "source prompt"),
        ({"prompt_tuning_init_source_model": "/etc/x.bin"}, NameNotAllowedError, "source prompt"),
        ({"prompt_tuning_init_source_model": "config.yml"}, NameNotAllowedError, "must end with"),
    ],
)
def test_a_source_prompt_that_does_not_fit_is_refused(source_prompts, changes, error, message):
    config = {
        "tuning_type": "MULTITASK_PROMPT_TUNING",
        "num_virtual_tokens": 4,
        "prompt_tuning_init_method": "AVERAGE_SOURCE",
        "prompt_tuning_init_source_model": "four.bin",
    }
    with pytest.raises(error, match=message):
        plan(**(config | changes))


def test_a_source_prompt_that_runs_code_is_refused(source_prompts, here, configured, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"prompt_embeddings": Evil()}, tmp_path / "sources" / "evil.bin")
    with pytest.raises(UnsafeWeightsError):
        plan(
            tuning_type="MULTITASK_PROMPT_TUNING",
            num_virtual_tokens=4,
            prompt_tuning_init_method="AVERAGE_SOURCE",
            prompt_tuning_init_source_model="evil.bin",
        )
    assert not (tmp_path / "owned").exists()


def test_without_a_folder_of_source_prompts_none_is_read():
    with pytest.raises(InvalidInputError, match="no 'source_prompt_base'"):
        plan(
            tuning_type="MULTITASK_PROMPT_TUNING",
            num_virtual_tokens=4,
            prompt_tuning_init_method="AVERAGE_SOURCE",
            prompt_tuning_init_source_model="four.bin",
        )


@pytest.mark.parametrize("places", [["ENCODER"], ["DECODER"], ["DECODER", "ENCODER"]])
def test_virtual_tokens_stand_before_encoder_decoder_or_both(places, tmp_path):
    model = PeftPromptTuning.train(
        "tiny-seq2seq",
        ROWS,
        TuningConfig(num_virtual_tokens=3, output_model_types=places),
        **QUICK,
    )
    prompt = model.adapter.soft_prompt()
    assert (prompt.encoder is not None) == ("ENCODER" in places)
    assert (prompt.decoder is not None) == ("DECODER" in places)
    model.save(tmp_path / "model")
    again = PeftPromptTuning.load(tmp_path / "model")
    assert again.run("hello", max_new_tokens=6).generated_text == (
        model.run("hello", max_new_tokens=6).generated_text
    )


def test_a_prompt_can_start_from_text():
    model = PeftPromptTuning.train(
        "tiny-causal",
        ROWS,
        TuningConfig(
            num_virtual_tokens=4,
            prompt_tuning_init_method="TEXT",
            prompt_tuning_init_text="billing",
        ),
        num_epochs=0,
    )
    base = model.base_model
    ids = base.tokenizer("billing")["input_ids"]
    repeated = (ids * 4)[:4]
    assert torch.equal(model.adapter.prompt_embeddings, base.embedding_weight[repeated])


def test_a_multitask_prompt_loads_as_one(tmp_path):
    model = PeftPromptTuning.train(
        "tiny-causal",
        ROWS,
        TuningConfig(num_virtual_tokens=4),
        tuning_type="MULTITASK_PROMPT_TUNING",
        **QUICK,
    )
    model.save(tmp_path / "model")
    again = PeftPromptTuning.load(tmp_path / "model")
    assert again.tuning_type is TuningType.MULTITASK_PROMPT_TUNING
    assert again.adapter.content_hash() == model.adapter.content_hash()


@pytest.mark.parametrize("tuning_type", ["P_TUNING", "PREFIX_TUNING"])
def test_a_prompt_that_is_learned_through_a_network_is_tuned_saved_and_loaded(
    tiny_causal_dir, tmp_path, tuning_type
):
    rows = [{"input": f"message {word}", "output": word} for word in ("billing", "account")] * 2
    model = PeftPromptTuning.train(
        str(tiny_causal_dir),
        rows,
        {"num_virtual_tokens": 4, "encoder_hidden_size": 0},
        tuning_type=tuning_type,
        num_epochs=6,
        batch_size=4,
        accumulate_steps=1,
    )
    losses = [line["data"]["value"] for line in model.training_logs]
    assert losses[-1] < losses[0]
    rates = [line["data"]["learning_rate"] for line in model.training_logs]
    assert max(rates) == pytest.approx(0.01)
    text = model.run("message billing", max_new_tokens=6).generated_text
    model.save(tmp_path / "model")
    again = PeftPromptTuning.load(tmp_path / "model", base_model=str(tiny_causal_dir))
    assert again.run("message billing", max_new_tokens=6).generated_text == text
    assert again.tuning_type.value == tuning_type
    again.release()
    model.release()
