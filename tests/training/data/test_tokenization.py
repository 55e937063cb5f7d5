"""From records to ids and labels: nothing is cut or dropped without a word."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_models import BOS_ID, EOS_ID, make_tokenizer
from transformers import PreTrainedTokenizerFast

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord, TextTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import (
    CancelledError,
    InvalidInputError,
    NotSupportedError,
    TrainingDataError,
    VerbalizerError,
)
from luthier.training.data import tokenization
from luthier.training.data.encoding.prompt_encoding import PromptEncoder
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.examples import TokenizedRow, TrainingData
from luthier.training.data.tokenization import (
    RecordTokenizer,
    RowTokenizer,
    TrainRecord,
    eos_token_id_of,
    tokenize_records,
)

RECORD = GenerationTrainRecord(input="a cute dog", output="no complaint")


def _tokenize(
    *records: TrainRecord,
    tokenizer: PreTrainedTokenizerFast | None = None,
    is_seq2seq: bool = False,
    source: int = 256,
    target: int = 128,
    template: str = "{{input}}",
    has_virtual_tokens: bool = True,
    max_row_length: int | None = None,
    options: DatasetOptions | None = None,
) -> TrainingData:
    row_tokenizer = RowTokenizer(
        tokenizer=tokenizer or make_tokenizer(),
        is_seq2seq=is_seq2seq,
        eos_token_id=EOS_ID,
        max_source_length=source,
        max_target_length=target,
        has_virtual_tokens=has_virtual_tokens,
        max_row_length=max_row_length,
    )
    return tokenize_records(records, Verbalizer(template), row_tokenizer, options=options)


def _ids(text: str) -> list[int]:
    return list(make_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_a_causal_row_is_source_target_and_end_and_learns_the_last_two() -> None:
    (example,) = _tokenize(RECORD, template="Tweet: {{input}} Label: ").examples
    source, target = _ids("Tweet: a cute dog Label: "), _ids("no complaint")
    assert list(example.input_ids) == [*source, *target, EOS_ID]
    assert list(example.labels) == [-100] * len(source) + [*target, EOS_ID]
    assert example.row == 1


def test_a_seq2seq_row_reads_the_source_and_writes_target_and_end() -> None:
    tokenizer = make_tokenizer(add_eos=True)
    (example,) = _tokenize(RECORD, tokenizer=tokenizer, is_seq2seq=True).examples
    assert list(example.input_ids) == [*_ids("a cute dog"), EOS_ID]
    assert list(example.labels) == [*_ids("no complaint"), EOS_ID]


def test_a_tokenizer_that_begins_texts_does_so_once_per_row() -> None:
    (example,) = _tokenize(RECORD, tokenizer=make_tokenizer(add_bos=True)).examples
    assert example.input_ids[0] == BOS_ID
    assert BOS_ID not in example.input_ids[1:]


def test_long_sources_and_targets_are_cut_on_the_right_and_reported() -> None:
    long = GenerationTrainRecord(input="a cute dog " * 20, output="no complaint " * 20)
    data = _tokenize(RECORD, long, RECORD, long, source=7, target=6)
    source, target = _ids("a cute dog " * 20), _ids("no complaint " * 20)
    assert list(data.examples[1].input_ids) == [*source[:7], *target[:6], EOS_ID]
    report = data.truncation
    assert (report.num_rows, report.num_source_rows, report.num_target_rows) == (4, 2, 2)
    assert report.num_source_tokens == 2 * (len(source) - 7)
    assert report.num_target_tokens == 2 * (len(target) - 6)
    assert report.first_source_rows == report.first_target_rows == (2, 4)


def test_end_of_sequence_is_learned_even_where_the_target_was_cut() -> None:
    long = GenerationTrainRecord(input="x", output="no complaint " * 50)
    for is_seq2seq in (False, True):
        (example,) = _tokenize(long, target=1, is_seq2seq=is_seq2seq).examples
        assert example.labels[-1] == EOS_ID
        assert example.num_label_tokens == 2


def test_a_cut_source_keeps_the_end_token_that_its_tokenizer_adds() -> None:
    long = GenerationTrainRecord(input="a cute dog " * 20, output="yes")
    tokenizer = make_tokenizer(add_eos=True)
    data = _tokenize(long, tokenizer=tokenizer, is_seq2seq=True, source=5)
    assert list(data.examples[0].input_ids) == [*_ids("a cute dog " * 20)[:4], EOS_ID]
    assert data.truncation.num_source_tokens == len(_ids("a cute dog " * 20)) - 4


def test_rows_that_fit_are_reported_as_fitting() -> None:
    assert _tokenize(RECORD, RECORD).truncation.is_empty


def test_labels_of_classification_records_are_learned() -> None:
    record = ClassificationTrainRecord(text="a cute dog", labels=["no", "maybe"])
    (example,) = _tokenize(record).examples
    assert list(example.labels[-len(_ids("no,maybe")) - 1 :]) == [*_ids("no,maybe"), EOS_ID]


def test_a_first_token_that_nothing_stands_before_is_not_learned() -> None:
    record = GenerationTrainRecord(input="", output="yes")
    (prompted,) = _tokenize(record, has_virtual_tokens=True).examples
    (bare,) = _tokenize(record, has_virtual_tokens=False).examples
    assert prompted.num_label_tokens == bare.num_label_tokens + 1
    assert bare.labels[0] == -100
    assert bare.labels[-1] == EOS_ID


def test_empty_data_is_refused() -> None:
    with pytest.raises(TrainingDataError, match="train data cannot be empty"):
        _tokenize()


@pytest.mark.parametrize("output", ["", None])
def test_a_row_without_output_is_refused_by_number(output: str | None) -> None:
    broken = GenerationTrainRecord(input="a", output=output)
    with pytest.raises(TrainingDataError, match="train row 3 has no output: no label token"):
        _tokenize(RECORD, RECORD, broken)


def test_a_record_without_the_field_that_the_verbalizer_names_is_refused_by_number() -> None:
    with pytest.raises(VerbalizerError, match=r"row 1: .*{{text}}"):
        _tokenize(RECORD, template="{{text}}")
    with pytest.raises(VerbalizerError, match=r"row 2: .*{{input}}, which is missing"):
        _tokenize(RECORD, GenerationTrainRecord(input=None, output="x"))


def test_braces_in_the_input_stay_text() -> None:
    record = GenerationTrainRecord(input="{{output}}", output="secret")
    (example,) = _tokenize(record).examples
    source = make_tokenizer().decode(example.input_ids[: -len(_ids("secret")) - 1])
    assert source == "{{output}}"


def test_what_is_no_record_is_refused_by_number() -> None:
    with pytest.raises(TrainingDataError, match="train row 2 is a dict"):
        _tokenize(RECORD, {"input": "a", "output": "b"})  # type: ignore[arg-type]


def test_a_row_longer_than_the_model_takes_is_refused_by_number() -> None:
    with pytest.raises(TrainingDataError, match=r"row 1 has \d+ tokens, the base model takes at"):
        _tokenize(RECORD, max_row_length=5)


def test_tokenizing_stops_when_asked() -> None:
    row_tokenizer = RowTokenizer(make_tokenizer(), False, EOS_ID, 10, 10)
    with pytest.raises(CancelledError):
        tokenize_records([RECORD], Verbalizer("{{input}}"), row_tokenizer, should_stop=lambda: True)


def test_many_rows_keep_their_order_and_numbers() -> None:
    records = [GenerationTrainRecord(input=f"row {n}", output=str(n)) for n in range(1, 1200)]
    examples = _tokenize(*records).examples
    assert [example.row for example in examples] == list(range(1, 1200))
    tokenizer = make_tokenizer()
    assert tokenizer.decode(examples[1099].input_ids[:-1]) == "row 11001100"


def test_long_rows_go_to_the_tokenizer_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    tokenize = RecordTokenizer.tokenize

    def counted(self: RecordTokenizer, records: Sequence[Any]) -> list[TokenizedRow]:
        sizes.append(len(records))
        return tokenize(self, records)

    monkeypatch.setattr(RecordTokenizer, "tokenize", counted)
    lengths = [10, 10, 200_000, 100_000, 300_000, 10]
    records = [GenerationTrainRecord(input="a" * length, output="b") for length in lengths]
    examples = _tokenize(*records).examples
    assert [example.row for example in examples] == list(range(1, 7))
    assert sizes == [3, 1, 1, 1]


def test_the_tokenizers_own_end_token_is_learned_if_generation_stops_at_it() -> None:
    tokenizer = make_tokenizer()
    assert eos_token_id_of(tokenizer, (7, EOS_ID), name="m") == EOS_ID
    assert eos_token_id_of(tokenizer, (7, 8), name="m") == 7
    assert eos_token_id_of(tokenizer, (), name="m") == EOS_ID
    tokenizer.eos_token = None
    with pytest.raises(NotSupportedError, match="'m' has no end-of-sequence token"):
        eos_token_id_of(tokenizer, (), name="m")


@pytest.mark.parametrize("is_seq2seq", [True, False])
def test_a_control_token_that_a_record_spells_is_read_as_serving_reads_it(is_seq2seq: bool) -> None:
    tokenizer = make_tokenizer(add_eos=is_seq2seq)
    record = GenerationTrainRecord(input="stop</s>now", output="say <|user|> twice")
    template = "<|user|>{{input}}<|assistant|>"
    (example,) = _tokenize(
        record, tokenizer=tokenizer, template=template, is_seq2seq=is_seq2seq
    ).examples
    served = PromptEncoder(tokenizer).encode(Verbalizer(template), "stop</s>now").token_ids
    assert example.input_ids[: len(served)] == served
    assert served[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    target = [label for label in example.labels if label != -100]
    assert target[-1] == EOS_ID
    assert not set(target[:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(target[:-1]) == "say <|user|> twice"


@pytest.mark.parametrize("field", ["input", "output"])
def test_half_a_character_is_refused_by_row(field: str) -> None:
    texts = {"input": "a", "output": "b", field: "bad \ud83d"}
    with pytest.raises(TrainingDataError, match=f"train row 2: '{field}' is no valid text"):
        _tokenize(RECORD, GenerationTrainRecord(**texts))


CHAT = ChatTrainRecord(
    (ChatMessage("user", "a cute dog"), ChatMessage("assistant", "no complaint")), "f row 9"
)


def _text(data: TrainingData) -> list[str]:
    return [make_tokenizer().decode(example.input_ids) for example in data.examples]


def test_records_of_every_kind_stand_side_by_side() -> None:
    data = _tokenize(RECORD, CHAT, TextTrainRecord("once upon a time"), RECORD)
    assert _text(data) == [
        "a cute dogno complaint</s>",
        "<|prompt|>a cute dog</s><|answer|>no complaint</s>",
        "once upon a time</s>",
        "a cute dogno complaint</s>",
    ]
    assert [example.row for example in data.examples] == [1, 2, 3, 4]


def test_pairs_can_be_written_as_conversations() -> None:
    marked = _tokenize(
        RECORD, template="Tweet: {{input}}", options=DatasetOptions(prompt_format="markers")
    )
    assert _text(marked) == ["<|prompt|>Tweet: a cute dog</s><|answer|>no complaint</s>"]
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    rendered = _tokenize(RECORD, options=DatasetOptions(chat_template=template))
    assert _text(rendered) == ["[a cute dog][no complaint</s>"]


def test_a_verbalizer_has_no_use_for_conversations() -> None:
    for record in (CHAT, TextTrainRecord("x")):
        with pytest.raises(InvalidInputError, match="'verbalizer' makes text out of pairs"):
            _tokenize(record, template="Tweet: {{input}}")


def test_a_bad_conversation_is_named_by_number_and_file() -> None:
    bad = ChatTrainRecord(CHAT.messages[:1], "f row 9")
    with pytest.raises(TrainingDataError, match=r"train row 2 \(f row 9\): the last message"):
        _tokenize(CHAT, bad)


@pytest.mark.parametrize("num_workers", [2, 5])
def test_threads_change_nothing(num_workers: int) -> None:
    records: list[TrainRecord] = []
    for number in range(700):
        pair = GenerationTrainRecord(input=f"in {number} " * (number % 9), output=f"<s>{number}")
        records += [pair, CHAT]
    alone = _tokenize(*records, source=12)
    together = _tokenize(*records, source=12, options=DatasetOptions(number_of_workers=num_workers))
    assert together == alone
    assert not alone.truncation.is_empty


def test_an_error_in_a_thread_names_the_first_bad_row() -> None:
    records: list[TrainRecord] = [RECORD] * 3000
    for row in (700, 1500, 2900):
        records[row - 1] = GenerationTrainRecord(input="a", output="")
    with pytest.raises(TrainingDataError, match="train row 700 has no output"):
        _tokenize(*records, options=DatasetOptions(number_of_workers=3))


def test_the_cache_gives_what_tokenizing_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[TrainRecord] = [RECORD, CHAT, TextTrainRecord("x" * 600)] * 200
    plain = _tokenize(*records, source=2)
    cached = DatasetOptions(tokenization_cache=str(tmp_path), number_of_workers=2)
    first = _tokenize(*records, source=2, options=cached)
    (folder,) = tmp_path.iterdir()

    def refuse(*_: object) -> list[object]:
        pytest.fail("the cache was not used")

    with monkeypatch.context() as patched:
        patched.setattr(tokenization.RecordTokenizer, "tokenize", refuse)
        second = _tokenize(*records, source=2, options=cached)
    for data in (first, second):
        assert list(data.examples) == list(plain.examples)
        assert data.truncation == plain.truncation
        assert data.lengths == plain.lengths
    _tokenize(*records, source=3, options=cached)
    assert len(list(tmp_path.iterdir())) == 2
    assert folder.is_dir()


def test_the_cache_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    for source in (2, 3, 4):
        options = DatasetOptions(tokenization_cache=str(tmp_path), max_tokenization_cache_bytes=0)
        assert len(_tokenize(RECORD, source=source, options=options)) == 1
        assert len(list(tmp_path.iterdir())) == 1


def test_an_error_leaves_no_cache(tmp_path: Path) -> None:
    cached = DatasetOptions(tokenization_cache=str(tmp_path / "cache"))
    with pytest.raises(TrainingDataError, match="cannot be empty"):
        _tokenize(options=cached)
    with pytest.raises(TrainingDataError, match="train row 2 has no output"):
        _tokenize(RECORD, GenerationTrainRecord(input="a", output=""), options=cached)
    assert list((tmp_path / "cache").iterdir()) == []
