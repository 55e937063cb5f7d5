"""What the starts of LoRA that look at data have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from luthier.adapters.lora.fresh_factors import factor_dtype, fresh_factors
from luthier.adapters.lora.initialisation import StartingFactors
from luthier.adapters.lora.layers import oriented_weight
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.peft_format import check_state
from luthier.adapters.lora.targets import LoraTarget
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.start_probe import StartProbe
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import InvalidInputError, TrainingDataError

#: Decompositions that are nearly right find this many times the rank.
MORE_PARTS = 4
NUM_ITERATIONS = 4

#: What is kept of what one layer was shown.
StatisticT = TypeVar("StatisticT")


class LoraStart(StartProbe, Generic[StatisticT]):
    """What the three have in common.

    Args:
        adapter: To begin; its factors are placeholders.
        model: The base model's network; not changed.
        targets: Layer path to target, in the order of the model.
        seed: Of the training.

    Raises:
        InvalidInputError: For a rank for which a layer has too few parts.
    """

    #: Parts of a layer's weight that each rank takes; 0 where there are as many as one likes.
    parts_per_rank: ClassVar[int] = 0

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
        #: By layer; where several read the same, by the first of them.
        self._statistics: dict[str, StatisticT] = {}
        for target in targets.values():
            self._require_parts(target)

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

    def _require_parts(self, target: LoraTarget) -> None:
        needed = self.parts_per_rank * target.rank
        most = min(target.in_features, target.out_features)
        if needed > most:
            raise InvalidInputError(
                f"initialisation {self.config.initialisation!r}: rank {target.rank} needs {needed} "
                f"parts of layer {target.path!r}, which has {target.in_features} inputs and "
                f"{target.out_features} outputs, at most {most}"
            )
