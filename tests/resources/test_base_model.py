import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig

from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel, kind_of


def test_a_seq2seq_model_has_no_largest_position(tiny_seq2seq_base):
    assert tiny_seq2seq_base.kind == "seq2seq"
    assert tiny_seq2seq_base.max_positions is None
    assert tiny_seq2seq_base.embedding_weight.shape == (400, 32)


def test_a_model_in_memory_is_frozen_and_wrapped(tiny_causal_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_dir).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    base = BaseModel.from_memory(model, tokenizer, name="mine")
    assert base.model is model
    assert base.name == "mine"
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_cannot_generate_is_refused():
    with pytest.raises(NotSupportedError, match="'bert', which generates no text"):
        kind_of(BertConfig(), name="bert-base")
    assert kind_of(BertConfig(is_decoder=True), name="bert-decoder") == "causal"


@pytest.mark.parametrize("model_type", ["openai-gpt", "recurrent_gemma", "xlstm"])
def test_a_model_that_hands_out_nothing_for_the_next_token_is_refused_by_its_type(model_type):
    with pytest.raises(NotSupportedError, match=f"'{model_type}', which hands out neither"):
        kind_of(AutoConfig.for_model(model_type), name="some-model")
