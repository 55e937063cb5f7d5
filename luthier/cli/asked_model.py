"""The model that a command asks: one of a server, or a saved one on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import InvalidInputError

if TYPE_CHECKING:
    from luthier.client import Client


@contextmanager
def asked_model(
    model: str, url: str, *, local: bool, base_models_dir: Path | None
) -> Iterator[tuple[Client, str]]:
    """A client and the id under which its server knows the model.

    Args:
        model: Id of a served model; locally a saved model's folder.
        url: Address of the server.
        local: Whether a server of one's own loads the folder, for the length of the block.
        base_models_dir: Of that server; None keeps the environment's.

    Yields:
        Client and id.

    Raises:
        InvalidInputError: If the folder holds no saved model.
    """
    # Late, because they cost httpx: ``luthier --help`` shall answer at once.
    if not local:
        from luthier.client import Client

        with Client(url) as client:
            yield client, model
        return
    from luthier.cli.local_runtime import private_runtime

    folder = Path(model).resolve()
    if not (folder / "config.yml").is_file():
        raise InvalidInputError(
            f"'{model}' is no saved model: it holds no config.yml; "
            "with --local give the folder that 'luthier train --local' printed"
        )
    with private_runtime(folder.parent, base_models_dir=base_models_dir) as client:
        yield client, folder.name
