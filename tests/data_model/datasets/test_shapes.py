"""Known shapes are found by their columns; named columns win; bad cells are refused by place."""

from typing import Any

import pytest

from luthier.data_model.conversations import ChatTrainRecord, TextTrainRecord, Turn
from luthier.data_model.datasets.shapes import DatasetRow, columns_of, shape_of, shape_of_classes
from luthier.data_model.formats.row import Row
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import TrainingDataError

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def _read(cells: Any, **options: Any) -> DatasetRow:
    row = Row("f row 1", cells)
    return shape_of(columns_of(row), DatasetOptions(**options), row.place).read(row)


def _pair(cells: dict[str, Any], **options: Any) -> tuple[str, str]:
    record = _read(cells, **options)
    assert isinstance(record, GenerationTrainRecord)
    return record.input, record.output


@pytest.mark.parametrize(
    ("cells", "pair"),
    [
        ({"input": "q", "output": "a", "note": "x"}, ("q", "a")),
        ({"prompt": "q", "completion": "a"}, ("q", "a")),
        ({"question": "q", "answer": "a"}, ("q", "a")),
        ({"instruction": "i", "input": "q", "output": "a"}, ("i\n\nq", "a")),
        ({"instruction": "i", "input": "", "output": "a"}, ("i", "a")),
        ({"instruction": "i", "input": None, "output": "a"}, ("i", "a")),
        ({"instruction": "i", "output": "a"}, ("i", "a")),
        ({"text": "q", "label": "spam"}, ("q", "spam")),
        ({"text": "q", "label": 3}, ("q", "3")),
        ({"text": "q", "labels": ["x", "y"]}, ("q", "x,y")),
    ],
)
def test_shapes_of_pairs_are_found(cells: dict[str, Any], pair: tuple[str, str]) -> None:
    assert _pair(cells) == pair


def test_conversations_are_found() -> None:
    expected = _read({"messages": MESSAGES})
    assert isinstance(expected, ChatTrainRecord)
    assert _read({"conversations": SHAREGPT, "id": "x"}) == expected
    with_system = _read({"conversations": SHAREGPT, "system": "s"})
    assert isinstance(with_system, ChatTrainRecord)
    assert [m.role for m in with_system.messages] == ["system", "user", "assistant"]


def test_plain_text_is_found() -> None:
    assert _read({"text": "once upon"}) == TextTrainRecord("once upon")
    assert _read({"a": "once"}, prompt_column=(), answer_column="a") == TextTrainRecord("once")


def test_system_texts_and_parents_make_turns() -> None:
    cells = {"instruction": "q", "output": "a", "system": "s", "id": 7, "parent_id": 3.0}
    assert _read(cells) == Turn("q", "a", "s", "7", "3")
    first = {**cells, "parent_id": float("nan"), "id": "7"}
    assert _read(first) == Turn("q", "a", "s", "7", None)


def test_named_columns_win_over_known_shapes() -> None:
    cells = {"input": "no", "output": "no", "a": "x", "b": 5, "c": "y", "s": "z", "k": 1, "p": ""}
    options: dict[str, Any] = {"prompt_column": ("a", "b"), "answer_column": "c"}
    assert _pair(cells, **options, prompt_column_separator=" | ") == ("x | 5", "y")
    turn = _read(cells, **options, system_column="s", id_column="k", parent_id_column="p")
    assert turn == Turn("x\n\n5", "y", "z", "1", None)


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ("text", {}, "f row 1 must be an object with columns, got str"),
        ({"a": "x"}, {}, "no known shape has the columns 'a'"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, {}, "preferences"),
        ({"input": "x", "output": ""}, {}, "field 'output' is missing or empty"),
        ({"input": "x", "output": None}, {}, "field 'output' is missing or empty"),
        ({"input": ["x"], "output": "y"}, {}, "field 'input' must be text or a number"),
        ({"input": "x", "output": float("inf")}, {}, "field 'output' must be text or a number"),
        ({"text": "x", "labels": [["y"]]}, {}, "field 'labels' must be text or a number"),
        ({"text": "x", "labels": []}, {}, "field 'labels' is missing or empty"),
        ({"messages": None}, {}, "field 'messages' is missing"),
        ({"a": "x"}, {"prompt_column": ("a",), "answer_column": "b"}, "column 'b' is missing"),
    ],
)
def test_bad_cells_are_refused_with_row_and_column(
    cells: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingDataError, match=message):
        _read(cells, **options)


def test_rows_to_classify_have_one_class_each() -> None:
    row = Row("f row 1", {"text": "x", "labels": ["a"]})
    shape = shape_of_classes(shape_of(columns_of(row), DatasetOptions(), row.place), row.place)
    assert shape.read(row) == GenerationTrainRecord(input="x", output="a")
    with pytest.raises(TrainingDataError, match="f row 2 has 2 labels; a classification gives"):
        shape.read(Row("f row 2", {"text": "x", "labels": ["a", "b"]}))


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ({"text": "x"}, "plain text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "conversations"),
        ({"prompt": "x", "answer": "y", "system": "z"}, "conversations"),
    ],
)
def test_rows_without_a_class_are_not_classified(cells: dict[str, Any], kind: str) -> None:
    row = Row("f row 1", cells)
    shape = shape_of(columns_of(row), DatasetOptions(), row.place)
    with pytest.raises(TrainingDataError, match=f"f row 1: .*these rows are {kind}"):
        shape_of_classes(shape, row.place)
