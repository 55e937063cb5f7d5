"""What a classification head is: its classes, and whether a LoRA is tuned below it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.setting import Setting, option


@dataclass(frozen=True)
class HeadOptions:
    """Of a head alone; those of a LoRA below it are ``LoraConfig``'s."""

    labels: tuple[str, ...] = option(
        (),
        "names",
        "Names of the classes, in the head's order; empty takes those of the rows, in order of the "
        "alphabet.",
    )
    use_lora: bool = option(
        True, "bool", "Whether a LoRA is tuned below the head; False tunes the head alone."
    )

    def validate(self, limits: TrainingLimits) -> None:
        """Refuse what cannot be meant; changes nothing.

        Args:
            limits: The server's caps.

        Raises:
            InvalidInputError: Naming the option by its path, and the value.
        """
        for field in dataclasses.fields(self):
            setting: Setting = field.metadata["setting"]
            setting.check(f"head.{field.name}", getattr(self, field.name), limits)
