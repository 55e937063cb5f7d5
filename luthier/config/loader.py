"""From config.yml, files and the environment to one typed ``Config``.

Each layer is flattened to ``{key: (value, source)}`` over the keys of the schema, the layers are
laid over each other, and the result is checked once, so that every message can name the file or
the variable the value came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alog

from luthier.config.caikit_keys import find_caikit_key, find_caikit_variable
from luthier.config.schema import Config
from luthier.config.settings import all_settings, fields_of, is_level, suggest
from luthier.config.values import converted, from_environment, is_scalar, shown
from luthier.config.yaml_text import read_yaml
from luthier.errors import ConfigError, did_you_mean

log = alog.use_channel(__name__)

DEFAULTS_FILE = Path(__file__).with_name("config.yml")
FILES_VARIABLE = "CONFIG_FILES"
_OWN_PREFIXES = ("RUNTIME_", "INFERENCE_", "TRAINING_")


@dataclass(frozen=True)
class _Sourced:
    """A value and the file or variable it came from."""

    value: Any
    source: str


_Layer = dict[tuple[str, ...], _Sourced]


def load_config(environ: Mapping[str, str] | None = None, files: Sequence[Path] = ()) -> Config:
    """Read every setting. Reads files and warns about what it ignores; changes nothing.

    Args:
        environ: The environment; None is ``os.environ``.
        files: YAML files that are laid over config.yml and over those in ``CONFIG_FILES``.

    Returns:
        The settings, checked and frozen.

    Raises:
        ConfigError: If a file is missing or no YAML, or a key is unknown, ill-typed or out of
            range. The message names the key, the value and where it came from.
    """
    environ = os.environ if environ is None else environ
    named = [Path(name.strip()) for name in environ.get(FILES_VARIABLE, "").split(",")]
    listed = [path for path in named if path != Path()]
    merged: _Layer = {}
    for path in (DEFAULTS_FILE, *listed, *files):
        _lay_over(merged, _read_layer(path))
    _lay_over(merged, _environment_layer(environ))
    config: Config = _built(Config, (), merged)
    _check_together(config)
    return config


def _read_layer(path: Path) -> _Layer:
    """The settings in one YAML file, by path; unknown keys are refused here."""
    source = path.name if path == DEFAULTS_FILE else str(path)
    content = read_yaml(path, called=f"config file {source!r}")
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"config file {source!r} must hold keys and values, got {shown(content)}")
    return dict(_flattened(Config, (), content, source))


def _flattened(
    level: type, path: tuple[str, ...], content: Mapping[Any, Any], source: str
) -> Iterator[tuple[tuple[str, ...], _Sourced]]:
    known = fields_of(level)
    for name, value in content.items():
        here = (*path, str(name))
        key = ".".join(here)
        if value is None and name in known and not is_scalar(known[name]):
            continue  # "grpc:" or "verbalizers:" with everything below it commented out
        if name in known and is_level(known[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"'{key}' must hold keys and values, got {shown(value)} (from {source})"
                )
            yield from _flattened(known[name], here, value, source)
        elif name in known:
            yield here, _Sourced(value, source)
        else:
            _refuse_or_warn(here, known, value, source)


def _refuse_or_warn(
    path: tuple[str, ...], known: Mapping[str, Any], value: Any, source: str
) -> None:
    """Deal with a key that the schema lacks: only harmless keys of caikit are let through."""
    key = ".".join(path)
    caikit_key = find_caikit_key(key)
    if caikit_key is None and isinstance(value, Mapping):
        # A level of caikit's that has no counterpart may hold harmless keys only.
        nested = [find_caikit_key(f"{key}.{name}") for name in value]
        caikit_key = next((each for each in nested if each), None) if all(nested) else None
    if caikit_key is None:
        raise ConfigError(f"unknown key '{key}' (from {source}){suggest(path, known)}")
    if caikit_key.is_refused:
        raise ConfigError(
            f"'{key}' is not a setting of Luthier: {caikit_key.advice} (from {source})"
        )
    log.warning("'%s' has no effect: %s (from %s)", key, caikit_key.advice, source)


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    known = {setting.env_name: setting for setting in all_settings()}
    for name, setting in known.items():
        if name not in environ:
            continue
        try:
            value = from_environment(environ[name], setting.annotation)
        except ConfigError as error:
            raise ConfigError(f"'{setting.key}': {error} (from {name})") from error
        if setting.path in _MAPPING_ITEMS:
            parent = setting.path[:-1]
            before = layer.get(parent, _Sourced({}, name)).value
            # NOTE: the parent stands earlier in all_settings(), so its own variable is read first.
            if isinstance(before, Mapping):
                layer[parent] = _Sourced({**before, setting.path[-1]: value}, name)
        else:
            layer[setting.path] = _Sourced(value, name)
    _warn_of_unknown_variables(environ, known)
    return layer


_MAPPING_ITEMS = {
    setting.path
    for setting in all_settings()
    if setting.path[:-1] in {other.path for other in all_settings()}
}


def _warn_of_unknown_variables(environ: Mapping[str, str], known: Mapping[str, Any]) -> None:
    """Variables never stop a start: caikit-nlp's users and Kubernetes set many such names."""
    for name in sorted(environ):
        if name in known:
            continue
        caikit_key = find_caikit_variable(name)
        if caikit_key is not None and name.startswith(_OWN_PREFIXES):
            log.warning("environment variable %s has no effect: %s", name, caikit_key.advice)
        elif name.startswith(_OWN_PREFIXES):
            log.warning(
                "environment variable %s is no setting of Luthier%s",
                name,
                did_you_mean(name, known),
            )


def _lay_over(merged: _Layer, layer: _Layer) -> None:
    """Put one layer on top: mappings merge key by key, everything else is replaced."""
    for path, item in layer.items():
        below = merged.get(path)
        if below and isinstance(below.value, Mapping) and isinstance(item.value, Mapping):
            item = _Sourced(_merged(below.value, item.value), item.source)
        merged[path] = item


def _merged(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    result = dict(below)
    for name, value in above.items():
        before = result.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[name] = _merged(before, value)
        else:
            result[name] = value
    return result


def _built(level: type, path: tuple[str, ...], merged: _Layer) -> Any:
    values = {}
    for name, annotation in fields_of(level).items():
        here = (*path, name)
        if is_level(annotation):
            values[name] = _built(annotation, here, merged)
            continue
        item = merged[here]
        try:
            values[name] = converted(".".join(here), item.value, annotation)
        except ConfigError as error:
            raise ConfigError(f"{error} (from {item.source})") from error
    return level(**values)


def _check_together(config: Config) -> None:
    grpc, http = config.runtime.grpc, config.runtime.http
    if grpc.enabled and http.enabled and grpc.port == http.port != 0:
        raise ConfigError(
            f"'runtime.grpc.port' and 'runtime.http.port' must differ, both are {grpc.port}"
        )
