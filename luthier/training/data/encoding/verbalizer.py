"""From a record's fields to what the model reads, by a template such as ``"{{input}}"``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.data_model.checks import require_unicode
from luthier.errors import VerbalizerError

DEFAULT_VERBALIZER = "{{input}}"
#: caikit-nlp's placeholder: a name in double braces, no spaces.
_PLACEHOLDER = re.compile(r"{{([_a-zA-Z0-9]+)}}")
#: What the model shall learn to write; a template that shows it would teach copying.
_LABEL_FIELD = "output"


class Verbalizer:
    """A template, checked once and rendered in one pass per record.

    One pass means that braces inside a record stay what they are: text.

    Args:
        template: Text with at least one ``{{field}}``.

    Raises:
        VerbalizerError: If ``template`` is no text or has no placeholder.
        InvalidInputError: If it is no valid Unicode.

    Example:
        >>> Verbalizer("Tweet: {{input}} Label: ").render({"input": "{{output}}"})
        'Tweet: {{output}} Label: '
    """

    def __init__(self, template: str) -> None:
        if not isinstance(template, str) or not _PLACEHOLDER.search(template):
            raise VerbalizerError(
                "Provided verbalizer is an invalid type or has no renderable placeholders "
                f"such as {{{{input}}}}: {_shown(template)}"
            )
        self.template = require_unicode("verbalizer", template)
        self.fields: tuple[str, ...] = tuple(dict.fromkeys(_PLACEHOLDER.findall(template)))

    def require_trainable(self) -> None:
        """Refuse a template that shows the label to the model.

        Raises:
            VerbalizerError: If the template names ``{{output}}``.
        """
        if _LABEL_FIELD in self.fields:
            raise VerbalizerError(
                f"verbalizer {_shown(self.template)} names {{{{{_LABEL_FIELD}}}}}: the model would "
                "read what it shall learn to write, and nobody could fill it in at inference"
            )

    def render(self, fields: Mapping[str, object], *, row: int | None = None) -> str:
        """The template with each placeholder replaced by its field.

        Args:
            fields: Field name to text; a field that is None counts as missing.
            row: Number of the record, counted from 1, for the message.

        Returns:
            The text for the model.

        Raises:
            VerbalizerError: If a field that the template names is missing or no text; names it,
                and ``row``.
        """

        def value_of(match: re.Match[str]) -> str:
            value = fields.get(match[1])
            if not isinstance(value, str):
                where = "" if row is None else f"row {row}: "
                known = ", ".join(sorted(name for name in fields if name != _LABEL_FIELD))
                what = "missing" if value is None else f"of type {type(value).__name__}"
                raise VerbalizerError(
                    f"{where}the verbalizer names {{{{{match[1]}}}}}, which is {what} in the record"
                    f" (a template can name: {known})"
                )
            return value

        return _PLACEHOLDER.sub(value_of, self.template)


def _shown(template: object) -> str:
    text = repr(template)
    return text if len(text) <= 120 else f"{text[:117]}..."
