"""Text in, results out: what every text generation module does when it runs."""

from __future__ import annotations

import asyncio
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
)
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError
from luthier.inference.base import GenerationRequest
from luthier.modules.environment import Environment
from luthier.modules.text_generation.growing_answer import GrowingAnswer
from luthier.modules.text_generation.text_joining import TextJoiner, drops_first_space
from luthier.modules.text_runner import TextRunner, checked_text
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_encoding import EncodedPrompt
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER


class TextGenerator(TextRunner):
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
        self._adapter = None if adapter is None else adapter.served()
        super().__init__(
            lease,
            environment=environment,
            style=style or PromptStyle(verbalizer),
            added_tokens=NO_TOKENS if self._adapter is None else self._adapter.added_tokens(),
            adapter_folder=adapter_folder,
        )
        self.cleans_up_spaces = cleans_up_spaces
        self._producer_id = producer_id
        self._restores_space = lease.base_model.kind == "causal" and drops_first_space(
            lease.base_model.tokenizer
        )

    @property
    def adapter(self) -> Adapter | None:
        """The tuned delta."""
        return self._adapter

    def shelve(self) -> None:
        """Leave the adapter's tensors on disk until a request needs them; see ``TextRunner``."""
        adapter, folder = self._adapter, self._adapter_folder
        if adapter is not None and folder is not None and self.engine.keeps_deltas(adapter):
            self._adapter = StoredAdapter(adapter, folder, base_model=self.base_model)

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
        if self.submits_at_once(text):
            return self._submit(text, sampling)
        return await asyncio.to_thread(self._submit, text, sampling)

    def _prompt(self, text: str, sampling: SamplingParams) -> EncodedPrompt:
        sampling.validate(self._environment.sampling_limits)
        prompt = self._prompts.write(checked_text(text), max_tokens=sampling.truncate_input_tokens)
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


def _cancel_all(answers: list[GrowingAnswer]) -> None:
    for answer in answers:
        answer.cancel()
