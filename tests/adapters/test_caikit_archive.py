"""Models that caikit-nlp saved; expected.json beside them records what it computed."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
import yaml

from luthier.adapters.caikit_archive import is_caikit_archive, read_caikit_archive
from luthier.adapters.model_inputs import prepare_inputs
from luthier.errors import (
    ArtifactError,
    NameNotAllowedError,
    NotSupportedError,
    UnsafeWeightsError,
)
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore

PROMPTS = ["bloom_pt_text", "bloom_pt_text_fixture", "bloom_mpt_average_source", "t5_pt_text"]
WHOLE = [
    "textgen_ft_t5",
    "textgen_bootstrap_blm_wide",
    "textgen_bootstrap_bloom_fixture",
    "textgen_bootstrap_t5_fixture",
]


@pytest.fixture(scope="module")
def peer_models(shared_dir):
    return shared_dir / "peer_models"


@pytest.fixture(scope="module")
def expected(peer_models):
    return json.loads((peer_models / "expected.json").read_text())


@pytest.fixture(scope="module")
def store(peer_models):
    sources = BaseModelSources(
        base_models_dir=peer_models / "base",
        allowed_roots=(peer_models,),
        allow_pickle_weights=True,  # two of the bases are as old as that
    )
    return BaseModelStore(sources)


@pytest.fixture
def folder(tmp_path, peer_models):
    """A copy of a saved prompt to spoil."""
    target = tmp_path / "model"
    shutil.copytree(peer_models / "bloom_pt_text", target, copy_function=shutil.copyfile)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    return target


def _edit(folder, **changes):
    path = folder / "config.yml"
    config = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not ...}))


@torch.no_grad()
def _greedy(base, adapter, ids, num_tokens):
    """One forward pass per token over everything so far; nothing to go wrong."""
    is_causal = base.kind == "causal"
    sequence = list(ids) if is_causal else [base.model.config.decoder_start_token_id]
    for _ in range(num_tokens):
        if is_causal:
            inputs = prepare_inputs(base, adapter, torch.tensor([sequence]))
        else:
            decoder = torch.tensor([sequence])
            inputs = prepare_inputs(base, adapter, torch.tensor([ids]), decoder_input_ids=decoder)
        sequence.append(int(inputs.model(**inputs.as_kwargs()).logits[0, -1].argmax()))
        if sequence[-1] in base.eos_token_ids:
            break
    return sequence


@pytest.mark.parametrize("name", PROMPTS + WHOLE)
def test_a_saved_model_generates_the_recorded_tokens(name, peer_models, expected, store):
    archive = read_caikit_archive(peer_models / name)
    with store.acquire(
        archive.base_model_name or str(peer_models / name), from_request=True
    ) as base:
        adapter = archive.make_adapter(base) if archive.content == "soft_prompt" else None
        for run in expected[name]["expected_in_memory"]["raw_greedy"]:
            assert base.tokenizer(run["rendered"])["input_ids"] == run["input_ids"]
            new = len(run["top3_logprobs_per_step"])
            assert _greedy(base, adapter, run["input_ids"], new) == run["output_ids"]


@pytest.mark.parametrize("name", PROMPTS)
def test_the_virtual_tokens_are_the_recorded_ones(name, peer_models, expected):
    archive = read_caikit_archive(peer_models / name)
    place = "encoder" if name.startswith("t5") else "decoder"
    other = {"encoder": archive.decoder, "decoder": archive.encoder}[place]
    tensor = getattr(archive, place)
    digest = hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
    assert digest == expected[name][f"{place}.pt"]["sha256_f32"]
    assert other is None
    assert not tensor.requires_grad


def test_a_saved_prompt_says_how_it_was_made(peer_models):
    archive = read_caikit_archive(peer_models / "bloom_mpt_average_source")
    assert archive.content == "soft_prompt"
    assert archive.base_model_name == "blm_wide"
    assert archive.kind == "causal"
    assert archive.tuning_type == "MULTITASK_PROMPT_TUNING"
    assert archive.verbalizer == "Tweet text : {{input}} Label : "
    assert (archive.torch_dtype, archive.eos_token) == ("float32", "</s>")
    assert archive.artifacts is None
    assert len(archive.training_logs) == 6
    assert archive.training_logs[0]["data"]["step"] == 1


def test_a_saved_whole_model_says_where_its_weights_are(peer_models):
    archive = read_caikit_archive(peer_models / "textgen_ft_t5")
    assert archive.content == "whole_model"
    assert archive.artifacts == (peer_models / "textgen_ft_t5" / "artifacts").resolve()
    assert (archive.base_model_name, archive.verbalizer) == (None, None)
    assert archive.torch_dtype == "float32"
    assert len(archive.training_logs) == 11


def test_archives_of_caikit_nlp_are_told_from_others(peer_models, tmp_path, tiny_causal_dir):
    assert is_caikit_archive(peer_models / "bloom_pt_text")
    assert is_caikit_archive(peer_models / "textgen_ft_t5")
    (tmp_path / "config.yml").write_text("module_id: 6655831b-960a-4dc5-8df4-867026e2cd41\n")
    assert not is_caikit_archive(tmp_path)
    assert not is_caikit_archive(tiny_causal_dir)


def test_a_prompt_does_not_fit_a_base_of_another_kind_or_size(
    peer_models, tiny_seq2seq_base, store
):
    archive = read_caikit_archive(peer_models / "bloom_pt_text")
    with pytest.raises(ArtifactError, match="no soft prompt for a seq2seq"):
        archive.make_adapter(tiny_seq2seq_base)
    whole = read_caikit_archive(peer_models / "textgen_ft_t5")
    with pytest.raises(ArtifactError, match="no soft prompt"):
        whole.make_adapter(tiny_seq2seq_base)


def test_a_missing_training_log_is_no_reason_to_fail(folder):
    (folder / "training_logs.jsonl").unlink()
    assert read_caikit_archive(folder).training_logs == []


def test_absolute_paths_inside_are_not_followed(folder):
    _edit(folder, full_model_path="/etc", tokenizer_path="/etc", base_model_name="blm_wide")
    assert read_caikit_archive(folder).base_model_name == "blm_wide"


@pytest.mark.parametrize(
    "changes",
    [
        {"DECODER": "../../../etc/passwd"},
        {"DECODER": "/etc/passwd"},
        {"base_model_name": "../secret"},
        {"base_model_name": "/models/base/blm_wide"},
        {"base_model_name": None},
        {"training_logs": "../../x"},
    ],
    ids=str,
)
def test_names_that_leave_the_folder_are_refused(folder, changes):
    _edit(folder, **changes)
    with pytest.raises(NameNotAllowedError):
        read_caikit_archive(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"DECODER": "missing.pt"},
        {"DECODER": ""},
        {"DECODER": 3},
        {"task_type": "SEQ_CLS"},
        {"task_type": ...},
        {"verbalizer": ["x"]},
    ],
    ids=str,
)
def test_an_incomplete_archive_is_refused(folder, changes):
    _edit(folder, **changes)
    with pytest.raises(ArtifactError):
        read_caikit_archive(folder)


def test_another_module_is_refused_by_its_id(folder):
    _edit(folder, module_id="44444444-0000-0000-0000-000000000000")
    with pytest.raises(NotSupportedError, match="44444444"):
        read_caikit_archive(folder)


@pytest.mark.parametrize(
    "content", [b"", b"- a\n", b"a: [", b"\xff\xfe", b"!!python/object:os.x {}"]
)
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.yml").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"config\.yml"):
        read_caikit_archive(folder)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((8, 32), float("nan")),
        torch.ones(8, 32, dtype=torch.int64),
        torch.ones(8 * 32),
        {"a": torch.ones(8, 32)},
    ],
    ids=["nan", "int", "flat", "dictionary"],
)
def test_what_is_no_prompt_is_refused(folder, tensor):
    torch.save(tensor, folder / "decoder.pt")
    with pytest.raises(ArtifactError, match=r"decoder\.pt"):
        read_caikit_archive(folder)


def test_a_truncated_prompt_is_refused(folder):
    path = folder / "decoder.pt"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ArtifactError):
        read_caikit_archive(folder)


def test_a_pickle_never_runs(folder, tmp_path):
    marker = tmp_path / "pwned"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save(Command(), folder / "decoder.pt")
    for content in ((folder / "decoder.pt").read_bytes(), pickle.dumps(Command())):
        (folder / "decoder.pt").write_bytes(content)
        with pytest.raises(UnsafeWeightsError):
            read_caikit_archive(folder)
    assert not marker.exists()
