"""What every module is, beside its task and how it is trained and saved."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

from luthier.adapters.base import Adapter
from luthier.data_model.generation import TokenizationResults
from luthier.modules.environment import Environment, environment
from luthier.modules.leasing import AnyBaseModel, AnyPath
from luthier.modules.planning.train_plan import TrainingPlan
from luthier.modules.saving.history import NO_HISTORY, LogLine, TrainingHistory
from luthier.modules.task_methods import declare_task_methods
from luthier.modules.text_runner import TextRunner
from luthier.resources.base_model import BaseModel
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_style import PromptStyle

Runner = TypeVar("Runner", bound=TextRunner)

NO_CONFIG: Mapping[str, Any] = MappingProxyType({})


class TunedModule(ABC, Generic[Runner]):
    """A base model with or without something tuned, ready to run. Thread-safe.

    No caikit class by itself: caikit wraps a ``load`` defined in one, reads the config a second
    time and carries all of it into the next ``save``. Of a module's own class it wants ``train``
    alone, whose signature becomes the request; so each module spells and documents all of its
    arguments, though most are those of the others.

    Args:
        runner: Does the work.
        history: How it was trained.
    """

    #: Task methods by name, each with what its task's ``taskmethod()`` gives.
    TASK_METHODS: ClassVar[Mapping[str, Callable[[Any], Any]]] = MappingProxyType({})
    #: Makes the plan of a training from its arguments.
    PLAN: ClassVar[Callable[..., TrainingPlan]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declare_task_methods(cls, cls.TASK_METHODS)

    def __init__(self, runner: Runner, *, history: TrainingHistory = NO_HISTORY) -> None:
        super().__init__()
        self._runner = runner
        self.history = history

    @classmethod
    def plan_train(cls, **arguments: Any) -> TrainingPlan:
        """Check everything about a training that can be known without the weights.

        Args:
            **arguments: Of ``train``.

        Returns:
            What ``train`` would do.

        Raises:
            LuthierError: If it would fail.
        """
        module_id: str = cls.MODULE_ID  # type: ignore[attr-defined]  # caikit's decorator adds it
        return cls.PLAN(arguments, module_id=module_id, environment=environment())

    @classmethod
    def load(cls, model_path: AnyPath, base_model: AnyBaseModel | None = None) -> Self:
        """Read a model that ``save`` or caikit-nlp wrote.

        Args:
            model_path: The model's folder.
            base_model: The base model of an adapter, where its name does not find it here.

        Returns:
            The module. An adapter shares its base model's one copy.

        Raises:
            ArtifactError: If the folder is incomplete, damaged or something else.
            BaseModelNotFoundError: If the base model is not here.
        """
        return cls._load_folder(Path(model_path), base_model)

    @classmethod
    @abstractmethod
    def _load_folder(cls, folder: Path, base_model: AnyBaseModel | None) -> Self:
        """Do what ``load`` says."""

    @classmethod
    @abstractmethod
    def _make_runner(
        cls,
        lease: BaseModelLease,
        here: Environment,
        *,
        adapter: Any = None,
        style: PromptStyle | None = None,
        adapter_folder: Path | None = None,
        config: Mapping[str, Any] = NO_CONFIG,
    ) -> Runner:
        """What runs a base model with an adapter; ``config`` is that of the saved model, if any."""

    @property
    def base_model(self) -> BaseModel:
        """The frozen base model."""
        return self._runner.base_model

    @property
    @abstractmethod
    def adapter(self) -> Adapter | None:
        """The tuned delta."""

    @property
    def training_logs(self) -> tuple[LogLine, ...]:
        """The course of the training: ``{"name": "loss", "data": {"step", "value", ...}}``."""
        return self.history.lines

    @property
    def verbalizer(self) -> str:
        """The template from the user's text to what the model reads."""
        return self._runner.verbalizer

    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the model's tokens; the verbalizer is not applied.

        Args:
            text: Any text.

        Returns:
            The tokens and their count, special ones included.
        """
        return self._runner.run_tokenizer(text)

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """``run_tokenizer`` on an event loop.

        Args:
            text: The user's.

        Returns:
            As ``run_tokenizer``.
        """
        return await self._runner.arun_tokenizer(text)

    @abstractmethod
    def check_conformance(self) -> None:
        """Compare what the engine gives with this adapter to what the training code gives.

        Raises:
            ArtifactError: If they differ, or the adapter has no effect or gives NaN.
        """

    def shelve(self) -> None:
        """Leave tuned deltas on disk until a request needs them, for whoever holds many models.

        The folder that the model was loaded from must stay as it is.
        """
        self._runner.shelve()

    def release(self) -> None:
        """Give the base model back; the module is of no use afterwards. Idempotent."""
        self._runner.release()
