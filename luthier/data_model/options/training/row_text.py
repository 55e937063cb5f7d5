"""What the model reads of a row of input and output."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.setting import option


@dataclass(frozen=True)
class RowTextOptions:
    """The text of a row, and how much of it is kept."""

    max_source_length: int = option(
        256,
        "int",
        "Tokens kept of the verbalized input, from its start.",
        minimum=1,
        limit="max_source_length",
    )
    max_target_length: int = option(
        128,
        "int",
        "Tokens kept of the output, from its start; the end-of-sequence token comes on top.",
        minimum=1,
        limit="max_target_length",
    )
    verbalizer: str = option(
        "{{input}}",
        "text",
        "Template from record fields to the text that the model reads.",
    )
