"""LoRA: low-rank deltas beside the linear layers of a frozen base model.

rsLoRA is another scaling, DoRA a learned length per output; PiSSA and OLoRA are starts. The base
model is never touched: ``tuned_model`` puts the deltas into layers of its own around the base's
tensors, so any number of adapters, and the bare base, run side by side in any threads.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.added_tokens import NO_TOKENS, OwnTokens
from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.checksums import checksums_of
from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora.peft_format import TENSOR_PREFIX, write_config
from luthier.adapters.lora.saved_modules import SavedModule, layers_of
from luthier.adapters.lora_factors import LoraFactors
from luthier.adapters.module_tree import own_module_tree
from luthier.adapters.start_probe import AnyProbe
from luthier.adapters.token_rows import TokenRows
from luthier.data_model.options.lora import LoraConfig

_B_SUFFIX = ".lora_B.weight"


class LoraAdapter(Adapter):
    """The deltas of one tuning, and the modules that are trained whole beside them.

    Made by ``lora_building.create_lora`` and ``lora_building.read_lora``.

    Args:
        config: Validated.
        task_type: ``CAUSAL_LM`` or ``SEQ_2_SEQ_LM``.
        target_names: ``target_modules`` as PEFT shall read it.
        is_transposed: Whether the target layers' weights are [in, out], as GPT-2's.
        factors: Layer path to delta, in the order of the model; at least one.
        saved: Module path to the module in its place.
        token_rows: Embeddings of some tokens, or None.
    """

    method: ClassVar[str] = "lora"

    def __init__(
        self,
        *,
        config: LoraConfig,
        task_type: str,
        target_names: list[str] | str,
        is_transposed: bool,
        factors: Mapping[str, LoraFactors],
        saved: Mapping[str, SavedModule],
        token_rows: TokenRows | None = None,
    ) -> None:
        self.config = config
        self.task_type = task_type
        self.factors = dict(factors)
        self.saved = dict(saved)
        self.token_rows = token_rows
        # What is done to single layers, if nothing else is done.
        layers = layers_of(self.saved) or {}
        is_by_layers = bool(layers) or not self.saved
        if token_rows is not None:
            is_by_layers = is_by_layers and layers.keys().isdisjoint(token_rows.paths)
        self._whole_layers = layers if is_by_layers else None
        self._target_names = target_names
        self._is_transposed = is_transposed
        self._moved: tuple[object, Self] | None = None
        self._trees: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()
        self._probe: AnyProbe | None = None
        self._asked: LoraConfig | None = None
        self._lock = threading.Lock()

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random numbers."""
        return self.config.dropout > 0

    def learning_rate_factor(self, name: str) -> float:
        """LoRA+: B may learn faster than A and all else.

        Args:
            name: As ``named_parameters`` gives it.

        Returns:
            ``lora_plus_ratio`` for B, 1 otherwise. (PEFT gives vectors the rate of B as well; the
            paper does not.)

        Source:
            Hayou et al. 2024, arXiv 2402.12354.
        """
        return self.config.lora_plus_ratio if name.endswith(_B_SUFFIX) else 1.0

    @property
    def max_rank(self) -> int:
        """The largest rank of any layer, as serving sees it: twice R for PiSSA and OLoRA."""
        return max(factors.stacked()[0].shape[0] for factors in self.factors.values())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Factors, magnitudes, and the learned parameters of whole modules, shared ones once.

        Names are PEFT's without its prefix: ``<layer>.lora_A.weight`` …
        """
        for path, factors in self.factors.items():
            yield f"{path}.lora_A.weight", factors.lora_a
            if factors.trains_b:
                yield f"{path}.lora_B.weight", factors.lora_b
            if factors.magnitude is not None:
                yield f"{path}.lora_magnitude_vector", factors.magnitude
        if self.token_rows is not None:
            yield self.token_rows.name, self.token_rows.rows
        seen: set[int] = set()
        for path, module in self.saved.items():
            for name, parameter in module.network.named_parameters():
                if name in module.learned and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}", parameter

    def soft_prompt(self) -> SoftPromptTensors:
        """None: the input stays as it is."""
        return SoftPromptTensors()

    def start_probe(self) -> AnyProbe | None:
        """What must look at data first, if the initialisation says so."""
        return self._probe

    def start_settings(self) -> dict[str, Any]:
        """All that was asked for, if ranks and layers were found by looking at data."""
        if self._asked is None:
            return {}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self._asked).items()
        }

    def begin_with(self, probe: AnyProbe) -> None:
        """Have a probe give this adapter its first numbers, before anybody uses it.

        Args:
            probe: Will call ``restart``.
        """
        self._probe, self._asked = probe, self.config

    def restart(self, config: LoraConfig, factors: Mapping[str, LoraFactors]) -> None:
        """Take other factors instead of the placeholders, before anybody uses this adapter.

        Args:
            config: With the ranks and layers that were found.
            factors: Layer path to delta.
        """
        if config.target_modules != self.config.target_modules:
            names = config.target_modules
            self._target_names = names if isinstance(names, str) else list(names or ())
        self.config, self.factors, self._probe = config, dict(factors), None
        self._trees.clear()
        self._moved = None

    def linear_deltas(self) -> Mapping[str, LoraFactors]:
        """The deltas, unless modules that are more than their layers were trained beside them."""
        return {} if self._whole_layers is None else self.factors

    def added_tokens(self) -> Mapping[str, int]:
        """The markers, if they became tokens."""
        return NO_TOKENS if self.token_rows is None else self.token_rows.added_ids

    def own_tokens(self) -> OwnTokens | None:
        """The markers with their embeddings, if they became tokens."""
        return None if self.token_rows is None else self.token_rows.own_tokens()

    def whole_modules(self) -> Mapping[str, nn.Module]:
        """The layers of the modules that were trained whole."""
        return self._whole_layers or {}

    def replaced_rows(self) -> TokenRows | None:
        """The embeddings of tokens of the base that were trained."""
        rows = self.token_rows
        return None if rows is None or rows.texts or self._whole_layers is None else rows

    def whole_layers(self) -> frozenset[str]:
        """Told without any tensor."""
        rows = self.replaced_rows()
        return frozenset(self.whole_modules()) | frozenset(() if rows is None else rows.paths)

    def tuned_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The base's network with the deltas in it, made at the first call (some milliseconds).

        Its layers are its own, its tensors the base's and this adapter's: what training changes in
        the adapter is seen at once. Thread-safe.

        Args:
            model: The base's network; not changed.

        Returns:
            The same object at every call.
        """
        with self._lock:
            tree = self._trees.get(model)
            if tree is None:
                tree = self._trees[model] = self._build_tree(model)
            return tree

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``LoraConfig`` for the untouched base model, whatever the start was."""
        return write_config(
            self.config,
            task_type=self.task_type,
            target_modules=self._target_names,
            modules_to_save=self.saved,
            is_transposed=self._is_transposed,
            is_stacked=self._is_stacked,
            added_indices=self._added_indices(),
        )

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """``base_model.model.<layer>.lora_A.weight`` …; for PiSSA and OLoRA of twice the rank."""
        state: dict[str, torch.Tensor] = {}
        for path, factors in self.factors.items():
            lora_a, lora_b = factors.stacked()
            state[f"{path}.lora_A.weight"] = lora_a
            state[f"{path}.lora_B.weight"] = lora_b
            if factors.magnitude is not None:
                state[f"{path}.lora_magnitude_vector"] = factors.magnitude
        if self.token_rows is not None:
            state[self.token_rows.name] = self.token_rows.rows
        seen: set[int] = set()
        for path, module in self.saved.items():
            for name, tensor in module.network.state_dict().items():
                # A safetensors file has no room for one tensor under two names.
                is_shared = tensor.data_ptr() in seen
                seen.add(tensor.data_ptr())
                state[f"{path}.{name}"] = tensor.clone() if is_shared else tensor
        return {TENSOR_PREFIX + name: tensor.detach() for name, tensor in state.items()}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` (self if nothing changes).

        The last copy is kept while no tensor changes, so that serving one adapter in the precision
        of its base does not copy it for each request.
        """
        tensors = self._changing_tensors()
        if all(t.device == device and t.dtype == dtype for t in tensors):
            return self
        state = (device, dtype, checksums_of(tensors))
        with self._lock:
            if self._moved is None or self._moved[0] != state:
                self._moved = (state, self._copied(device=device, dtype=dtype))
            return self._moved[1]

    def snapshot(self) -> Self:
        """A copy with tensors of its own; see ``Adapter``."""
        return self._copied()

    def _copied(
        self, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """A copy, each tensor where and what it was unless it is said otherwise."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to(
                device=device or tensor.device, dtype=dtype or tensor.dtype, copy=True
            )

        memo: dict[int, Any] = {}
        saved = {
            path: replace(module, network=copy.deepcopy(module.network, memo))
            for path, module in self.saved.items()
        }
        for module in saved.values():
            module.network.to(device=device, dtype=dtype)
        return type(self)(
            config=self.config,
            task_type=self.task_type,
            target_names=self._target_names,
            is_transposed=self._is_transposed,
            factors={path: factors.moved(move) for path, factors in self.factors.items()},
            saved=saved,
            token_rows=None if self.token_rows is None else self.token_rows.moved(move),
        )

    def _changing_tensors(self) -> list[torch.Tensor]:
        """All that may change after the adapter was made, some twice."""
        tensors: list[torch.Tensor] = []
        for factors in self.factors.values():
            tensors += (factors.lora_a, factors.lora_b)
        return [*tensors, *(parameter for _, parameter in self.named_parameters())]

    def _hashed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.peft_state().items()

    def _settings(self) -> list[object]:
        return [self.peft_config()]

    def _added_indices(self) -> dict[str, list[int]] | list[int] | None:
        """As PEFT wants them: by path where a model has several tables, of which one is meant."""
        rows = self.token_rows
        if rows is None or not rows.texts:
            return None
        indices = list(rows.indices)
        return {rows.path: indices} if self.task_type == "SEQ_2_SEQ_LM" else indices

    @property
    def _is_stacked(self) -> bool:
        return any(factors.start_a is not None for factors in self.factors.values())

    def _build_tree(self, model: PreTrainedModel) -> PreTrainedModel:
        tree = own_module_tree(model)
        for path, factors in self.factors.items():
            layer = LoraLinear(tree.get_submodule(path), factors, dropout=self.config.dropout)
            tree.set_submodule(path, layer)
        for path, module in self.saved.items():
            tree.set_submodule(path, module.network)
        if self.token_rows is not None:
            self.token_rows.install(tree)
        return tree
