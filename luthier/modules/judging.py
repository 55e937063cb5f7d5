"""Asks a model behind an OpenAI-compatible endpoint what it thinks of generated texts.

The endpoint and its key come from the server's settings alone. The key is sent to the endpoint and
nowhere else: it is in no option, file, message or log line.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import alog
import httpx

from luthier.data_model.judge_prompt import judge_template, read_score, render_judge_prompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import CancelledError, InvalidInputError
from luthier.training.metrics.ai_judge import AiJudge, Judge
from luthier.training.metrics.base import ScoredRow

log = alog.use_channel(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class JudgeEndpoint:
    """Where the judge is, and how hard it may be asked.

    Args:
        base_url: Before ``/chat/completions``; "" for no judge.
        api_key: Sent as a bearer token; "" for none.
        max_concurrent: Questions at the same time.
        max_rows: Most rows of one evaluation.
        max_attempts: Times that one question is sent before it counts as failed.
        timeout_seconds: For one attempt.
    """

    base_url: str = ""
    api_key: str = field(default="", repr=False)
    max_concurrent: int = 8
    max_rows: int = 100
    max_attempts: int = 3
    timeout_seconds: float = 60.0


def require_judge(options: TrainingOptions, num_rows: int, endpoint: JudgeEndpoint) -> None:
    """Refuse a training whose judge could not be asked.

    Args:
        options: Of the training.
        num_rows: Validation rows.
        endpoint: Where a judge would be.

    Raises:
        InvalidInputError: If the metric is wanted and there is no endpoint, or too many rows.
    """
    if AiJudge.name not in options.metrics:
        return
    AiJudge(judge_with(options, endpoint))
    if num_rows > endpoint.max_rows:
        raise InvalidInputError(
            f"metric 'ai_judge' would ask about {num_rows} validation rows, at most "
            f"{endpoint.max_rows} are allowed (judge.max_rows)"
        )


def judge_with(
    options: TrainingOptions,
    endpoint: JudgeEndpoint,
    *,
    should_stop: Callable[[], bool] = bool,
) -> Judge | None:
    """What scores texts.

    Args:
        options: Name the model and the prompt.
        endpoint: Where to ask.
        should_stop: Asked between answers.

    Returns:
        The judge, or None where there is no endpoint.
    """
    if not endpoint.base_url:
        return None
    template = judge_template(options.judge_template)

    def judge(rows: Sequence[ScoredRow]) -> list[float | None]:
        with _Conversation(endpoint, options.judge_model) as conversation:
            questions = [_question(template, row) for row in rows]
            return conversation.scores(questions, should_stop)

    return judge


class _Conversation(contextlib.AbstractContextManager["_Conversation"]):
    """Questions over one set of connections."""

    def __init__(self, endpoint: JudgeEndpoint, model: str) -> None:
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self._endpoint = endpoint
        self._model = model
        self._url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self._client = httpx.Client(headers=headers, timeout=endpoint.timeout_seconds)

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def scores(
        self, questions: Sequence[str], should_stop: Callable[[], bool]
    ) -> list[float | None]:
        found: list[float | None] = []
        with ThreadPoolExecutor(self._endpoint.max_concurrent, "judge") as pool:
            pending = [pool.submit(self._score, question) for question in questions]
            for future in pending:
                if should_stop():
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise CancelledError("training was cancelled while a judge was asked")
                found.append(future.result())
        return found

    def _score(self, question: str) -> float | None:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
        }
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, self._endpoint.max_attempts + 1):
            try:
                answer = self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                # The kind alone: a message may show what was sent.
                problem, asked_pause = type(error).__name__, None
            else:
                if answer.is_success:
                    return _score_of(answer)
                problem, asked_pause = f"HTTP {answer.status_code}", _retry_after(answer)
                if answer.status_code not in _TRY_AGAIN:
                    break
            if attempt < self._endpoint.max_attempts:
                time.sleep(min(asked_pause or pause, _LONGEST_PAUSE_SECONDS))
                pause *= 2
        log.debug("the judge did not answer: %s", problem)
        return None


def _question(template: str, row: ScoredRow) -> str:
    return render_judge_prompt(
        template, prompt=row.input_text, reference=row.reference, answer=row.generated or ""
    )


def _score_of(answer: httpx.Response) -> float | None:
    try:
        content: Any = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return read_score(content) if isinstance(content, str) else None


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
