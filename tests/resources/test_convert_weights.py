import shutil

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import ArtifactError, ConflictError
from luthier.resources.convert_weights import convert_weights, main
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelLocation, BaseModelSources


@pytest.fixture
def pickled(tmp_path, tiny_seq2seq_dir):
    """A T5 with two pickled shards, as old models are."""
    folder = shutil.copytree(tiny_seq2seq_dir, tmp_path / "old")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    half = len(names) // 2
    for index, part in enumerate((names[:half], names[half:]), start=1):
        shard = folder / f"pytorch_model-0000{index}-of-00002.bin"
        torch.save({name: state[name] for name in part}, shard)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    return folder


def test_a_converted_model_loads_and_computes_the_same(pickled, tmp_path, tiny_seq2seq_base):
    new = tmp_path / "new"
    main([str(pickled), str(new)])
    base = load_base_model(BaseModelLocation("x", new, "path"), sources=BaseModelSources())
    inputs = {"input_ids": torch.tensor([[5, 6]]), "decoder_input_ids": torch.tensor([[0, 4]])}
    torch.testing.assert_close(
        base.model(**inputs).logits, tiny_seq2seq_base.model(**inputs).logits
    )
    assert not list(new.glob("*.bin*"))


def test_tied_weights_convert(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    shared = torch.randn(4, 3)
    torch.save({"a": shared, "b": shared.t()}, old / "adapter_model.bin")
    convert_weights(old, tmp_path / "new")
    state = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert torch.equal(state["a"], shared)
    assert torch.equal(state["b"], shared.t())


def test_a_folder_without_pickles_is_refused_and_nothing_is_left(tmp_path, tiny_causal_dir):
    with pytest.raises(ArtifactError, match="holds neither"):
        convert_weights(tiny_causal_dir, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_existing_target_stays(pickled, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(ConflictError):
        convert_weights(pickled, tmp_path / "new")


def test_the_command_ends_with_one_line_on_failure(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), str(tmp_path / "new")])
    assert end.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
