"""Examples count what is learned; reports say what was cut."""

from collections.abc import Mapping

from luthier.training.data.examples import Example, TrainingData, TruncationReport


def test_only_labels_that_are_not_ignored_count() -> None:
    assert Example(1, (4, 5, 6), (-100, 5, 6)).num_label_tokens == 2


def test_a_report_names_counts_and_first_rows() -> None:
    report = TruncationReport(
        num_rows=9,
        num_source_rows=3,
        num_source_tokens=40,
        num_target_rows=1,
        num_target_tokens=2,
        first_source_rows=(1, 4),
        first_target_rows=(8,),
    )
    assert str(report) == (
        "of 9 rows: source cut in 3 rows by 40 tokens (rows 1, 4, …); "
        "target cut in 1 rows by 2 tokens (rows 8)"
    )
    assert not report.is_empty


def test_a_report_without_cuts_says_so() -> None:
    assert str(TruncationReport(num_rows=9)) == "all 9 rows fit"


def test_a_batch_is_changed_by_whoever_was_asked_to() -> None:
    examples = (Example(1, (5,), (5,)), Example(2, (6,), (6,)))

    def hide(chosen: Mapping[int, Example], *, epoch: int) -> list[Example]:
        return [Example(index, (epoch,), (epoch,)) for index in chosen]

    plain = TrainingData(examples, TruncationReport())
    assert plain.batch([1, 0], epoch=3) == [examples[1], examples[0]]
    changed = TrainingData(examples, TruncationReport(), hide)
    assert changed.batch([1, 0], epoch=3) == [Example(1, (3,), (3,)), Example(0, (3,), (3,))]
