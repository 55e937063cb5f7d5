"""What a training is asked to be, and where what it makes goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caikit.interfaces.common.data_model.stream_sources import S3Path

from luthier.errors import ConflictError, NameNotAllowedError, NotSupportedError
from luthier.files.atomic_folder import require_replaceable
from luthier.files.names import check_name, resolve_inside
from luthier.runtime.folders import HIDDEN_PREFIX
from luthier.runtime.registry.model_folder import CONFIG_FILE, ModelsDir

JOBS_FOLDER = f"{HIDDEN_PREFIX}jobs"


@dataclass(frozen=True)
class TrainingRequest:
    """A training as a door decoded it.

    Args:
        module_id: The module to train.
        model_name: Name that the tuned model gets.
        parameters: What the request set of the module's train parameters, in JSON's words, without
            the data.
        train_source: caikit's ``DataStreamSource…``, or None.
        validation_source: Likewise.
        output_path: Where to save it, or None for the usual place.
    """

    module_id: str
    model_name: str
    parameters: Mapping[str, Any]
    train_source: Any
    validation_source: Any = None
    output_path: S3Path | None = None


@dataclass(frozen=True)
class TrainingPlaces:
    """Where trainings put what they make.

    Args:
        output_dir: Tuned models; must exist.
        save_with_id: Save as ``<output_dir>/<training id>/<model name>``.
        served: The models that are served, if ``output_dir`` is their folder.
        max_model_name_chars: Longest model name.
    """

    output_dir: Path
    save_with_id: bool = False
    served: ModelsDir | None = None
    max_model_name_chars: int = 128

    @property
    def jobs_folder(self) -> Path:
        """Where jobs have their folders."""
        return self.output_dir / JOBS_FOLDER

    def model_folder(self, request: TrainingRequest, training_id: str) -> Path:
        """Final place of the tuned model.

        Args:
            request: Names the model and maybe a place.
            training_id: Of the training.

        Returns:
            A folder below ``output_dir``.

        Raises:
            NameNotAllowedError: If the model's name or the place leaves ``output_dir``.
            NotSupportedError: If the place is on S3.
            ConflictError: If the name differs from a served model's in case alone, the place is
                inside a model, or what is there is none and would be lost.
        """
        target = self._target(request, training_id)
        require_replaceable(target)
        return target

    def _target(self, request: TrainingRequest, training_id: str) -> Path:
        name = check_name(request.model_name, what="model_name", max_parts=1)
        if len(name) > self.max_model_name_chars:
            raise NameNotAllowedError(
                f"model_name has {len(name)} characters, "
                f"at most {self.max_model_name_chars} are allowed"
            )
        root = self._root(request.output_path)
        if self.save_with_id:
            return root / training_id / name
        if self.served is not None and root == self.output_dir:
            self.served.require_no_lookalike(name)
        return root / name

    def _root(self, output_path: S3Path | None) -> Path:
        if output_path is None:
            return self.output_dir
        given = {name for name in S3Path.fields if getattr(output_path, name)}
        if not given:
            return self.output_dir
        if given != {"path"}:
            raise NotSupportedError(
                "'output_path' names S3 storage, which is not offered; leave it out, or give "
                "a 'path' below the server's output_dir alone"
            )
        root = resolve_inside(self.output_dir, output_path.path, what="output_path")
        folder = self.output_dir
        for part in Path(output_path.path).parts:
            folder /= part
            if (folder / CONFIG_FILE).exists():
                raise ConflictError(
                    f"'output_path' {output_path.path!r} is inside the model {folder.name!r}; "
                    "name another place"
                )
        return root
