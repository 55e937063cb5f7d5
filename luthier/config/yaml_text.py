"""YAML as settings need it: safe, without duplicate keys, and with YAML 1.2's plain numbers.

PyYAML follows YAML 1.1, which reads ``1e-4`` as text, ``010`` as eight and ``1:30`` as ninety.
Here ``1e-4`` is a float and the other two are text, which a typed key then refuses.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import ConfigError, InvalidInputError

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys; its own number forms are registered below."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            # A second "<<" merges again; that is no duplicate.
            if key_node.tag == "tag:yaml.org,2002:merge" or key_node.id != "scalar":
                continue
            key = key_node.value
            if key in seen:
                raise ConfigError(f"key {key!r} stands twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBER_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_NUMBER_TAGS[1], _FLOAT, list("-+0123456789."))
_StrictLoader.add_implicit_resolver(_NUMBER_TAGS[0], _INT, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse one YAML document (JSON is one too) into plain Python values.

    Raises:
        ConfigError: If it is not YAML, holds a key twice, or more than data (a tag). The message
            names the line; the caller adds the file.
    """
    try:
        # _StrictLoader is a SafeLoader: it builds nothing but plain values.
        return yaml.load(text, Loader=_StrictLoader)
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"not readable as YAML: {type(error).__name__}: {error}") from error


def read_yaml(path: Path, *, called: str, error: type[InvalidInputError] = ConfigError) -> Any:
    """Parse a YAML file.

    Args:
        path: On this machine.
        called: What to call the file in a message.
        error: Raised for what is wrong with it.

    Returns:
        Plain Python values; None for an empty file.

    Raises:
        InvalidInputError: Of the class ``error``, naming the file, if it cannot be read, is not
            UTF-8 or not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"{called} cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{called} is not UTF-8 text") from problem
    except ConfigError as problem:
        raise error(f"{called}: {problem}") from problem
