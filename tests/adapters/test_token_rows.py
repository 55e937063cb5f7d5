"""Learned embeddings of some tokens against PEFT's trainable tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.lora_models import (
    disturb,
    make_gpt2,
    make_llama,
    make_t5,
    our_name,
    peft_parameters,
    with_peft,
)
from fixtures.tiny_models import make_tokenizer
from torch import nn
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from luthier.adapters.added_tokens import AddedTokens
from luthier.adapters.lora.building import create_lora, read_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.merge import merged_state
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.token_rows import TokenRowsLayer, find_token_rows
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.loop import tune
from luthier.training.networks.network import TrainingNetwork

TOKENS = (5, 9, 31)
IDS = torch.tensor([[5, 6, 9, 9, 31, 7], [8, 5, 11, 12, 13, 14]])


def _make(is_tied: bool) -> PreTrainedModel:
    return make_llama(tie_word_embeddings=is_tied)


def _ours(model: PreTrainedModel) -> LoraAdapter:
    config = LoraConfig(rank=2, alpha=8, trainable_token_indices=TOKENS)
    return create_lora(model, config, seed=1)


def _theirs(model: PreTrainedModel) -> Any:
    return with_peft(model, seed=1, r=2, lora_alpha=8, trainable_token_indices=list(TOKENS))


@pytest.mark.parametrize("is_tied", [False, True])
def test_logits_and_gradients_are_those_of_peft(is_tied: bool) -> None:
    model, theirs = _make(is_tied), _theirs(_make(is_tied))
    adapter = _ours(model)
    disturb(adapter, theirs)
    network = adapter.tuned_model(model)
    found, expected = network(IDS).logits, theirs(IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, model(IDS).logits, atol=1e-2)
    weights = torch.linspace(-1, 1, found.numel()).view(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: each.grad for name, each in peft_parameters(theirs).items()}
    assert {name for name, _ in adapter.named_parameters()} == gradients.keys()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_batch_is_learned_from_as_peft_does(is_tied: bool) -> None:
    model, theirs = _make(is_tied), _theirs(_make(is_tied))
    base = BaseModel.from_memory(model, make_tokenizer(), name="tiny")
    adapter = _ours(model)
    disturb(adapter, theirs)
    labels = IDS.clone()
    labels[:, :2] = -100
    batch = TokenBatch((1, 2), IDS, torch.ones_like(IDS), labels, 12, 8)
    loss = TrainingNetwork(base, adapter).loss_sum(batch) / 8
    loss.backward()
    expected = theirs(input_ids=IDS, labels=labels).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    rows = peft_parameters(theirs)[adapter.token_rows.name]  # type: ignore[union-attr]
    torch.testing.assert_close(
        adapter.token_rows.rows.grad,
        rows.grad,
        atol=1e-4,
        rtol=1e-3,  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("is_tied", [False, True])
def test_folders_are_read_on_both_sides(is_tied: bool, tmp_path: Path) -> None:
    model, theirs = _make(is_tied), _theirs(_make(is_tied))
    adapter = _ours(model)
    disturb(adapter, theirs)
    expected = theirs(IDS).logits
    save_adapter(adapter, tmp_path / "ours", base_model_name="tiny")
    loaded = peft.PeftModel.from_pretrained(_make(is_tied), tmp_path / "ours")
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    base = BaseModel.from_memory(model, make_tokenizer(), name="tiny")
    read = load_adapter(tmp_path / "theirs", base_model=base)
    assert isinstance(read, LoraAdapter)
    torch.testing.assert_close(read.tuned_model(model)(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert read_lora(adapter.peft_config(), adapter.peft_state(), model).content_hash() == (
        adapter.content_hash()
    )


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_merged_model_has_the_rows(is_tied: bool) -> None:
    model = _make(is_tied)
    adapter = _ours(model)
    disturb(adapter)
    whole = _make(is_tied)
    whole.load_state_dict(merged_state(adapter, model))
    expected = adapter.tuned_model(model)(IDS).logits
    torch.testing.assert_close(whole(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_copy_has_rows_of_its_own() -> None:
    adapter = _ours(_make(False))
    copy = adapter.snapshot()
    disturb(adapter)
    assert copy.content_hash() != adapter.content_hash()
    half = adapter.to(device=torch.device("cpu"), dtype=torch.bfloat16)
    assert half.token_rows.rows.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_rows_learn_and_the_base_stays(tiny_causal_base: BaseModel) -> None:
    base = tiny_causal_base
    before = base.embedding_weight.clone()
    config = LoraConfig(rank=2, trainable_token_indices=(3, 4))
    adapter = create_lora(base.model, config, seed=1)
    start = adapter.token_rows.rows.detach().clone()  # type: ignore[union-attr]
    records = [GenerationTrainRecord(input=f"say {n}", output="yes") for n in range(4)]
    options = TrainingOptions(
        num_epochs=2,
        learning_rate=0.05,
        batch_size=2,
        accumulate_steps=1,
        verbalizer="<|user|>{{input}}<|assistant|>",
    )
    tune(base, adapter, records, options=options)
    moved = (adapter.token_rows.rows.detach() - start).abs().amax(dim=1)  # type: ignore[union-attr]
    assert float(moved.min()) > 1e-3
    assert torch.equal(base.embedding_weight, before)


def test_embeddings_that_are_scaled_stay_scaled() -> None:
    class _Scaled(nn.Embedding):
        embed_scale = 4.0

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * self.embed_scale

    model = make_llama()
    scaled = _Scaled(*model.model.embed_tokens.weight.shape)
    scaled.weight = model.model.embed_tokens.weight
    model.model.embed_tokens = scaled
    rows = find_token_rows(model, TOKENS, dtype=torch.float32)
    layer = TokenRowsLayer(scaled, rows)
    torch.testing.assert_close(layer(IDS), functional.embedding(IDS, scaled.weight) * 4)
    assert layer.weight is scaled.weight


def test_an_output_layer_keeps_its_bias() -> None:
    model = make_llama(tie_word_embeddings=True)
    rows = find_token_rows(model, TOKENS, dtype=torch.float32)
    head = nn.Linear(16, 60)
    head.weight = model.lm_head.weight
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(TokenRowsLayer(head, rows)(hidden), head(hidden))


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"60 is no token .* up to 59"):
        create_lora(make_llama(), LoraConfig(trainable_token_indices=(60,)), seed=1)
    with pytest.raises(NotSupportedError, match="is for causal models"):
        create_lora(make_t5(), LoraConfig(trainable_token_indices=(6,)), seed=1)
    both = LoraConfig(trainable_token_indices=(6,), modules_to_save=("wte",))
    with pytest.raises(InvalidInputError, match="trains whole; give one of them"):
        create_lora(make_gpt2(), both, seed=1)
    for bad, message in (((1, 1), "twice"), ((-1,), "must be"), ("3", "must be a list of ids")):
        with pytest.raises(InvalidInputError, match=message):
            create_lora(make_llama(), LoraConfig(trainable_token_indices=bad), seed=1)  # type: ignore[arg-type]


def _bart() -> PreTrainedModel:
    config = BartConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
        max_position_embeddings=64, scale_embedding=True, bos_token_id=2, eos_token_id=1,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    "model",
    [
        make_llama(),
        make_llama(tie_word_embeddings=True),
        make_gpt2(),
        make_t5(),
        make_t5(tie_word_embeddings=True),
        _bart(),
    ],
    ids=["untied", "tied", "gpt2", "t5", "t5 tied", "bart"],
)
def test_added_tokens_are_those_of_peft_on_a_resized_model(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    added = AddedTokens({"<p>": 60, "<a>": 61}, {"<p>": (5, 6), "<a>": (7,)})
    adapter = create_lora(model, LoraConfig(rank=2, alpha=8), seed=1, added=added)
    start = adapter.token_rows.rows  # type: ignore[union-attr]
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(start[0], (table[5] + table[6]) / 2)
    disturb(adapter)
    save_adapter(adapter, tmp_path / "a", base_model_name="tiny")
    resized = copy.deepcopy(model)
    with torch.random.fork_rng():
        resized.resize_token_embeddings(62)
    theirs = peft.PeftModel.from_pretrained(resized, tmp_path / "a", is_trainable=True).eval()
    ids = torch.tensor([[60, 6, 9, 61, 31, 7], [8, 60, 11, 12, 61, 14]])
    is_seq2seq = model.config.is_encoder_decoder
    more = {"decoder_input_ids": torch.tensor([[0, 4, 5], [0, 8, 9]])} if is_seq2seq else {}
    found = adapter.tuned_model(model)(input_ids=ids, **more).logits
    # The base's vocabulary: what the adapter adds is read and never written.
    expected = theirs(input_ids=ids, **more).logits[..., :60]
    assert found.shape[-1] == 60
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1, 1, found.numel()).view(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: each.grad for name, each in peft_parameters(theirs).items()}
    assert {name for name, _ in adapter.named_parameters()} == gradients.keys()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-3, rtol=1e-3, msg=name)
    base = BaseModel.from_memory(model, make_tokenizer(), name="tiny")
    read = load_adapter(tmp_path / "a", base_model=base)
    assert read.added_tokens() == {"<p>": 60, "<a>": 61}
    assert read.content_hash() == adapter.content_hash()
    assert read.linear_deltas().keys() == adapter.factors.keys()


def test_added_tokens_in_reserved_rows_leave_the_output_layer_alone() -> None:
    model = make_llama(tie_word_embeddings=True)
    added = AddedTokens({"<p>": 58}, {"<p>": (5, 6)})
    adapter = create_lora(model, LoraConfig(rank=2), seed=1, added=added)
    network = adapter.tuned_model(model)
    with torch.no_grad():
        assert torch.equal(network(IDS).logits, model(IDS).logits)
        with_token = torch.tensor([[58, 6, 7]])
        assert not torch.allclose(network(with_token).logits, model(with_token).logits, atol=1e-3)


def test_what_cannot_stand_beside_added_tokens_is_refused() -> None:
    added = AddedTokens({"<p>": 60}, {"<p>": (5, 6)})
    with pytest.raises(InvalidInputError, match="has one table; give one of them"):
        create_lora(make_llama(), LoraConfig(trainable_token_indices=(6,)), seed=1, added=added)
    whole = LoraConfig(modules_to_save=("embed_tokens",))
    with pytest.raises(InvalidInputError, match="'add_prompt_answer_tokens' means rows of"):
        create_lora(make_llama(), whole, seed=1, added=added)
    with pytest.raises(InvalidInputError, match="trains whole; give one of them"):
        create_lora(make_t5(), LoraConfig(modules_to_save=("shared",)), seed=1, added=added)


def test_a_config_without_the_ids_of_its_added_tokens_is_refused() -> None:
    model, added = make_llama(), AddedTokens({"<p>": 60}, {"<p>": (5, 6)})
    adapter = create_lora(model, LoraConfig(rank=2), seed=1, added=added)
    with pytest.raises(ArtifactError, match=r"adds tokens \[61\], .* is \[60\]"):
        read_lora(adapter.peft_config(), adapter.peft_state(), model, added_ids={"<p>": 61})


def test_names_are_those_of_peft() -> None:
    theirs = {our_name(name) for name in _theirs(_make(False)).state_dict() if "delta" in name}
    assert theirs == {_ours(_make(False)).token_rows.name}  # type: ignore[union-attr]
