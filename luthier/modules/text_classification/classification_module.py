"""What a text classification module is, beside how it is trained and saved."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from caikit.interfaces.nlp.data_model import ClassificationResults
from caikit.interfaces.nlp.tasks import TextClassificationTask, TokenizationTask

from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.modules.environment import Environment
from luthier.modules.text_classification.classifier import DEFAULT_STYLE, TextClassifier
from luthier.modules.text_classification.conformance import check_head_conformance
from luthier.modules.tuned_module import NO_CONFIG, TunedModule
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_style import PromptStyle


class ClassificationModule(TunedModule[TextClassifier]):
    """A base model with a head, ready to classify. Thread-safe."""

    TASK_METHODS: ClassVar[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
        {
            "run": TextClassificationTask.taskmethod(),
            "run_tokenizer": TokenizationTask.taskmethod(),
        }
    )

    @classmethod
    def _make_runner(
        cls,
        lease: BaseModelLease,
        here: Environment,
        *,
        adapter: Any = None,
        style: PromptStyle | None = None,
        adapter_folder: Path | None = None,
        config: Mapping[str, Any] = NO_CONFIG,
    ) -> TextClassifier:
        return TextClassifier(
            lease,
            environment=here,
            head=adapter,
            style=style or DEFAULT_STYLE,
            adapter_folder=adapter_folder,
        )

    @property
    def classifier(self) -> TextClassifier:
        """What does the work."""
        return self._runner

    @property
    def adapter(self) -> ClassificationHead:
        """The head with what is tuned below it."""
        return self.classifier.head

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the head's order."""
        return self.classifier.labels

    def run(self, text: str) -> ClassificationResults:
        """Classify a text.

        Args:
            text: Goes into the verbalizer as ``input``.

        Returns:
            Every class with its probability, the most probable first.
        """
        return self.classifier.run(text)

    async def aclassify(self, text: str) -> ClassificationResults:
        """``run`` on an event loop; cancelling the task frees the row.

        Args:
            text: The user's.

        Returns:
            As ``run``.
        """
        return await self.classifier.arun(text)

    def check_conformance(self) -> None:
        """Compare what the engine gives with this head to what the training code gives.

        Raises:
            ArtifactError: If they differ, or the head has no effect or gives NaN.
        """
        check_head_conformance(self.base_model, self.adapter, self.classifier.engine)
