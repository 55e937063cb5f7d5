import pytest

from luthier.cli.table import print_table


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "bb"), [("long", "x"), ("y", "")])
    assert capsys.readouterr().out == "a     bb\nlong  x\ny\n"
