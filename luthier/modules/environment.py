"""What the modules need to know of the server they run in: the door through which config comes in.

A runtime hands its config over with ``configure``. A Python user does nothing: the first use reads
config.yml, the files in ``CONFIG_FILES`` and the environment, as a server would.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luthier.config import Config, load_config
from luthier.config.caikit_bridge import apply_to_caikit
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.sampling import SamplingLimits
from luthier.data_model.streams import StreamLimits
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.modules.judging import JudgeEndpoint
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore

Limits = TypeVar("Limits", SamplingLimits, StreamLimits, TrainingLimits)

_lock = threading.RLock()
_current: Environment | None = None


@dataclass(frozen=True)
class Environment:
    """Server-level settings as plain values, and what all modules of a process share.

    Args:
        base_models: One copy of each base model.
        engine_options: For the engines of those.
        sampling_limits: What one request may ask for.
        max_prompt_tokens: Longest prompt of a request, virtual tokens not counted.
        training_limits: What one training may ask for.
        stream_limits: What the data of a request may read.
        source_prompt_base: Folder of source prompts, None for none.
        verbalizers: Templates that a training may name.
        allow_request_verbalizers: Whether a request may bring a template's text.
        allow_request_chat_templates: Whether a request may bring a chat template.
        judge: Where the metric ai_judge asks.
        config: The settings all of the above were made from.
    """

    base_models: BaseModelStore
    engine_options: EngineOptions
    sampling_limits: SamplingLimits
    max_prompt_tokens: int
    training_limits: TrainingLimits
    stream_limits: StreamLimits
    source_prompt_base: Path | None
    verbalizers: Mapping[str, str]
    allow_request_verbalizers: bool
    allow_request_chat_templates: bool
    judge: JudgeEndpoint
    config: Config

    @property
    def models_dir(self) -> Path:
        """Where this server's tuned models are."""
        return Path(self.config.runtime.training_output_dir)

    def max_training_rows(self, *, module_id: str, base_model: str) -> int | None:
        """Most train records that ``training_data_limit`` allows; None is no limit.

        Args:
            module_id: The module that is trained.
            base_model: The base model's name, as the caller spells it.

        Returns:
            Rows, or None.
        """
        return self.config.max_training_rows(module_id=module_id, base_model=base_model)


def environment() -> Environment:
    """The environment of this process, made from config on first use. Thread-safe."""
    global _current
    with _lock:
        if _current is None:
            _current = _from_config(load_config())
        return _current


def configure(config: Config) -> Environment:
    """Replace the environment of this process; modules made before keep what they have.

    Args:
        config: A door's settings.

    Returns:
        The new environment, with an empty store of base models.
    """
    global _current
    made = _from_config(config)
    with _lock:
        _current = made
    return made


def configure_caikit() -> None:
    """Tell caikit the library and the wire's names of this process's config."""
    apply_to_caikit(environment().config)


def _from_config(config: Config) -> Environment:
    return Environment(
        base_models=BaseModelStore(_sources(config)),
        engine_options=_engine_options(config),
        sampling_limits=_limits(SamplingLimits, config.inference.limits),
        max_prompt_tokens=config.inference.limits.max_prompt_tokens,
        training_limits=_limits(TrainingLimits, config.training.limits),
        stream_limits=_limits(
            StreamLimits,
            config.training.limits,
            data_roots=tuple(Path(root) for root in config.data_roots),
        ),
        source_prompt_base=Path(config.source_prompt_base) if config.source_prompt_base else None,
        verbalizers=config.verbalizers,
        allow_request_verbalizers=config.allow_request_verbalizers,
        allow_request_chat_templates=config.allow_request_chat_templates,
        judge=JudgeEndpoint(**dataclasses.asdict(config.judge)),
        config=config,
    )


def _sources(config: Config) -> BaseModelSources:
    return BaseModelSources(
        base_models_dir=Path(config.base_models_dir) if config.base_models_dir else None,
        allow_downloads=config.allow_downloads,
        allow_pickle_weights=config.allow_pickle_weights,
        trust_remote_code=config.trust_remote_code,
        default_dtype=config.torch_dtype,
        default_device=config.device,
        shares_memory=config.inference.process.enabled,
    )


def _engine_options(config: Config) -> EngineOptions:
    inference = config.inference
    return EngineOptions(
        max_running=inference.max_running,
        max_beam_rows=inference.max_beam_rows,
        max_waiting=inference.max_waiting,
        max_waiting_per_tenant=inference.max_waiting_per_tenant,
        tenant_weights=inference.tenant_weights,
        max_priority=inference.max_priority,
        ageing_steps=inference.ageing_steps,
        turn_tokens=inference.turn_tokens,
        max_step_tokens=inference.max_step_tokens or None,
        prompt_lookup_tokens=inference.prompt_lookup_tokens,
        prompt_lookup_max_rows=inference.prompt_lookup_max_rows,
        weights=inference.weights,
        max_kv_bytes=inference.max_kv_bytes,
        max_prefix_bytes=inference.max_prefix_bytes,
        num_threads=inference.num_threads,
        max_step_seconds=inference.max_step_seconds,
        max_adapter_bytes=inference.adapters.max_device_bytes,
        max_host_adapter_bytes=inference.adapters.max_host_bytes,
        max_load_seconds=inference.adapters.max_load_seconds,
        merge_after_steps=inference.adapters.merge_after_steps,
        max_merged_bytes=inference.adapters.max_merged_bytes,
        process=_process_options(config),
    )


def _process_options(config: Config) -> ProcessOptions | None:
    settings = dataclasses.asdict(config.inference.process)
    return ProcessOptions(**settings) if settings.pop("enabled") else None


def _limits(kind: type[Limits], keys: object, **others: Any) -> Limits:
    """Limits that are keys of the same names in a group of the config, but for ``others``."""
    names = {field.name for field in dataclasses.fields(kind)} - others.keys()
    return kind(**{name: getattr(keys, name) for name in names}, **others)
