"""Train records keep caikit-nlp's names and numbers."""

from luthier.data_model.records import (
    ClassificationTrainRecord,
    GenerationTrainRecord,
    TrainMessage,
    to_generation_record,
)


def test_generation_record_has_the_peers_name_and_field_numbers() -> None:
    descriptor = GenerationTrainRecord._proto_class.DESCRIPTOR
    assert descriptor.full_name == "caikit_data_model.caikit_nlp.GenerationTrainRecord"
    numbers = {field.name: field.number for field in descriptor.fields}
    assert numbers == {"input": 1, "output": 2, "messages": 3}


def test_generation_record_survives_protobuf_and_json() -> None:
    record = GenerationTrainRecord(input="a {{output}}", output="ü")
    for copy in (
        GenerationTrainRecord.from_proto(record.to_proto()),
        GenerationTrainRecord.from_json(record.to_json()),
    ):
        assert (copy.input, copy.output) == ("a {{output}}", "ü")


def test_labels_of_a_classification_record_become_the_output() -> None:
    record = to_generation_record(ClassificationTrainRecord(text="hi", labels=["a", "b c"]))
    assert isinstance(record, GenerationTrainRecord)
    assert (record.input, record.output) == ("hi", "a,b c")


def test_a_classification_record_without_labels_has_an_empty_output() -> None:
    assert to_generation_record(ClassificationTrainRecord(text="hi", labels=None)).output == ""


def test_a_generation_record_passes_unchanged() -> None:
    record = GenerationTrainRecord(input="a", output="b")
    assert to_generation_record(record) is record


def test_weight_of_a_message_that_nobody_gave_is_not_0() -> None:
    given = [
        TrainMessage(role="assistant", content="a"),
        TrainMessage(role="assistant", content="b", weight=0),
    ]
    record = GenerationTrainRecord(messages=given)
    found = GenerationTrainRecord.from_proto(record.to_proto()).messages
    assert [(each.content, each.weight) for each in found] == [("a", None), ("b", 0)]
