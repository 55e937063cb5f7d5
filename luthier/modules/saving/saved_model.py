"""The folder of a saved module: written whole or not at all, read as data that nobody vouched for.

my-model/
  config.yml              caikit's module config: ids, and what the module needs to load
  adapter/                PEFT folder of a tuned prompt; the base model is named, not copied
  artifacts/              or: a whole model in Hugging Face format
  training_logs.jsonl     the course of the training
  manifest.json           size and hash of every other file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from caikit.core import ModuleBase, ModuleSaver

from luthier.errors import ArtifactError
from luthier.files.atomic_folder import check_manifest, write_folder_atomically, write_manifest
from luthier.modules.saving.history import TrainingHistory
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

CONFIG_NAME = "config.yml"
ADAPTER_FOLDER = "adapter"
ARTIFACTS_FOLDER = "artifacts"
#: Says that texts are cleaned up as caikit-nlp did; it wrote no such key and always did it.
CLEAN_SPACES_KEY = "clean_up_spaces"
#: What decides, beside the verbalizer, how prompts are written; absent where nothing does.
PROMPT_KEY = "prompt"
_MAX_CONFIG_BYTES = 4 << 20


@contextmanager
def writing_model(
    module: ModuleBase,
    target: Path,
    *,
    config: Mapping[str, Any],
    history: TrainingHistory,
) -> Iterator[Path]:
    """Yield a folder to put weights into; on leaving, it is complete and stands at ``target``.

    Replaces what is there. If anything fails, what was there stays and nothing else remains.

    Args:
        module: Whose ids the config names.
        target: The model's folder.
        config: What the module needs to load.
        history: How the module was trained.

    Yields:
        An empty folder, except for the config that is written last.
    """
    with write_folder_atomically(target, overwrite=True) as folder:
        with ModuleSaver(module, model_path=str(folder)) as saver:
            saver.update_config({**config, **history.config})
            yield folder
        history.write(folder)
        write_manifest(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The module config of a saved model, checked against the folder's manifest if it has one.

    Args:
        folder: The model's.

    Returns:
        The config; nothing in it is trustworthy.

    Raises:
        ArtifactError: If it is missing, too large, no YAML, or files differ from the manifest.
    """
    path = folder / CONFIG_NAME
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ArtifactError(f"{folder.name!r}: {CONFIG_NAME} is larger than any config")
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{folder.name!r} is no saved model: it has no {CONFIG_NAME}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder.name!r}: {CONFIG_NAME} is not YAML") from error
    if not isinstance(config, dict) or not isinstance(config.get("module_id"), str):
        raise ArtifactError(f"{folder.name!r}: {CONFIG_NAME} names no module_id")
    check_manifest(folder)
    return config


def text_of(config: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    """A text in a saved config.

    Args:
        config: From ``read_config``.
        key: Its name.
        default: For a key that is missing; None refuses that.

    Returns:
        The text.

    Raises:
        ArtifactError: If it is missing or no text.
    """
    value = config.get(key, default)
    if not isinstance(value, str):
        raise ArtifactError(
            f"saved model: {key!r} in {CONFIG_NAME} must be text, got {value!r:.80}"
        )
    return value


def wants_clean_spaces(config: Mapping[str, Any]) -> bool:
    """Whether a saved model's texts are cleaned up as caikit-nlp did.

    Args:
        config: From ``read_config``.

    Returns:
        What Luthier saved; True for what caikit-nlp saved.
    """
    return bool(config.get(CLEAN_SPACES_KEY, "caikit_nlp_version" in config))


def style_config(style: PromptStyle) -> dict[str, Any]:
    """What ``style_of`` reads back, as keys of a saved config."""
    more = style.to_config()
    return {"verbalizer": style.verbalizer} | ({} if more is None else {PROMPT_KEY: more})


def style_of(config: Mapping[str, Any]) -> PromptStyle:
    """How a saved model's prompts are written.

    Args:
        config: From ``read_config``.

    Returns:
        The style.

    Raises:
        ArtifactError: If the config's part about it is not readable.
    """
    verbalizer = text_of(config, "verbalizer", default=DEFAULT_VERBALIZER)
    return PromptStyle.from_config(verbalizer, config.get(PROMPT_KEY))
