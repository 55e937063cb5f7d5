"""What an AI judge is asked about one text, and how its answer is read."""

from __future__ import annotations

import re

from luthier.errors import InvalidInputError

#: Our word for a prompt -> its text.
JUDGE_TEMPLATES = {
    "general": (
        "Rate how well an answer does what its prompt asks for, compared with a reference answer "
        "that is known to be good. Judge what is said, not how long it is.\n\n"
        "[Prompt]\n{{prompt}}\n\n[Reference answer]\n{{reference}}\n\n[Answer to rate]\n"
        "{{answer}}\n\nExplain in one sentence. Then write, on a line of its own, SCORE: and a "
        "number from 0 (useless) to 1 (as good as the reference)."
    ),
}
_FIELDS = ("prompt", "reference", "answer")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_SCORE = re.compile(r"SCORE\s*:\s*([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)


def judge_template(given: str) -> str:
    """The text of a prompt.

    Args:
        given: A word of ``JUDGE_TEMPLATES``, or a text with ``{{answer}}`` and, if wanted,
            ``{{prompt}}`` and ``{{reference}}``.

    Returns:
        The text.

    Raises:
        InvalidInputError: If it is neither.
    """
    if given in JUDGE_TEMPLATES:
        return JUDGE_TEMPLATES[given]
    found = _PLACEHOLDER.findall(given)
    unknown = [name for name in found if name not in _FIELDS]
    if "answer" not in found or unknown:
        raise InvalidInputError(
            f"'judge_template' must be one of {', '.join(JUDGE_TEMPLATES)}, or a text with "
            f"{{{{answer}}}} and perhaps {{{{prompt}}}} and {{{{reference}}}}, got {given[:80]!r}"
        )
    return given


def render_judge_prompt(template: str, *, prompt: str, reference: str, answer: str) -> str:
    """The question to the judge; braces inside the texts stay what they are.

    Args:
        template: From ``judge_template``.
        prompt: What the model read.
        reference: What it should write.
        answer: What it wrote.

    Returns:
        The text of one message.
    """
    texts = {"prompt": prompt, "reference": reference, "answer": answer}
    return _PLACEHOLDER.sub(lambda match: texts[match[1]], template)


def read_score(text: str) -> float | None:
    """The last score that a judge's answer names.

    Args:
        text: The answer.

    Returns:
        A number from 0 to 1, or None if it names none.
    """
    found = _SCORE.findall(text)
    score = float(found[-1]) if found else None
    return score if score is not None and 0 <= score <= 1 else None
