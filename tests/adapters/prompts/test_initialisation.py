"""First virtual tokens are compared with those PEFT's own classes make from the same seed."""

import pytest
import torch
from peft import MultitaskPromptTuningConfig, PromptTuningConfig
from peft import PromptEmbedding as PeftPromptEmbedding
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
from safetensors.torch import save_file

from luthier.adapters.prompts.initialisation import make_adapter
from luthier.adapters.prompts.source_prompt import SourcePrompt, read_source_prompt
from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    PromptTuningInit,
    TuningType,
)
from luthier.errors import ArtifactError, InvalidInputError
from luthier.resources.base_model import BaseModel

P, HIDDEN, SEED = 8, 32, 73
ENCODER, DECODER = PromptOutputModelType.ENCODER, PromptOutputModelType.DECODER
LONG_TEXT = "Classify if the tweet is a complaint or not: it may be one or not, who knows."


def _make(base, tuning_type="PROMPT_TUNING", init="RANDOM", **options):
    return make_adapter(
        base,
        tuning_type=TuningType(tuning_type),
        init_method=PromptTuningInit[init],
        **{"num_virtual_tokens": P, "seed": SEED, **options},
    )


def _peft_multitask(base, init="RANDOM", **options):
    torch.manual_seed(SEED)
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, token_dim=HIDDEN,
        num_transformer_submodules=1, prompt_tuning_init=init, **options,
    )  # fmt: skip
    return MultitaskPromptEmbedding(config, base.model.get_input_embeddings())


def _source(*, tasks=3, rows=P, hidden=HIDDEN, rank=1):
    generator = torch.Generator().manual_seed(3)
    return {
        "prompt_embeddings": torch.randn(rows, hidden, generator=generator),
        "prefix_task_cols": torch.randn(tasks, rows, rank, generator=generator),
        "prefix_task_rows": torch.randn(tasks, rank, hidden, generator=generator),
    }


@pytest.fixture
def source_file(tmp_path):
    path = tmp_path / "source.safetensors"
    save_file(_source(), path)
    return path


def test_a_random_prompt_has_pefts_numbers(tiny_causal_base):
    torch.manual_seed(SEED)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, token_dim=HIDDEN, num_transformer_submodules=1
    )
    theirs = PeftPromptEmbedding(config, tiny_causal_base.model.get_input_embeddings())
    ours = _make(tiny_causal_base)
    assert torch.equal(ours.prompt_embeddings, theirs.embedding.weight)
    assert ours.prompt_embeddings.dtype is torch.float32


def test_a_random_multitask_prompt_has_pefts_numbers(tiny_causal_base):
    theirs = _peft_multitask(tiny_causal_base)
    ours = _make(tiny_causal_base, "MULTITASK_PROMPT_TUNING")
    assert torch.equal(ours.prompt_embeddings, theirs.embedding.weight)
    assert torch.equal(ours.prefix_task_cols, theirs.prefix_task_cols)
    assert torch.equal(ours.prefix_task_rows, theirs.prefix_task_rows)


@pytest.mark.parametrize("text", ["no", LONG_TEXT])
@pytest.mark.parametrize("tuning_type", ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_a_text_starts_the_prompt_as_in_peft(tiny_causal_base, tiny_causal_dir, text, tuning_type):
    if tuning_type == "PROMPT_TUNING":
        config = PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=P, token_dim=HIDDEN,
            num_transformer_submodules=1, prompt_tuning_init="TEXT", prompt_tuning_init_text=text,
            tokenizer_name_or_path=str(tiny_causal_dir),
        )  # fmt: skip
        torch.manual_seed(SEED)
        theirs = PeftPromptEmbedding(config, tiny_causal_base.model.get_input_embeddings())
    else:
        theirs = _peft_multitask(
            tiny_causal_base, "TEXT", prompt_tuning_init_text=text,
            tokenizer_name_or_path=str(tiny_causal_dir),
        )  # fmt: skip
    ours = _make(tiny_causal_base, tuning_type, "TEXT", init_text=text)
    assert torch.equal(ours.prompt_embeddings, theirs.embedding.weight)


def test_a_text_is_tokenised_with_special_tokens_and_repeated_over_all_places(tiny_seq2seq_base):
    ours = _make(
        tiny_seq2seq_base, init="TEXT", init_text="a b", output_model_types=[ENCODER, DECODER]
    )
    ids = tiny_seq2seq_base.tokenizer("a b")["input_ids"]
    assert ids[-1] == tiny_seq2seq_base.tokenizer.eos_token_id
    expected = tiny_seq2seq_base.embedding_weight[(ids * 16)[: 2 * P]]
    assert torch.equal(ours.prompt_embeddings, expected)


@pytest.mark.parametrize(
    ("ours_init", "peft_init"),
    [
        ("ONLY_SOURCE_SHARED", "ONLY_SOURCE_SHARED"),
        ("AVERAGE_SOURCE", "AVERAGE_SOURCE_TASKS"),
        ("AVERAGE_SOURCE_TASKS", "AVERAGE_SOURCE_TASKS"),
        ("EXACT_SOURCE_TASK", "EXACT_SOURCE_TASK"),
    ],
)
def test_a_source_prompt_starts_a_multitask_prompt_as_in_peft(
    tiny_causal_base, source_file, ours_init, peft_init
):
    theirs = _peft_multitask(
        tiny_causal_base, peft_init, prompt_tuning_init_state_dict_path=str(source_file),
        prompt_tuning_init_task=1,
    )  # fmt: skip
    source = read_source_prompt(source_file)
    ours = _make(
        tiny_causal_base, "MULTITASK_PROMPT_TUNING", ours_init, source_prompt=source, source_task=1
    )
    assert torch.equal(ours.prompt_embeddings, theirs.embedding.weight)
    assert torch.equal(ours.prefix_task_cols, theirs.prefix_task_cols)
    assert torch.equal(ours.prefix_task_rows, theirs.prefix_task_rows)


def test_the_same_seed_gives_the_same_adapter_and_global_randomness_is_untouched(tiny_causal_base):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    adapters = [_make(tiny_causal_base, "MULTITASK_PROMPT_TUNING", seed=s) for s in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    hashes = [adapter.content_hash() for adapter in adapters]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("types", "places", "rows"),
    [
        ([], ("encoder",), P),
        ([ENCODER], ("encoder",), P),
        ([DECODER], ("decoder",), P),
        ([DECODER, ENCODER], ("encoder", "decoder"), 2 * P),
    ],
)
@pytest.mark.parametrize("tuning_type", ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_virtual_tokens_stand_where_they_were_asked_to(
    tiny_seq2seq_base, types, places, rows, tuning_type
):
    adapter = _make(tiny_seq2seq_base, tuning_type, output_model_types=types)
    assert adapter.places == places
    assert adapter.prompt_embeddings.shape == (rows, HIDDEN)
    assert adapter.num_virtual_tokens == P


def test_a_causal_model_has_no_encoder(tiny_causal_base):
    with pytest.raises(InvalidInputError, match="before decoder of a causal"):
        _make(tiny_causal_base, output_model_types=[ENCODER])


def test_a_source_prompt_of_another_length_names_both(tiny_causal_base):
    source = _as_source(_source(rows=10))
    with pytest.raises(InvalidInputError, match=r"'num_virtual_tokens' is 8 .* has 10 virtual"):
        _make(
            tiny_causal_base, "MULTITASK_PROMPT_TUNING", "ONLY_SOURCE_SHARED", source_prompt=source
        )


def test_a_source_prompt_of_another_base_names_both_sizes(tiny_causal_base):
    source = _as_source(_source(hidden=16))
    with pytest.raises(InvalidInputError, match="hidden size 16, the base model has 32"):
        _make(tiny_causal_base, "MULTITASK_PROMPT_TUNING", "AVERAGE_SOURCE", source_prompt=source)


def test_a_source_prompt_without_tasks_cannot_be_averaged(tiny_causal_base):
    source = _as_source({"prompt_embeddings": torch.ones(P, HIDDEN)})
    with pytest.raises(ArtifactError, match="prefix_task_cols"):
        _make(tiny_causal_base, "MULTITASK_PROMPT_TUNING", "AVERAGE_SOURCE", source_prompt=source)


def test_a_source_task_that_does_not_exist_is_refused(tiny_causal_base):
    with pytest.raises(InvalidInputError, match="source task 3 does not exist"):
        _make(
            tiny_causal_base, "MULTITASK_PROMPT_TUNING", "EXACT_SOURCE_TASK",
            source_prompt=_as_source(_source()), source_task=3,
        )  # fmt: skip


def test_plain_prompt_tuning_cannot_start_from_a_source_prompt(tiny_causal_base):
    with pytest.raises(InvalidInputError, match="needs tuning type MULTITASK_PROMPT_TUNING"):
        _make(tiny_causal_base, init="ONLY_SOURCE_SHARED", source_prompt=_as_source(_source()))


@pytest.mark.parametrize("text", [None, ""])
def test_starting_from_a_text_needs_one(tiny_causal_base, text):
    with pytest.raises(InvalidInputError, match="TEXT needs a text"):
        _make(tiny_causal_base, init="TEXT", init_text=text)


def test_starting_from_a_source_needs_one(tiny_causal_base):
    with pytest.raises(InvalidInputError, match="needs a source prompt"):
        _make(tiny_causal_base, "MULTITASK_PROMPT_TUNING", "AVERAGE_SOURCE")


@pytest.mark.parametrize("number", [0, -3, 5000, 10**15])
def test_the_number_of_virtual_tokens_has_limits(tiny_causal_base, number):
    with pytest.raises(InvalidInputError):
        _make(tiny_causal_base, num_virtual_tokens=number)


def test_only_the_base_model_is_read(tiny_causal_base: BaseModel):
    before = tiny_causal_base.embedding_weight.clone()
    adapter = _make(tiny_causal_base, init="TEXT", init_text="hello")
    with torch.no_grad():
        adapter.prompt_embeddings.zero_()
    assert torch.equal(tiny_causal_base.embedding_weight, before)


def _as_source(state):
    return SourcePrompt(
        name="source.bin",
        prompt_embeddings=state["prompt_embeddings"],
        task_columns=state.get("prefix_task_cols"),
        task_rows=state.get("prefix_task_rows"),
    )


def test_tokens_of_the_vocabulary_start_the_prompt_as_in_peft(tiny_causal_base):
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, token_dim=HIDDEN,
        num_transformer_submodules=1, prompt_tuning_init="SAMPLE_VOCAB",
    )  # fmt: skip
    torch.manual_seed(SEED)
    theirs = PeftPromptEmbedding(config, tiny_causal_base.model.get_input_embeddings())
    ours = _make(tiny_causal_base, "PROMPT_TUNING", "SAMPLE_VOCAB")
    assert torch.equal(ours.prompt_embeddings, theirs.embedding.weight)
