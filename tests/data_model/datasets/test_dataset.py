"""Splits and samples: repeatable, disjoint, and never through a chain."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data_model.conversations import ChatTrainRecord
from luthier.data_model.datasets.dataset import Dataset, DatasetRecord, load_dataset
from luthier.data_model.formats.opening import StreamLimits
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import InvalidInputError, NameNotAllowedError, TrainingDataError

CHAINED: dict[str, Any] = {
    "prompt_column": ("q",),
    "answer_column": "a",
    "id_column": "n",
    "parent_id_column": "p",
}


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def _pairs(num_rows: int) -> list[dict[str, Any]]:
    return [{"input": f"q{row}", "output": f"a{row}"} for row in range(num_rows)]


def _load(path: Path, rows: list[dict[str, Any]], **options: Any) -> Dataset:
    name = _write(path / "train.jsonl", rows)
    return load_dataset(DatasetOptions(train_dataframe=name, **options))


def _said(record: DatasetRecord) -> str:
    if isinstance(record, GenerationTrainRecord):
        return str(record.input)
    assert isinstance(record, ChatTrainRecord)
    return record.messages[-2].content


def _names(records: Any) -> list[str]:
    return [_said(record) for record in records]


def test_a_share_is_held_out_and_the_rest_is_trained_on(tmp_path: Path) -> None:
    data = _load(tmp_path, _pairs(50), validation_size=0.1)
    train, validation = _names(data.train), _names(data.validation)
    assert len(validation) == 5
    assert sorted(train + validation) == sorted(f"q{row}" for row in range(50))
    assert train == sorted(train, key=lambda name: int(name[1:]))
    assert _names(data.train) == train, "a data set can be read twice"


def test_the_same_seed_holds_out_the_same_rows(tmp_path: Path) -> None:
    def held_out(seed: int) -> list[str]:
        data = _load(tmp_path, _pairs(50), validation_size=0.2, split_seed=seed)
        return _names(data.validation)

    assert held_out(1) == held_out(1)
    assert held_out(1) != held_out(2)


def test_a_sample_keeps_a_share_of_the_chosen_parts(tmp_path: Path) -> None:
    options = {"validation_size": 0.5, "data_sample": 0.3}
    both = _load(tmp_path, _pairs(200), **options)
    assert [len(_names(both.train)), len(_names(both.validation))] == [30, 30]
    train = _load(tmp_path, _pairs(200), **options, data_sample_choice=("Train",))
    assert [len(_names(train.train)), len(_names(train.validation))] == [30, 100]
    small = _load(tmp_path, _pairs(20), validation_size=0, data_sample=0.01)
    assert len(_names(small.train)) == 10


def test_custom_validation_has_its_own_file(tmp_path: Path) -> None:
    validation = _write(tmp_path / "v.jsonl", _pairs(2))
    data = _load(tmp_path, _pairs(9), validation_strategy="custom", validation_dataframe=validation)
    assert len(_names(data.train)) == 9
    assert _names(data.validation) == ["q0", "q1"]


def test_custom_validation_may_lack_system_and_parents(tmp_path: Path) -> None:
    validation = _write(tmp_path / "v.jsonl", [{"q": "x", "a": "y"}])
    data = _load(
        tmp_path,
        [{"q": "1", "a": "2", "s": "be kind", "n": 1, "p": None}],
        **CHAINED,
        system_column="s",
        validation_strategy="custom",
        validation_dataframe=validation,
    )
    (held_out,) = data.validation
    assert held_out == GenerationTrainRecord(input="x", output="y")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    parents=st.lists(st.integers(min_value=-1, max_value=60), min_size=2, max_size=60),
    share=st.floats(min_value=0.05, max_value=0.9),
    sample=st.floats(min_value=0.05, max_value=1.0),
)
def test_a_chain_is_never_cut(
    tmp_path: Path, parents: list[int], share: float, sample: float
) -> None:
    rows: list[dict[str, Any]] = []
    for row, parent in enumerate([-1, -1, *parents]):
        known = 0 <= parent < row
        rows.append({"q": f"q{row}", "a": "x", "n": row, "p": parent if known else None})
    root_of: dict[str, str] = {}
    for row in rows:
        root_of[row["q"]] = row["q"] if row["p"] is None else root_of[f"q{row['p']}"]
    data = _load(tmp_path, rows, **CHAINED, validation_size=share, data_sample=sample)
    roots = [{root_of[name] for name in _names(part)} for part in (data.train, data.validation)]
    assert not roots[0] & roots[1]
    assert roots[0] and roots[1]
    if sample == 1:
        assert roots[0] | roots[1] == set(root_of.values())


def test_limited_chains_leave_out_the_rows_in_the_middle(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "a": "x", "n": n, "p": n - 1 if n else None} for n in range(4)]
    data = _load(tmp_path, rows, **CHAINED, validation_size=0, limit_chained_samples=True)
    assert _names(data.train) == ["q3"]


def test_single_turns_with_a_system_text_are_conversations(tmp_path: Path) -> None:
    data = _load(tmp_path, [{"prompt": "q", "response": "a", "system": "s"}] * 2, validation_size=0)
    assert [m.role for m in next(iter(data.train)).messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "holds no rows"),
        (_pairs(1), {}, "has 1 rows: none can be held out"),
        ([*_pairs(3), {"input": "x"}], {}, r"train\.jsonl row 4: field 'output' is missing"),
        ([{"q": "x", "a": "y", "n": 1, "p": 2}], CHAINED, r"train\.jsonl row 1: no row has its"),
    ],
)
def test_bad_data_is_refused_before_training(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingDataError, match=message):
        _load(tmp_path, rows, **options)


def test_columns_that_only_later_rows_have_are_not_lost(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "output": "d", "input": "e"},
        {"instruction": "f", "output": "g", "system": "h"},
    ]
    data = _load(tmp_path, rows, validation_size=0)
    assert data.shape.name == "alpaca"
    said = [[m.content for m in record.messages] for record in data.train]  # type: ignore[union-attr]
    assert said == [["a", "b"], ["c\n\ne", "d"], ["h", "f", "g"]]


def test_rows_of_two_shapes_are_refused_at_the_row_that_does_not_fit(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(TrainingDataError, match=r"row 1: field 'messages' is missing"):
        _load(tmp_path, [*_pairs(2), {"messages": messages}])


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'train_dataframe' names no file"):
        load_dataset(DatasetOptions())


def test_limits_of_a_server_count(tmp_path: Path) -> None:
    name = _write(tmp_path / "train.jsonl", _pairs(9))
    with pytest.raises(TrainingDataError, match="more than 5 rows"):
        load_dataset(DatasetOptions(train_dataframe=name), StreamLimits(max_rows=5))
    with pytest.raises(NameNotAllowedError):
        load_dataset(DatasetOptions(train_dataframe=name), StreamLimits(data_roots=()))


def test_real_tables_are_read(shared_dir: Path) -> None:
    spam = shared_dir / "data" / "sms_spam_train.csv"
    data = load_dataset(DatasetOptions(train_dataframe=str(spam)))
    assert data.shape.name == "classification"
    assert len(_names(data.train)) + len(_names(data.validation)) == 4500
    maths = shared_dir / "data" / "gsm8k_test.jsonl"
    assert load_dataset(DatasetOptions(train_dataframe=str(maths))).shape.name == "pair"


def test_validation_rows_are_learned_as_well_where_that_is_asked(tmp_path: Path) -> None:
    rows = _pairs(10)
    apart = _load(tmp_path, rows, validation_size=0.2)
    joined = _load(tmp_path, rows, validation_size=0.2, train_validation_data=True)
    learned = [_said(record) for record in joined.train]
    measured = [_said(record) for record in joined.validation]
    assert learned == [_said(record) for record in apart.train] + measured
    assert len(measured) == 2
    assert learned == [_said(record) for record in joined.train]


@pytest.mark.parametrize("num_rows", [3, 5])
def test_a_file_that_changed_since_it_was_counted_is_refused(tmp_path: Path, num_rows: int) -> None:
    data = _load(tmp_path, _pairs(4), validation_size=0)
    _write(tmp_path / "train.jsonl", _pairs(num_rows))
    with pytest.raises(TrainingDataError, match=r"had 4 rows when it was first read"):
        list(data.train)
