import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from luthier.adapters.prompts.source_prompt import read_source_prompt, resolve_source_prompt
from luthier.errors import (
    ArtifactError,
    InvalidInputError,
    NameNotAllowedError,
    NotFoundError,
    UnsafeWeightsError,
)


def _state():
    return {
        "prompt_embeddings": torch.randn(4, 8),
        "prefix_task_cols": torch.randn(3, 4, 1),
        "prefix_task_rows": torch.randn(3, 1, 8),
    }


@pytest.fixture
def base_dir(tmp_path):
    folder = tmp_path / "source_prompts"
    (folder / "sub").mkdir(parents=True)
    state = _state()
    save_file(state, folder / "a.safetensors")
    torch.save(state, folder / "sub" / "b.bin")
    save_file(state, tmp_path / "secret.safetensors")
    return folder


@pytest.mark.parametrize("name", ["a.safetensors", "sub/b.bin"])
def test_a_source_prompt_is_found_and_read(base_dir, name):
    source = read_source_prompt(resolve_source_prompt(name, source_prompt_base=base_dir))
    assert source.prompt_embeddings.shape == (4, 8)
    assert source.task_columns.shape == (3, 4, 1)
    assert source.task_rows.shape == (3, 1, 8)
    assert source.name == name.split("/")[-1]


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "sub/../../secret.safetensors", "a\0.bin", "x" * 10_000, "",
             "a.txt", "a", None, "~/a.bin", "..\\secret.safetensors"],
    ids=lambda name: repr(name)[:25],
)  # fmt: skip
def test_a_name_that_leaves_the_folder_is_refused(base_dir, name):
    with pytest.raises(NameNotAllowedError, match="source prompt"):
        resolve_source_prompt(name, source_prompt_base=base_dir)


def test_absolute_paths_and_links_are_for_the_operator_only(base_dir, tmp_path):
    secret = str(tmp_path / "secret.safetensors")
    (base_dir / "link.safetensors").symlink_to(secret)
    for name in (secret, "link.safetensors"):
        with pytest.raises(NameNotAllowedError):
            resolve_source_prompt(name, source_prompt_base=base_dir)
    found = resolve_source_prompt(secret, source_prompt_base=None, from_request=False)
    assert str(found) == secret


def test_a_missing_file_or_folder_is_said(base_dir):
    with pytest.raises(NotFoundError, match=r"'no\.bin' does not exist"):
        resolve_source_prompt("no.bin", source_prompt_base=base_dir)
    with pytest.raises(InvalidInputError, match="no 'source_prompt_base'"):
        resolve_source_prompt("a.safetensors", source_prompt_base=None)


def test_a_source_prompt_may_lack_tasks_but_not_the_prompt(tmp_path):
    state = _state()
    path = tmp_path / "x.safetensors"
    save_file({"prompt_embeddings": state.pop("prompt_embeddings")}, path)
    assert read_source_prompt(path).task_columns is None
    save_file(state, path)
    with pytest.raises(ArtifactError, match="no 'prompt_embeddings'"):
        read_source_prompt(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((4, 8), float("nan")),
        torch.full((4, 8), float("-inf")),
        torch.ones(4, 8, dtype=torch.int64),
        torch.ones(8),
    ],
    ids=["nan", "inf", "int", "shape"],
)
def test_what_is_no_prompt_is_refused(tmp_path, tensor):
    path = tmp_path / "x.bin"
    torch.save({"prompt_embeddings": tensor}, path)
    with pytest.raises(ArtifactError, match="prompt_embeddings"):
        read_source_prompt(path)


def test_a_pickle_never_runs(tmp_path):
    marker = tmp_path / "pwned"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / "x.bin"
    for write in (lambda: torch.save(Command(), path),
                  lambda: path.write_bytes(pickle.dumps(Command()))):  # fmt: skip
        write()
        with pytest.raises(UnsafeWeightsError):
            read_source_prompt(path)
    assert not marker.exists()


def test_the_peers_source_prompts_are_read_alike_in_both_formats(shared_dir):
    folder = shared_dir / "peer_models" / "source_prompts"
    for name in ("blm_wide_src3", "t5_wide_src3"):
        torch_file = read_source_prompt(folder / f"{name}.bin")
        safetensors = read_source_prompt(folder / f"{name}.safetensors")
        assert torch.equal(torch_file.prompt_embeddings, safetensors.prompt_embeddings)
        assert torch.equal(torch_file.task_columns, safetensors.task_columns)
        assert torch_file.task_rows.shape == (3, 1, 32)
