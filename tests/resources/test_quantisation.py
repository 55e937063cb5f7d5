"""Quantised models against transformers' loading with bitsandbytes."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from luthier.adapters.module_tree import own_module_tree
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.resources.quantisation import parse_quantisation, quantise, quantised_copy
from luthier.resources.quantised_layers import QuantisedLinear

WORDS = ("int8", "nf4", "fp4")
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(params=["causal", "seq2seq", "gpt2"])
def folder(request, tmp_path):
    if request.param != "gpt2":
        return request.getfixturevalue(f"tiny_{request.param}_dir")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return tmp_path


def _loader(folder):
    is_seq2seq = "T5" in (folder / "config.json").read_text()
    more = {"decoder_input_ids": torch.tensor([[0, 3], [0, 4]])} if is_seq2seq else {}
    return AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM, more


def peft_ready(folder, word):
    """transformers' own quantised model, its layers computing as bitsandbytes trains."""
    loader, _ = _loader(folder)
    if word == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=word,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = loader.from_pretrained(folder, quantization_config=config, dtype=torch.float32).eval()
    for layer in model.modules():
        if "bit" in type(layer).__name__:
            layer.train()
    return model


@pytest.mark.parametrize("word", WORDS)
def test_logits_are_those_of_transformers_with_bitsandbytes(folder, word):
    loader, more = _loader(folder)
    plain = loader.from_pretrained(folder).eval()
    theirs = peft_ready(folder, word)
    ours = quantised_copy(plain, word)
    quantised = {n for n, layer in ours.named_modules() if isinstance(layer, QuantisedLinear)}
    assert quantised == {n for n, layer in theirs.named_modules() if "bit" in type(layer).__name__}
    logits = ours(IDS, **more).logits
    torch.testing.assert_close(logits, theirs(IDS, **more).logits, atol=1e-5, rtol=1e-5)
    assert (logits - plain(IDS, **more).logits).abs().max() > 1e-4
    assert not any(isinstance(layer, QuantisedLinear) for layer in plain.modules())


def test_a_tree_of_its_own_shares_every_tensor(tiny_causal_base):
    model = quantised_copy(tiny_causal_base.model, "nf4")
    tree = own_module_tree(model)
    for mine, yours in ((model.parameters(), tree.parameters()), (model.buffers(), tree.buffers())):
        assert all(a is b for a, b in zip(mine, yours, strict=True))


def test_what_is_not_quantised_is_shared_with_the_copy(tiny_causal_base):
    base = tiny_causal_base.quantised("int8")
    assert base.quantization == "int8"
    assert base.quantised("int8") is base
    assert base.quantised(None) is base
    assert base.embedding_weight is tiny_causal_base.embedding_weight
    assert tiny_causal_base.quantization == "none"
    with pytest.raises(NotSupportedError, match="is quantised as int8, not as nf4"):
        base.quantised("nf4")


def test_a_model_without_linear_layers_is_refused(tiny_causal_base):
    model = own_module_tree(tiny_causal_base.model)
    model._keep_in_fp32_modules = ["model"]
    with pytest.raises(NotSupportedError, match="has no linear layers to quantise"):
        quantise(model, "nf4", device=torch.device("cpu"))


def test_words_are_checked():
    assert [parse_quantisation(word) for word in (None, "none", *WORDS)] == ["none", "none", *WORDS]
    with pytest.raises(InvalidInputError, match=r"'quantization' .* got 'nf5', did you mean 'nf4'"):
        parse_quantisation("nf5")


def test_in_memory_models_are_wrapped_as_what_they_are(tiny_causal_base):
    model = quantised_copy(tiny_causal_base.model, "fp4")
    base = BaseModel.from_memory(model, tiny_causal_base.tokenizer, name="tiny", quantization="fp4")
    assert (base.dtype, base.quantization) == (torch.float32, "fp4")
