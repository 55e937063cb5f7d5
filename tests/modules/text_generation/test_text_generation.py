"""Whole models: bootstrapped, fine-tuned, saved and read."""

import math

import pytest
import torch
import yaml
from fixtures.train_rows import QUICK, ROWS
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.data_model.tuning import TuningConfig
from luthier.errors import (
    ArtifactError,
    BaseModelNotFoundError,
    InvalidInputError,
    UnknownKeyError,
)
from luthier.modules import PeftPromptTuning, TextGeneration

BASES = ["tiny-causal", "tiny-seq2seq"]
both_bases = pytest.mark.parametrize("base", BASES)


def test_the_signature_has_caikit_nlps_defaults():
    options = TextGeneration.plan_train(base_model="tiny-causal", train_stream=ROWS).options
    assert (options.num_epochs, options.learning_rate, options.seed) == (5, 2e-5, 73)
    assert (options.batch_size, options.accumulate_steps) == (8, 32)
    assert (options.max_source_length, options.max_target_length) == (256, 128)
    assert options.verbalizer == "{{input}}"


@both_bases
def test_fine_tuning_learns_to_answer_and_to_stop(base):
    """The peer's causal models learn the prompt and never the end of sequence."""
    rows = [{"input": "yes?", "output": "no"}, {"input": "no?", "output": "yes"}]
    model = TextGeneration.train(
        base, rows, num_epochs=60, lr=5e-3, batch_size=2, accumulate_steps=1
    )
    for row in rows:
        result = model.run(row["input"], preserve_input_text=False, max_new_tokens=20)
        assert result.generated_text == row["output"]
        assert result.finish_reason.name == "EOS_TOKEN"
        assert result.generated_tokens < 20


@both_bases
def test_fine_tuning_leaves_the_shared_base_model_alone(here, base):
    with here.base_models.acquire(base) as shared:
        before = {name: value.clone() for name, value in shared.model.state_dict().items()}
        model = TextGeneration.train(base, ROWS, **QUICK)
        assert model.base_model is not shared
        tuned = model.base_model.model.state_dict()
        assert any(not torch.equal(before[name], tuned[name]) for name in before)
        after = shared.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(p.requires_grad for p in model.base_model.model.parameters())


def test_accumulating_steps_is_one_larger_batch():
    """caikit-nlp drops accumulate_steps; here 3 batches of 4 rows are one of 12."""
    options = {"num_epochs": 2, "lr": 1e-3}
    one = TextGeneration.train("tiny-causal", ROWS, batch_size=12, accumulate_steps=1, **options)
    many = TextGeneration.train("tiny-causal", ROWS, batch_size=4, accumulate_steps=3, **options)
    values = [[line["data"]["value"] for line in model.training_logs] for model in (one, many)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    for name, tensor in one.base_model.model.state_dict().items():
        other = many.base_model.model.state_dict()[name]
        assert torch.allclose(tensor, other, atol=1e-4), name


def test_epochs_have_exactly_their_steps():
    model = TextGeneration.train(
        "tiny-causal", ROWS, num_epochs=2, batch_size=4, accumulate_steps=1
    )
    assert [line["data"]["step"] for line in model.training_logs] == [1, 2, 3, 4, 5, 6]


@both_bases
def test_a_validation_stream_gives_a_loss_per_epoch(base):
    model = TextGeneration.train(base, ROWS, val_stream=ROWS[:2], **(QUICK | {"num_epochs": 2}))
    found = [line for line in model.training_logs if line["name"] == "validation_loss"]
    assert [math.isfinite(line["data"]["value"]) for line in found] == [True, True]


def test_the_peers_further_arguments_are_options():
    plan = TextGeneration.plan_train(
        base_model="tiny-causal",
        train_stream=ROWS,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_epsilon=1e-6,
        max_grad_norm=1,
        lr_scheduler_type="cosine",
        optim="sgd",
        warmup_ratio=0.1,
        disable_tqdm=True,
        gradient_checkpointing=True,
        group_by_length=False,
        use_iterable_dataset=False,
    )
    options = plan.options
    assert (options.weight_decay, options.max_grad_norm, options.schedule) == (0.1, 1, "cosine")
    assert options.optimizer == "sgd"
    assert options.gradient_checkpointing
    assert not options.group_by_length


@pytest.mark.parametrize("name", ["use_ipex", "label_names", "weight_decya", "tuning_config"])
def test_what_is_not_offered_is_refused_by_name(name):
    with pytest.raises(UnknownKeyError, match=name):
        TextGeneration.train("tiny-causal", ROWS, **{name: 1})


@both_bases
def test_a_bootstrapped_model_is_the_shared_base_model(here, base):
    with here.base_models.acquire(base) as shared:
        model = TextGeneration.bootstrap(base)
        assert model.base_model is shared
        result = model.run("hello", max_new_tokens=4)
        assert (result.producer_id.name, result.producer_id.version) == (
            "Text Generation", "0.1.0",
        )  # fmt: skip


def test_a_bootstrapped_causal_model_gives_transformers_text(tiny_causal_dir):
    reference = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    model = TextGeneration.bootstrap("tiny-causal")
    for text in ("hello", "My package never arrived", "Zoë ☕"):
        ids = tokenizer(text, return_tensors="pt")
        expected = reference.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=12,
            do_sample=False,
        )[0, ids["input_ids"].shape[1] :]
        assert model.run(text, max_new_tokens=12, preserve_input_text=False).generated_text == (
            tokenizer.decode(expected, skip_special_tokens=True)
        )


def test_an_unknown_base_model_is_refused_with_what_would_help():
    with pytest.raises(BaseModelNotFoundError, match=r"no-such-model.*ALLOW_DOWNLOADS=true"):
        TextGeneration.bootstrap("no-such-model")


@both_bases
def test_a_saved_model_is_a_hugging_face_model_and_loads_again(base, tmp_path):
    model = TextGeneration.train(base, ROWS, verbalizer="Q: {{input}} A: ", **QUICK)
    model.save(tmp_path / "model")
    loaded = luthier.load(tmp_path / "model")
    assert isinstance(loaded, TextGeneration)
    assert loaded.verbalizer == "Q: {{input}} A: "
    assert loaded.training_logs == model.training_logs
    assert loaded.run("a", max_new_tokens=8).generated_text == (
        model.run("a", max_new_tokens=8).generated_text
    )
    assert {path.suffix for path in (tmp_path / "model" / "artifacts").iterdir()} <= {
        ".json", ".safetensors", ".jinja", ".txt", ".model",
    }  # fmt: skip
    again = TextGeneration.bootstrap(tmp_path / "model" / "artifacts")
    text = again.run("Q: a A: ", max_new_tokens=8).generated_text
    assert text == model.run("a", max_new_tokens=8).generated_text


def test_the_saved_precision_is_kept(tmp_path):
    model = TextGeneration.bootstrap("tiny-causal", torch_dtype="bfloat16")
    model.save(tmp_path / "model")
    config = yaml.safe_load((tmp_path / "model" / "config.yml").read_text("utf-8"))
    assert config["torch_dtype"] == "torch.bfloat16"
    assert luthier.load(tmp_path / "model").base_model.dtype is torch.bfloat16


def test_a_model_saved_at_the_place_of_a_loaded_one_does_not_change_that(tmp_path):
    first = TextGeneration.bootstrap("tiny-causal")
    first.save(tmp_path / "model")
    loaded = luthier.load(tmp_path / "model")
    TextGeneration.train("tiny-causal", ROWS, **QUICK).save(tmp_path / "model")
    replaced = luthier.load(tmp_path / "model")
    texts = [m.run("hello", max_new_tokens=8).generated_text for m in (first, loaded, replaced)]
    assert texts[0] == texts[1] != texts[2]


def test_a_fine_tuned_model_can_be_prompt_tuned(tmp_path):
    """caikit-nlp's issue 87: users had to find the artifacts folder by themselves."""
    TextGeneration.train("tiny-causal", ROWS, **QUICK).save(tmp_path / "model")
    tuned = PeftPromptTuning.train(
        tmp_path / "model", ROWS, TuningConfig(num_virtual_tokens=3), **QUICK
    )
    assert tuned.run("hello", max_new_tokens=2).generated_text


def test_damaged_weights_are_refused(tmp_path):
    TextGeneration.bootstrap("tiny-causal").save(tmp_path / "model")
    weights = tmp_path / "model" / "artifacts" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="damaged"):
        luthier.load(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    with pytest.raises(ArtifactError):
        luthier.load(tmp_path / "model")


def test_a_whole_model_takes_no_base_model(tmp_path):
    TextGeneration.bootstrap("tiny-causal").save(tmp_path / "model")
    with pytest.raises(InvalidInputError, match="takes no 'base_model'"):
        TextGeneration.load(tmp_path / "model", base_model="tiny-causal")
