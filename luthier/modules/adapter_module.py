"""Modules of which an adapter is tuned: how they are made, saved and read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self

import alog

from luthier.adapters.base import Adapter
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.options.quantisation import NONE
from luthier.errors import NotSupportedError
from luthier.files.names import resolve_inside
from luthier.modules.environment import environment
from luthier.modules.leasing import (
    AnyBaseModel,
    AnyPath,
    lease_base_model,
    lease_saved_base_model,
)
from luthier.modules.planning.train_plan import AdapterPlan
from luthier.modules.saving.fingerprint import fingerprint, require_same_base
from luthier.modules.saving.history import QUANTIZATION_KEY, TrainingHistory
from luthier.modules.saving.saved_model import (
    ADAPTER_FOLDER,
    read_config,
    style_config,
    style_of,
    text_of,
    writing_model,
)
from luthier.modules.tuned_module import Runner, TunedModule
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

log = alog.use_channel(__name__)


class AdapterModule(TunedModule[Runner]):
    """A shared base model and an adapter of a kind."""

    #: Which adapters the module runs, and that in words.
    ADAPTERS: ClassVar[type[Adapter] | UnionType]
    ADAPTERS_IN_WORDS: ClassVar[str]

    @classmethod
    def _tuned(cls, arguments: dict[str, Any]) -> Self:
        """What ``train`` gives."""
        plan = cls.plan_train(**arguments)
        assert isinstance(plan, AdapterPlan)
        lease = plan.acquire()
        with lease.kept_if_no_error():
            adapter = plan.make_adapter(lease.base_model)
            result = plan.tune(lease.base_model, adapter)
            style = plan.prompt_style(lease.base_model)
            runner = cls._make_runner(lease, plan.environment, adapter=adapter, style=style)
        return cls(runner, history=TrainingHistory.of(result, plan.options))

    @classmethod
    def bootstrap(
        cls,
        base_model: AnyBaseModel,
        adapter: AnyPath | Adapter,
        verbalizer: str = DEFAULT_VERBALIZER,
    ) -> Self:
        """Put an adapter that exists already on a base model.

        Args:
            base_model: Name, path or BaseModel.
            adapter: PEFT's folder of one, or an adapter.
            verbalizer: Template that it was tuned with.

        Returns:
            The module.

        Raises:
            LuthierError: If they do not fit or cannot be read.
        """
        return cls._put_on(base_model, adapter, verbalizer)

    @classmethod
    def _put_on(
        cls,
        base_model: AnyBaseModel,
        adapter: AnyPath | Adapter,
        verbalizer: str,
        *,
        change: Callable[[Any], Adapter] | None = None,
    ) -> Self:
        here = environment()
        lease = lease_base_model(base_model, here)
        with lease.kept_if_no_error():
            if not isinstance(adapter, Adapter):
                adapter = load_adapter(Path(adapter), base_model=lease.base_model)
            adapter = cls._required(adapter)
            if change is not None:
                adapter = change(adapter)
            style = PromptStyle(verbalizer)
            runner = cls._make_runner(lease, here, adapter=adapter, style=style)
        return cls(runner)

    @classmethod
    def _load_folder(cls, folder: Path, base_model: AnyBaseModel | None) -> Self:
        config = read_config(folder)
        adapter_folder = resolve_inside(
            folder, text_of(config, "adapter_path"), what="adapter_path"
        )
        here = environment()
        lease = lease_saved_base_model(
            text_of(config, "base_model_name"),
            base_model,
            here,
            quantization=text_of(config, QUANTIZATION_KEY, default=NONE),
        )
        with lease.kept_if_no_error():
            require_same_base(config, lease.base_model)
            adapter = cls._required(load_adapter(adapter_folder, base_model=lease.base_model))
            runner = cls._make_runner(
                lease,
                here,
                adapter=adapter,
                style=style_of(config),
                adapter_folder=adapter_folder,
                config=config,
            )
        return cls(runner, history=TrainingHistory.read(folder, config))

    @classmethod
    def _required(cls, adapter: Adapter) -> Adapter:
        if not isinstance(adapter, cls.ADAPTERS):
            raise NotSupportedError(
                f"module {cls.__name__} runs {cls.ADAPTERS_IN_WORDS}, this adapter is "
                f"{adapter.method}"
            )
        return adapter

    def save(self, model_path: AnyPath) -> None:
        """Write the adapter as a folder; the base model is named in it, not copied.

        Replaces what is there in one step.

        Args:
            model_path: The folder.
        """
        base, adapter = self.base_model, self._whole_adapter()
        config = {
            "adapter_path": ADAPTER_FOLDER,
            "base_model_fingerprint": fingerprint(base),
            "base_model_name": base.name,
            "trained_torch_dtype": str(base.dtype).removeprefix("torch."),
            **style_config(self._runner.style),
            **self._config(),
        }
        target = Path(model_path)
        with writing_model(self, target, config=config, history=self.history) as folder:
            save_adapter(
                adapter,
                folder / ADAPTER_FOLDER,
                base_model_name=base.name,
                tokenizer=base.tokenizer,
            )
        log.info("saved an adapter", extra={"model": target.name, "method": adapter.method})

    @abstractmethod
    def _whole_adapter(self) -> Adapter:
        """The adapter with its tensors, though they may be on disk."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """What a saved model says besides."""
