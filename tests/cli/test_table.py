import json
from dataclasses import dataclass

import pytest

from luthier.cli.table import print_found, print_table


@dataclass
class Thing:
    name: str
    size: int


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "bb"), [("long", "x"), ("y", "")])
    assert capsys.readouterr().out == "a     bb\nlong  x\ny\n"


def test_what_is_found_is_a_table_json_or_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*found: Thing, as_json: bool = False) -> str:
        print_found(
            found,
            as_json=as_json,
            empty="nothing",
            header=("thing",),
            cells=lambda thing: (thing.name,),
        )
        return capsys.readouterr().out

    assert printed() == "nothing\n"
    assert printed(Thing("bow", 3)) == "thing\nbow\n"
    assert json.loads(printed(Thing("bow", 3), as_json=True)) == [{"name": "bow", "size": 3}]
    assert json.loads(printed(as_json=True)) == []
