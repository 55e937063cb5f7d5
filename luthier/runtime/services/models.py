"""What is served: deploy, undeploy, look at."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import alog
from caikit.interfaces.runtime.data_model import ModelInfo, ModelInfoResponse, UndeployModelRequest

from luthier.errors import ConflictError, InvalidInputError, ModelNotFoundError
from luthier.files.names import check_name
from luthier.runtime.folders import HIDDEN_PREFIX, publish_folder
from luthier.runtime.registry.model_folder import CONFIG_FILE
from luthier.runtime.registry.registry import ModelRegistry
from luthier.runtime.registry.served_module import LoadModule, ServedModule

log = alog.use_channel(__name__)

#: Folders that a deployed file's name may go through, itself included.
MAX_FILE_DEPTH = 6
MAX_FILES = 1000


class ModelsService:
    """Puts models into the served folder and takes them out of it.

    Args:
        registry: Serves that folder.
        load: Reads a saved model; tells whether what was deployed is one.
    """

    def __init__(self, registry: ModelRegistry, load: LoadModule) -> None:
        self._registry = registry
        self._models = registry.models
        self._load = load

    async def deploy(self, model_id: str, files: Mapping[str, bytes]) -> ModelInfo:
        """Serve a model whose files come with the request.

        Args:
            model_id: Its name; must be free.
            files: Path below the model's folder to content; one is ``config.yml``.

        Returns:
            The model.

        Raises:
            NameNotAllowedError: If the id or a file's name leaves the folder.
            ConflictError: If there is a model of this name.
            ArtifactError: If the files are no model that can be loaded; nothing stays behind.
        """
        final = self._models.folder_of(model_id)
        _check_files(files)
        await asyncio.to_thread(self._require_free, model_id)
        staging = self._models.path / f"{HIDDEN_PREFIX}deploy-{uuid.uuid4().hex}"
        # Under its own name already: errors of the loader name the folder.
        staged = staging / model_id
        try:
            await asyncio.to_thread(_write_files, staged, files)
            await asyncio.to_thread(self._try, staged)
            await asyncio.to_thread(self._require_free, model_id)
            await asyncio.to_thread(publish_folder, staged, final)
        finally:
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
        log.info("model deployed: model_id=%s", model_id)
        return await self._info(model_id)

    async def undeploy(self, model_id: str) -> UndeployModelRequest:
        """Stop serving a model and delete its folder; requests that run with it may end.

        Args:
            model_id: A served model's name.

        Returns:
            The name again.

        Raises:
            NameNotAllowedError: If it is no model's name.
            ModelNotFoundError: If there is no such model.
        """
        await asyncio.to_thread(self._models.remove, model_id)
        self._registry.retire(model_id)
        log.info("model undeployed: model_id=%s", model_id)
        return UndeployModelRequest(model_id)

    async def describe(self, model_ids: Sequence[str] = ()) -> ModelInfoResponse:
        """The models that are served, loaded or not.

        Args:
            model_ids: Which ones; all if empty.

        Returns:
            One entry per model, sorted by name if all were asked for.

        Raises:
            ModelNotFoundError: If one of ``model_ids`` is not served.
        """
        names = list(model_ids) or await asyncio.to_thread(self._models.names)
        models = []
        for name in names:
            try:
                models.append(await self._info(name))
            except ModelNotFoundError:
                # Undeployed since the folder was listed.
                if model_ids:
                    raise
        return ModelInfoResponse(models=models)

    async def _info(self, model_id: str) -> ModelInfo:
        module = self._registry.loaded_module(model_id)
        # In a thread: a model may have many files, on a disk that is not here.
        return await asyncio.to_thread(self._describe, model_id, module)

    def _describe(self, model_id: str, module: ServedModule | None) -> ModelInfo:
        self._models.version_of(model_id)
        return ModelInfo(
            model_path=str(self._models.folder_of(model_id)),
            name=model_id,
            size=self._models.size_bytes(model_id),
            metadata=None,
            loaded=module is not None,
            module_id=module.MODULE_ID if module else self._models.module_id(model_id),
            module_metadata={"name": module.MODULE_NAME} if module else None,
        )

    def _require_free(self, model_id: str) -> None:
        if self._models.folder_of(model_id).exists():
            raise ConflictError(f"model {model_id!r} exists already; undeploy it first")
        self._models.require_no_lookalike(model_id)

    def _try(self, folder: Path) -> None:
        self._load(folder).release()


def _check_files(files: Mapping[str, bytes]) -> None:
    if not files:
        raise InvalidInputError("'model_files' is empty; a model has at least a config.yml")
    if len(files) > MAX_FILES:
        raise InvalidInputError(f"{len(files)} model_files, at most {MAX_FILES} are allowed")
    for name in files:
        check_name(name, what="name in model_files", max_parts=MAX_FILE_DEPTH)
    if CONFIG_FILE not in files:
        raise InvalidInputError(f"no {CONFIG_FILE!r} among the model_files")


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        file = folder / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise InvalidInputError(
                f"{name[:80]!r} in model_files is both a file and a folder"
            ) from error
