"""caikit's and caikit-nlp's settings that Luthier does without, and what to do instead.

Users of caikit-nlp bring their configuration. Keys that mean the same have the same names here.
A key that changes nothing any more is left out with a warning; one whose effect somebody may rely
on is refused, and the message says what replaces it. As environment variables both only warn,
because the same environment often serves other programs too.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.config.settings import env_name


@dataclass(frozen=True)
class CaikitKey:
    """One of caikit's settings.

    Args:
        key: Its dotted path; all keys below it are meant as well.
        advice: What holds here instead.
        is_refused: False if leaving it out is harmless.
    """

    key: str
    advice: str
    is_refused: bool = False

    @property
    def env_name(self) -> str:
        """Its environment variable, or the beginning of those below it."""
        return env_name(self.key)


_LOADS_LAZILY = "a model is loaded on its first request, as soon as its folder is complete"
_NO_POOL = "requests wait in coroutines, not in a thread pool; inference.max_running bounds them"
_BATCHES = "the engine batches by itself; inference.max_running is the number of rows"
_TGIS = "models run in this process; there is no TGIS server"
_FIXED_SERVICES = "the services on the wire are always the same ones"
_PROBES = "a probe of health sets its own time-out"
_STOPS = "set runtime.drain_seconds"

CAIKIT_KEYS = (
    CaikitKey("runtime.library", "Luthier always serves its own modules"),
    CaikitKey("runtime.lazy_load_local_models", _LOADS_LAZILY),
    CaikitKey("runtime.lazy_load_poll_period_seconds", _LOADS_LAZILY),
    CaikitKey("runtime.lazy_load_retries", _LOADS_LAZILY),
    CaikitKey("runtime.lazy_load_write_detection_period_seconds", _LOADS_LAZILY),
    CaikitKey("runtime.load_new_local_models", _LOADS_LAZILY),
    CaikitKey("runtime.wait_for_initial_model_loads", _LOADS_LAZILY),
    CaikitKey("runtime.load_threads", _LOADS_LAZILY),
    CaikitKey("runtime.server_thread_pool_size", _NO_POOL),
    CaikitKey("runtime.grpc.server_thread_pool_size", _NO_POOL),
    CaikitKey("runtime.use_abortable_threads", "a request whose client left always ends"),
    CaikitKey("runtime.grpc.probe_timeout", _PROBES),
    CaikitKey("runtime.http.probe_timeout", _PROBES),
    CaikitKey("runtime.batching", _BATCHES),
    CaikitKey("runtime.metrics", "no metrics server is started"),
    CaikitKey("runtime.trace", "requests are not traced"),
    CaikitKey("runtime.metering", "requests are not metered"),
    CaikitKey("runtime.version_info", "GET /info/version tells the versions"),
    CaikitKey("unload_tgis_prompt_artifacts", _TGIS),
    CaikitKey("tgis_request_timeout", _TGIS),
    CaikitKey("master_addr", "a training runs in one process"),
    CaikitKey("master_port", "a training runs in one process"),
    CaikitKey("enable_error_checks", "input is always checked"),
    CaikitKey("max_exception_log_messages", "set log.level and log.filters"),
    CaikitKey("libraries", "Luthier always serves its own modules"),
    CaikitKey("runtime.tls", "put a proxy that ends TLS in front", is_refused=True),
    CaikitKey("runtime.grpc.server_shutdown_grace_period_seconds", _STOPS, is_refused=True),
    CaikitKey("runtime.http.server_shutdown_grace_period_seconds", _STOPS, is_refused=True),
    CaikitKey("runtime.grpc.maximum_concurrent_rpcs", "set inference.max_waiting", is_refused=True),
    CaikitKey("runtime.grpc.options", "set runtime.grpc.max_message_bytes", is_refused=True),
    CaikitKey("runtime.grpc.unix_socket_path", "the server listens on TCP only", is_refused=True),
    CaikitKey(
        "runtime.http.server_config",
        "set runtime.host, runtime.http.port or runtime.http.max_body_bytes",
        is_refused=True,
    ),
    CaikitKey(
        "model_management",
        "jobs and models are set by runtime.training and runtime.max_loaded_models",
        is_refused=True,
    ),
    CaikitKey("data_streams", "set data_roots", is_refused=True),
    CaikitKey("inference_plugin", "ModelMesh is not offered", is_refused=True),
    CaikitKey("embedding", "embeddings are not offered", is_refused=True),
    *(
        CaikitKey(f"runtime.service_generation.{name}", _FIXED_SERVICES, is_refused=True)
        for name in (
            "enable_inference",
            "enable_training",
            "enable_inference_jobs",
            "module_guids",
            "task_types",
            "backwards_compatibility",
        )
    ),
    CaikitKey("config_files", "set the environment variable CONFIG_FILES", is_refused=True),
    CaikitKey("merge_strategy", "mappings merge and lists are replaced", is_refused=True),
)


def find_caikit_key(key: str) -> CaikitKey | None:
    """The entry that covers the dotted ``key``, or None."""
    for entry in CAIKIT_KEYS:
        if key == entry.key or key.startswith(f"{entry.key}."):
            return entry
    return None


def find_caikit_variable(name: str) -> CaikitKey | None:
    """The entry that covers the environment variable ``name``, or None."""
    for entry in CAIKIT_KEYS:
        if name == entry.env_name or name.startswith(f"{entry.env_name}_"):
            return entry
    return None
