"""Before an adapter is served: does the engine give what the training code gives?

An adapter can be whole on the disk and still be wrong: it has no effect (its keys matched nothing,
or it was never tuned), it gives NaN, or the engine's fast path computes something else than the
code that tuned it. Each is found here, on pinned prompts, and refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.adapters.base import Adapter
from luthier.data_model.sampling import SamplingParams
from luthier.errors import ArtifactError, EngineError
from luthier.inference.base import Engine, GenerationRequest, Token
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import collate
from luthier.training.data.examples import IGNORED_LABEL, Example
from luthier.training.networks.network import TrainingNetwork

#: Long and short, words and signs; what they say does not matter.
PINNED_TEXTS = ("Hello", "The order of 12 May has not arrived yet. What can I do?")
_NUM_NEW_TOKENS = 4
#: Of a log-probability, between passes of different sizes.
_FP32_ROUNDING = 1e-5


@dataclass(frozen=True)
class Tolerance:
    """How far log-probabilities, in nats, may lie apart.

    Args:
        atol: By this much.
        rtol: Or by this share of the larger.
    """

    atol: float
    rtol: float

    def covers(self, ours: float, theirs: float) -> bool:
        """Whether two lie no further apart."""
        return math.isclose(ours, theirs, abs_tol=self.atol, rel_tol=self.rtol)


def check_conformance(base_model: BaseModel, adapter: Adapter, engine: Engine) -> None:
    """Run pinned prompts through the engine and through the training code, and compare.

    Args:
        base_model: What the adapter was tuned on.
        adapter: As it will be served.
        engine: That will serve it.

    Raises:
        ArtifactError: If the adapter has no effect, gives NaN, or if log-probabilities of the
            generated tokens differ by more than rounding explains. The message says which.
    """
    tolerance = tolerance_for(base_model, engine)
    network = TrainingNetwork(base_model, adapter, shares_prefix=False, packs_rows=False)

    def served_as_trained(input_ids: tuple[int, ...]) -> list[Token]:
        tuned = _generate(engine, input_ids, adapter)
        _require_close(tuned, _training_scores(network, base_model, input_ids, tuned), tolerance)
        return tuned

    has_effect = False
    prompts = [tuple(base_model.tokenizer(text)["input_ids"]) for text in PINNED_TEXTS]
    for input_ids in prompts:
        tuned = served_as_trained(input_ids)
        has_effect = has_effect or _differ(tuned, _generate(engine, input_ids, None), base_model)
    own_ids = tuple(adapter.added_tokens().values())
    if own_ids:  # The base model alone does not know them.
        served_as_trained((*own_ids, *prompts[0]))
    if not has_effect:
        raise ArtifactError(
            "the adapter has no effect: the base model gives the same numbers without it"
        )


def _require_close(tuned: Sequence[Token], expected: Sequence[float], tolerance: Tolerance) -> None:
    """Refuse an adapter that an engine gives other log-probabilities than the training code."""
    for token, score in zip(tuned, expected, strict=True):
        got = token.logprob if token.logprob is not None else math.nan
        if not math.isfinite(got) or not math.isfinite(score):
            raise ArtifactError(
                f"the adapter gives no numbers: log-probability {got} when served, {score} in "
                "training code"
            )
        if not tolerance.covers(got, score):
            raise ArtifactError(
                f"the engine and the training code disagree on this adapter: log-probability "
                f"{got:.5g} against {score:.5g}, more than {tolerance.atol:g} apart"
            )


def _differ(tuned: Sequence[Token], bare: Sequence[Token], base_model: BaseModel) -> bool:
    """Whether an adapter changed anything.

    The same numbers may come in passes of another size, whose last bits differ in fp32. In half
    precision a real effect may be as small as rounding, so there any difference counts.
    """
    rounding = _FP32_ROUNDING if base_model.dtype.itemsize >= 4 else 0.0
    return any(
        ours.token_id != theirs.token_id
        or abs((ours.logprob or 0.0) - (theirs.logprob or 0.0)) > rounding
        for ours, theirs in zip(tuned, bare, strict=True)
    )


def tolerance_for(base_model: BaseModel, engine: Engine) -> Tolerance:
    """What rounding explains where an engine computes with a base model's numbers.

    Args:
        base_model: Its precision counts.
        engine: It may round more than that.

    Returns:
        The tolerance.
    """
    if engine.is_rounded:  # benchmarks/int8.py saw 2.2 on one of a thousand tokens
        return Tolerance(atol=3.0, rtol=0.25)
    if base_model.dtype.itemsize < 4:
        return Tolerance(atol=0.25, rtol=0.1)
    return Tolerance(atol=2e-3, rtol=1e-3)


def _generate(engine: Engine, input_ids: tuple[int, ...], adapter: Adapter | None) -> list[Token]:
    """Greedy tokens with their log-probabilities."""
    sampling = SamplingParams(
        max_new_tokens=_NUM_NEW_TOKENS,
        min_new_tokens=_NUM_NEW_TOKENS,
        generated_tokens=True,
        token_logprobs=True,
    )
    stream = engine.submit(GenerationRequest(input_ids, sampling, adapter))
    try:
        return [token for chunk in stream for token in chunk.tokens]
    except EngineError as error:
        raise ArtifactError(f"the adapter cannot be served: {error}") from error


def _training_scores(
    network: TrainingNetwork, base_model: BaseModel, input_ids: tuple[int, ...], tokens: list[Token]
) -> list[float]:
    """Log-probabilities of the generated tokens as the training code computes them."""
    new = tuple(token.token_id for token in tokens)
    is_seq2seq = base_model.kind == "seq2seq"
    example = Example(
        row=1,
        input_ids=input_ids if is_seq2seq else input_ids + new,
        labels=new if is_seq2seq else (IGNORED_LABEL,) * len(input_ids) + new,
    )
    batch = collate(
        [example],
        pad_token_id=base_model.pad_token_id,
        is_seq2seq=is_seq2seq,
        device=base_model.device,
    )
    with network.evaluating():
        losses, _ = network.token_scores(batch)
    return [-loss for loss in losses.to(torch.float64).tolist()]
