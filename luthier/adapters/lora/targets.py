"""Which layers of a model a LoRA config means, by PEFT's rules for names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import regex
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.data_model.options.lora import LoraConfig
from luthier.errors import InvalidInputError, NotSupportedError, did_you_mean

#: Seconds for matching one expression against one name: longer means catastrophic backtracking.
PATTERN_SECONDS = 0.2


@dataclass(frozen=True)
class LoraTarget:
    """One linear layer that gets a delta.

    Args:
        path: Its name in the model, such as ``model.layers.0.self_attn.q_proj``.
        in_features: Size of its input.
        out_features: Size of its output.
        rank: R, of this layer.
        alpha: Of this layer.
        is_transposed: True if its weight is [in, out] (``Conv1D`` of GPT-2), not [out, in].
    """

    path: str
    in_features: int
    out_features: int
    rank: int
    alpha: float
    is_transposed: bool


def find_targets(
    model: PreTrainedModel, config: LoraConfig, *, is_strict: bool = True
) -> dict[str, LoraTarget]:
    """The layers that get a delta, in the order of the model.

    Args:
        model: Without any adapter.
        config: Already validated.
        is_strict: Whether a name or pattern that fits no layer is refused. PEFT ignores those, so
            a reader of its folders does too.

    Returns:
        Path to target; at least one.

    Raises:
        InvalidInputError: If nothing is meant, a name fits no layer, or it fits something that is
            no linear layer.
        NotSupportedError: If a layer is of a kind that LoRA is not offered for here.
    """
    layers = dict(model.named_modules())
    saved = saved_module_paths(model, config, is_strict=is_strict)
    wanted = [
        path
        for path in _wanted_paths(model, layers, config)
        if not _is_excluded(path, config) and not is_inside(path, saved)
    ]
    if is_strict:
        _require_names_used(layers, config)
        _require_patterns_used(wanted, config)
    if not wanted:
        raise InvalidInputError(_nothing_found(layers, config))
    return {path: _target(path, layers[path], config) for path in wanted}


def saved_module_paths(
    model: PreTrainedModel, config: LoraConfig, *, is_strict: bool = True
) -> tuple[str, ...]:
    """Paths of the modules that are trained whole: ``modules_to_save`` and ``unfreeze_layers``.

    A shared embedding that is reached under several modules is named with all of them.

    Args:
        model: Without any adapter.
        config: Already validated.
        is_strict: Whether a name that fits nothing is refused.

    Returns:
        No path is a part of another.

    Raises:
        InvalidInputError: If ``is_strict`` and a name fits nothing.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    found: dict[str, None] = {}
    for name in config.modules_to_save:
        matches = [path for path in paths if path.endswith(name)]
        if not matches and is_strict:
            raise InvalidInputError(
                f"'modules_to_save': no module of the model is called {name[:80]!r}"
                + did_you_mean(name, {path.rpartition(".")[2] for path in paths})
            )
        found.update(dict.fromkeys(matches))
    for path in unfrozen_parameters(model, config, is_strict=is_strict):
        found.setdefault(path)
    inner = {path for path in found if is_inside(path.rpartition(".")[0], found)}
    chosen = [path for path in found if path not in inner]
    # A saved adapter names all that it holds.
    shared = _shared_embeddings(model, chosen) if is_strict else []
    return tuple(dict.fromkeys([*chosen, *shared]))


def unfrozen_parameters(
    model: PreTrainedModel, config: LoraConfig, *, is_strict: bool = True
) -> dict[str, frozenset[str]]:
    """Module path to the names of its own parameters that ``unfreeze_layers`` means.

    Args:
        model: Without any adapter.
        config: Already validated.
        is_strict: Whether a text that is in no name is refused.

    Returns:
        Every place of a tied parameter.

    Raises:
        InvalidInputError: If ``is_strict`` and a text is in no parameter's name.
        NotSupportedError: If such a parameter belongs to a module that has layers of its own.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    for text in config.unfreeze_layers:
        if is_strict and not any(text in name for name, _ in named):
            raise InvalidInputError(
                f"'unfreeze_layers': no parameter has {text[:80]!r} in its name"
            )
    # A tied parameter is one parameter: what is learned in one place is learned in all.
    learned = {
        id(parameter)
        for name, parameter in named
        if any(text in name for text in config.unfreeze_layers)
    }
    found: dict[str, set[str]] = {}
    for name, parameter in named:
        if id(parameter) in learned:
            path, _, own_name = name.rpartition(".")
            if any(True for _ in model.get_submodule(path).children()):
                raise NotSupportedError(
                    f"'unfreeze_layers': {name!r} belongs to a module with layers of its own"
                )
            found.setdefault(path, set()).add(own_name)
    return {path: frozenset(names) for path, names in found.items()}


def is_inside(path: str, names: Collection[str]) -> bool:
    """Whether ``path`` is a module called one of ``names``, or a part of one."""
    dotted = f".{path}."
    return any(f".{name}." in dotted for name in names)


def pattern_key(patterns: Iterable[str], path: str) -> str | None:
    """The first pattern that fits the end of ``path`` after a dot, or all of it, else None.

    Args:
        patterns: Names or expressions.
        path: Of a layer.

    Returns:
        The pattern as given.

    Raises:
        InvalidInputError: If a pattern is no regular expression, or takes too long.

    Example:
        >>> pattern_key(["v_proj", "layers.0.q_proj"], "model.layers.0.q_proj")
        'layers.0.q_proj'
    """
    for pattern in patterns:
        if _fits(rf"(.*\.)?({pattern})", path, shown=pattern):
            return pattern
    return None


def portable_target_names(
    model: PreTrainedModel, config: LoraConfig, targets: Mapping[str, LoraTarget]
) -> list[str] | str:
    """``target_modules`` as PEFT shall read it, so that it finds exactly ``targets``.

    The config's own words where it has any; otherwise the targets' last names, or their whole
    paths if those names fit other modules too.
    """
    if config.target_modules is not None:
        given = config.target_modules
        return given if isinstance(given, str) else list(given)
    last_names = {path.rpartition(".")[2] for path in targets}
    reached = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in last_names}
    reached = {path for path in reached if not _is_excluded(path, config)}
    saved = saved_module_paths(model, config, is_strict=False)
    reached = {path for path in reached if not is_inside(path, saved)}
    return sorted(last_names if reached == set(targets) else targets)


def _wanted_paths(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], config: LoraConfig
) -> list[str]:
    names = config.target_modules
    if names is None:
        head = model.get_output_embeddings()
        wanted = [
            path
            for path, layer in layers.items()
            if isinstance(layer, nn.Linear | Conv1D) and layer is not head
        ]
    elif isinstance(names, str):
        wanted = [path for path in layers if path and _fits(names, path, shown=names)]
    else:
        wanted = [path for path in layers if any(_ends_with(path, name) for name in names)]
    return [path for path in wanted if _is_in_blocks(path, config)]


def _is_in_blocks(path: str, config: LoraConfig) -> bool:
    """Whether ``layers_to_transform`` lets this layer through."""
    if config.layers_to_transform is None:
        return True
    lists = "|".join(re.escape(name) for name in config.layers_pattern) or r"[^.]*"
    found = re.match(rf"(?:^|.*?\.)(?:{lists})\.(\d+)\.", path)
    return found is not None and int(found.group(1)) in config.layers_to_transform


def _is_excluded(path: str, config: LoraConfig) -> bool:
    names = config.exclude_modules
    if not names:
        return False
    if isinstance(names, str):
        return _fits(names, path, shown=names)
    return any(_ends_with(path, name) for name in names)


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _fits(pattern: str, path: str, *, shown: str) -> bool:
    """Whether the whole path fits; bounded in time, because patterns come from adapter files."""
    try:
        return regex.fullmatch(pattern, path, timeout=PATTERN_SECONDS) is not None
    except regex.error as error:
        raise InvalidInputError(f"{shown[:80]!r} is not a regular expression: {error}") from error
    except TimeoutError as error:
        raise InvalidInputError(
            f"the expression {shown[:80]!r} takes more than {PATTERN_SECONDS} s for one name"
        ) from error


def _target(path: str, layer: nn.Module, config: LoraConfig) -> LoraTarget:
    if isinstance(layer, Conv1D):
        (in_features, out_features), is_transposed = layer.weight.shape, True
    elif isinstance(layer, nn.Linear) and type(layer).__name__ != "NonDynamicallyQuantizableLinear":
        in_features, out_features, is_transposed = layer.in_features, layer.out_features, False
    elif isinstance(layer, nn.Embedding):
        raise NotSupportedError(
            f"LoRA on the embedding {path!r} is not offered; train it whole with 'modules_to_save'"
        )
    else:
        raise NotSupportedError(
            f"'target_modules' means {path!r}, a {type(layer).__name__}; LoRA is offered for "
            "linear layers"
        )
    rank_key = pattern_key(config.rank_pattern, path)
    alpha_key = pattern_key(config.alpha_pattern, path)
    return LoraTarget(
        path=path,
        in_features=in_features,
        out_features=out_features,
        rank=config.rank if rank_key is None else config.rank_pattern[rank_key],
        alpha=config.alpha if alpha_key is None else config.alpha_pattern[alpha_key],
        is_transposed=is_transposed,
    )


def _shared_embeddings(model: PreTrainedModel, chosen: Collection[str]) -> list[str]:
    """Other embeddings around the weight of a chosen input embedding.

    T5 keeps one weight in ``shared``, ``encoder.embed_tokens`` and ``decoder.embed_tokens``; a
    model whose stacks read different embeddings is not what anybody means.
    """
    embeddings = model.get_input_embeddings()
    named = list(model.named_modules(remove_duplicate=False))
    if not any(module is embeddings for path, module in named if path in chosen):
        return []
    return [
        path
        for path, module in named
        if isinstance(module, nn.Embedding) and module.weight is embeddings.weight
    ]


def _require_names_used(layers: Mapping[str, nn.Module], config: LoraConfig) -> None:
    for option in ("target_modules", "exclude_modules"):
        names = getattr(config, option)
        if names is None or isinstance(names, str):
            continue
        for name in names:
            if not any(_ends_with(path, name) for path in layers):
                raise InvalidInputError(
                    f"'{option}': no layer of the model is called {name[:80]!r}"
                    + did_you_mean(name, _linear_names(layers))
                )


def _require_patterns_used(paths: Collection[str], config: LoraConfig) -> None:
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, option):
            if not any(pattern_key([pattern], path) for path in paths):
                raise InvalidInputError(
                    f"'{option}': {pattern[:80]!r} fits none of the {len(paths)} target layers"
                )


def _nothing_found(layers: Mapping[str, nn.Module], config: LoraConfig) -> str:
    wanted = "all linear layers" if config.target_modules is None else config.target_modules
    names = ", ".join(_linear_names(layers)[:12])
    return f"no layer is left for LoRA: 'target_modules' is {wanted!r}; linear layers are: {names}"


def _linear_names(layers: Mapping[str, nn.Module]) -> list[str]:
    return sorted(
        {
            path.rpartition(".")[2]
            for path, layer in layers.items()
            if isinstance(layer, nn.Linear | Conv1D)
        }
    )
