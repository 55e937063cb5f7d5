"""EVA: the directions in which a layer's inputs differ most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from luthier.adapters.lora.initialisation import StartingFactors
from luthier.adapters.lora.peft_format import read_config
from luthier.adapters.lora.starts.base import LoraStart
from luthier.adapters.lora.starts.statistics import InputComponents
from luthier.adapters.lora.targets import LoraTarget, find_targets
from luthier.adapters.start_probe import InputProbe
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import ArtifactError, TrainingDataError


class EvaStart(LoraStart[InputComponents], InputProbe):
    """Explained variance adaptation, with ranks moved to where they explain most.

    Source:
        Paischer et al. 2024, arXiv 2410.07170; checked against PEFT 0.21.2, which goes on until
        components settle where this looks at a number of batches.
    """

    def see_inputs(self, path: str, inputs: torch.Tensor, is_label: torch.Tensor | None) -> None:
        """Note inputs; layers that read the same are looked at once."""
        leader = self._leader_of(path, inputs)
        seen = self._statistics.setdefault(leader, InputComponents(0))
        seen.num_components = max(seen.num_components, self._most_components(path))
        if leader != path:
            return
        if is_label is not None and self.config.eva_label_mask:
            inputs = inputs[is_label]
        seen.add(inputs)

    def end_batch(self) -> None:
        """Look at the batch's inputs."""
        super().end_batch()
        for components in self._statistics.values():
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
        for path, components in self._statistics.items():
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
            explained = self._statistics[self._leaders[path]].explained_share
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
        seen = self._statistics[self._leaders[path]]
        lora_a = seen.components[: target.rank].clone()
        if self.config.eva_whiten:
            lora_a /= seen.singular_values[: target.rank].sqrt()[:, None]
        return StartingFactors(lora_a, torch.zeros(target.out_features, target.rank))


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
