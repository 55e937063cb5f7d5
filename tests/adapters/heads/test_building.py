"""Heads made new and read from PEFT's folders; the reference is PEFT on transformers' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.lora_models import disturb, make_gpt2, make_inputs, make_llama, make_t5
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from luthier.adapters.base import Adapter
from luthier.adapters.heads.building import create_head, read_head
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError
from luthier.resources.base_model import BaseModel

LABELS = ("ham", "spam", "other")
FAMILIES = {"llama": make_llama, "gpt2": make_gpt2}
LORAS = {
    "alone": None,
    "lora": LoraConfig(rank=3),
    "dora": LoraConfig(rank=3, use_dora=True, use_rslora=True),
}


def classifier_on(model: PreTrainedModel) -> Any:
    """transformers' classifier with the base's weights; its head is drawn anew."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_labels = len(LABELS)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    return classifier


def tokens_of(model: PreTrainedModel) -> torch.Tensor:
    """Two rows without padding, which transformers' classifiers find by its id."""
    return make_inputs(model)["input_ids"].clamp(min=1)


@torch.no_grad()
def scores_of(head: Adapter, model: PreTrainedModel) -> torch.Tensor:
    """Ours, at the last token of each row."""
    logits: torch.Tensor = head.tuned_model(model)(input_ids=tokens_of(model)).logits
    return logits[:, -1]


@torch.no_grad()
def scores_of_peft(classifier: Any, model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = classifier(input_ids=tokens_of(model)).logits
    return logits


def base_model_of(model: PreTrainedModel) -> BaseModel:
    vocabulary = {f"t{number}": number for number in range(60)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t3")),
        eos_token="t1",
        pad_token="t0",
    )
    return BaseModel.from_memory(model, tokenizer, name="tiny")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", LORAS)
def test_what_is_saved_gives_the_same_scores_in_plain_peft(
    family: str, kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = FAMILIES[family]()
    head = create_head(model, LABELS, lora=LORAS[kind], seed=4)
    disturb(head, seed=4)
    save_adapter(head, tmp_path / "adapter", base_model_name="tiny")
    loaded = peft.PeftModel.from_pretrained(classifier_on(model), str(tmp_path / "adapter"))
    assert type(loaded) is peft.PeftModelForSequenceClassification
    torch.testing.assert_close(
        scores_of_peft(loaded.eval(), model), scores_of(head, model), atol=1e-5, rtol=1e-5
    )
    assert not [w for w in recwarn if "adapter" in str(w.message).lower()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", LORAS)
def test_what_peft_saved_gives_the_same_scores_here(family: str, kind: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    layers = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[family]
    is_alone = LORAS[kind] is None
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules="dummy-target-modules" if is_alone else layers,
        use_dora=kind == "dora",
        fan_in_fan_out=family == "gpt2",
        modules_to_save=["score"] if is_alone else None,
    )
    theirs = peft.get_peft_model(classifier_on(model), config).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(tmp_path, base_model=base_model_of(model))
    assert isinstance(ours, ClassificationHead)
    assert (ours.body is None) == is_alone
    assert ours.class_labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    torch.testing.assert_close(
        scores_of(ours, model), scores_of_peft(theirs, model), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", LORAS)
def test_what_is_saved_here_is_read_again_with_its_labels(kind: str, tmp_path: Path) -> None:
    model = make_llama()
    head = create_head(model, LABELS, lora=LORAS[kind], seed=4)
    disturb(head, seed=4)
    save_adapter(head, tmp_path / "adapter", base_model_name="tiny")
    again = load_adapter(tmp_path / "adapter", base_model=base_model_of(model))
    assert again.class_labels == LABELS
    assert again.content_hash() == head.content_hash()


def test_the_same_seed_gives_the_same_head() -> None:
    model = make_llama()
    heads = [create_head(model, LABELS, lora=LoraConfig(), seed=seed) for seed in (1, 1, 2)]
    assert heads[0].content_hash() == heads[1].content_hash() != heads[2].content_hash()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["a"], "2 labels"), (["a", " "], "label 2"), (["a", "b", "a"], "'a' stands twice")],
)
def test_labels_that_nobody_could_tell_apart_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        create_head(make_llama(), labels, seed=0)


def test_an_encoder_decoder_has_no_head() -> None:
    with pytest.raises(NotSupportedError, match="causal"):
        create_head(make_t5(), LABELS, seed=0)


@pytest.mark.parametrize("change", ["scale", "cap"])
def test_a_model_that_scales_or_caps_its_logits_is_refused(change: str) -> None:
    sizes = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    model = (
        CohereForCausalLM(CohereConfig(logit_scale=0.5, **sizes))
        if change == "scale"
        else Gemma2ForCausalLM(Gemma2Config(head_dim=4, final_logit_softcapping=30.0, **sizes))
    )
    with pytest.raises(NotSupportedError, match="does more to its logits"):
        create_head(model.eval(), LABELS, seed=0)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    model = make_llama()
    head = create_head(model, LABELS, lora=LoraConfig(), seed=4)
    save_adapter(head, tmp_path / "adapter", base_model_name="tiny")
    return head.peft_config(), load_file(tmp_path / "adapter" / "adapter_model.safetensors")


def test_a_folder_without_a_head_is_refused(
    saved: tuple[dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    config, state = saved
    del state["base_model.model.score.weight"]
    with pytest.raises(ArtifactError, match=r"score\.weight must be"):
        read_head(config, state, make_llama())


def test_a_head_with_a_bias_is_refused(
    saved: tuple[dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    config, state = saved
    state["base_model.model.score.bias"] = torch.zeros(3)
    with pytest.raises(NotSupportedError, match="without bias"):
        read_head(config, state, make_llama())


def test_a_head_of_another_width_is_refused(
    saved: tuple[dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    config, state = saved
    state["base_model.model.score.weight"] = torch.zeros(3, 17)
    with pytest.raises(ArtifactError, match="17 numbers"):
        read_head(config, state, make_llama())


def test_as_many_labels_as_classes_are_asked_for(
    saved: tuple[dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    config, state = saved
    with pytest.raises(ArtifactError, match="3 classes and 2 labels"):
        read_head(config, state, make_llama(), labels=["a", "b"])


def test_a_head_with_nan_is_refused(tmp_path: Path) -> None:
    model = make_llama()
    head = create_head(model, LABELS, seed=4)
    save_adapter(head, tmp_path / "adapter", base_model_name="tiny")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = {name: torch.full_like(each, float("nan")) for name, each in load_file(path).items()}
    save_file(state, path)
    (tmp_path / "adapter" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="NaN"):
        load_adapter(tmp_path / "adapter", base_model=base_model_of(model))
