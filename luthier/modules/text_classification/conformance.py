"""Before a head is served: does the engine give what the training code gives?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.errors import ArtifactError, EngineError
from luthier.inference.base import ClassificationRequest, Engine
from luthier.modules.text_generation.conformance import PINNED_TEXTS, tolerance_for
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import collate
from luthier.training.data.examples import IGNORED_LABEL, Example
from luthier.training.networks.network import TrainingNetwork


def check_head_conformance(base_model: BaseModel, head: ClassificationHead, engine: Engine) -> None:
    """Run pinned texts through the engine and through the training code, and compare.

    Args:
        base_model: What the head was tuned on.
        head: As it will be served.
        engine: That will serve it.

    Raises:
        ArtifactError: If the head gives every class the same score, gives NaN, or if
            log-probabilities differ by more than rounding explains. The message says which.
    """
    tolerance = tolerance_for(base_model, engine)
    network = TrainingNetwork(base_model, head, shares_prefix=False, packs_rows=False)
    has_effect = False
    for text in PINNED_TEXTS:
        input_ids = tuple(base_model.tokenizer(text)["input_ids"])
        scores = _served_scores(engine, input_ids, head)
        # The likeliest class and the unlikeliest: what is between them cannot be further apart.
        picked = [scores.index(max(scores)), scores.index(min(scores))]
        expected = _training_log_probabilities(network, base_model, input_ids, picked)
        served = torch.tensor(scores, dtype=torch.float64).log_softmax(dim=0)
        for number, score in zip(picked, expected, strict=True):
            got = float(served[number])
            if not math.isfinite(score) or not tolerance.covers(got, score):
                raise ArtifactError(
                    "the engine and the training code disagree on this head: log-probability "
                    f"{got:.5g} against {score:.5g}, more than {tolerance.atol:g} apart"
                )
        has_effect = has_effect or max(scores) > min(scores)
    if not has_effect:
        raise ArtifactError("the head has no effect: every class has the same score")


def _served_scores(
    engine: Engine, input_ids: tuple[int, ...], head: ClassificationHead
) -> tuple[float, ...]:
    weight = head.score.detach().cpu()
    stream = engine.submit(ClassificationRequest(input_ids, weight, head.body))
    try:
        *_, last = stream
    except EngineError as error:
        raise ArtifactError(f"the head cannot be served: {error}") from error
    return last.scores


def _training_log_probabilities(
    network: TrainingNetwork,
    base_model: BaseModel,
    input_ids: tuple[int, ...],
    classes: Sequence[int],
) -> list[float]:
    """Log-probabilities of some classes as the training code computes them."""
    unlabelled = (IGNORED_LABEL,) * len(input_ids)
    examples = [
        Example(row, (*input_ids, input_ids[-1]), (*unlabelled, number))
        for row, number in enumerate(classes, start=1)
    ]
    batch = collate(
        examples,
        pad_token_id=base_model.pad_token_id,
        is_seq2seq=False,
        device=base_model.device,
    )
    with network.evaluating():
        losses, _ = network.token_scores(batch)
    return [-loss for loss in losses.to(torch.float64).tolist()]
