"""Logits only where there are labels."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from luthier.adapters.module_tree import own_module_tree
from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.networks.label_head import install_label_head

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _tiny(model_type: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **SIZES, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("model_type", "settings", "is_last"),
    [
        ("llama", {}, True),
        ("mamba", {"state_size": 4}, True),  # looks at the layer's precision
        ("granite", {"logits_scaling": 4.0}, False),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}, False),
        ("cohere", {"logit_scale": 0.25}, False),
    ],
)
def test_chosen_positions_get_the_models_own_logits(
    model_type: str, settings: dict[str, object], is_last: bool
) -> None:
    model = _tiny(model_type, **settings)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = model(input_ids=tokens).logits
    head = install_label_head(tree := own_module_tree(model))
    assert head.keeps_hidden is is_last

    head.keeps_hidden = False
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    head.choose(rows, positions)
    logits = tree(input_ids=tokens).logits
    torch.testing.assert_close(logits[0], expected[rows, positions])


def test_a_head_that_keeps_hidden_states_computes_no_logits(tiny_causal_base: BaseModel) -> None:
    head = install_label_head(tree := own_module_tree(tiny_causal_base.model))
    assert head.keeps_hidden
    head.choose(torch.tensor([0]), torch.tensor([1]))
    assert tree(input_ids=torch.tensor([[5, 6]])).logits.numel() == 0
    assert head.hidden is not None
    assert head.hidden.shape == (1, tiny_causal_base.hidden_size)


def test_a_model_without_an_output_layer_is_refused() -> None:
    model = _tiny("llama")
    model.get_output_embeddings = lambda: None  # type: ignore[method-assign]
    with pytest.raises(NotSupportedError, match="'llama' has no output layer"):
        install_label_head(model)


def test_a_head_of_another_shape_is_refused() -> None:
    config = AutoConfig.for_model(
        "prophetnet",
        vocab_size=40,
        hidden_size=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(NotSupportedError, match="output layer reads hidden states of shape"):
        install_label_head(own_module_tree(model))
