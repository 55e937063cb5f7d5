"""Text in, results out: what every text generation module does when it runs."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from luthier.adapters.added_tokens import NO_TOKENS
from luthier.adapters.base import Adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.caller import current_caller
from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    ProducerId,
    Token,
    TokenizationResults,
)
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.registry import engine_for
from luthier.modules.environment import Environment
from luthier.modules.text_generation.growing_answer import GrowingAnswer
from luthier.modules.text_generation.text_joining import TextJoiner, drops_first_space
from luthier.resources.base_model import BaseModel
from luthier.resources.cleanup import run_soon
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_encoding import EncodedPrompt, encoder_for
from luthier.training.data.encoding.prompt_style import PromptStyle, PromptWriter
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

#: Tokenizing this many characters takes about a millisecond: too long for an event loop.
_MAX_CHARS_ON_LOOP = 4000


class TextGenerator:
    """Generates text from one base model and, if given, one adapter. Thread-safe.

    Args:
        lease: The base model; the generator releases it, at the latest when it is collected.
        producer_id: Named in every result.
        environment: Limits and engine options.
        adapter: The tuned delta, or None for the bare base model.
        verbalizer: Template from the user's text to the prompt.
        style: In place of ``verbalizer``: how prompts were written in training.
        adapter_folder: Where the adapter was read from, if it was.
        cleans_up_spaces: Take spaces out of texts as caikit-nlp did, for models it saved.
    """

    def __init__(
        self,
        lease: BaseModelLease,
        *,
        producer_id: ProducerId,
        environment: Environment,
        adapter: Adapter | None = None,
        verbalizer: str = DEFAULT_VERBALIZER,
        style: PromptStyle | None = None,
        adapter_folder: Path | None = None,
        cleans_up_spaces: bool = False,
    ) -> None:
        self._adapter_folder = adapter_folder
        self.cleans_up_spaces = cleans_up_spaces
        self._lease = lease
        self._producer_id = producer_id
        self._environment = environment
        self._adapter = None if adapter is None else adapter.served()
        self._prompts = PromptWriter(
            style or PromptStyle(verbalizer),
            lease.base_model,
            NO_TOKENS if self._adapter is None else self._adapter.added_tokens(),
        )
        self._encoder = encoder_for(lease.base_model)
        self._restores_space = lease.base_model.kind == "causal" and drops_first_space(
            lease.base_model.tokenizer
        )
        self._finalizer = weakref.finalize(self, _release_elsewhere, lease)
        self._finalizer.atexit = False

    @property
    def base_model(self) -> BaseModel:
        """The base model, until ``release``."""
        return self._lease.base_model

    @property
    def engine(self) -> Engine:
        """What makes the text; shared by all who serve this base model."""
        return engine_for(self.base_model, options=self._environment.engine_options)

    @property
    def adapter(self) -> Adapter | None:
        """The tuned delta."""
        return self._adapter

    @property
    def verbalizer(self) -> str:
        """The template."""
        return self._prompts.style.verbalizer

    @property
    def style(self) -> PromptStyle:
        """How prompts are written."""
        return self._prompts.style

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids that the model gets for a text.

        Args:
            text: The user's.

        Returns:
            Special tokens included, virtual tokens not.
        """
        return self._prompts.write(_checked_text(text)).token_ids

    def shelve(self) -> None:
        """Leave the adapter's tensors on disk until a request needs them; its folder must stay as
        it is. One that was not read from a folder, or of which the engine needs more, stays."""
        adapter, folder = self._adapter, self._adapter_folder
        if adapter is not None and folder is not None and self.engine.keeps_deltas(adapter):
            self._adapter = StoredAdapter(adapter, folder, base_model=self.base_model)

    def release(self) -> None:
        """Give the base model back; the generator is of no use afterwards. Idempotent."""
        self._finalizer.detach()
        self._lease.release()

    def run(self, text: str, sampling: SamplingParams) -> GeneratedTextResult:
        """Generate and wait for the whole text.

        Args:
            text: The user's.
            sampling: Not yet validated.

        Returns:
            The text with counts, finish reason and what was asked for about tokens.

        Raises:
            LuthierError: If a parameter or the prompt cannot be, or the engine fails or is full.
        """
        answer = self._submit(text, sampling)
        try:
            for chunk in answer.stream:
                answer.add(chunk)
        finally:
            answer.cancel()
        return answer.result()

    def run_many(self, text: str, sampling: SamplingParams, *, n: int) -> list[GeneratedTextResult]:
        """Generate several answers side by side, and wait for all.

        Args:
            text: The user's.
            sampling: Not yet validated.
            n: How many.

        Returns:
            ``n`` results; the i-th is that of ``run`` with the seed that it reports.

        Raises:
            LuthierError: As for ``run``.
        """
        answers: list[GrowingAnswer] = []
        try:
            answers.extend(self._submit_many(text, sampling, n))
            for answer in answers:
                for chunk in answer.stream:
                    answer.add(chunk)
        finally:
            _cancel_all(answers)
        return [answer.result() for answer in answers]

    async def arun_many(
        self, text: str, sampling: SamplingParams, *, n: int
    ) -> list[GeneratedTextResult]:
        """``run_many`` on an event loop; cancelling the task frees the rows.

        Args:
            text: The user's.
            sampling: Not yet validated.
            n: How many.

        Returns:
            As ``run_many``.
        """
        answers: list[GrowingAnswer] = []
        try:
            answers.extend(await asyncio.to_thread(self._submit_many, text, sampling, n))
            for answer in answers:
                async for chunk in answer.stream:
                    answer.add(chunk)
        finally:
            _cancel_all(answers)
        return [answer.result() for answer in answers]

    def run_stream_out(
        self, text: str, sampling: SamplingParams
    ) -> Iterator[GeneratedTextStreamResult]:
        """Generate, piece by piece; joined, the pieces are the text of ``run``.

        The request is checked and submitted at once, not at the first ``next``.

        Args:
            text: The user's.
            sampling: Not yet validated.

        Returns:
            An iterator; dropping it ends the generation.
        """
        return self._submit(text, sampling).pieces()

    async def arun(self, text: str, sampling: SamplingParams) -> GeneratedTextResult:
        """``run`` on an event loop: nothing blocks, and cancelling the task frees the row.

        Args:
            text: The user's.
            sampling: Not yet validated.

        Returns:
            As ``run``.
        """
        answer = await self._asubmit(text, sampling)
        try:
            async for chunk in answer.stream:
                answer.add(chunk)
        finally:
            answer.cancel()
        return answer.result()

    async def arun_stream_out(
        self, text: str, sampling: SamplingParams
    ) -> AsyncGenerator[GeneratedTextStreamResult]:
        """``run_stream_out`` on an event loop; closing the iterator frees the row.

        Args:
            text: The user's.
            sampling: Not yet validated.

        Yields:
            Pieces, the last one with the finish reason.
        """
        answer = await self._asubmit(text, sampling)
        try:
            async for chunk in answer.stream:
                for piece in answer.pieces_of(chunk):
                    yield piece
        finally:
            answer.cancel()

    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the base model's tokens; the verbalizer is not applied.

        Args:
            text: The user's.

        Returns:
            Every token, those that the tokenizer adds included, and their count.

        Raises:
            InvalidInputError: If ``text`` is no string.
        """
        tokens = self._encoder.tokens(_checked_text(text))
        return TokenizationResults(
            results=[Token(start=start, end=end, text=piece) for start, end, piece in tokens],
            token_count=len(tokens),
        )

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """``run_tokenizer`` on an event loop.

        Args:
            text: The user's.

        Returns:
            As ``run_tokenizer``.
        """
        if len(_checked_text(text)) <= _MAX_CHARS_ON_LOOP:
            return self.run_tokenizer(text)
        return await asyncio.to_thread(self.run_tokenizer, text)

    def _submit(self, text: str, sampling: SamplingParams) -> GrowingAnswer:
        return self._submit_prompt(self._prompt(text, sampling), sampling)

    def _submit_many(self, text: str, sampling: SamplingParams, n: int) -> list[GrowingAnswer]:
        prompt = self._prompt(text, sampling)
        answers: list[GrowingAnswer] = []
        try:
            for each in sampling.several(n, self._environment.sampling_limits):
                answers.append(self._submit_prompt(prompt, each))
        except BaseException:
            _cancel_all(answers)
            raise
        return answers

    async def _asubmit(self, text: str, sampling: SamplingParams) -> GrowingAnswer:
        if len(_checked_text(text)) <= _MAX_CHARS_ON_LOOP:
            return self._submit(text, sampling)
        prompt = await asyncio.to_thread(self._prompt, text, sampling)
        return self._submit_prompt(prompt, sampling)

    def _prompt(self, text: str, sampling: SamplingParams) -> EncodedPrompt:
        sampling.validate(self._environment.sampling_limits)
        prompt = self._prompts.write(_checked_text(text), max_tokens=sampling.truncate_input_tokens)
        longest = self._environment.max_prompt_tokens
        if len(prompt.token_ids) > longest:
            raise InvalidInputError(
                f"the prompt has {len(prompt.token_ids)} tokens, at most {longest} are allowed; "
                "'truncate_input_tokens' would cut it"
            )
        return prompt

    def _submit_prompt(self, prompt: EncodedPrompt, sampling: SamplingParams) -> GrowingAnswer:
        base_model = self._lease.base_model
        caller = current_caller()
        request = GenerationRequest(
            prompt.token_ids,
            sampling,
            adapter=self._adapter,
            tenant=caller.tenant,
            priority=caller.priority,
        )
        # A seq2seq model's output never starts with its input, so there is nothing to preserve.
        preserves = sampling.preserve_input_text and base_model.kind == "causal"
        return GrowingAnswer(
            stream=self.engine.submit(request),
            sampling=sampling,
            prompt_text=prompt.text if preserves else "",
            prompt_tokens=len(prompt.token_ids),
            producer_id=self._producer_id,
            joiner=TextJoiner(
                restores_space=self._restores_space, cleans_up_spaces=self.cleans_up_spaces
            ),
        )


def _release_elsewhere(lease: BaseModelLease) -> None:
    """Release in a thread: the collector may run anywhere, even inside the store's lock."""
    run_soon(lease.release)


def _cancel_all(answers: list[GrowingAnswer]) -> None:
    for answer in answers:
        answer.cancel()


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"'text' must be a string, got {type(text).__name__}")
    return text
