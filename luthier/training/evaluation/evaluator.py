"""One evaluation: the held-out rows through the model, in all processes, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from luthier.resources.base_model import BaseModel
from luthier.training.data.examples import TrainingData
from luthier.training.data.row_share import RowShare
from luthier.training.evaluation.evaluation import Evaluation, evaluate_rows
from luthier.training.evaluation.row_scoring import Generate, score_rows, with_texts
from luthier.training.metrics.base import Metric, ScoredRow
from luthier.training.networks.network import TrainingNetwork
from luthier.training.processes.parallel import ProcessGroup


class Evaluator:
    """Measures a model that is being trained.

    Args:
        base_model: The frozen base.
        network: The base with what is learned.
        data: Held out.
        metrics: At least one; the first says what is best.
        generate: For metrics that compare texts, or None.
        share: Which rows are this process's.
        group: The processes that train together.
        before_batch: Called before each batch; an error of it ends the evaluation.
    """

    def __init__(
        self,
        base_model: BaseModel,
        network: TrainingNetwork,
        data: TrainingData,
        *,
        metrics: tuple[Metric, ...],
        generate: Generate | None,
        share: RowShare,
        group: ProcessGroup,
        before_batch: Callable[[], None],
    ) -> None:
        self._base_model = base_model
        self._network = network
        self._data = data
        self._metrics = metrics
        self._generate = generate if any(metric.needs_text for metric in metrics) else None
        self._share = share
        self._group = group
        self._before_batch = before_batch

    def evaluate(self, *, epoch: int, step: int) -> Evaluation:
        """All metrics over all rows; the same in every process.

        Args:
            epoch: Of the evaluation.
            step: Updates done.

        Returns:
            What was found.

        Raises:
            TrainingFailedError: If another number of texts was generated than asked for.
        """
        scored = self._scored_by_all(self._own_rows(epoch))
        return evaluate_rows(scored, self._metrics, epoch=epoch, step=step)

    def _own_rows(self, epoch: int) -> tuple[ScoredRow, ...]:
        """What the model makes of this process's rows."""
        rows: list[ScoredRow] = []
        with self._network.evaluating():
            for indices in self._share.evaluation_batches(self._data.lengths):
                self._before_batch()
                batch = self._share.batch(indices, self._data, epoch=epoch)
                if batch is not None:
                    rows += score_rows(self._network, batch)
        return with_texts(
            rows,
            self._data,
            self._base_model.tokenizer,
            is_seq2seq=self._base_model.kind == "seq2seq",
            generate=self._generate,
        )

    def _scored_by_all(self, own: tuple[ScoredRow, ...]) -> tuple[ScoredRow, ...]:
        """The rows that all processes scored, in the order of the records."""
        if self._group.is_alone:
            return own
        rows = [
            ScoredRow(**values) for values in self._group.gather([asdict(scored) for scored in own])
        ]
        return tuple(sorted(rows, key=lambda scored: scored.row))
