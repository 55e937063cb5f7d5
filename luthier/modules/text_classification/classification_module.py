"""What a text classification module is, beside how it is trained and saved.

caikit wants each task method written in the module's own class; the rest is here, as for
``text_generation.text_module``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from caikit.interfaces.nlp.data_model import ClassificationResults

from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.data_model.generation import TokenizationResults
from luthier.modules.text_classification.classifier import TextClassifier
from luthier.modules.text_classification.conformance import check_head_conformance
from luthier.modules.text_generation.history import NO_HISTORY, LogLine, TrainingHistory
from luthier.modules.text_generation.text_module import AnyBaseModel, AnyPath
from luthier.resources.base_model import BaseModel


class ClassificationModule(ABC):
    """A base model with a head, ready to classify. Thread-safe.

    No caikit class by itself: caikit wraps a ``load`` defined in one, reads the config a second
    time and carries all of it into the next ``save``.

    Args:
        classifier: Does the work.
        history: How it was trained.
    """

    def __init__(
        self, classifier: TextClassifier, *, history: TrainingHistory = NO_HISTORY
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.history = history

    @classmethod
    def load(cls, model_path: AnyPath, base_model: AnyBaseModel | None = None) -> Self:
        """Read a model that ``save`` wrote.

        Args:
            model_path: The model's folder.
            base_model: The base model, where its name does not find it here.

        Returns:
            The module; it shares its base model's one copy.

        Raises:
            ArtifactError: If the folder is incomplete, damaged or something else.
            BaseModelNotFoundError: If the base model is not here.
        """
        return cls._load_folder(Path(model_path), base_model)

    @classmethod
    @abstractmethod
    def _load_folder(cls, folder: Path, base_model: AnyBaseModel | None) -> Self:
        """Do what ``load`` says."""

    @property
    def base_model(self) -> BaseModel:
        """The frozen base model."""
        return self.classifier.base_model

    @property
    def adapter(self) -> ClassificationHead:
        """The head with what is tuned below it."""
        return self.classifier.head

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the head's order."""
        return self.classifier.labels

    @property
    def verbalizer(self) -> str:
        """The template from the user's text to what the model reads."""
        return self.classifier.verbalizer

    @property
    def training_logs(self) -> tuple[LogLine, ...]:
        """The course of the training: ``{"name": "loss", "data": {"step", "value", ...}}``."""
        return self.history.lines

    async def aclassify(self, text: str) -> ClassificationResults:
        """``run`` on an event loop; cancelling the task frees the row.

        Args:
            text: The user's.

        Returns:
            As ``run``.
        """
        return await self.classifier.arun(text)

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """``run_tokenizer`` on an event loop.

        Args:
            text: The user's.

        Returns:
            As ``run_tokenizer``.
        """
        return await self.classifier.arun_tokenizer(text)

    def check_conformance(self) -> None:
        """Compare what the engine gives with this head to what the training code gives.

        Raises:
            ArtifactError: If they differ, or the head has no effect or gives NaN.
        """
        check_head_conformance(self.base_model, self.adapter, self.classifier.engine)

    def shelve(self) -> None:
        """Leave tuned deltas on disk until a request needs them, for whoever holds many models.

        The folder that the model was loaded from must stay as it is.
        """
        self.classifier.shelve()

    def release(self) -> None:
        """Give the base model back; the module is of no use afterwards. Idempotent."""
        self.classifier.release()
