"""LoRA from records to a saved model that any process runs."""

import json
import shutil
import subprocess
import sys
import threading

import peft
import pytest
import torch
import yaml
from fixtures.train_rows import QUICK, ROWS, VERBALIZER
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import luthier
from luthier.adapters.lora.lora import LoraAdapter
from luthier.errors import (
    ArtifactError,
    CancelledError,
    InvalidInputError,
    NotSupportedError,
)
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration
from luthier.modules import environment as environment_module

both_bases = pytest.mark.parametrize("base", ["tiny-causal", "tiny-seq2seq"])


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-seq2seq"])
def lora(request, here):
    """A LoRA that changes the text, on each kind of base model. Read only, please."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_module, "_current", here)
        model = LoraTuning.train(
            request.param, ROWS, rank=4, use_dora=True, verbalizer=VERBALIZER, **QUICK
        )
    yield model
    model.release()


def losses(model, name="loss"):
    return [line["data"]["value"] for line in model.training_logs if line["name"] == name]


@pytest.mark.parametrize(("base", "share"), [("tiny-causal", 0.3), ("tiny-seq2seq", 0.9)])
def test_training_learns_and_the_base_stays_as_it_is(here, base, share):
    with here.base_models.acquire(base) as shared:
        before = {name: value.clone() for name, value in shared.model.state_dict().items()}
        model = LoraTuning.train(
            base, ROWS, rank=4, num_epochs=8, learning_rate=0.01, batch_size=4, val_stream=ROWS[:3]
        )
        curve = losses(model)
        assert len(curve) == 24 and len(losses(model, "validation_loss")) == 8
        assert sum(curve[-3:]) < share * sum(curve[:3])
        assert model.base_model is shared
        assert all(torch.equal(before[name], v) for name, v in shared.model.state_dict().items())


@both_bases
def test_the_same_seed_gives_the_same_deltas(base):
    hashes = [
        LoraTuning.train(base, ROWS, dropout=0.2, seed=seed, **QUICK).lora.content_hash()
        for seed in (1, 1, 2)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_saved_model_loads_and_gives_the_same_text(lora, tmp_path):
    lora.save(tmp_path / "model")
    loaded = luthier.load(tmp_path / "model")
    assert isinstance(loaded, LoraTuning)
    assert loaded.base_model is lora.base_model
    assert loaded.training_logs == lora.training_logs
    assert loaded.lora.content_hash() == lora.lora.content_hash()
    text = "message number 7 about billing"
    expected = lora.run(text, max_new_tokens=12)
    assert loaded.run(text, max_new_tokens=12) == expected
    pieces = [p.generated_text for p in loaded.run_stream_out(text, max_new_tokens=12)]
    assert "".join(pieces) == expected.generated_text
    assert loaded.run_tokenizer(text).token_count == lora.run_tokenizer(text).token_count
    bare = TextGeneration.bootstrap(lora.base_model)
    prompt = VERBALIZER.replace("{{input}}", text)
    assert bare.run(prompt, max_new_tokens=12).generated_text != expected.generated_text


def test_the_caller_of_load_may_name_a_base_model_anywhere(here, tiny_causal_dir, tmp_path):
    """As for prompts: only the name inside the saved model is a stranger's."""
    model = LoraTuning.train("tiny-causal", ROWS, **QUICK)
    model.save(tmp_path / "model")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_causal_dir, elsewhere)
    again = LoraTuning.load(tmp_path / "model", base_model=str(elsewhere))
    expected = model.run("hello", max_new_tokens=4).generated_text
    assert again.run("hello", max_new_tokens=4).generated_text == expected


def test_a_fresh_process_gives_the_same_text(lora, tmp_path, tiny_base_models_dir):
    lora.save(tmp_path / "model")
    code = (
        "import luthier, sys; print(luthier.load(sys.argv[1]).run('hello', max_new_tokens=8)"
        ".generated_text.encode().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, tmp_path / "model"],
        env={"BASE_MODELS_DIR": str(tiny_base_models_dir), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = lora.run("hello", max_new_tokens=8).generated_text
    assert bytes.fromhex(done.stdout.split()[-1]).decode() == expected


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_plain_peft_loads_the_adapter_in_a_saved_model(lora, tmp_path, tiny_base_models_dir):
    lora.save(tmp_path / "model")
    folder = tiny_base_models_dir / lora.base_model.name
    is_seq2seq = lora.base_model.kind == "seq2seq"
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    theirs = peft.PeftModel.from_pretrained(
        auto.from_pretrained(folder), tmp_path / "model" / "adapter"
    ).eval()
    inputs = {"input_ids": torch.tensor([[5, 17, 90, 8]])}
    inputs |= {"decoder_input_ids": torch.tensor([[0, 9]])} if is_seq2seq else {}
    with torch.no_grad():
        ours = lora.lora.tuned_model(lora.base_model.model)(**inputs).logits
        torch.testing.assert_close(theirs(**inputs).logits, ours, atol=1e-4, rtol=1e-5)


def test_a_merged_model_is_a_whole_model_with_the_same_text(lora, tmp_path):
    lora.save_merged(tmp_path / "whole")
    whole = luthier.load(tmp_path / "whole")
    assert isinstance(whole, TextGeneration)
    assert whole.adapter is None
    for text in ("message number 7 about billing", "hello"):
        expected = lora.run(text, max_new_tokens=12).generated_text
        assert whole.run(text, max_new_tokens=12).generated_text == expected
    assert whole.training_logs == lora.training_logs


def test_learned_tokens_are_served_saved_and_read_by_plain_peft(
    here, tmp_path, tiny_base_models_dir
):
    known = {"verbalizer": "<|user|>{{input}}<|assistant|>", **QUICK}
    model = LoraTuning.train("tiny-causal", ROWS, trainable_token_indices=[3, 4], **known)
    without = LoraTuning.train("tiny-causal", ROWS, **known)
    text = "message number 7 about billing"
    expected = model.run(text, max_new_tokens=12).generated_text
    model.save(tmp_path / "model")
    assert luthier.load(tmp_path / "model").run(text, max_new_tokens=12).generated_text == expected
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base_models_dir / "tiny-causal"),
        tmp_path / "model" / "adapter",
    )
    ids = model.base_model.tokenizer(f"<|user|>{text}<|assistant|>", return_tensors="pt").input_ids
    with torch.no_grad():
        found = model.lora.tuned_model(model.base_model.model)(ids).logits
        torch.testing.assert_close(found, theirs(ids).logits, atol=1e-4, rtol=1e-4)
        plain = without.lora.tuned_model(without.base_model.model)(ids).logits
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_a_start_from_data_ends_in_a_saved_model(here, word, tmp_path):
    model = LoraTuning.train(
        "tiny-causal", ROWS, rank=4, initialisation=word, start_batches=2, **QUICK
    )
    model.save(tmp_path / "model")
    loaded = luthier.load(tmp_path / "model")
    assert loaded.lora.content_hash() == model.lora.content_hash()


def test_bootstrap_puts_a_folder_of_peft_beside_a_base(here, tiny_causal_dir, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_causal_dir), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    model = LoraTuning.bootstrap("tiny-causal", tmp_path / "theirs")
    ids = model.base_model.tokenizer("hello world", return_tensors="pt")["input_ids"]
    expected = theirs.eval().generate(input_ids=ids, max_new_tokens=10, do_sample=False)
    result = model.run("hello world", max_new_tokens=10, preserve_input_text=False)
    assert result.generated_text == model.base_model.tokenizer.decode(
        expected[0, ids.shape[1] :], skip_special_tokens=True
    )
    model.save(tmp_path / "ours")
    assert luthier.load(tmp_path / "ours").run("hello", max_new_tokens=5) == model.run(
        "hello", max_new_tokens=5
    )


def test_rows_of_all_modules_share_one_base_at_the_same_time(here):
    deltas = [
        LoraTuning.train("tiny-causal", ROWS, rank=rank, seed=rank, **QUICK) for rank in (2, 8)
    ]
    prompt = PeftPromptTuning.train("tiny-causal", ROWS, {"num_virtual_tokens": 5}, **QUICK)
    models = [*deltas, prompt, TextGeneration.bootstrap("tiny-causal")]
    texts = ["message 1 about billing", "hello", "what is this"]
    alone = {
        (index, text): model.run(text, max_new_tokens=16).generated_text
        for index, model in enumerate(models)
        for text in texts
    }
    assert len({alone[index, "hello"] for index in range(len(models))}) > 2
    wrong = []

    def ask(seed):
        for turn in range(6):
            index, text = (seed + turn) % len(models), texts[(seed * 7 + turn) % len(texts)]
            if models[index].run(text, max_new_tokens=16).generated_text != alone[index, text]:
                wrong.append((index, text))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_cancelled_training_ends_and_gives_the_base_back(configured):
    own = configured()
    with pytest.raises(CancelledError):
        LoraTuning.train("tiny-causal", ROWS, should_stop=lambda: True, **QUICK)
    assert own.base_models.num_loaded == 0


def test_layers_that_the_base_model_lacks_are_refused_with_their_names(configured):
    own = configured()
    with pytest.raises(InvalidInputError, match="no layer of the model is called 'query_key'"):
        LoraTuning.train("tiny-causal", ROWS, target_modules=["query_key"], **QUICK)
    assert own.base_models.num_loaded == 0


def test_a_soft_prompt_is_not_taken_for_a_lora_nor_the_other_way_round(lora, tmp_path):
    base = lora.base_model
    prompt = PeftPromptTuning.train(base, ROWS, {"num_virtual_tokens": 2}, **QUICK)
    with pytest.raises(NotSupportedError, match="LoraTuning runs LoRA, this adapter is prompt"):
        LoraTuning.bootstrap(base, prompt.adapter)
    with pytest.raises(NotSupportedError, match="this adapter is lora"):
        PeftPromptTuning.bootstrap(base, lora.lora)


def test_a_changed_adapter_in_a_saved_model_is_refused(lora, tmp_path):
    lora.save(tmp_path / "model")
    path = tmp_path / "model" / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(ArtifactError, match="differs from its manifest"):
        luthier.load(tmp_path / "model")


def test_a_shelved_model_gives_the_same_text_and_can_be_saved(lora, tmp_path):
    lora.save(tmp_path / "model")
    loaded = LoraTuning.load(tmp_path / "model")
    loaded.shelve()
    assert not isinstance(loaded.adapter, LoraAdapter)
    assert loaded.run("hello") == lora.run("hello")
    loaded.save(tmp_path / "again")
    again = LoraTuning.load(tmp_path / "again")
    assert again.lora.content_hash() == lora.lora.content_hash()
    for module in (loaded, again):
        module.release()


def test_the_saved_config_names_the_base_and_no_path(lora, tmp_path):
    lora.save(tmp_path / "model")
    text = (tmp_path / "model" / "config.yml").read_text()
    config = yaml.safe_load(text)
    assert config["module_id"] == "e478d0cc-0c5c-423e-b654-ca9fa881395a"
    assert config["base_model_name"] == lora.base_model.name
    assert str(tmp_path) not in text


@both_bases
def test_conversations_are_learned_and_asked_in_one_form(base, tmp_path):
    """By the chat template or, without one, markers; the saved model asks as it was taught."""
    chat = [
        {
            "messages": [
                {"role": "user", "content": row["input"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in ROWS
    ]
    settings = {"mask_prompt_labels": True, "weight_decay": 0.0}
    model = LoraTuning.train(
        base, chat, val_stream=chat[:3], rank=4, training_options=settings, **QUICK
    )
    assert losses(model)[-1] < losses(model)[0]
    assert len(losses(model, "validation_loss")) == QUICK["num_epochs"]
    model.save(tmp_path / "m")
    again = luthier.load(tmp_path / "m")
    tokenizer = again.base_model.tokenizer
    has_template = bool(tokenizer.chat_template)
    text = "<|user|>hi</s><|assistant|>" if has_template else "<|prompt|>hi</s><|answer|>"
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert again.generator.encode("hi") == tuple(expected)
    assert again.run("hi", max_new_tokens=4) == model.run("hi", max_new_tokens=4)
    again.release()
    model.release()
