"""Outside text in messages is short and escaped."""

from luthier.data_model.formats.row import shown


def test_long_and_odd_text_is_cut_and_escaped() -> None:
    assert shown("a") == "'a'"
    assert len(shown("a" * 10_000)) == 82
    assert "\n" not in shown("a\nb")
