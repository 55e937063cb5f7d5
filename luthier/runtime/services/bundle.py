"""The services, together: what every door is given."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.runtime.services.inference import InferenceService
from luthier.runtime.services.info import InfoService
from luthier.runtime.services.models import ModelsService
from luthier.runtime.services.prediction_jobs import PredictionJobsService
from luthier.runtime.services.training import TrainingService


@dataclass(frozen=True)
class Services:
    """One of each; the gRPC and the HTTP server share them.

    Args:
        inference: Text in, text out.
        prediction_jobs: The same in the background.
        training: Trainings.
        models: What is served.
        info: Versions and health.
    """

    inference: InferenceService
    prediction_jobs: PredictionJobsService
    training: TrainingService
    models: ModelsService
    info: InfoService
