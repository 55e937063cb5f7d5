"""Markers that become tokens: trained, saved, served, and refused where there is no place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.marker_tokens import MARKERS, marker_lora, on_resized_model
from fixtures.train_rows import QUICK, ROWS
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import luthier
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.storage import load_adapter
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError
from luthier.inference.base import GenerationRequest
from luthier.inference.registry import engine_for
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration
from luthier.modules.experiments.together import TunedExperiment, train_many
from luthier.modules.planning.marker_tokens import marker_tokens, whole_tuned_model
from luthier.modules.text_classification.head_tuning import HeadTuning
from luthier.modules.text_generation.conformance import check_conformance
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import collate
from luthier.training.loop import tune
from luthier.training.preparation import read_data

SETTINGS = {"prompt_format": "markers", "add_prompt_answer_tokens": True}
IDS = {"<|system|>": 400, "<|prompt|>": 401, "<|answer|>": 402}
RECORDS = [GenerationTrainRecord(**row) for row in ROWS]
TEXT = "message number 7 about billing"


def train(kind: Any, base: str, **more: Any) -> Any:
    settings = {**SETTINGS, **more.pop("training_options", {})}
    return kind.train(base, ROWS, training_options=settings, **{**QUICK, **more})


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-seq2seq"])
def lora(request: pytest.FixtureRequest, here: Any) -> Any:
    model = train(LoraTuning, request.param, rank=2)
    yield model
    model.release()


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    more = {"decoder_input_ids": torch.tensor([[0, 9, 12]])}
    with torch.no_grad():
        found: torch.Tensor = model(
            input_ids=ids, **(more if model.config.is_encoder_decoder else {})
        ).logits
    return found[..., :400]


def test_a_loras_markers_are_learned_and_the_base_stays(lora: Any, here: Any) -> None:
    assert dict(lora.adapter.added_tokens()) == IDS
    ids = lora.generator.encode(TEXT)
    assert (ids[0], ids[-1]) == (401, 402)
    assert lora.base_model.vocab_size == 400
    assert len(lora.base_model.tokenizer) == 400
    rows = lora.lora.token_rows.rows.detach()
    start = marker_tokens(lora.base_model, DatasetOptions(**SETTINGS))
    assert start is not None
    moved = (rows - start.starting_rows(lora.base_model.embedding_weight)).abs().amax(dim=1)
    assert float(moved[1:].min()) > 1e-4
    # No row of the data has a system text.
    assert float(moved[0]) < float(moved[1:].min())
    lora.check_conformance()


def test_what_a_user_types_stays_text(lora: Any) -> None:
    plain = lora.generator.encode("ab")
    spelled = lora.generator.encode("a<|answer|>b")
    assert spelled.count(402) == 1
    pieces = lora.base_model.tokenizer("a<|answer|>b", add_special_tokens=False)["input_ids"]
    assert spelled[1 : 1 + len(pieces)] == tuple(pieces)
    assert plain[0] == spelled[0] == 401


def test_a_saved_lora_is_served_and_read_by_plain_peft(
    lora: Any, tmp_path: Path, tiny_base_models_dir: Path
) -> None:
    expected = lora.run(TEXT, max_new_tokens=8).generated_text
    lora.save(tmp_path / "m")
    loaded = luthier.load(tmp_path / "m")
    assert loaded.run(TEXT, max_new_tokens=8).generated_text == expected
    loaded.shelve()
    assert loaded.run(TEXT, max_new_tokens=8).generated_text == expected
    ids = torch.tensor([loaded.generator.encode(TEXT)])
    loaded.release()
    # As README.md of the folder says.
    folder = tmp_path / "m" / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(list(MARKERS)) == [400, 401, 402]
    is_seq2seq = lora.base_model.kind == "seq2seq"
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    theirs = auto.from_pretrained(tiny_base_models_dir / lora.base_model.name)
    assert "rows = max(403, base_model.get_input_embeddings().num_embeddings)" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    with torch.random.fork_rng():
        theirs.resize_token_embeddings(max(403, theirs.get_input_embeddings().num_embeddings))
    theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    ours = lora.lora.tuned_model(lora.base_model.model)
    torch.testing.assert_close(_logits(theirs, ids), _logits(ours, ids), atol=1e-5, rtol=1e-5)


def test_a_merged_lora_is_a_whole_model_with_a_larger_vocabulary(lora: Any, tmp_path: Path) -> None:
    lora.save_merged(tmp_path / "whole")
    whole = luthier.load(tmp_path / "whole")
    assert isinstance(whole, TextGeneration)
    assert whole.base_model.vocab_size == 403
    assert lora.base_model.vocab_size == 400
    ids = lora.generator.encode(TEXT)
    assert whole.generator.encode(TEXT) == ids
    ours = lora.lora.tuned_model(lora.base_model.model)
    found = _logits(whole.base_model.model, torch.tensor([ids]))
    torch.testing.assert_close(found, _logits(ours, torch.tensor([ids])), atol=1e-4, rtol=1e-4)
    whole.release()


def test_a_lora_goes_on_with_its_own_markers_alone(lora: Any, tmp_path: Path) -> None:
    lora.save(tmp_path / "first")
    again = {"start_from": str(tmp_path / "first")}
    base = lora.base_model.name
    still = train(LoraTuning, base, rank=2, training_options=again, num_epochs=0)
    assert torch.equal(still.lora.token_rows.rows, lora.lora.token_rows.rows)
    still.release()
    for changes in (
        {"add_prompt_answer_tokens": False},
        {"text_answer_separator": "<|reply|>"},
    ):
        with pytest.raises(InvalidInputError, match=r"'start_from' adds the tokens \['<\|system"):
            train(LoraTuning, base, rank=2, training_options={**again, **changes})


@pytest.mark.parametrize("base", ["tiny-causal", "tiny-seq2seq"])
def test_a_whole_models_vocabulary_is_enlarged(base: str, here: Any, tmp_path: Path) -> None:
    with here.base_models.acquire(base) as shared:
        before = shared.embedding_weight.clone()
        model = train(TextGeneration, base)
        assert torch.equal(shared.embedding_weight, before)
        assert len(shared.tokenizer) == 400
    assert model.base_model.vocab_size == 403
    assert model.generator.encode(TEXT)[0] == 401
    expected = model.run(TEXT, max_new_tokens=8).generated_text
    model.save(tmp_path / "m")
    auto = AutoModelForSeq2SeqLM if base == "tiny-seq2seq" else AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path / "m" / "artifacts")
    assert theirs.get_input_embeddings().weight.equal(model.base_model.embedding_weight)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "m" / "artifacts")) == 403
    model.release()
    loaded = luthier.load(tmp_path / "m")
    assert loaded.run(TEXT, max_new_tokens=8).generated_text == expected
    # Tuned once more, its markers are tokens already.
    assert marker_tokens(loaded.base_model, DatasetOptions(**SETTINGS)) is None
    loaded.release()


@pytest.mark.parametrize("name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_losses_are_those_of_peft_on_a_resized_model(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: BaseModel = request.getfixturevalue(name)
    adapter = marker_lora(base)
    theirs = on_resized_model(adapter, base, tmp_path / "a", is_trainable=True)
    dataset = DatasetOptions(**SETTINGS)
    options = TrainingOptions(
        num_epochs=4,  # the tiny models make much of rounding after more
        batch_size=len(ROWS),
        accumulate_steps=1,
        learning_rate=0.002,
        schedule="constant",
        adam_epsilon=1e-3,  # else gradients of rounding would be steps of full length
    )
    (data, _) = read_data(
        base, adapter, RECORDS, None, options=options, dataset=dataset, should_stop=bool
    )
    batch = collate(
        data.batch(tuple(range(len(ROWS))), epoch=0),
        pad_token_id=base.pad_token_id,
        is_seq2seq=base.kind == "seq2seq",
        device=base.device,
    )
    learned = [each for each in theirs.parameters() if each.requires_grad]
    assert len(learned) == len(list(adapter.named_parameters()))
    optimizer = torch.optim.AdamW(learned, lr=0.002, eps=1e-3, weight_decay=options.weight_decay)
    expected = []
    for _ in range(4):
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        logits = theirs(**given, labels=batch.labels).logits[..., :400]
        labels = batch.labels
        if base.kind == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    result = tune(base, adapter, RECORDS, options=options, dataset=dataset)
    found = [point.value for point in result.losses]
    assert found == pytest.approx(expected, abs=1e-3)
    assert found[-1] < found[0] - 0.05


def test_experiments_with_markers_of_their_own_are_trained_side_by_side(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def options(name: str, marker: str) -> ExperimentOptions:
        return _experiment("lora").laid_over(
            {
                "general.model_name": name,
                "general.output_folder": str(tmp_path),
                "dataset.train_dataframe": str(file),
                "dataset.validation_size": 0.0,
                "dataset.text_answer_separator": marker,
                "training.num_epochs": 2,
            }
        )

    both = [options("first", "<|answer|>"), options("second", "<|reply|>")]
    together = train_many(both)
    for each, outcome in zip(both, together, strict=True):
        assert isinstance(outcome, TunedExperiment), outcome
        (alone,) = train_many([each.laid_over({"general.model_name": "alone"})])
        assert isinstance(alone, TunedExperiment)
        assert [p.value for p in outcome.result.losses] == [p.value for p in alone.result.losses]
    second = luthier.load(tmp_path / "second")
    assert list(second.adapter.added_tokens()) == ["<|system|>", "<|prompt|>", "<|reply|>"]
    second.release()


def test_an_engine_that_takes_other_rows_is_found_out(tiny_causal_base: BaseModel) -> None:
    right, wrong = marker_lora(tiny_causal_base), marker_lora(tiny_causal_base)
    with torch.no_grad():
        wrong.token_rows.rows.mul_(-1)  # type: ignore[union-attr]
    engine = engine_for(tiny_causal_base)

    class Misled:
        is_rounded = False

        def submit(self, request: GenerationRequest) -> Any:
            adapter = None if request.adapter is None else wrong
            return engine.submit(GenerationRequest(request.input_ids, request.sampling, adapter))

    check_conformance(tiny_causal_base, right, engine)
    with pytest.raises(ArtifactError, match="disagree on this adapter"):
        check_conformance(tiny_causal_base, right, Misled())  # type: ignore[arg-type]


def test_methods_without_a_place_for_tokens_refuse() -> None:
    with pytest.raises(NotSupportedError, match="is for lora and full_fine_tuning: PEFT's folder"):
        train(PeftPromptTuning, "tiny-causal", tuning_config={"num_virtual_tokens": 3})
    with pytest.raises(InvalidInputError, match="has no use with method prompt_tuning"):
        _experiment("prompt_tuning").validate()
    for settings in (SETTINGS, {"add_prompt_answer_tokens": True}):
        with pytest.raises((NotSupportedError, InvalidInputError), match="prompt_format"):
            HeadTuning.train("tiny-causal", ROWS, training_options=settings)
    with pytest.raises(InvalidInputError, match="needs 'prompt_format' markers, it is auto"):
        train(LoraTuning, "tiny-causal", training_options={"prompt_format": "auto"})
    for method in ("lora", "full_fine_tuning"):
        _experiment(method).validate()


def _experiment(method: str) -> ExperimentOptions:
    return ExperimentOptions.from_dict(
        {
            "general": {"method": method, "model_name": "m", "base_model": "tiny-causal"},
            "dataset": {"train_dataframe": "rows.jsonl", "prompt_format": "markers"},
            "tokenizer": {"add_prompt_answer_tokens": True},
            "tuning_config": {"num_virtual_tokens": 3} if method == "prompt_tuning" else {},
        }
    )


def test_weights_that_are_shared_out_are_not_enlarged(tiny_causal_base: BaseModel) -> None:
    added = marker_tokens(tiny_causal_base, DatasetOptions(**SETTINGS))
    assert added is not None
    with pytest.raises(NotSupportedError, match="'use_fsdp' shares them out"):
        FullWeights(tiny_causal_base.model, is_shared_out=True).add_tokens(added)


def test_a_tuned_model_without_new_tokens_keeps_the_tokenizer(tiny_causal_base: BaseModel) -> None:
    tuned = whole_tuned_model(tiny_causal_base, FullWeights(tiny_causal_base.model))
    assert tuned.tokenizer is tiny_causal_base.tokenizer


def test_a_manifest_that_names_no_ids_is_refused(lora: Any, tmp_path: Path) -> None:
    lora.save(tmp_path / "m")
    folder = tmp_path / "m" / "adapter"
    manifest = folder / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    for bad in ('"<|prompt|>": "401"', '"<|prompt|>": 400', '"<|prompt|>": 403'):
        manifest.write_text(text.replace('"<|prompt|>": 401', bad), encoding="utf-8")
        with pytest.raises(ArtifactError, match="'added_tokens' must map texts to ids"):
            load_adapter(folder, base_model=lora.base_model)
