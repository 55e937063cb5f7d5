"""Every setting of the shared list stands in docs/settings.md: as ours, or with the reason."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from fixtures.reference_settings import reference_rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.mark.parametrize(("section", "column"), [(1, 1), (3, 1), (5, 0)])
def test_every_setting_of_the_list_stands_in_the_document(section: int, column: int) -> None:
    rows = documented()
    missing = []
    for cells in reference_rows(section):
        name = cells[column].partition(",")[0].removesuffix(" (optional)")
        if not name or name.endswith("…"):
            continue
        state = rows.get(f"`{name}`")
        if state is None or not (state[1] or state[3] or state[2]):
            missing.append(name)
    assert missing == []


def documented() -> dict[str, list[str]]:
    """First cell of each row of the part about other systems -> the other cells."""
    text = DOCUMENT.read_text(encoding="utf-8")
    part = text.split("<!-- begin: other systems (generated) -->")[1]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return {
        html.unescape(cells[0]).strip(): [cell.strip() for cell in cells[1:]]
        for cells in rows
        if len(cells) == 5
    }
