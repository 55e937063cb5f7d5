"""The simple engine: a few threads, each taking one request at a time from start to end.

Whose request is next is the fair queue's to say: tenants take turns by weight, then their adapters.
The first request of an adapter of a tenant waits at most ``(F // N + 1) · L`` forward passes of a
row: N are the threads, F the adapters of all tenants with requests, L the passes of the longest.

A row whose forward pass hangs ends alone, and its thread is replaced as long as there are fewer
than 2 N of them, those that hang included. While all of them hang, requests are refused.

It is the reference that faster engines are tested against, and the one for models they do not
know. Rows share nothing but the frozen weights, so what one answers never depends on the others.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Collection

import alog
import torch

from luthier.errors import ConflictError, EngineError, LuthierError
from luthier.inference.base import (
    ClassificationRequest,
    Engine,
    EngineStatus,
    FinishReason,
    GenerationChunk,
    Request,
    TokenStream,
)
from luthier.inference.channels import Channel, ChannelStream, deliver
from luthier.inference.options import EngineOptions
from luthier.inference.prompts import prepare_prompt
from luthier.inference.runners.row_forward import (
    RowForward,
    positions_change_with_length,
    prior_token_ids,
    row_forward,
)
from luthier.inference.sampling.model_defaults import model_defaults
from luthier.inference.scheduling.fair_queue import FairQueue
from luthier.inference.scheduling.step_watch import StepWatch
from luthier.inference.scored_sequence import ScoredSequence, require_head_fits
from luthier.inference.sequences import GeneratedSequence, RowSequence, Vocabulary
from luthier.inference.snapshots import Snapshots
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)


class _Row:
    """A request's sequence and the channel its chunks go to."""

    width = 1

    def __init__(
        self, sequence: RowSequence, turn_key: str, on_cancel: Callable[[_Row], None]
    ) -> None:
        self.sequence = sequence
        self.tenant, self.turn_key = sequence.request.tenant, turn_key
        self.priority = sequence.request.priority
        self.arrival = self.arrival_step = 0
        self.is_waiting = True
        self.channel = Channel(on_cancel=lambda: on_cancel(self))
        self._weights = self._changes()

    @property
    def flow(self) -> tuple[str, str]:
        return self.tenant, self.turn_key

    def send(self, item: GenerationChunk | LuthierError) -> None:
        if isinstance(item, GenerationChunk) and self._changes() != self._weights:
            raise ConflictError("the adapter's weights were changed while a request ran with them")
        deliver([(self.channel, item)])

    def end(self, reason: FinishReason) -> None:
        deliver([(self.channel, self.sequence.end(reason))])

    def _changes(self) -> object:
        adapter = self.sequence.prompt.adapter
        return None if adapter is None else adapter.changes()


class PlainEngine(Engine):
    """Runs ``options.num_threads`` rows at a time, each by forward passes of its own.

    Args:
        base_model: Read, never changed.
        options: Limits and threads.
    """

    def __init__(self, base_model: BaseModel, options: EngineOptions | None = None) -> None:
        self._options = options or EngineOptions()
        # A view of its own, so that the last lease can free the model while this engine lives;
        # each stream keeps the model itself.
        self._base_model = dataclasses.replace(base_model)
        self.base_model_name = base_model.name
        self._owner = weakref.ref(base_model)
        self._vocabulary = Vocabulary(base_model.tokenizer, frozenset(base_model.eos_token_ids))
        self._defaults = model_defaults(base_model.model)
        # Re-entrant: dropping a stream cancels its row, and the garbage collector may do that
        # while this thread holds the lock, halfway through a change of the queue.
        self._state = threading.Condition(threading.RLock())
        rules = self._options.scheduling_on(base_model.device)
        self._waiting: FairQueue[_Row] = FairQueue(
            ageing_steps=rules.ageing_steps, weight_of=rules.weight_of
        )
        self._running: set[_Row] = set()
        self._hanging: set[_Row] = set()  # of those; each keeps a thread
        self._snapshots = Snapshots()
        self._is_closed = False
        self._failure = ""
        self._watch: StepWatch[_Row] = StepWatch(
            self._options.max_step_seconds, on_hang=self._end_while_hanging
        )
        self._num_threads = max(1, min(self._options.num_threads, self._options.max_running))
        self._max_threads = 2 * self._num_threads
        if positions_change_with_length(base_model.model):
            self._num_threads = self._max_threads = 1
        self._threads: list[threading.Thread] = []
        with self._state:
            self._start_threads()

    def submit(self, request: Request) -> TokenStream:
        """Accept a request; see ``Engine``."""
        self._options.check_priority(request.priority)
        turn_key = str(id(request.adapter))
        if request.adapter is not None:
            snapshot = self._snapshots.taken(request.adapter)
            request = dataclasses.replace(request, adapter=snapshot)
        row = _Row(self._sequence(request), turn_key, on_cancel=self._drop_if_waiting)
        with self._state:
            self._forget_cancelled()
            self._check_accepts(request.tenant)
            self._waiting.add(row)
            self._state.notify()
        return ChannelStream(row.channel, keep_alive=self._owner())

    def status(self) -> EngineStatus:
        """How the engine is doing; see ``Engine``."""
        with self._state:
            detail = self._failure or ("closed" if self._is_closed else "")
            if not self._num_serving:
                detail = detail or self._watch.problem()
            return EngineStatus(
                is_healthy=not detail,
                num_running=len(self._running),
                num_waiting=sum(row.is_waiting for row in self._waiting),
                detail=detail,
            )

    def close(self) -> None:
        """End every stream and the threads; see ``Engine``."""
        with self._state:
            self._is_closed = True
            waiting = self._take_waiting()
            self._state.notify_all()
        for row in waiting:
            row.end(FinishReason.CANCELLED)
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                self._watch.join(thread)
        self._watch.close()

    @property
    def _num_serving(self) -> int:
        """Threads that do not hang."""
        return len(self._threads) - len(self._hanging)

    def _start_threads(self) -> None:
        """Let as many serve as the options say, where those that hang leave room for them."""
        while self._num_serving < self._num_threads and len(self._threads) < self._max_threads:
            name = f"plain-engine-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _sequence(self, request: Request) -> RowSequence:
        if isinstance(request, ClassificationRequest):
            require_head_fits(self._base_model, request.head)
            return ScoredSequence(request, prompt=prepare_prompt(self._base_model, request))
        prompt = prepare_prompt(self._base_model, request)
        return GeneratedSequence(
            request,
            prompt=prompt,
            vocabulary=self._vocabulary,
            prior_token_ids=prior_token_ids(self._base_model, prompt),
            defaults=self._defaults,
        )

    def _check_accepts(self, tenant: str) -> None:
        if self._failure:
            raise EngineError(f"the engine has stopped: {self._failure}")
        if self._is_closed:
            raise EngineError("the engine is closed")
        if not self._num_serving:
            self._watch.check()
        self._options.check_waiting(
            len(self._waiting),
            num_of_tenant=self._waiting.num_of(tenant),
            tenant=tenant,
            base_model=self._base_model.name,
        )

    def _drop_if_waiting(self, row: _Row) -> None:
        with self._state:
            if not row.is_waiting:
                return  # its thread looks at the channel before the next step
            row.is_waiting = False  # the queue forgets it when it is looked at next
        row.end(FinishReason.CANCELLED)

    def _forget_cancelled(self) -> None:
        for row in [row for row in self._waiting if not row.is_waiting]:
            self._waiting.remove(row)

    def _take_waiting(self) -> list[_Row]:
        waiting = [row for row in self._waiting if row.is_waiting]
        for row in list(self._waiting):
            row.is_waiting = False
            self._waiting.remove(row)
        return waiting

    def _work(self) -> None:
        """A thread's life. However it ends, nobody is left waiting."""
        row: _Row | None = None
        failure = "a worker thread ended"
        try:
            while (row := self._next_row()) is not None:
                self._run(row)
                with self._state:
                    self._running.discard(row)
                    self._hanging.discard(row)
        except BaseException as error:
            failure = f"a worker thread died of {type(error).__name__}: {error}"
            log.error("Engine worker died", exc_info=True)
        finally:
            if row is not None:
                self._fail(row, failure)

    def _next_row(self) -> _Row | None:
        with self._state:
            while not self._is_closed:
                if self._num_serving > self._num_threads:
                    self._threads.remove(threading.current_thread())  # it hung, and was replaced
                    return None
                self._forget_cancelled()
                row = self._waiting.next()
                if row is None:
                    self._state.wait()
                    continue
                self._waiting.take(row)
                if row.is_waiting:
                    row.is_waiting = False
                    self._running.add(row)
                    return row
        return None

    def _run(self, row: _Row) -> None:
        try:
            with torch.inference_mode():
                self._answer(row)
        except LuthierError as error:
            row.send(error)
        except torch.AcceleratorError:
            raise  # the device's state is lost, and with it every row to come
        except Exception as error:  # engine step: a broken row ends alone
            log.error("Generation failed", exc_info=True)
            row.send(EngineError(f"generation failed with {type(error).__name__}: {error}"))

    def _answer(self, row: _Row) -> None:
        sequence = row.sequence
        if self._end_early(row):
            return
        forward = row_forward(self._base_model)
        if isinstance(sequence, ScoredSequence):
            with self._watch.step((row,)):
                hidden = forward.last_hidden(sequence.prompt)
            row.send(sequence.score(hidden))
        elif isinstance(sequence, GeneratedSequence):
            self._generate(row, sequence, forward)

    def _generate(self, row: _Row, sequence: GeneratedSequence, forward: RowForward) -> None:
        with self._watch.step((row,)):
            logits = forward.prefill(
                sequence.prompt, wants_prompt_logits=sequence.wants_prompt_logits
            )
        if sequence.wants_prompt_logits and self._base_model.kind == "causal":
            sequence.report_prompt(logits)
        if sequence.request.sampling.num_beams > 1:
            self._search(row, sequence, forward, logits[-1:])
            return
        row.send(sequence.advance(logits[-1]))
        while not sequence.is_finished and not self._end_early(row):
            with self._watch.step((row,)):
                next_logits = forward.step(sequence.token_ids[-1])
            row.send(sequence.advance(next_logits))

    def _search(
        self, row: _Row, sequence: GeneratedSequence, forward: RowForward, logits: torch.Tensor
    ) -> None:
        search = sequence.beam_search()
        search.advance(logits, is_overdue=sequence.is_overdue)
        while not search.is_done:
            if row.channel.is_cancelled or self._is_closed:
                row.end(FinishReason.CANCELLED)
                return
            with self._watch.step((row,)):
                logits = forward.steps(search.token_ids, sources=search.sources)
            search.advance(logits, is_overdue=sequence.is_overdue)
        for chunk in sequence.replay(search.best, was_cut=search.was_cut):
            row.send(chunk)

    def _end_early(self, row: _Row) -> bool:
        with self._state:
            self._waiting.tick()
        if row.channel.is_cancelled or self._is_closed:
            row.end(FinishReason.CANCELLED)
        elif row.sequence.is_overdue:
            row.end(FinishReason.TIME_LIMIT)
        return row.sequence.is_finished

    def _end_while_hanging(self, hanging: Collection[_Row], problem: str) -> None:
        """End a row whose thread hangs; others wait for it only if no thread is left."""
        with self._state:
            self._hanging |= self._running.intersection(hanging)  # it may just have come back
            if not self._is_closed:
                self._start_threads()
            lost = [*hanging, *([] if self._num_serving else self._take_waiting())]
        for row in lost:
            row.channel.fail(EngineError(f"the engine does not answer: {problem}"))

    def _fail(self, row: _Row, failure: str) -> None:
        with self._state:
            self._failure = failure
            self._running.discard(row)
            self._hanging.discard(row)
            lost = [row, *self._take_waiting()]
            self._state.notify_all()
        for each in lost:
            each.send(EngineError(f"the engine has stopped: {failure}"))
