"""What is cut is counted by side, and the first rows are named."""

from luthier.training.data.cut_counts import CutCounts
from luthier.training.data.examples import Example, TokenizedRow, TruncationReport


def test_cuts_add_up() -> None:
    cuts = CutCounts()
    assert cuts.report() == TruncationReport()
    for row in range(1, 9):
        source, target = row % 4, 2 * (row == 3)
        cuts.count(TokenizedRow(Example(row, (1,), (1,)), source, target))
    assert cuts.report() == TruncationReport(
        num_rows=8,
        num_source_rows=6,
        num_source_tokens=12,
        num_target_rows=1,
        num_target_tokens=2,
        first_source_rows=(1, 2, 3, 5, 6),
        first_target_rows=(3,),
    )
