"""The settings of a server as frozen types: one dataclass per level of config.yml.

config.yml holds the defaults, the units and what each key means; the types here hold what may be
written there. A key needs both, and a test compares them. Nothing below the doors reads this:
doors hand plain values down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

LOG_LEVELS = (
    "off", "fatal", "error", "warning", "info", "trace", "debug", "debug1", "debug2", "debug3",
    "debug4",
)  # fmt: skip
TORCH_DTYPES = ("float32", "bfloat16", "float16")
ENGINE_WEIGHTS = ("float", "int8")
MAX_INT = 2**63 - 1

#: The key that stands for "all others" in ``training_data_limit``.
DEFAULT_KEY = "__default__"


@dataclass(frozen=True)
class Bounds:
    """The numbers a setting may take, ends included; ``above`` excludes its own value."""

    minimum: float = -MAX_INT
    maximum: float = MAX_INT
    above: float | None = None

    def violation(self, value: float) -> str | None:
        """What is wrong with ``value``, as the middle of a message, or None."""
        if self.above is not None and value <= self.above:
            return f"must be greater than {self.above:g}"
        if value < self.minimum:
            return f"must be at least {self.minimum:g}"
        if value > self.maximum:
            return f"must be at most {self.maximum}"
        return None

    def __str__(self) -> str:
        lowest = f"> {self.above:g}" if self.above is not None else f">= {self.minimum:g}"
        return lowest if self.maximum == MAX_INT else f"{self.minimum:g} to {self.maximum:g}"


@dataclass(frozen=True)
class Choice:
    """The words a setting may take."""

    words: tuple[str, ...]

    def violation(self, value: str) -> str | None:
        """What is wrong with ``value``, as the middle of a message, or None."""
        return None if value in self.words else f"must be one of {', '.join(self.words)}"

    def __str__(self) -> str:
        return ", ".join(self.words)


@dataclass(frozen=True)
class Pattern:
    """The form a text must have, as a regular expression that matches the whole of it."""

    expression: str
    meaning: str

    def violation(self, value: str) -> str | None:
        """What is wrong with ``value``, as the middle of a message, or None."""
        matches = re.fullmatch(self.expression, value) is not None
        return None if matches else f"must be {self.meaning}"

    def __str__(self) -> str:
        return self.meaning


Port = Annotated[int, Bounds(0, 65535)]
PositiveInt = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
PositiveSeconds = Annotated[float, Bounds(above=0, maximum=10**9)]
SecondsOrZero = Annotated[float, Bounds(0, 10**9)]
RowLimit = Annotated[int, Bounds(-1)]
NonEmptyText = Annotated[str, Pattern(r"(?s).*\S.*", "a text that is not empty")]
LogLevel = Annotated[str, Choice(LOG_LEVELS)]
LogFilters = Annotated[
    str,
    Pattern(
        rf"\s*|\s*[^:,\s]+:({'|'.join(LOG_LEVELS)})\s*(,\s*[^:,\s]+:({'|'.join(LOG_LEVELS)})\s*)*",
        "a list like 'luthier.inference:debug,httpx:warning'",
    ),
]
Device = Annotated[
    str, Pattern(r"auto|cpu|mps|cuda(:\d{1,3})?", "auto, cpu, mps, cuda or cuda:<index>")
]
RoutePrefix = Annotated[
    str, Pattern(r"[\w-]+(/[\w-]+)*", "a path like 'api/v1', without a slash at either end")
]
Identifier = Annotated[str, Pattern(r"[A-Za-z][A-Za-z0-9]*", "letters and digits")]
DottedName = Annotated[
    str, Pattern(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", "names joined by dots, like 'caikit.runtime.Nlp'")
]


@dataclass(frozen=True)
class LogConfig:
    """``log``: what is logged and how."""

    level: LogLevel
    filters: LogFilters
    formatter: Annotated[str, Choice(("json", "pretty"))]
    channel_width: Annotated[int, Bounds(1, 200)]
    thread_id: bool


@dataclass(frozen=True)
class InferenceLimits:
    """``inference.limits``: what one request may ask for."""

    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    max_stop_sequences: CountOrZero
    max_stop_sequence_chars: PositiveInt
    max_time_seconds: PositiveSeconds
    max_n: PositiveInt
    max_beams: PositiveInt


@dataclass(frozen=True)
class AdaptersConfig:
    """``inference.adapters``: memory for the deltas of LoRAs, for each base model."""

    max_device_bytes: PositiveInt
    max_host_bytes: CountOrZero
    max_load_seconds: SecondsOrZero
    merge_after_steps: CountOrZero
    max_merged_bytes: CountOrZero


@dataclass(frozen=True)
class EngineProcessConfig:
    """``inference.process``: engines in processes of their own."""

    enabled: bool
    start_seconds: PositiveSeconds
    stop_seconds: PositiveSeconds
    restart_seconds: SecondsOrZero
    max_restart_seconds: PositiveSeconds
    max_adapter_bytes: PositiveInt


@dataclass(frozen=True)
class InferenceConfig:
    """``inference``: the engines."""

    max_running: PositiveInt
    max_beam_rows: PositiveInt
    max_waiting: CountOrZero
    max_waiting_per_tenant: CountOrZero
    tenant_weights: Mapping[str, PositiveInt]
    max_priority: CountOrZero
    ageing_steps: PositiveInt
    turn_tokens: PositiveInt
    max_step_tokens: CountOrZero
    prompt_lookup_tokens: Annotated[int, Bounds(0, 64)]
    prompt_lookup_max_rows: PositiveInt
    weights: Annotated[str, Choice(ENGINE_WEIGHTS)]
    max_kv_bytes: PositiveInt
    max_prefix_bytes: CountOrZero
    num_threads: PositiveInt
    max_step_seconds: SecondsOrZero
    adapters: AdaptersConfig
    process: EngineProcessConfig
    limits: InferenceLimits


@dataclass(frozen=True)
class TrainingLimits:
    """``training.limits``: what one training may ask for."""

    max_virtual_tokens: PositiveInt
    max_lora_rank: Annotated[int, Bounds(1, 65536)]
    max_classes: PositiveInt
    max_batch_size: PositiveInt
    max_epochs: PositiveInt
    max_accumulate_steps: PositiveInt
    max_processes: Annotated[int, Bounds(1, 4096)]
    max_source_length: PositiveInt
    max_target_length: PositiveInt
    max_rows: PositiveInt
    max_row_chars: Annotated[int, Bounds(1, 2**31 - 1)]
    max_json_bytes: Annotated[int, Bounds(1, 2**40)]
    max_files: PositiveInt
    max_unpacked_bytes: PositiveInt
    max_unpack_ratio: PositiveInt
    max_model_name_chars: Annotated[int, Bounds(1, 255)]


@dataclass(frozen=True)
class FusionConfig:
    """``training.fusion``: trainings over one base model in one process."""

    max_pass_tokens_cpu: Annotated[int, Bounds(-1)]
    max_pass_tokens_gpu: Annotated[int, Bounds(-1)]
    largest_measured_pass: PositiveInt
    measure_seconds: PositiveSeconds
    max_live_jobs: Annotated[int, Bounds(1, 4096)]

    def max_pass_tokens(self, device_type: str) -> int:
        """Most tokens of a shared pass on a device of this type (``cpu``, ``cuda`` …); -1 to
        measure it."""
        return self.max_pass_tokens_cpu if device_type == "cpu" else self.max_pass_tokens_gpu


@dataclass(frozen=True)
class TrainingConfig:
    """``training``: bounds of trainings, wherever they run."""

    limits: TrainingLimits
    fusion: FusionConfig


@dataclass(frozen=True)
class GrpcConfig:
    """``runtime.grpc``: the gRPC server."""

    enabled: bool
    port: Port
    max_message_bytes: Annotated[int, Bounds(1024, 2**31 - 1)]
    reflection_enabled: bool


@dataclass(frozen=True)
class HttpConfig:
    """``runtime.http``: the HTTP server."""

    enabled: bool
    port: Port
    route_prefix: RoutePrefix
    max_body_bytes: Annotated[int, Bounds(1024)]


@dataclass(frozen=True)
class JobsConfig:
    """``runtime.training``: trainings that the server runs, and where their models go."""

    output_dir: str
    save_with_id: bool
    max_running_jobs: PositiveInt
    max_waiting_jobs: CountOrZero
    cancel_grace_seconds: SecondsOrZero
    keep_ended_jobs_hours: Annotated[float, Bounds(0, 10**6)]


@dataclass(frozen=True)
class ServiceGenerationConfig:
    """``runtime.service_generation``: the names on the gRPC wire."""

    domain: Identifier
    package: DottedName


@dataclass(frozen=True)
class RuntimeConfig:
    """``runtime``: the servers."""

    host: NonEmptyText
    local_models_dir: NonEmptyText
    max_loaded_models: PositiveInt
    check_adapters: bool
    drain_seconds: SecondsOrZero
    grpc: GrpcConfig
    http: HttpConfig
    training: JobsConfig
    service_generation: ServiceGenerationConfig

    @property
    def training_output_dir(self) -> str:
        """Where tuned models are saved: ``training.output_dir``, else ``local_models_dir``."""
        return self.training.output_dir or self.local_models_dir


@dataclass(frozen=True)
class JudgeConfig:
    """``judge``: where the metric ai_judge asks. The key is shown nowhere."""

    base_url: Annotated[str, Pattern(r"|https?://[^@\s]+", "a URL without a user, or empty")]
    api_key: str = field(repr=False)
    max_concurrent: Annotated[int, Bounds(1, 256)]
    max_rows: PositiveInt
    max_attempts: Annotated[int, Bounds(1, 20)]
    timeout_seconds: PositiveSeconds


@dataclass(frozen=True)
class Config:
    """Every setting of a server; ``luthier.config.loader.load_config`` makes it."""

    log: LogConfig
    torch_dtype: Annotated[str, Choice(TORCH_DTYPES)]
    device: Device
    verbalizers: Mapping[str, NonEmptyText]
    allow_request_verbalizers: bool
    allow_request_chat_templates: bool
    base_models_dir: str
    source_prompt_base: str
    allow_downloads: bool
    trust_remote_code: bool
    allow_pickle_weights: bool
    training_data_limit: Mapping[str, RowLimit | Mapping[str, RowLimit]]
    data_roots: tuple[NonEmptyText, ...]
    inference: InferenceConfig
    training: TrainingConfig
    judge: JudgeConfig
    runtime: RuntimeConfig

    def max_training_rows(self, *, module_id: str, base_model: str) -> int | None:
        """Most train records that ``training_data_limit`` allows for one training.

        Args:
            module_id: The module that is trained.
            base_model: The base model's name, as the request spells it.

        Returns:
            Rows, or None for no limit.
        """
        module = self.training_data_limit.get(module_id, {})
        if isinstance(module, int):
            module = {DEFAULT_KEY: module}
        for limit in (
            module.get(base_model),
            module.get(DEFAULT_KEY),
            self.training_data_limit.get(DEFAULT_KEY),
        ):
            if isinstance(limit, int):
                return limit if limit > 0 else None
        return None
