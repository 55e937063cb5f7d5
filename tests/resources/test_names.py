import os
import subprocess
import sys

import pytest
import yaml

from luthier.errors import (
    ArtifactError,
    BaseModelNotFoundError,
    ConfigError,
    NameNotAllowedError,
    NotSupportedError,
)
from luthier.resources.names import BaseModelSources, resolve_base_model


@pytest.fixture
def sources(tiny_base_models_dir):
    return BaseModelSources(base_models_dir=tiny_base_models_dir)


@pytest.fixture
def package_dir(tmp_path, monkeypatch):
    """A folder on the import path, whose packages must never run."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, *files):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
        for file in files:
            (tmp_path / name / file).write_bytes(b"GGUF")

    return make


def test_a_name_is_found_under_base_models_dir(sources, tiny_causal_dir):
    location = resolve_base_model("tiny-causal", sources, from_request=True)
    assert (location.name, location.source) == ("tiny-causal", "base_models_dir")
    assert location.path == tiny_causal_dir.resolve()
    assert not location.is_gguf


def test_an_unknown_name_says_where_was_looked_and_what_would_help(sources):
    with pytest.raises(BaseModelNotFoundError) as failure:
        resolve_base_model("org/unknown", sources, from_request=True)
    message = str(failure.value)
    assert "'org/unknown'" in message
    assert "base_models_dir" in message
    assert "Hugging Face cache" in message
    assert "ALLOW_DOWNLOADS=true would try the Hugging Face hub" in message


def test_with_downloads_allowed_the_hub_is_asked(tmp_path):
    """In a process of its own: there the hub is really called, and its address refuses."""
    program = (
        "from luthier.resources.names import BaseModelSources, resolve_base_model\n"
        "try:\n"
        "    sources = BaseModelSources(allow_downloads=True)\n"
        "    resolve_base_model('org/x', sources, from_request=True)\n"
        "except LookupError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("BaseModelNotFoundError")
    assert "the Hugging Face hub" in done.stdout
    assert "ALLOW_DOWNLOADS" not in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "a/../../b", "/etc", "/", "~", "~root", "./x", "a\0b", "a\nb", "x" * 10_240,
        "", "%2e%2e/a", "..\\a", ".", "..", "package:os.path", "package:", "package:../x",
        "package:a\0b",
    ],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_a_request_cannot_name_what_leaves_the_roots(name, sources):
    with pytest.raises(NameNotAllowedError):
        resolve_base_model(name, sources, from_request=True)


@pytest.mark.parametrize("name", [None, 3, b"x", ["a"]])
def test_a_name_must_be_text(name, sources):
    with pytest.raises(NameNotAllowedError):
        resolve_base_model(name, sources, from_request=True)


def test_a_request_may_name_paths_under_allowed_roots_only(tiny_causal_dir, tmp_path):
    text = str(tiny_causal_dir)
    with pytest.raises(NameNotAllowedError, match="allowed roots"):
        resolve_base_model(text, BaseModelSources(), from_request=True)
    allowed = BaseModelSources(allowed_roots=(tiny_causal_dir.parent,))
    location = resolve_base_model(text, allowed, from_request=True)
    assert (location.name, location.source) == ("tiny-causal", "path")
    with pytest.raises(NameNotAllowedError):
        resolve_base_model(f"{text}/../../..", allowed, from_request=True)
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(NameNotAllowedError):
        linked = BaseModelSources(allowed_roots=(tmp_path,))
        resolve_base_model(str(tmp_path / "link"), linked, from_request=True)


def test_a_path_too_long_for_the_system_is_not_found(tmp_path):
    sources = BaseModelSources(allowed_roots=(tmp_path,))
    for name in ("x" * 300, "x/" * 1500 + "x"):
        with pytest.raises(BaseModelNotFoundError):
            resolve_base_model(f"{tmp_path}/{name}", sources, from_request=True)
    with pytest.raises(NameNotAllowedError):
        resolve_base_model("x" * 300, sources, from_request=False)


def test_a_link_out_of_base_models_dir_is_refused(tiny_causal_dir, tmp_path):
    (tmp_path / "linked").symlink_to(tiny_causal_dir)
    sources = BaseModelSources(base_models_dir=tmp_path)
    with pytest.raises(NameNotAllowedError, match="link out of 'base_models_dir'"):
        resolve_base_model("linked", sources, from_request=True)
    trusted = BaseModelSources(base_models_dir=tmp_path, allowed_roots=(tiny_causal_dir.parent,))
    assert resolve_base_model("linked", trusted, from_request=True).name == "linked"


def test_python_callers_may_name_any_path(tiny_causal_dir, monkeypatch):
    for name in (tiny_causal_dir, str(tiny_causal_dir)):
        location = resolve_base_model(name, BaseModelSources(), from_request=False)
        assert (location.name, location.source) == ("tiny-causal", "path")
    monkeypatch.chdir(tiny_causal_dir.parent)
    assert resolve_base_model("tiny-causal", BaseModelSources(), from_request=False).path.is_dir()
    with pytest.raises(BaseModelNotFoundError, match="no such folder"):
        resolve_base_model("/no/such/folder", BaseModelSources(), from_request=False)


def test_a_folder_here_that_holds_no_model_does_not_hide_a_base_model(
    sources, tmp_path, monkeypatch
):
    (tmp_path / "tiny-causal").mkdir()
    monkeypatch.chdir(tmp_path)
    location = resolve_base_model("tiny-causal", sources, from_request=False)
    assert location.source == "base_models_dir"


def test_a_package_is_found_without_running_it(package_dir):
    package_dir("one_model", "weights.gguf")
    location = resolve_base_model("package:one_model", BaseModelSources(), from_request=True)
    assert location.name == "package:one_model"
    assert location.source == "package"
    assert location.is_gguf
    assert "one_model" not in sys.modules


@pytest.mark.parametrize("files", [(), ("a.gguf", "b.gguf")])
def test_a_package_must_hold_exactly_one_gguf_file(files, package_dir):
    package_dir("some_models", *files)
    with pytest.raises(BaseModelNotFoundError, match=f"holds {len(files)} GGUF files"):
        resolve_base_model("package:some_models", BaseModelSources(), from_request=True)


def test_a_missing_package_is_named():
    with pytest.raises(BaseModelNotFoundError, match="no Python package 'no_such_package'"):
        resolve_base_model("package:no_such_package", BaseModelSources(), from_request=True)


def _module_folder(tmp_path, **config):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return folder


def test_a_saved_text_generation_model_is_a_base_model(tmp_path, tiny_causal_dir):
    folder = _module_folder(tmp_path, artifact_path="artifacts")
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "config.json").write_text("{}")
    sources = BaseModelSources(base_models_dir=tmp_path)
    for name in ("tuned", str(folder), str(folder / "artifacts")):
        location = resolve_base_model(name, sources, from_request=True)
        assert location.name == "tuned"
        assert location.path == folder / "artifacts"


def test_a_saved_prompt_is_no_base_model(tmp_path):
    _module_folder(tmp_path, base_model_name="x")
    with pytest.raises(NotSupportedError, match="without weights of its own"):
        resolve_base_model("tuned", BaseModelSources(base_models_dir=tmp_path), from_request=True)


def test_the_artifact_path_cannot_leave_its_folder(tmp_path):
    _module_folder(tmp_path, artifact_path="../../etc")
    with pytest.raises(NameNotAllowedError):
        resolve_base_model("tuned", BaseModelSources(base_models_dir=tmp_path), from_request=True)


def test_a_saved_model_with_missing_weights_is_incomplete(tmp_path):
    _module_folder(tmp_path, artifact_path="artifacts")
    with pytest.raises(ArtifactError, match=r"holds no config\.json"):
        resolve_base_model("tuned", BaseModelSources(base_models_dir=tmp_path), from_request=True)


def test_an_adapter_folder_is_no_base_model(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(NotSupportedError, match="is an adapter"):
        resolve_base_model("lora", BaseModelSources(base_models_dir=tmp_path), from_request=True)


def test_an_empty_folder_and_a_stray_file_are_no_base_models(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "stray").write_text("x")
    sources = BaseModelSources(base_models_dir=tmp_path)
    with pytest.raises(BaseModelNotFoundError, match=r"neither config\.json nor"):
        resolve_base_model("empty", sources, from_request=True)
    with pytest.raises(BaseModelNotFoundError, match="must be GGUF"):
        resolve_base_model("stray", sources, from_request=True)


def test_a_model_in_the_hugging_face_cache_is_found_offline(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--small" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    location = resolve_base_model("org/small", BaseModelSources(), from_request=True)
    assert (location.name, location.source) == ("org/small", "cache")
    assert location.path == snapshot


def test_base_models_dir_must_be_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        BaseModelSources(base_models_dir=tmp_path / "missing")
