"""Packed rows against padded ones: loss and gradients, for every method, over random lengths."""

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.granite.modeling_granite import GraniteRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.networks.network import TrainingNetwork

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {**SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64}


def _soft_prompt(base: BaseModel) -> Adapter:
    generator = torch.Generator().manual_seed(2)
    prompt = torch.randn(7, base.hidden_size, generator=generator)
    return SoftPrompt(prompt, kind="causal", places=("decoder",))


def _lora(base: BaseModel) -> Adapter:
    adapter = create_lora(base.model, LoraConfig(rank=4, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(3)
    for _, parameter in adapter.named_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return adapter


def _dora(base: BaseModel) -> Adapter:
    adapter = create_lora(base.model, LoraConfig(rank=4, alpha=8, use_dora=True), seed=1)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return adapter


def _full_weights(base: BaseModel) -> Adapter:
    return FullWeights(base.model)


PLAIN_NORMS = (
    GraniteRMSNorm,
    LlamaRMSNorm,
    MistralRMSNorm,
    Olmo2RMSNorm,
    Phi3RMSNorm,
    Qwen2RMSNorm,
    Qwen3RMSNorm,
)
METHODS: list[Callable[[BaseModel], Adapter]] = [_soft_prompt, _lora, _dora, _full_weights]


def _batch(lengths: list[int], *, num_common: int = 0, seed: int = 0) -> TokenBatch:
    """Rows of random tokens; about half of the tokens, and the last one, are learned."""
    generator = random.Random(seed)
    common = [generator.randrange(3, 400) for _ in range(num_common)]
    examples = []
    for number, length in enumerate(lengths, 1):
        ids = common + [generator.randrange(3, 400) for _ in range(length)]
        labels = [token if generator.random() < 0.5 else -100 for token in ids]
        labels[0], labels[-1] = -100, ids[-1]
        examples.append(Example(number, tuple(ids), tuple(labels)))
    return collate(examples, pad_token_id=0, is_seq2seq=False, device=torch.device("cpu"))


def _loss_and_gradients(
    network: TrainingNetwork, adapter: Adapter, batch: TokenBatch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    parameters = [parameter.requires_grad_(True) for _, parameter in adapter.named_parameters()]
    loss = network.loss_sum(batch) / batch.num_label_tokens
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


class _Pair:
    """A packed and a padded network for one adapter."""

    def __init__(self, base: BaseModel, adapter: Adapter, **settings: Any) -> None:
        self.adapter = adapter
        self.packed = TrainingNetwork(base, adapter, **settings)
        self.padded = TrainingNetwork(base, adapter, packs_rows=False, shares_prefix=False)

    def require_same(self, batch: TokenBatch) -> torch.Tensor:
        """Loss to 1e-10 and gradients to 1e-9, in fp64; to 1e-6 where what is learned is fp32."""
        loss, gradients = _loss_and_gradients(self.packed, self.adapter, batch)
        expected_loss, expected = _loss_and_gradients(self.padded, self.adapter, batch)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
        # Some gradients are zero by theory: what counts is the largest of all.
        largest = max(float(wanted.abs().max()) for wanted in expected)
        for found, wanted in zip(gradients, expected, strict=True):
            bound = 1e-9 if found.dtype == torch.float64 else 1e-6
            assert (found - wanted).abs().max() <= bound * largest
        return expected_loss


@pytest.fixture(autouse=True)
def norms_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models round to fp32 in their norms, whatever they compute in: up to 2e-5 of a gradient."""

    def scaled(weight: torch.Tensor, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)

    def plain(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return scaled(norm.weight, x, norm.variance_epsilon)

    def of_gemma(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return scaled(1 + norm.weight, x, norm.eps)

    for each in PLAIN_NORMS:
        monkeypatch.setattr(each, "forward", plain)
    for each in (Gemma2RMSNorm, Gemma3RMSNorm):
        monkeypatch.setattr(each, "forward", of_gemma)


@pytest.fixture(scope="module")
def exact_base(tiny_causal_base: BaseModel) -> BaseModel:
    """In fp64, where rounding cannot hide a mistake."""
    model = copy.deepcopy(tiny_causal_base.model).double()
    return BaseModel.from_memory(model, tiny_causal_base.tokenizer, name="exact")


@pytest.mark.parametrize("make_adapter", METHODS)
def test_packed_rows_give_loss_and_gradients_of_padded_ones(
    make_adapter: Callable[[BaseModel], Adapter], exact_base: BaseModel
) -> None:
    pair = _Pair(exact_base, make_adapter(exact_base))
    assert pair.packed.packs_rows

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.integers(2, 30), min_size=1, max_size=6),
        st.sampled_from([0, 0, 3, 40]),
        st.integers(0, 2**20),
    )
    def require_same(lengths: list[int], num_common: int, seed: int) -> None:
        pair.require_same(_batch(lengths, num_common=num_common, seed=seed))

    require_same()


@pytest.mark.parametrize("make_adapter", [_soft_prompt, _lora])
def test_packed_rows_may_be_checkpointed(
    make_adapter: Callable[[BaseModel], Adapter], exact_base: BaseModel
) -> None:
    pair = _Pair(exact_base, make_adapter(exact_base), gradient_checkpointing=True)
    assert pair.packed.packs_rows
    pair.require_same(_batch([9, 4, 9], num_common=20))


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt2", GPT2),
        ("gpt_neox", SIZES),
        ("granite", {**SIZES, "logits_scaling": 3.0}),
        ("mistral", {**SIZES, "sliding_window": 64}),
        ("opt", OPT),
        ("phi", SIZES),
        ("phi3", SIZES),
        ("qwen2", SIZES),
        ("qwen3", {**SIZES, "head_dim": 8}),
        ("gemma3_text", {**SIZES, "head_dim": 8, "sliding_window": 64}),
        ("olmo2", SIZES),
    ],
)
def test_other_architectures_are_packed_where_that_is_exact(
    model_type: str, sizes: dict[str, Any], tiny_causal_base: BaseModel
) -> None:
    base = _base_of_type(model_type, sizes, tiny_causal_base)
    for make_adapter in (_soft_prompt, _full_weights):
        pair = _Pair(base, make_adapter(base))
        assert pair.packed.packs_rows
        pair.require_same(_batch([9, 4, 9, 17], num_common=12))


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400}),
        ("gemma2", {**SIZES, "head_dim": 8, "attn_logit_softcapping": 2.0}),
    ],
)
def test_rows_are_padded_for_a_model_that_cannot_be_packed_and_the_log_says_so(
    model_type: str,
    sizes: dict[str, Any],
    tiny_causal_base: BaseModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = _base_of_type(model_type, sizes, tiny_causal_base)
    with caplog.at_level(logging.INFO, logger="luthier.training.networks.packed_network"):
        pair = _Pair(base, _soft_prompt(base))
    assert not pair.packed.packs_rows
    pair.require_same(_batch([9, 4, 17]))
    assert f"rows are padded: model_type={model_type}" in caplog.text


def test_rows_longer_than_a_sliding_window_are_padded(tiny_causal_base: BaseModel) -> None:
    sizes = {**SIZES, "sliding_window": 8}
    base = _base_of_type("mistral", sizes, tiny_causal_base)
    with_window = _Pair(base, _full_weights(base)).require_same(_batch([30, 5]))
    plain = _base_of_type("mistral", {**SIZES, "sliding_window": None}, tiny_causal_base)
    plain.model.load_state_dict(base.model.state_dict())
    without = _Pair(plain, _full_weights(plain)).require_same(_batch([30, 5]))
    assert abs(with_window - without) > 1e-3


def test_dropout_and_evaluation_reach_packed_rows(tiny_causal_base: BaseModel) -> None:
    sizes = {**GPT2, "vocab_size": 400, "attn_pdrop": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    base = _base_of_type("gpt2", sizes, tiny_causal_base)
    adapter, batch = _soft_prompt(base), _batch([9, 14])
    noisy = TrainingNetwork(base, adapter, base_dropout=True)
    quiet = TrainingNetwork(base, adapter)
    assert noisy.packs_rows
    assert noisy.loss_sum(batch) != noisy.loss_sum(batch)
    with noisy.evaluating():
        torch.testing.assert_close(noisy.loss_sum(batch), quiet.loss_sum(batch))


def test_the_base_models_own_attention_stays(tiny_causal_base: BaseModel) -> None:
    before = tiny_causal_base.model.config._attn_implementation
    adapter = _soft_prompt(tiny_causal_base)
    tokens = torch.tensor([[5, 6, 7]])
    expected = tiny_causal_base.model(input_ids=tokens).logits
    network = TrainingNetwork(tiny_causal_base, adapter)
    loss = network.loss_sum(_batch([4, 6]))
    assert torch.equal(tiny_causal_base.model(input_ids=tokens).logits, expected)
    loss.backward()
    assert network.packs_rows
    assert tiny_causal_base.model.config._attn_implementation == before


def _base_of_type(model_type: str, sizes: dict[str, Any], base: BaseModel) -> BaseModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{**sizes, "vocab_size": 400})
    model = AutoModelForCausalLM.from_config(config).eval().double()
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    return BaseModel.from_memory(model, base.tokenizer, name=model_type)
