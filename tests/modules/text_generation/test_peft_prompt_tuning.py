"""Prompt tuning from records to a saved model that any process runs."""

import copy
import json
import math
import shutil
import subprocess
import sys
import threading

import peft
import pytest
import torch
import yaml
from caikit.core.data_model import DataStream
from fixtures.train_rows import QUICK, ROWS, VERBALIZER
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import luthier
from luthier.data_model.options.prompt_words import TuningType
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.tuning import TuningConfig
from luthier.errors import (
    ArtifactError,
    BaseModelNotFoundError,
    CancelledError,
    ConflictError,
    InvalidInputError,
    NotSupportedError,
    UnsafeWeightsError,
)
from luthier.modules import PeftPromptTuning, TextGeneration
from luthier.resources.base_model import BaseModel

CONFIG = TuningConfig(num_virtual_tokens=5)
BASES = ["tiny-causal", "tiny-seq2seq"]
both_bases = pytest.mark.parametrize("base", BASES)


def losses(model, name="loss"):
    return [line["data"]["value"] for line in model.training_logs if line["name"] == name]


def test_the_signature_has_caikit_nlps_defaults():
    """What a caller leaves out must be what the options say."""
    plan = PeftPromptTuning.plan_train(
        base_model="tiny-causal", train_stream=ROWS, tuning_config=CONFIG
    )
    options = plan.options
    assert (options.num_epochs, options.learning_rate, options.verbalizer) == (
        20, 0.3, "{{input}}",
    )  # fmt: skip
    assert (options.batch_size, options.max_source_length, options.max_target_length) == (
        8, 256, 128,
    )  # fmt: skip
    assert (options.accumulate_steps, options.seed) == (32, 73)
    assert options.silence_progress_bars
    assert options.device is None
    assert plan.tuning_type is TuningType.PROMPT_TUNING


# A random decoder does not listen to its encoder much: it takes more updates, each over all rows.
@pytest.mark.parametrize(
    ("base", "num_epochs", "learning_rate", "batch_size", "share"),
    [("tiny-causal", 12, 0.1, 4, 0.7), ("tiny-seq2seq", 60, 0.03, 12, 0.95)],
)
def test_training_learns(base, num_epochs, learning_rate, batch_size, share):
    model = PeftPromptTuning.train(
        base,
        ROWS,
        CONFIG,
        num_epochs=num_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        accumulate_steps=1,
    )
    curve = losses(model)
    assert len(curve) == num_epochs * len(ROWS) // batch_size
    assert sum(curve[-3:]) < share * sum(curve[:3])
    assert all(math.isfinite(value) for value in curve)


@both_bases
def test_the_same_seed_gives_the_same_prompt(base):
    prompts = [
        PeftPromptTuning.train(base, ROWS, CONFIG, seed=seed, **QUICK).adapter.content_hash()
        for seed in (1, 1, 2)
    ]
    assert prompts[0] == prompts[1] != prompts[2]


@both_bases
def test_the_base_model_stays_as_it_is_and_is_shared(here, base):
    lease = here.base_models.acquire(base)
    before = {name: value.clone() for name, value in lease.base_model.model.state_dict().items()}
    config = lease.base_model.model.config.to_dict()
    model = PeftPromptTuning.train(base, ROWS, CONFIG, **QUICK)
    assert model.base_model is lease.base_model
    after = lease.base_model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert lease.base_model.model.config.to_dict() == config
    lease.release()


def test_the_learning_rate_decays_to_nothing_under_accumulation():
    model = PeftPromptTuning.train(
        "tiny-causal", ROWS, CONFIG, num_epochs=4, batch_size=2, accumulate_steps=3
    )
    rates = [line["data"]["learning_rate"] for line in model.training_logs]
    assert len(rates) == 8
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(0.3 / 8)


@both_bases
def test_a_validation_stream_gives_a_loss_per_epoch(base):
    records = DataStream.from_iterable(
        [ClassificationTrainRecord(text="about billing", labels=["billing"])]
    )
    model = PeftPromptTuning.train(
        base, ROWS, CONFIG, val_stream=records, **(QUICK | {"num_epochs": 3})
    )
    assert len(losses(model, "validation_loss")) == 3


@pytest.mark.parametrize(
    "stream",
    [
        ROWS,
        [GenerationTrainRecord(**row) for row in ROWS],
        DataStream.from_iterable([GenerationTrainRecord(**row) for row in ROWS]),
        DataStream.from_iterable(
            [ClassificationTrainRecord(text=row["input"], labels=[row["output"]]) for row in ROWS]
        ),
    ],
    ids=["mappings", "records", "stream", "classification"],
)
def test_every_kind_of_stream_trains_the_same(stream):
    reference = PeftPromptTuning.train("tiny-causal", ROWS, CONFIG, **QUICK)
    model = PeftPromptTuning.train("tiny-causal", stream, CONFIG, **QUICK)
    assert model.adapter.content_hash() == reference.adapter.content_hash()


def test_aliases_are_the_same_options():
    by_name = PeftPromptTuning.train("tiny-causal", ROWS, CONFIG, **QUICK)
    by_alias = PeftPromptTuning.train(
        "tiny-causal", ROWS, CONFIG, epochs=1, lr=0.05, train_batch_size=4, random_seed=73,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    assert by_alias.adapter.content_hash() == by_name.adapter.content_hash()


def test_a_base_model_in_memory_is_used_as_it_is(here):
    with here.base_models.acquire("tiny-causal") as loaded:
        resource = BaseModel.from_memory(loaded.model, loaded.tokenizer, name="mine")
        model = PeftPromptTuning.train(resource, ROWS, CONFIG, **QUICK)
        assert model.base_model is resource
        same = PeftPromptTuning.train(resource, ROWS, CONFIG, torch_dtype=torch.float32, **QUICK)
        assert same.base_model is resource


def test_a_base_model_in_memory_is_copied_to_train_in_another_precision(here):
    with here.base_models.acquire("tiny-causal", dtype="bfloat16") as loaded:
        resource = BaseModel.from_memory(loaded.model, loaded.tokenizer, name="mine")
        model = PeftPromptTuning.train(resource, ROWS, CONFIG, torch_dtype="float32", **QUICK)
        assert model.base_model.dtype is torch.float32
        assert resource.dtype is torch.bfloat16
        assert model.run("a", max_new_tokens=2).generated_tokens > 0


def test_a_path_is_a_base_model(tiny_causal_dir):
    model = PeftPromptTuning.train(tiny_causal_dir, ROWS, CONFIG, **QUICK)
    assert model.base_model.name == "tiny-causal"


def test_saved_models_give_the_same_text_in_a_fresh_process(environ, tmp_path):
    expected = {}
    for base in BASES:
        tuned = PeftPromptTuning.train(base, ROWS, CONFIG, verbalizer=VERBALIZER, **QUICK)
        whole = TextGeneration.train(base, ROWS, **QUICK)
        for name, model in {"tuned": tuned, "whole": whole}.items():
            folder = tmp_path / f"{name}-{base}"
            model.save(folder)
            expected[str(folder)] = model.run("hello", max_new_tokens=8).generated_text
            assert text_of_loaded(folder) == expected[str(folder)]
    program = (
        "import json, sys, luthier\n"
        "run = lambda folder: luthier.load(folder).run('hello', max_new_tokens=8)\n"
        "print(json.dumps({path: run(path).generated_text for path in sys.argv[1:]}))\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", program, *expected],
        env={**environ, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert json.loads(fresh.stdout) == expected


def text_of_loaded(folder):
    return luthier.load(folder).run("hello", max_new_tokens=8).generated_text


def test_a_saved_prompt_holds_no_base_model_and_no_path_of_this_machine(
    tuned, tiny_base_models_dir, tmp_path
):
    tuned.save(tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30_000
    assert {path.suffix for path in files} <= {".yml", ".json", ".jsonl", ".safetensors", ".md"}
    for path in files:
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(tiny_base_models_dir).encode() not in content


def test_the_saved_prompt_is_plain_pefts(tuned, tiny_base_models_dir, tmp_path):
    """PEFT on the same base model gives the logits that the adapter gives here."""
    tuned.save(tmp_path / "model")
    is_causal = tuned.base_model.kind == "causal"
    auto = AutoModelForCausalLM if is_causal else AutoModelForSeq2SeqLM
    base = auto.from_pretrained(tiny_base_models_dir / tuned.base_model.name)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model" / "adapter").eval()
    saved = load_file(tmp_path / "model" / "adapter" / "adapter_model.safetensors")
    assert torch.equal(saved["prompt_embeddings"], tuned.adapter.prompt_embeddings.detach())
    ids = torch.tensor([tuned.base_model.tokenizer("Text: hello Label: ")["input_ids"]])
    answer = tuned.run(
        "hello", max_new_tokens=1, generated_tokens=True, token_logprobs=True
    ).tokens[0]
    with torch.no_grad():
        decoder = {} if is_causal else {"decoder_input_ids": torch.tensor([[0]])}
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder).logits
    logprob, token = logits[0, -1].log_softmax(-1).max(-1)
    assert tuned.base_model.tokenizer.convert_ids_to_tokens(int(token)) == answer.text
    assert answer.logprob == pytest.approx(float(logprob), abs=1e-4)


def test_an_adapter_of_peft_runs_here(tiny_causal_dir, tmp_path):
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "peft")
    ours = PeftPromptTuning.bootstrap("tiny-causal", tmp_path / "peft", verbalizer=VERBALIZER)
    answer = ours.run("hello", max_new_tokens=1, generated_tokens=True, token_logprobs=True)
    ids = torch.tensor([ours.base_model.tokenizer("Text: hello Label: ")["input_ids"]])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    expected = float(logits[0, -1].log_softmax(-1).max())
    assert answer.tokens[0].logprob == pytest.approx(expected, abs=1e-4)
    ours.save(tmp_path / "saved")
    assert luthier.load(tmp_path / "saved").verbalizer == VERBALIZER


def test_saving_again_replaces_the_folder_in_one_step(tuned, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    tuned.save(target)
    (target / "stale.txt").write_text("old")
    tuned.save(str(target))
    assert not (target / "stale.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_folder_of_other_things_is_not_replaced(tuned, tmp_path):
    (tmp_path / "notes.txt").write_text("dear")
    with pytest.raises(ConflictError, match="neither an empty folder nor a saved model"):
        tuned.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_save_that_fails_leaves_what_was_there(tuned, tmp_path, monkeypatch):
    target = tmp_path / "model"
    tuned.save(target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.modules.adapter_module.save_adapter", fail)
    with pytest.raises(OSError, match="No space left"):
        tuned.save(target)
    after = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_how_it_was_trained_is_kept(tuned, tmp_path):
    tuned.save(tmp_path / "model")
    loaded = luthier.load(tmp_path / "model")
    assert losses(loaded) == losses(tuned)
    summary = loaded.history.summary
    assert summary["num_rows"] == len(ROWS)
    assert summary["options"]["learning_rate"] == QUICK["lr"]
    assert summary["truncation"] == f"all {len(ROWS)} rows fit"
    loaded.save(tmp_path / "again")
    assert losses(luthier.load(tmp_path / "again")) == losses(tuned)


def test_truncation_is_reported_not_silent():
    model = PeftPromptTuning.train("tiny-causal", ROWS, CONFIG, max_source_length=3, **QUICK)
    assert f"source cut in {len(ROWS)} rows" in model.history.summary["truncation"]


@pytest.fixture
def saved(tuned, tmp_path):
    tuned.save(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    path = folder / "config.yml"
    config = yaml.safe_load(path.read_text("utf-8"))
    for name, value in changes.items():
        config.pop(name, None)
        if value is not None:
            config[name] = value
    path.write_text(yaml.safe_dump(config), "utf-8")
    (folder / "manifest.json").unlink()


def test_a_damaged_file_is_refused(saved):
    weights = saved / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"damaged.*adapter_model\.safetensors"):
        luthier.load(saved)


@pytest.mark.parametrize("name", ["config.yml", "adapter/adapter_config.json", "adapter"])
def test_an_incomplete_folder_is_refused(saved, name):
    path = saved / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError):
        luthier.load(saved)


def test_numbers_that_are_none_are_refused(saved):
    weights = saved / "adapter" / "adapter_model.safetensors"
    save_file(
        {name: torch.full_like(t, math.nan) for name, t in load_file(weights).items()}, weights
    )
    (saved / "manifest.json").unlink()
    (saved / "adapter" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="NaN"):
        luthier.load(saved)


def test_a_pickle_in_the_weights_place_is_refused(saved):
    (saved / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": torch.ones(5, 32)}, saved / "adapter" / "adapter_model.bin")
    (saved / "manifest.json").unlink()
    (saved / "adapter" / "manifest.json").unlink()
    with pytest.raises(UnsafeWeightsError):
        luthier.load(saved)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"base_model_name": "/etc"}, InvalidInputError),
        ({"base_model_name": "../../etc"}, InvalidInputError),
        ({"base_model_name": "no-such-model"}, BaseModelNotFoundError),
        ({"base_model_name": None}, ArtifactError),
        ({"base_model_name": 7}, ArtifactError),
        ({"adapter_path": "../elsewhere"}, InvalidInputError),
        ({"adapter_path": None}, ArtifactError),
        ({"verbalizer": "no placeholder"}, InvalidInputError),
        ({"training_logs": "../../etc/passwd"}, InvalidInputError),
        ({"module_id": "00000000-0000-0000-0000-000000000000"}, NotSupportedError),
        ({"module_id": None}, ArtifactError),
    ],
)
def test_a_config_that_lies_is_refused(saved, changes, error):
    edit_config(saved, **changes)
    with pytest.raises(error):
        luthier.load(saved)


def test_a_config_that_is_no_mapping_is_refused(saved):
    for text in ("[1, 2]", "a: [", "\x00", "x: &a [*a]\n" * 3):
        (saved / "config.yml").write_text(text, "utf-8")
        with pytest.raises(ArtifactError):
            luthier.load(saved)


def test_a_base_model_of_the_same_name_with_other_weights_is_refused(
    saved, tuned, configured, tiny_base_models_dir, tmp_path
):
    other = tmp_path / "bases"
    shutil.copytree(tiny_base_models_dir / tuned.base_model.name, other / tuned.base_model.name)
    weights = other / tuned.base_model.name / "model.safetensors"
    changed = {name: tensor + 0.5 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    configured(BASE_MODELS_DIR=str(other))
    with pytest.raises(ArtifactError, match="is not the one that the prompt was tuned for"):
        luthier.load(saved)


def test_a_base_model_that_is_elsewhere_can_be_brought_along(
    saved, tuned, configured, tiny_base_models_dir, tmp_path
):
    (tmp_path / "empty").mkdir()
    configured(BASE_MODELS_DIR=str(tmp_path / "empty"))
    with pytest.raises(BaseModelNotFoundError):
        luthier.load(saved)
    for brought in (tuned.base_model, tiny_base_models_dir / tuned.base_model.name):
        model = PeftPromptTuning.load(saved, base_model=brought)
        assert model.run("a").generated_text == tuned.run("a").generated_text


def test_a_prompt_for_another_kind_of_base_model_is_refused(saved, tuned):
    other = {"tiny-causal": "tiny-seq2seq", "tiny-seq2seq": "tiny-causal"}[tuned.base_model.name]
    with pytest.raises(ArtifactError):
        PeftPromptTuning.load(saved, base_model=other)


def test_a_training_can_be_stopped_and_leaves_nothing(configured):
    own = configured()
    asked = threading.Event()

    def stop_at_the_third_batch(calls=[]):  # noqa: B006
        calls.append(1)
        asked.set()
        return len(calls) > 3

    with pytest.raises(CancelledError):
        PeftPromptTuning.train(
            "tiny-causal",
            ROWS,
            CONFIG,
            torch_dtype="bfloat16",
            should_stop=stop_at_the_third_batch,
            **(QUICK | {"num_epochs": 100}),
        )
    assert asked.is_set()
    assert own.base_models.num_loaded == 0


def test_callbacks_are_told_the_steps(tmp_path):
    from luthier.training.callbacks.metrics_file import MetricsFile  # noqa: PLC0415

    PeftPromptTuning.train(
        "tiny-causal", ROWS, CONFIG, callbacks=[MetricsFile(tmp_path / "m.jsonl")], **QUICK
    )
    lines = (tmp_path / "m.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "start"
    assert events.count("step") == 3
    assert events[-1] == "finish"


def test_metrics_that_compare_text_are_measured(tmp_path):
    from luthier.training.callbacks.metrics_file import MetricsFile  # noqa: PLC0415

    PeftPromptTuning.train(
        "tiny-causal",
        ROWS,
        CONFIG,
        val_stream=ROWS[:3],
        metrics=["label_accuracy"],
        max_generated_tokens=3,
        callbacks=[MetricsFile(tmp_path / "m.jsonl")],
        **QUICK,
    )
    lines = map(json.loads, (tmp_path / "m.jsonl").read_text("utf-8").splitlines())
    (evaluation,) = (line for line in lines if line["event"] == "evaluation")
    assert 0 <= evaluation["label_accuracy"] <= 1


def test_no_epochs_keep_the_start():
    model = PeftPromptTuning.train("tiny-causal", ROWS, CONFIG, num_epochs=0)
    assert model.training_logs == ()
    assert model.run("a", max_new_tokens=2).generated_tokens > 0


def test_tokens_of_a_text_are_counted_without_the_verbalizer(tuned):
    expected = len(tuned.base_model.tokenizer("hello world")["input_ids"])
    results = tuned.run_tokenizer("hello world")
    assert results.token_count == len(results.results) == expected


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_prompt_that_caikit_nlp_trained_runs_in_the_precision_it_ran_in_there(
    here, tmp_path, dtype
):
    with here.base_models.acquire("tiny-causal", dtype=dtype) as base:
        torch.manual_seed(3)
        prompt = torch.randn(4, base.hidden_size).to(base.dtype)
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, num_transformer_submodules=1
        )
        peer = peft.get_peft_model(copy.deepcopy(base.model), config).eval()
        peer.prompt_encoder["default"].embedding.weight.data = prompt
        ids = torch.tensor([base.tokenizer("hello")["input_ids"]])
        expected = peer.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )[0]
    torch.save(prompt, tmp_path / "decoder.pt")
    archive = {
        "module_id": PeftPromptTuning.MODULE_ID,
        "caikit_nlp_version": "0.5.15",
        "base_model_name": "tiny-causal",
        "task_type": "CAUSAL_LM",
        "trained_torch_dtype": dtype,
        "DECODER": "decoder.pt",
        "ENCODER": "",
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(archive), "utf-8")
    model = PeftPromptTuning.load(tmp_path)
    assert model.base_model.dtype is getattr(torch, dtype)
    tokens = model.run("hello", max_new_tokens=12, generated_tokens=True).tokens
    vocabulary = model.base_model.tokenizer
    assert vocabulary.convert_tokens_to_ids([t.text for t in tokens]) == expected.tolist()[-12:]
