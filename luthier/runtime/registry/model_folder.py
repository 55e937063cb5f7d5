"""The folder of served models: each folder in it that holds a ``config.yml`` is one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import ConflictError, ModelNotFoundError, NameNotAllowedError
from luthier.files.names import check_name
from luthier.runtime.folders import HIDDEN_PREFIX, remove_folder

CONFIG_FILE = "config.yml"
#: A look into YAML that costs no parser: a config may be long and only this is wanted.
_MODULE_ID = re.compile(r"""^module_id:\s*["']?([\w-]{1,64})""", re.MULTILINE)


@dataclass(frozen=True)
class Version:
    """Tells one content of a model's folder from the next.

    Args:
        inode: Of the folder's config file.
        modified_ns: Likewise, when it was written, in nanoseconds.
        changed_ns: Likewise, when it got its place on the disk: no copy can keep that.
    """

    inode: int
    modified_ns: int
    changed_ns: int


class ModelsDir:
    """Names to folders, and nothing outside the one folder.

    Args:
        path: The folder; made if need be.
        max_name_chars: Longest model id.
    """

    def __init__(self, path: Path, *, max_name_chars: int = 128) -> None:
        self.path = path
        self._max_name_chars = max_name_chars
        path.mkdir(parents=True, exist_ok=True)

    def folder_of(self, model_id: str) -> Path:
        """Where the model of this name lies or would lie.

        Args:
            model_id: As a request brought it.

        Returns:
            A direct child of the models' folder.

        Raises:
            NameNotAllowedError: If the name is no model's name.
        """
        name = check_name(model_id, what="model id", max_parts=1)
        if len(name) > self._max_name_chars:
            raise NameNotAllowedError(
                f"model id has {len(name)} characters, at most {self._max_name_chars} are allowed"
            )
        return self.path / name

    def version_of(self, model_id: str) -> Version:
        """Which content the model has now.

        Args:
            model_id: As a request brought it.

        Returns:
            Equal as long as the model is the same.

        Raises:
            NameNotAllowedError: If the name is no model's name.
            ModelNotFoundError: If there is no such model.
        """
        try:
            status = os.stat(self.folder_of(model_id) / CONFIG_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(
                f"Model '{model_id}' not loaded: no model of this name is served"
            ) from error
        return Version(status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

    def names(self) -> list[str]:
        """Every model's name, sorted; none while somebody has taken the whole folder away."""
        try:
            entries = list(os.scandir(self.path))
        except FileNotFoundError:
            return []
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(HIDDEN_PREFIX) and Path(entry.path, CONFIG_FILE).is_file()
        )

    def require_no_lookalike(self, model_id: str) -> None:
        """Refuse a new name that differs from an existing one in upper and lower case alone.

        Args:
            model_id: The new name; the same name may exist.

        Raises:
            ConflictError: Naming both.
        """
        for name in self.names():
            if name != model_id and name.casefold() == model_id.casefold():
                raise ConflictError(
                    f"model id {model_id!r} differs from the existing {name!r} in case only"
                )

    def remove(self, model_id: str) -> None:
        """Take a model's folder away.

        Args:
            model_id: As a request brought it.

        Raises:
            NameNotAllowedError: If the name is no model's name.
            ModelNotFoundError: If there is no such model.
        """
        self.version_of(model_id)
        remove_folder(self.folder_of(model_id))

    def size_bytes(self, model_id: str) -> int:
        """Bytes of the model's files.

        Args:
            model_id: As a request brought it.

        Returns:
            Their sum; files that vanish meanwhile count 0.
        """
        return sum(
            file.stat().st_size for file in self.folder_of(model_id).rglob("*") if file.is_file()
        )

    def module_id(self, model_id: str) -> str:
        """The id of the module that the model's config file names.

        Args:
            model_id: As a request brought it.

        Returns:
            The id, or "" if the file does not say.
        """
        text = (self.folder_of(model_id) / CONFIG_FILE).read_text("utf-8", errors="replace")
        match = _MODULE_ID.search(text)
        return match.group(1) if match else ""
