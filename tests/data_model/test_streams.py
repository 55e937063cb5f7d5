"""Records are read from every source, and a bad row is named."""

import json
import os

import pyarrow
import pyarrow.parquet as parquet
import pytest
from caikit.core.data_model import DataStream
from caikit.core.data_model.base import DataBase
from caikit.interfaces.common.data_model.stream_sources import (
    Directory,
    FileReference,
    ListOfFileReferences,
)

from luthier.data_model.conversations import ChatTrainRecord
from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    TrainMessage,
)
from luthier.data_model.streams import StreamLimits, read_train_records, record_as_json
from luthier.errors import (
    InvalidInputError,
    NameNotAllowedError,
    NotSupportedError,
    TrainingDataError,
)
from luthier.modules.service_package import service_packages

ROWS = [{"input": "a", "output": "1"}, {"input": 'Zoë, "b"\nc', "output": "2"}]


@pytest.fixture(scope="module")
def wire_source():
    service_packages()
    return DataBase.get_class_for_name("DataStreamSourceGenerationTrainRecord")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(ROWS), "utf-8")
    (folder / "rows.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS), "utf-8")
    (folder / "rows.csv").write_text('output,note,input\n1,x,a\n2,y,"Zoë, ""b""\nc"\n', "utf-8")
    return folder


def pairs(records):
    return [(record.input, record.output) for record in records]


EXPECTED = [(row["input"], row["output"]) for row in ROWS]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_each_format_gives_the_same_records(folder, name):
    assert pairs(read_train_records(folder / name)) == EXPECTED
    assert pairs(read_train_records(str(folder / name))) == EXPECTED


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder):
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbfinput,output\r\na,b\r\n")
    assert pairs(read_train_records(folder / "bom.csv")) == [("a", "b")]


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        [GenerationTrainRecord(**row) for row in ROWS],
        DataStream.from_iterable([GenerationTrainRecord(**row) for row in ROWS]),
        (row for row in ROWS),
    ],
    ids=["mappings", "records", "data stream", "generator"],
)
def test_python_objects_are_read(source):
    assert pairs(read_train_records(source)) == EXPECTED


def test_labels_become_the_output():
    record = ClassificationTrainRecord(text="hi", labels=["x", "y"])
    mapping = {"text": "hi", "labels": ["x"]}
    assert pairs(read_train_records([record, mapping])) == [("hi", "x,y"), ("hi", "x")]


def test_wire_sources_are_read(wire_source, folder):
    inline = [GenerationTrainRecord(**row) for row in ROWS]
    limits = StreamLimits(data_roots=(folder,))
    for chosen, expected in [
        (wire_source.JsonData(data=inline), EXPECTED),
        (FileReference(filename="rows.csv"), EXPECTED),
        (FileReference(filename=str(folder / "rows.csv")), EXPECTED),
        (ListOfFileReferences(files=["rows.json", "rows.jsonl"]), EXPECTED * 2),
        (Directory(dirname=".", extension="jsonl"), EXPECTED),
        (Directory(dirname="."), EXPECTED),
    ]:
        assert pairs(read_train_records(wire_source(data_stream=chosen), limits)) == expected


def test_an_empty_wire_source_has_no_records(wire_source):
    assert read_train_records(wire_source()) == []


def test_an_empty_field_on_the_wire_is_missing(wire_source):
    inline = [GenerationTrainRecord(input="a", output="b"), GenerationTrainRecord(input="c")]
    source = wire_source.from_proto(
        wire_source(data_stream=wire_source.JsonData(data=inline[:1])).to_proto()
    )
    assert len(read_train_records(source)) == 1
    source = wire_source(
        data_stream=wire_source.JsonData(data=[inline[0], GenerationTrainRecord("c", "")])
    )
    with pytest.raises(TrainingDataError, match="train_stream row 2: field 'output' is missing"):
        read_train_records(source)


def test_an_empty_output_in_python_is_meant():
    assert pairs(read_train_records([{"input": "a", "output": ""}])) == [("a", "")]


def test_s3_is_refused_as_not_offered(wire_source):
    s3files = wire_source.S3Files(files=[FileReference(filename="x")], bucket="b")
    with pytest.raises(NotSupportedError, match="S3Files"):
        read_train_records(wire_source(data_stream=s3files))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"input": "a", "output": "b"}\n{"input": "a"}\n', "a.jsonl row 2.*'output'"),
        ("a.jsonl", '{"input": "a", "output": "b"}\n{oops\n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"input": "a", "output": 5}\n', "row 1.*'output' must be a string, got '5'"),
        ("a.jsonl", '"text"\n', "row 1 must be an object"),
        ("a.jsonl", "[" * 100_000, "nested too deeply|not JSON"),
        ("a.json", '{"input": "a"}', "must hold a JSON array"),
        ("a.json", '[{"input": "a", "output": "b"}, 7]', "row 2 must be an object"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "input,label\na,b\n", "column 'output' is missing.*input, label"),
        ("a.csv", "input,output\na,b\nc\n", r"row 2 \(line 3\).*'output' is missing"),
        ("a.csv", "input,output\na,b,c\n", r"row 1 \(line 2\) has more cells"),
        ("a.csv", 'input,output\n"a"b,c\n', "a.csv line"),
    ],
)
def test_a_bad_file_names_file_row_and_column(folder, name, text, message):
    (folder / name).write_text(text, "utf-8")
    with pytest.raises(TrainingDataError, match=message):
        read_train_records(folder / name)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "latin.csv").write_bytes("input,output\nZoë,x\n".encode("latin-1"))
    with pytest.raises(TrainingDataError, match=r"latin\.csv.*not UTF-8"):
        read_train_records(folder / "latin.csv")


@pytest.mark.parametrize(
    "name", ["../secret.jsonl", "link.jsonl", "\0.jsonl", "x" * 5000 + ".jsonl", ".jsonl"]
)
def test_a_file_outside_the_roots_is_refused(wire_source, folder, name):
    secret = folder.parent / "secret.jsonl"
    secret.write_text(json.dumps(ROWS[0]), "utf-8")
    (folder / "link.jsonl").symlink_to(secret)
    limits = StreamLimits(data_roots=(folder,))
    for given in (name, str(secret)):
        source = wire_source(data_stream=FileReference(filename=given))
        with pytest.raises(InvalidInputError) as caught:
            read_train_records(source, limits)
        assert len(str(caught.value)) < 300


def test_a_directory_with_a_link_that_leaves_it_is_refused(wire_source, folder):
    secret = folder.parent / "secret.jsonl"
    secret.write_text(json.dumps(ROWS[0]), "utf-8")
    (folder / "link.jsonl").symlink_to(secret)
    source = wire_source(data_stream=Directory(dirname=".", extension="jsonl"))
    with pytest.raises(NameNotAllowedError):
        read_train_records(source, StreamLimits(data_roots=(folder,)))


def test_without_roots_a_request_reads_no_file(wire_source, folder):
    source = wire_source(data_stream=FileReference(filename=str(folder / "rows.json")))
    with pytest.raises(NameNotAllowedError, match="allows no files"):
        read_train_records(source, StreamLimits(data_roots=()))


def test_a_pipe_is_refused_at_once(folder):
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(InvalidInputError, match="not a regular file"):
        read_train_records(folder / "pipe.jsonl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.jsonl", "cannot read"),
        ("rows.xml", "extension 'xml'"),
        ("rows", "extension ''"),
    ],
)
def test_unreadable_files_are_refused(folder, given, message):
    with pytest.raises(InvalidInputError, match=message):
        read_train_records(folder / given)


@pytest.mark.parametrize("source", [7, {"input": "a"}, None, object()])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(InvalidInputError, match="'train_stream' must be"):
        read_train_records(source)


def test_reading_stops_at_the_row_limit():
    endless = iter(lambda: {"input": "a", "output": "b"}, None)
    with pytest.raises(TrainingDataError, match="more than 5 records"):
        read_train_records(endless, StreamLimits(max_rows=5))


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_conversations_and_pairs_may_be_in_one_stream():
    source = [{"messages": CHAT}, {"input": "a", "output": "b"}, {"conversations": CHAT}]
    chat, pair, other = read_train_records(source)
    assert isinstance(chat, ChatTrainRecord) and chat == other
    assert [(each.role, each.content) for each in chat.messages] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert (pair.input, pair.output) == ("a", "b")


def test_conversations_are_read_from_messages_of_the_wire():
    said = [TrainMessage(**CHAT[0]), TrainMessage(**CHAT[1]), *(TrainMessage(**m) for m in CHAT)]
    said[1].weight = 0
    record = GenerationTrainRecord.from_proto(GenerationTrainRecord(messages=said).to_proto())
    (chat,) = read_train_records([record])
    assert [message.is_learned for message in chat.messages] == [True, False, True, True]


@pytest.mark.parametrize("extension", ["jsonl", "json", "parquet"])
def test_conversations_are_read_from_files(tmp_path, extension):
    rows = [{"messages": CHAT}] * 2
    file = tmp_path / f"chat.{extension}"
    if extension == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        lines = "\n".join(map(json.dumps, rows))
        file.write_text(lines if extension == "jsonl" else json.dumps(rows))
    assert [len(record.messages) for record in read_train_records(str(file))] == [2, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": CHAT[:1]}, r"train_stream row 1: the last message must be the assistant's"),
        ({"messages": []}, r"row 1: a conversation must be a list"),
        ({"messages": "hi"}, r"row 1: a conversation must be a list"),
        ({"messages": CHAT, "input": "a"}, r"row 1 has 'messages' beside 'input'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"row 1 message 1: role 'robot'"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_refused_by_its_row(row, message):
    with pytest.raises(TrainingDataError, match=message):
        read_train_records([row])


def test_records_written_as_json_are_read_as_the_same():
    records = read_train_records(
        [
            {"input": "a", "output": "b"},
            {"messages": [*CHAT, {**CHAT[1], "weight": 0}, CHAT[0], CHAT[1]]},
        ]
    )
    again = read_train_records(json.loads(json.dumps(list(map(record_as_json, records)))))
    assert (again[0].input, again[0].output) == ("a", "b")
    assert again[1] == records[1]


LABELLED = [("hi", ["a"]), ("ho", ["b", "c"])]


@pytest.mark.parametrize(
    "source",
    [
        [{"text": text, "labels": labels} for text, labels in LABELLED],
        [ClassificationTrainRecord(text=text, labels=labels) for text, labels in LABELLED],
    ],
)
def test_labels_are_kept_where_they_are_learned_and_joined_where_text_is(source):
    kept = read_train_records(source, keeps_labels=True)
    assert [(record.text, record.labels) for record in kept] == LABELLED
    assert [record_as_json(record) for record in kept] == [
        {"text": text, "labels": labels} for text, labels in LABELLED
    ]
    assert pairs(read_train_records(source)) == [("hi", "a"), ("ho", "b,c")]


def test_a_pair_is_a_text_with_one_label(folder):
    kept = read_train_records(folder / "rows.csv", keeps_labels=True)
    assert [(record.text, record.labels) for record in kept] == [
        (text, [label]) for text, label in EXPECTED
    ]


def test_a_table_may_call_its_column_label(folder):
    (folder / "labels.csv").write_text("text,label\nhi,a\n", "utf-8")
    (record,) = read_train_records(folder / "labels.csv", keeps_labels=True)
    assert (record.text, record.labels) == ("hi", ["a"])
    with pytest.raises(TrainingDataError, match="column 'input' is missing"):
        read_train_records(folder / "labels.csv")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "hi", "labels": []}, "row 1: field 'labels' must be a list"),
        ({"text": "hi", "labels": "a"}, "row 1: field 'labels' must be a list"),
        ({"text": None, "labels": ["a"]}, "row 1: field 'text' is missing"),
        ({"label": "a"}, "row 1: field 'input' is missing"),
    ],
)
def test_a_text_without_labels_is_refused(record, message):
    with pytest.raises(TrainingDataError, match=message):
        read_train_records([record], keeps_labels=True)
