"""Typed clients of the HTTP API. Light: neither torch nor caikit is imported."""

from luthier.client.async_client import AsyncClient
from luthier.client.results import (
    GeneratedChunk,
    GeneratedText,
    GeneratedToken,
    JobState,
    LabelScore,
    ModelInfo,
    Tokenization,
    TrainingJob,
    TrainingMetric,
    TrainingStatus,
)
from luthier.client.sync_client import Client
from luthier.client.training_calls import ServerFile
from luthier.client.transport import DEFAULT_URL

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Client",
    "GeneratedChunk",
    "GeneratedText",
    "GeneratedToken",
    "JobState",
    "LabelScore",
    "ModelInfo",
    "ServerFile",
    "Tokenization",
    "TrainingJob",
    "TrainingMetric",
    "TrainingStatus",
]
