"""Results are plain values that travel between processes."""

import pickle
from datetime import UTC, datetime

from luthier.training.data.examples import TruncationReport
from luthier.training.results import EvaluationPoint, LossPoint, TrainingResult


def test_a_result_survives_the_way_to_another_process() -> None:
    result = TrainingResult(
        losses=(LossPoint(0, 1, 2.5, 0.1, datetime.now(UTC)),),
        validation_losses=(EvaluationPoint(0, 1, 2.0),),
        truncation=TruncationReport(num_rows=3),
        validation_truncation=None,
        num_rows=3,
        num_steps=1,
        num_input_tokens=30,
        num_label_tokens=6,
        seed=7,
        seconds=0.5,
    )
    assert pickle.loads(pickle.dumps(result)) == result
