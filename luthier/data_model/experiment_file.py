"""An experiment as a YAML file: written in groups with every text as it was, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.config.yaml_text import parse_yaml, read_yaml
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.errors import InvalidInputError


def experiment_to_yaml(options: ExperimentOptions, *, is_complete: bool = True) -> str:
    """The options as YAML that ``experiment_from_yaml`` reads back as the same.

    Args:
        options: Any.
        is_complete: False leaves out what is as the method's defaults have it.

    Returns:
        The text of a file.
    """
    return yaml.dump(
        options.to_dict(is_complete=is_complete),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


def experiment_from_yaml(text: str) -> ExperimentOptions:
    """Read options in groups.

    Args:
        text: YAML; JSON is that, too.

    Returns:
        The options, unchecked.

    Raises:
        InvalidInputError: If it is not YAML of groups, holds a key twice, or names what no option
            is called.
    """
    content = parse_yaml(text)
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"an experiment must hold groups of options, got {content!r:.80}")
    return ExperimentOptions.from_dict(content)


def read_yaml_mapping(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        file: On this machine.

    Returns:
        Its content.

    Raises:
        InvalidInputError: Naming the file, if it cannot be read or holds no mapping.
    """
    content = read_yaml(file, called=f"'{file}'", error=InvalidInputError)
    if not isinstance(content, dict):
        raise InvalidInputError(f"'{file}' must hold keys and values, got {content!r:.80}")
    return content


class _Dumper(yaml.SafeDumper):
    """Quotes texts that our reader would take for something else, such as ``1e-4``."""


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_plain_word = text[:1].isalpha() or text[:1] in ("/", "<", "_")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if is_plain_word else '"')


_Dumper.add_representer(str, _text_node)
