"""Starts of LoRA that look at data: EVA, CorDA and LoRA-GA. Definitions are PEFT's.

    eva      A: the directions in which a layer's inputs differ most, more of them (a higher rank)
             where they explain more. B: 0, so nothing changes at first.
    corda    The part of the weight that matters most (ipm) or least (kpm) to the inputs is learned.
    lora_ga  A and B from the largest parts of the weight's gradient: the first update goes where
             that of full fine-tuning would.

The deltas of the last two are no zeros at first; as with PiSSA, the start is subtracted again and
the base weight stays as it is.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from luthier.adapters.lora.fresh_factors import factor_dtype, fresh_factors
from luthier.adapters.lora.initialisation import StartingFactors, low_rank_svd
from luthier.adapters.lora.layers import LoraFactors, oriented_weight
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.peft_format import check_state, read_config
from luthier.adapters.lora.start_statistics import (
    InputComponents,
    InputCovariance,
    WeightGradient,
)
from luthier.adapters.lora.targets import LoraTarget, find_targets
from luthier.adapters.start_probe import StartProbe
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError, InvalidInputError, TrainingDataError

#: CorDA adds this share of the mean variance to each input's, so that the covariance can be
#: inverted, and doubles it until the inverse is this near.
_FIRST_DAMPING = 0.01
_LARGEST_INVERSION_ERROR = 0.05
#: Decompositions that are nearly right find this many times the rank.
_MORE_PARTS = 4
_NUM_ITERATIONS = 4


class LoraStart(StartProbe):
    """What the three have in common.

    Args:
        adapter: To begin; its factors are placeholders.
        model: The base model's network; not changed.
        targets: Layer path to target, in the order of the model.
        seed: Of the training.
    """

    def __init__(
        self,
        adapter: LoraAdapter,
        model: PreTrainedModel,
        targets: Mapping[str, LoraTarget],
        *,
        seed: int,
    ) -> None:
        self.adapter = adapter
        self.config: LoraConfig = adapter.config
        self.targets = dict(targets)
        self._model = model
        self._generator = torch.Generator().manual_seed(seed % 2**63)
        self._num_batches_seen = 0
        self._leaders: dict[str, str] = {}
        self._shown: tuple[str, torch.Tensor] | None = None

    @property
    def num_batches(self) -> int:
        """``LoraConfig.start_batches``."""
        return self.config.start_batches

    @property
    def paths(self) -> Sequence[str]:
        """All targets."""
        return tuple(self.targets)

    def end_batch(self) -> None:
        """Count it."""
        self._num_batches_seen += 1

    def begin(self) -> None:
        """Give the adapter its factors."""
        factors = {}
        for path, target in self.targets.items():
            start = self._start_of(path, target)
            factors[path] = self._built(path, target, self.config, start)
        self.adapter.restart(self.config, factors)

    def resume(self, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Take the starts that a checkpoint's stacked factors hold."""
        self._restart(self.config, self.targets, config, state)

    def start_tensors(self) -> Sequence[torch.Tensor]:
        """What is subtracted."""
        found = []
        for factors in self.adapter.factors.values():
            found += [each for each in (factors.start_a, factors.start_b) if each is not None]
        return found

    @abstractmethod
    def _start_of(self, path: str, target: LoraTarget) -> StartingFactors:
        """The factors of one layer, from what was seen."""

    def _leader_of(self, path: str, inputs: torch.Tensor) -> str:
        """The first layer of those that read the same tensor; decided in the first row."""
        leader = self._leaders.get(path)
        if leader is None:
            leader = path
            if self._shown is not None and self._shown[1] is inputs:
                leader = self._shown[0]
            self._leaders[path] = leader
            self._shown = (leader, inputs)
        return leader

    def _require_seen(self, path: str) -> None:
        if path not in self._leaders:
            raise TrainingDataError(
                f"initialisation {self.config.initialisation!r}: no row of the first "
                f"{self._num_batches_seen} batches reaches layer {path!r}; leave it out with "
                "'exclude_modules'"
            )

    def _weight(self, path: str) -> torch.Tensor:
        weight = oriented_weight(self._model.get_submodule(path))
        return weight.detach().to(device="cpu", dtype=torch.float32)

    def _built(
        self, path: str, target: LoraTarget, config: LoraConfig, start: StartingFactors
    ) -> LoraFactors:
        return fresh_factors(
            start,
            self._model.get_submodule(path),
            scaling=config.scaling(target.rank, target.alpha),
            use_dora=config.use_dora,
            dtype=factor_dtype(self._model),
        )

    def _restart(
        self,
        config: LoraConfig,
        targets: Mapping[str, LoraTarget],
        saved: Mapping[str, Any],
        state: Mapping[str, torch.Tensor],
    ) -> None:
        """Factors of the sizes that were saved, with the starts that are subtracted."""
        is_stacked = self._is_subtracted
        times = 2 if is_stacked else 1
        shapes: dict[str, tuple[int, ...]] = {}
        for path, target in targets.items():
            shapes[f"{path}.lora_A.weight"] = (target.rank * times, target.in_features)
            shapes[f"{path}.lora_B.weight"] = (target.out_features, target.rank * times)
        other = [name for name in state if not name.endswith(("lora_A.weight", "lora_B.weight"))]
        found = check_state({k: v for k, v in state.items() if k not in other}, shapes)
        factors = {}
        for path, target in targets.items():
            lora_a = found[f"{path}.lora_A.weight"]
            lora_b = found[f"{path}.lora_B.weight"]
            start = StartingFactors(lora_a, lora_b)
            if is_stacked:
                rank = target.rank
                start = StartingFactors(lora_a[rank:], -lora_b[:, rank:], is_subtracted=True)
            factors[path] = self._built(path, target, config, start)
        self.adapter.restart(config, factors)

    @property
    def _is_subtracted(self) -> bool:
        return True


class EvaStart(LoraStart):
    """Explained variance adaptation, with ranks moved to where they explain most.

    Source:
        Paischer et al. 2024, arXiv 2410.07170; checked against PEFT 0.21.2, which goes on until
        components settle where this looks at a number of batches.
    """

    def __init__(
        self,
        adapter: LoraAdapter,
        model: PreTrainedModel,
        targets: Mapping[str, LoraTarget],
        *,
        seed: int,
    ) -> None:
        super().__init__(adapter, model, targets, seed=seed)
        self._components: dict[str, InputComponents] = {}

    def see_inputs(self, path: str, inputs: torch.Tensor, is_label: torch.Tensor | None) -> None:
        """Note inputs; layers that read the same are looked at once."""
        leader = self._leader_of(path, inputs)
        seen = self._components.setdefault(leader, InputComponents(0))
        seen.num_components = max(seen.num_components, self._most_components(path))
        if leader != path:
            return
        if is_label is not None and self.config.eva_label_mask:
            inputs = inputs[is_label]
        seen.add(inputs)

    def end_batch(self) -> None:
        """Look at the batch's inputs."""
        super().end_batch()
        for components in self._components.values():
            components.end_batch()

    def begin(self) -> None:
        """Give each layer the rank that it earns; one that earns none is left out."""
        targets = self._ranked_targets()
        config = _config_of(self.config, targets, kept_all=len(targets) == len(self.targets))
        factors = {}
        for path, target in targets.items():
            start = self._start_of(path, target)
            factors[path] = self._built(path, target, config, start)
        self.adapter.restart(config, factors)

    def resume(self, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Take the ranks that were found."""
        found = read_config(config, task_type=self.adapter.task_type)
        own = dataclasses.replace(
            self.config,
            rank_pattern=found.rank_pattern,
            alpha_pattern=found.alpha_pattern,
            target_modules=found.target_modules,
        )
        targets = find_targets(self._model, own, is_strict=False)
        if not targets.keys() <= self.targets.keys():
            raise ArtifactError("the checkpoint's adapter has layers that this training has not")
        kept_all = len(targets) == len(self.targets)
        self._restart(_config_of(self.config, targets, kept_all=kept_all), targets, config, state)

    @property
    def _is_subtracted(self) -> bool:
        return False

    def _most_components(self, path: str) -> int:
        target = self.targets[path]
        return min(round(target.rank * self.config.eva_rho), target.in_features)

    def _ranked_targets(self) -> dict[str, LoraTarget]:
        """Ranks by explained variance: as many components in all as ranks were asked for."""
        for path in self.targets:
            self._require_seen(path)
        for path, components in self._components.items():
            if not components.is_fitted:
                raise TrainingDataError(
                    f"initialisation 'eva' needs {components.num_components} label tokens for "
                    f"layer {path!r}, the first {self._num_batches_seen} batches have "
                    f"{components.num_waiting}; raise 'start_batches' or 'batch_size', or lower "
                    "'rank' or 'eva_rho'"
                )
        order = [path for path in self.targets if self._leaders[path] == path]
        order += [path for path in self.targets if self._leaders[path] != path]
        shares, owners = [], []
        for path in order:
            explained = self._components[self._leaders[path]].explained_share
            shares.append(explained.cpu())
            owners += [path] * len(explained)
        budget = sum(target.rank for target in self.targets.values())
        best = torch.cat(shares).argsort(descending=True, stable=True)[:budget]
        ranks = dict.fromkeys(self.targets, 0)
        for index in best.tolist():
            ranks[owners[index]] += 1
        return {
            path: self._with_rank(target, ranks[path])
            for path, target in self.targets.items()
            if ranks[path]
        }

    def _with_rank(self, target: LoraTarget, rank: int) -> LoraTarget:
        alpha = target.alpha
        if self.config.eva_adjust_scaling:
            alpha *= rank / target.rank
        return dataclasses.replace(target, rank=rank, alpha=alpha)

    def _start_of(self, path: str, target: LoraTarget) -> StartingFactors:
        seen = self._components[self._leaders[path]]
        lora_a = seen.components[: target.rank].clone()
        if self.config.eva_whiten:
            lora_a /= seen.singular_values[: target.rank].sqrt()[:, None]
        return StartingFactors(lora_a, torch.zeros(target.out_features, target.rank))


class CordaStart(LoraStart):
    """Context-oriented decomposition.

    Source:
        Yang et al. 2024, arXiv 2406.05223; checked against PEFT 0.21.2.
    """

    def __init__(
        self,
        adapter: LoraAdapter,
        model: PreTrainedModel,
        targets: Mapping[str, LoraTarget],
        *,
        seed: int,
    ) -> None:
        super().__init__(adapter, model, targets, seed=seed)
        for target in targets.values():
            _require_rank(target, target.rank, "corda")
        self._covariances: dict[str, InputCovariance] = {}
        self._inverted: tuple[str, torch.Tensor, torch.Tensor] | None = None

    def see_inputs(self, path: str, inputs: torch.Tensor, is_label: torch.Tensor | None) -> None:
        """Add a row to the layer's covariance; layers that read the same have one."""
        if self._leader_of(path, inputs) == path:
            self._covariances.setdefault(path, InputCovariance()).add(inputs)

    def _start_of(self, path: str, target: LoraTarget) -> StartingFactors:
        self._require_seen(path)
        covariance, inverse = self._damped_of(path)
        u, s, vh = self._decomposed(self._weight(path) @ covariance, target.rank)
        rank = target.rank
        chosen = slice(None, rank) if self.config.corda_method == "ipm" else slice(-rank, None)
        root = (s[chosen] / self.config.scaling(rank, target.alpha)).sqrt()
        lora_a = root[:, None] * (vh[chosen] @ inverse)
        return StartingFactors(lora_a, u[:, chosen] * root, is_subtracted=True)

    def _damped_of(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``_damped`` of what the layer reads; layers that read the same mostly come in a row."""
        leader = self._leaders[path]
        if self._inverted is None or self._inverted[0] != leader:
            self._inverted = (leader, *_damped(self._covariances[leader].mean.cpu(), path))
        return self._inverted[1:]

    def _decomposed(
        self, product: torch.Tensor, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Singular triples, the largest nearly: those that are least can only be had with all."""
        num_parts = _MORE_PARTS * rank
        if self.config.corda_method == "ipm" and num_parts < min(product.shape) // 2:
            return low_rank_svd(product, num_parts, _NUM_ITERATIONS, self._generator)
        u, s, vh = torch.linalg.svd(product, full_matrices=False)
        return u, s, vh


class GradientStart(LoraStart):
    """Low-rank adaptation with gradient approximation (LoRA-GA).

    Source:
        Wang et al. 2024, arXiv 2407.05000; directions and scales are PEFT 0.21.2's.
    """

    def __init__(
        self,
        adapter: LoraAdapter,
        model: PreTrainedModel,
        targets: Mapping[str, LoraTarget],
        *,
        seed: int,
    ) -> None:
        super().__init__(adapter, model, targets, seed=seed)
        for target in targets.values():
            _require_rank(target, 2 * target.rank, "lora_ga")
        self._gradients = {path: WeightGradient() for path in targets}

    @property
    def wants_gradients(self) -> bool:
        """True."""
        return True

    def see_gradients(self, path: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add a row's part of the weight's gradient."""
        self._gradients[path].add(inputs, gradients)

    def _start_of(self, path: str, target: LoraTarget) -> StartingFactors:
        total = self._gradients.pop(path).sum
        if total is None or not bool(total.any()):
            raise TrainingDataError(
                f"initialisation 'lora_ga': in the first {self._num_batches_seen} batches the loss "
                f"does not depend on layer {path!r}; leave it out with 'exclude_modules'"
            )
        gradient = total.cpu() / self._num_batches_seen
        rank, scaling = target.rank, self.config.scaling(target.rank, target.alpha)
        num_parts = min(_MORE_PARTS * rank, *gradient.shape)
        u, s, vh = low_rank_svd(gradient, num_parts, _NUM_ITERATIONS, self._generator)
        for_a, for_b = self._directions(rank)
        lora_a, lora_b = vh[for_a].clone(), u[:, for_b] * s[for_b]
        scale = self.config.lora_ga_scale
        if scale == "stable":
            lora_b *= target.out_features**0.25 / self.config.lora_ga_gamma**0.5
        elif scale == "weight_svd":
            largest = low_rank_svd(self._weight(path), rank, _NUM_ITERATIONS, self._generator)[1]
            lora_b *= largest[0] / s[for_b][0]
        elif scale == "gd_scale":
            lora_a, lora_b = lora_a / scaling, lora_b / scaling
        return StartingFactors(lora_a, lora_b, is_subtracted=True)

    def _directions(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the gradient's 2·R largest parts A and B are made of."""
        parts = torch.arange(2 * rank)
        direction = self.config.lora_ga_direction
        if direction == "ArBr":
            return parts[1::2], parts[0::2]
        if direction == "A2rBr":
            return parts[rank:], parts[:rank]
        if direction == "ArB2r":
            return parts[:rank], parts[rank:]
        drawn = torch.randperm(2 * rank, generator=self._generator)[:rank]
        return drawn, drawn


_STARTS: Mapping[str, type[LoraStart]] = {
    "eva": EvaStart,
    "corda": CordaStart,
    "lora_ga": GradientStart,
}


def measured_start(
    adapter: LoraAdapter,
    model: PreTrainedModel,
    targets: Mapping[str, LoraTarget],
    *,
    seed: int,
) -> LoraStart | None:
    """What an adapter has to see before its first update.

    Args:
        adapter: New; begun by the probe.
        model: The base model's network; not changed.
        targets: Of the adapter.
        seed: Of the training.

    Returns:
        The probe, or None if the adapter's initialisation looks at no data.

    Raises:
        InvalidInputError: If a rank does not suit the initialisation.
    """
    kind = _STARTS.get(adapter.config.initialisation)
    return None if kind is None else kind(adapter, model, targets, seed=seed)


def _config_of(
    config: LoraConfig, targets: Mapping[str, LoraTarget], *, kept_all: bool
) -> LoraConfig:
    """A config that means these layers with these ranks and alphas."""
    ranks = {p: t.rank for p, t in targets.items() if t.rank != config.rank}
    alphas = {p: t.alpha for p, t in targets.items() if t.alpha != config.alpha}
    names = config.target_modules if kept_all else tuple(targets)
    return dataclasses.replace(
        config, rank_pattern=ranks, alpha_pattern=alphas, target_modules=names
    )


def _require_rank(target: LoraTarget, needed: int, word: str) -> None:
    most = min(target.in_features, target.out_features)
    if needed > most:
        raise InvalidInputError(
            f"initialisation {word!r}: rank {target.rank} needs {needed} parts of layer "
            f"{target.path!r}, which has {target.in_features} inputs and {target.out_features} "
            f"outputs, at most {most}"
        )


def _damped(covariance: torch.Tensor, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The covariance with as much added to its diagonal as makes it invertible, and its inverse."""
    if not (bool(torch.isfinite(covariance).all()) and float(covariance.diagonal().sum()) > 0):
        raise TrainingDataError(
            f"initialisation 'corda': the inputs of layer {path!r} are all 0, or not finite"
        )
    unit = torch.eye(len(covariance))
    damping = _FIRST_DAMPING
    while True:
        fixed = covariance + unit * covariance.diagonal().mean() * damping
        inverse = torch.linalg.inv(fixed)
        if float(torch.dist(fixed @ inverse, unit)) < _LARGEST_INVERSION_ERROR:
            return fixed, inverse
        damping *= 2
