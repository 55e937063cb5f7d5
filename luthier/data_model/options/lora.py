"""What a LoRA tuning is asked for: size, scaling, which layers, how it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from luthier.data_model.checks import (
    require_count,
    require_int,
    require_names,
    require_number,
    require_text,
)
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.lora_starts import DEFAULT_INIT, parse_initialisation
from luthier.data_model.options.reading import NamedOptions, option_aliases, option_names
from luthier.data_model.options.setting import Setting, option
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import InvalidInputError

#: PEFT's word for "every linear layer but the head".
ALL_LINEAR = "all-linear"
#: Longest module name or pattern, in characters.
MAX_PATTERN_CHARS = 1000
#: Largest rank of all; no layer of a model that exists has more inputs or outputs by far.
MAX_RANK = 65_536


@dataclass(frozen=True)
class LoraLimits:
    """What one LoRA may ask for.

    Args:
        max_rank: Largest rank of any layer; a server's requests may have less.
        max_names: Most entries of a list of module names or of a pattern table.
    """

    max_rank: int = MAX_RANK
    max_names: int = 10_000


_NO_PATTERN: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class LoraConfig(NamedOptions):
    """A low-rank delta ``scaling · B · A`` on linear layers of a frozen base model.

    Module names are understood as PEFT does: in a list, a whole path or its end after a dot; a
    single string is a regular expression for the whole path. Building one checks nothing;
    ``validate`` does.

    Source:
        LoRA: Hu et al. 2021, arXiv 2106.09685. rsLoRA: Kalajdzievski 2023, arXiv 2312.03732.
        DoRA: Liu et al. 2024, arXiv 2402.09353. LoRA+: Hayou et al. 2024, arXiv 2402.12354.
    """

    called = "LoRA option"

    rank: int = option(
        8,
        "int",
        "R, the inner size of the two factors. Not a bit width.",
        minimum=1,
        aliases=("r", "lora_r", "lora_rank"),
    )
    alpha: float = option(
        16.0,
        "number",
        "The delta is scaled by alpha / rank, or alpha / sqrt(rank) with use_rslora.",
        above=0,
        maximum=1e6,
        aliases=("lora_alpha",),
    )
    dropout: float = option(
        0.0,
        "number",
        "Share of the delta's input that is dropped while training.",
        minimum=0,
        maximum=0.99,
        aliases=("lora_dropout",),
    )
    use_rslora: bool = option(False, "bool", "Rank-stabilised scaling, alpha / sqrt(rank).")
    use_dora: bool = option(
        False, "bool", "Learn each output's magnitude apart from its direction (DoRA)."
    )
    target_modules: tuple[str, ...] | str | None = option(
        None,
        "names",
        "Layers that get the delta; none is every linear layer but the head.",
        is_optional=True,
        aliases=("lora_target_modules",),
    )
    exclude_modules: tuple[str, ...] | str | None = option(
        None, "names", "Layers that do not get it, whatever target_modules says.", is_optional=True
    )
    layers_to_transform: tuple[int, ...] | None = option(
        None, "indices", "Only blocks with these numbers, from 0.", is_optional=True
    )
    layers_pattern: tuple[str, ...] = option(
        (), "names", "Name of the list of blocks that layers_to_transform counts in."
    )
    rank_pattern: Mapping[str, int] = option(
        _NO_PATTERN, "table", "Other ranks: module name, its end, or an expression to rank."
    )
    alpha_pattern: Mapping[str, float] = option(
        _NO_PATTERN, "table", "Other alphas, in the same way."
    )
    modules_to_save: tuple[str, ...] = option(
        (),
        "names",
        "Whole modules that are trained and saved beside the delta, as PEFT matches their names.",
    )
    unfreeze_layers: tuple[str, ...] = option(
        (),
        "names",
        "Every parameter whose name contains one of these texts is trained as well; a layer "
        "trained so gets no delta.",
        aliases=("lora_unfreeze_layers",),
    )
    trainable_token_indices: tuple[int, ...] = option(
        (),
        "indices",
        "Ids of tokens whose embeddings are trained and saved beside the delta, such as markers "
        "that are control tokens of the base model; causal models.",
    )
    initialisation: str = option(
        DEFAULT_INIT,
        "text",
        "How the factors start: default (no effect at first), gaussian, random, pissa, "
        "pissa_niter_N, olora, orthogonal, mica; loftq makes up for the rounding of a quantised "
        "base model, and so needs serve_quantized; eva, corda and lora_ga look at the first "
        "batches of the training.",
        aliases=("init_lora_weights",),
    )
    lora_plus_ratio: float = option(
        1.0,
        "number",
        "LoRA+: learning rate of B over that of A; 1 is plain LoRA, 16 the paper's advice.",
        above=0,
        maximum=1e6,
        aliases=("loraplus_lr_ratio",),
    )
    start_batches: int = option(
        8, "int", "Batches that eva, corda and lora_ga look at.", minimum=1, maximum=1_000_000
    )
    eva_rho: float = option(
        2.0,
        "number",
        "eva: a layer gets at most this many times its rank, at the cost of others; 1 moves none.",
        minimum=1,
        maximum=1000,
    )
    eva_adjust_scaling: bool = option(
        True, "bool", "eva: a layer's alpha follows its rank, so that scaling stays."
    )
    eva_label_mask: bool = option(
        True, "bool", "eva: look at tokens that are learned alone; causal models only."
    )
    eva_whiten: bool = option(
        False, "bool", "eva: divide each direction by the root of its singular value."
    )
    corda_method: str = option(
        "ipm",
        "choice",
        "corda: learn what matters most to the data (ipm), or least, which keeps more of what the "
        "base model knows (kpm).",
        choices=("ipm", "kpm"),
    )
    lora_ga_direction: str = option(
        "ArB2r",
        "choice",
        "lora_ga: which of the gradient's 2·R largest parts A and B are made of.",
        choices=("ArBr", "A2rBr", "ArB2r", "random"),
    )
    lora_ga_scale: str = option(
        "stable",
        "choice",
        "lora_ga: how the factors are scaled.",
        choices=("stable", "weight_svd", "gd_scale", "unit"),
    )
    lora_ga_gamma: float = option(
        16.0, "number", "lora_ga: gamma of the scale stable.", above=0, maximum=1e6
    )

    @classmethod
    def plain_value(cls, name: str, value: object) -> object:
        """Lists and sets as tuples. ``all-linear`` is the default of ``target_modules``, and PEFT's
        ``init_lora_weights`` may be true or false.

        Args:
            name: Of the option.
            value: Not None.

        Returns:
            What the option holds.
        """
        if name == "target_modules" and isinstance(value, str) and value.lower() == ALL_LINEAR:
            return None
        if name == "initialisation" and isinstance(value, bool):
            return DEFAULT_INIT if value else "random"
        if name == "layers_to_transform" and isinstance(value, int):
            return (value,)
        if name in ("layers_pattern", "modules_to_save", "unfreeze_layers"):
            value = (value,) if isinstance(value, str) else value
        if isinstance(value, set | frozenset):
            return tuple(sorted(value))
        return tuple(value) if isinstance(value, list) else value

    def validate(self, limits: LoraLimits) -> None:
        """Refuse what no base model could satisfy; changes nothing.

        Args:
            limits: The server's caps.

        Raises:
            InvalidInputError: Naming the option, the value and the limit.
        """
        for field in dataclasses.fields(self):
            setting: Setting = field.metadata["setting"]
            if setting.kind in ("int", "number", "bool", "text", "choice"):
                setting.check(field.name, getattr(self, field.name), TrainingLimits())
        require_int("rank", self.rank, maximum=limits.max_rank)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str):
                _require_pattern(name, value)
            elif value is not None:
                _require_names(name, value, limits)
        for name in ("layers_pattern", "modules_to_save", "unfreeze_layers"):
            _require_names(name, getattr(self, name), limits)
        self._validate_blocks(limits)
        self._validate_tokens(limits)
        _require_table("rank_pattern", self.rank_pattern, limits)
        for pattern, rank in self.rank_pattern.items():
            require_int(f"rank_pattern[{pattern}]", rank, minimum=1, maximum=limits.max_rank)
        _require_table("alpha_pattern", self.alpha_pattern, limits)
        for pattern, alpha in self.alpha_pattern.items():
            require_number(f"alpha_pattern[{pattern}]", alpha, above=0, maximum=1e6)
        parse_initialisation(self.initialisation)

    def scaling(self, rank: int, alpha: float) -> float:
        """The delta's factor for a layer of this rank and alpha."""
        return float(alpha) / (float(rank) ** 0.5 if self.use_rslora else float(rank))

    def _validate_tokens(self, limits: LoraLimits) -> None:
        indices = self.trainable_token_indices
        if not isinstance(indices, tuple):
            raise InvalidInputError(
                f"'trainable_token_indices' must be a list of ids, got {str(indices)[:80]!r}"
            )
        require_count("trainable_token_indices", len(indices), max_count=limits.max_names)
        for index in indices:
            require_int("trainable_token_indices", index, minimum=0, maximum=2**31)
        if len(set(indices)) < len(indices):
            raise InvalidInputError("'trainable_token_indices' names a token twice")

    def _validate_blocks(self, limits: LoraLimits) -> None:
        if self.layers_to_transform is not None:
            if not isinstance(self.layers_to_transform, tuple) or not self.layers_to_transform:
                raise InvalidInputError(
                    "'layers_to_transform' must be a list of at least one block number, "
                    f"got {str(self.layers_to_transform)[:80]!r}"
                )
            num_blocks = len(self.layers_to_transform)
            require_count("layers_to_transform", num_blocks, max_count=limits.max_names)
            for index in self.layers_to_transform:
                require_int("layers_to_transform", index, minimum=0, maximum=10**6)
            if isinstance(self.target_modules, str):
                raise InvalidInputError(
                    "'layers_to_transform' needs 'target_modules' to be a list of names; an "
                    "expression can name the blocks itself"
                )
        elif self.layers_pattern:
            raise InvalidInputError("'layers_pattern' needs 'layers_to_transform'")


LORA_OPTION_NAMES = option_names(LoraConfig)
#: Name in another system -> our option.
LORA_OPTION_ALIASES = option_aliases(LoraConfig)

#: Hyperparameters of the loop where a LoRA tuning says nothing.
LORA_TUNING_DEFAULTS = TrainingOptions(num_epochs=3, learning_rate=2e-4, accumulate_steps=1)


def _require_pattern(name: str, value: object) -> None:
    if not require_text(name, value, max_chars=MAX_PATTERN_CHARS):
        raise InvalidInputError(f"'{name}' must not be empty")


def _require_names(name: str, values: object, limits: LoraLimits) -> None:
    require_names(name, values, max_count=limits.max_names, max_chars=MAX_PATTERN_CHARS)


def _require_table(name: str, table: object, limits: LoraLimits) -> None:
    if not isinstance(table, Mapping):
        raise InvalidInputError(f"'{name}' must map names to numbers, got {str(table)[:80]!r}")
    require_count(name, len(table), max_count=limits.max_names)
    for key in table:
        _require_pattern(f"a name of '{name}'", key)
