import pytest
import torch

from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.prompts.prefix_tuning import PrefixShape
from luthier.adapters.prompts.prompt_reading import read_prefix, read_prompt
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.errors import InvalidInputError

PROMPT = torch.arange(24.0).reshape(6, 4)
FACTORS = {"prefix_task_cols": torch.ones(1, 6, 1), "prefix_task_rows": torch.ones(1, 1, 4)}
BOTH = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 3}


def _read(config, state, **options):
    return read_prompt(config, state, **{"kind": "seq2seq", "hidden_size": 4, **options})


def test_of_pefts_two_seq2seq_halves_the_first_is_the_prompt():
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
    adapter = _read(config, {"prompt_embeddings": PROMPT})
    assert adapter.places == ("encoder",)
    assert torch.equal(adapter.prompt_embeddings, PROMPT[:3])


def test_factors_of_one_are_a_soft_prompt_only_if_our_manifest_says_so():
    state = {"prompt_embeddings": PROMPT, **FACTORS}
    assert isinstance(_read(BOTH, state, method="prompt_tuning"), SoftPrompt)
    assert isinstance(_read(BOTH, state), MultitaskSoftPrompt)
    scaled = {**state, "prefix_task_rows": FACTORS["prefix_task_rows"] * 2}
    assert isinstance(_read(BOTH, scaled, method="prompt_tuning"), MultitaskSoftPrompt)


def test_a_decoder_only_prompt_needs_no_factors_if_it_is_a_plain_one():
    config = {
        "peft_type": "LUTHIER_DECODER_PROMPT_TUNING",
        "num_virtual_tokens": 6,
        "num_transformer_submodules": 1,
    }
    adapter = _read(config, {"prompt_embeddings": PROMPT}, method="prompt_tuning")
    assert adapter.places == ("decoder",)
    with pytest.raises(InvalidInputError, match="lack"):
        _read(config, {"prompt_embeddings": PROMPT})


@pytest.mark.parametrize("task_id", ["0", True, None, 5, -1])
def test_a_task_that_is_none_is_refused(task_id):
    with pytest.raises(InvalidInputError, match="task"):
        _read(BOTH, {"prompt_embeddings": PROMPT, **FACTORS}, task_id=task_id)


def test_missing_and_unknown_tensors_are_named():
    with pytest.raises(InvalidInputError, match=r"lack .*prefix_task_rows"):
        _read(BOTH, {"prompt_embeddings": PROMPT})
    with pytest.raises(InvalidInputError, match=r"got .*'other'"):
        _read(BOTH, {"prompt_embeddings": PROMPT, "other": PROMPT})


SHAPE = PrefixShape(num_layers=2, num_kv_heads=2, head_dim=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3}, "'num_layers' is '3', this base model takes 2"),
        ({"token_dim": 12}, "'token_dim' is '12', this base model takes 6"),
        ({"num_transformer_submodules": 2}, "'num_transformer_submodules'"),
        ({"num_virtual_tokens": 5}, "'num_virtual_tokens' is 5, its weights have 4"),
        ({"encoder_hidden_size": "many"}, "'encoder_hidden_size'"),
    ],
)
def test_a_prefix_for_another_model_is_refused(changes, message):
    config = {"num_virtual_tokens": 4, "num_layers": 2, "token_dim": 6}
    state = {"prompt_embeddings": torch.ones(4, SHAPE.width)}
    assert read_prefix(config, state, kind="causal", shape=SHAPE).num_virtual_tokens == 4
    with pytest.raises(InvalidInputError, match=message):
        read_prefix({**config, **changes}, state, kind="causal", shape=SHAPE)
