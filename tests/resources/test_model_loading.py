import json
import os
import pickle
import shutil

import pytest
import torch
from fixtures.tiny_models import make_tiny_causal
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.errors import (
    ArtifactError,
    InvalidInputError,
    NotSupportedError,
    UnsafeWeightsError,
)
from luthier.files.atomic_folder import write_folder_atomically
from luthier.resources.model_loading import load_base_model, save_base_model
from luthier.resources.names import BaseModelLocation, BaseModelSources
from luthier.resources.shared_tensors import map_tensors


@pytest.fixture
def folder(tmp_path, tiny_causal_dir):
    """A copy of the tiny causal model to spoil."""
    return shutil.copytree(tiny_causal_dir, tmp_path / "model")


def _load(folder, sources=None, **options):
    location = BaseModelLocation("spoilt", folder, "path")
    return load_base_model(location, sources=sources or BaseModelSources(), **options)


def _edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def _rewrite(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def _logits(model):
    return model(input_ids=torch.tensor([[5, 6, 7]])).logits


def test_a_causal_model_is_loaded_frozen(tiny_causal_base, tiny_causal_dir):
    base = tiny_causal_base
    assert (base.kind, base.hidden_size, base.vocab_size, base.max_positions) == (
        "causal", 32, 400, 1024,
    )  # fmt: skip
    assert (base.dtype, base.device) == (torch.float32, torch.device("cpu"))
    assert (base.eos_token_ids, base.pad_token_id) == ((1,), 0)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.tokenizer.chat_template
    reference = AutoModelForCausalLM.from_pretrained(tiny_causal_dir, dtype=torch.float32)
    torch.testing.assert_close(_logits(base.model), _logits(reference))


def test_the_dtype_is_the_one_asked_for(folder):
    assert _load(folder, dtype="torch.bfloat16").dtype is torch.bfloat16
    assert _load(folder, BaseModelSources(default_dtype="float16")).dtype is torch.float16
    with pytest.raises(InvalidInputError, match="'torch_dtype'"):
        _load(folder, dtype="int8")
    with pytest.raises(InvalidInputError, match="'device'"):
        _load(folder, device="cuda:77")


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            content.pop("pad_token", None)
            (folder / name).write_text(json.dumps(content))
    _edit(folder / "config.json", pad_token_id=None)
    base = _load(folder)
    assert base.pad_token_id == base.tokenizer.eos_token_id == 1
    assert base.tokenizer.padding_side == "right"


def test_every_end_of_sequence_token_counts(folder):
    _edit(folder / "generation_config.json", eos_token_id=[7, 9])
    assert _load(folder).eos_token_ids == (7, 9, 1)


def test_a_saved_base_model_loads_again(tmp_path, tiny_causal_base):
    with write_folder_atomically(tmp_path / "copy") as partial:
        save_base_model(tiny_causal_base, partial)
    again = _load(tmp_path / "copy")
    torch.testing.assert_close(_logits(again.model), _logits(tiny_causal_base.model))
    assert again.tokenizer("abc")["input_ids"] == tiny_causal_base.tokenizer("abc")["input_ids"]
    assert not list((tmp_path / "copy").glob("*.bin"))


@pytest.mark.parametrize("file_name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(folder, file_name, tmp_path):
    marker = tmp_path / "pwned"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    _edit(folder / file_name, auto_map={"AutoConfig": "evil.X", "AutoTokenizer": ["evil.X", None]})
    with pytest.raises(NotSupportedError, match="trust_remote_code"):
        _load(folder)
    assert not marker.exists()


def test_a_config_cannot_choose_an_attention_kernel_from_the_hub(folder):
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        _edit(folder / "config.json", **{key: "evil/kernel"})
    assert _load(folder).model.config._attn_implementation == "sdpa"


def test_a_config_cannot_name_another_model(folder):
    _edit(folder / "config.json", _name_or_path="/etc", base_model_name_or_path="evil/model")
    assert _load(folder).name == "spoilt"


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    with pytest.raises(NotSupportedError, match="adapter of another base model"):
        _load(folder)


# ── damaged folders ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '{"model_type": "zzz"}', "[" * 100_000])
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        _load(folder)


@pytest.mark.parametrize("content", ["", "{}", "nonsense", '{"model": {"type": "Evil"}}'])
def test_a_damaged_tokenizer_is_refused(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match="tokenizer"):
        _load(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else keep
    path.write_bytes(content[:length])
    with pytest.raises(ArtifactError):
        _load(folder)


def test_missing_weights_are_refused(folder):
    _rewrite(folder, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(ArtifactError, match=r"1 missing keys.*model\.norm\.weight"):
        _load(folder)


def test_weights_of_another_shape_are_refused(folder):
    _rewrite(folder, lambda state: state.update({"model.norm.weight": torch.ones(33)}))
    with pytest.raises(ArtifactError):
        _load(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, number):
    def spoil(state):
        state["model.layers.1.mlp.up_proj.weight"][3, 4] = number

    _rewrite(folder, spoil)
    with pytest.raises(ArtifactError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        _load(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="holds no weights"):
        _load(folder)


# ── pickled weights ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pickled(folder):
    """The same model with its weights in a torch file."""
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()
    return folder


def test_pickled_weights_are_refused_with_the_command_that_converts_them(pickled):
    with pytest.raises(UnsafeWeightsError, match=r"python -m luthier\.resources\.convert_weights"):
        _load(pickled)


def test_pickled_weights_load_if_the_operator_allows_it(pickled, tiny_causal_base):
    base = _load(pickled, BaseModelSources(allow_pickle_weights=True))
    torch.testing.assert_close(_logits(base.model), _logits(tiny_causal_base.model))


def test_a_command_in_pickled_weights_never_runs(pickled, tmp_path):
    marker = tmp_path / "pwned"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"model.norm.weight": Command()}, pickled / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match="system"):
        _load(pickled, BaseModelSources(allow_pickle_weights=True))
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Command()))
    with pytest.raises(UnsafeWeightsError):
        _load(pickled, BaseModelSources(allow_pickle_weights=True))
    assert not marker.exists()


def test_a_tokenizer_that_begins_every_text_is_kept(tmp_path):
    base = _load(make_tiny_causal(tmp_path / "bos", add_bos=True))
    assert base.tokenizer("a")["input_ids"][0] == base.tokenizer.bos_token_id


def test_weights_lie_in_shared_memory_where_the_sources_say_so(tiny_causal_dir):
    plain = _load(tiny_causal_dir)
    shared = _load(tiny_causal_dir, BaseModelSources(shares_memory=True))
    assert plain.shared is None
    mapped = map_tensors(shared.shared.file_descriptor, shared.shared.places)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(mapped[name], parameter)
    weight = shared.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    weight.data[0, 0] = 12.5
    assert mapped["model.layers.0.mlp.up_proj.weight"][0, 0] == 12.5, "one memory, two mappings"
    assert not shared.embedding_weight.requires_grad
