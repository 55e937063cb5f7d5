"""The engine for many requests: one thread, one forward pass for all rows at every step.

```
    submit ──► waiting ──► [ plan ─► forward pass ─► choose tokens ─► deliver ] ──► streams
                                ▲        rows join and leave between steps │
                                └──────────────────────────────────────────┘
```
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.errors import EngineError, InvalidInputError, LuthierError
from luthier.inference.base import (
    ClassificationRequest,
    Engine,
    EngineStatus,
    FinishReason,
    GenerationChunk,
    Request,
    TokenStream,
)
from luthier.inference.batch_rows import BatchRow, RowSlice, SliceLogits
from luthier.inference.beam_rows import BeamGroup, BeamRow
from luthier.inference.channels import ChannelStream, Item, deliver
from luthier.inference.deltas.adapter_pool import PoolStatus
from luthier.inference.memory.kv_cache import BLOCK_TOKENS, whole_blocks
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.prompts import Prompt, prepare_prompt
from luthier.inference.runners.base import Runner
from luthier.inference.runners.encoder_decoder_runner import EncoderDecoderRunner
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.runners.row_forward import decoder_start_token_id, prior_token_ids
from luthier.inference.sampling.model_defaults import model_defaults
from luthier.inference.sampling.prompt_lookup import PromptLookup
from luthier.inference.sampling.sampler import Sampler, choose_together
from luthier.inference.scheduling.arrivals import Arrivals
from luthier.inference.scheduling.scheduler import Scheduler
from luthier.inference.scheduling.step_watch import StepWatch
from luthier.inference.scored_sequence import ScoredSequence, require_head_fits
from luthier.inference.sequences import GeneratedSequence, RowSequence, Vocabulary
from luthier.inference.snapshots import Snapshots
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)

Made = TypeVar("Made")
#: How often rows that wait for an adapter are looked at while no others run.
_LOOK_SECONDS = 0.1


class BatchedEngine(Engine):
    """Continuous batching for one base model and any mix of soft prompts and LoRAs on it.

    Args:
        base_model: One whose attention can be replaced. Read, never changed.
        options: Limits.

    Raises:
        NotSupportedError: If the model cannot be run in packed rows.
    """

    def __init__(self, base_model: BaseModel, options: EngineOptions | None = None) -> None:
        self._options = options or EngineOptions()
        # A view of its own, so that the last lease can free the model while this engine lives.
        self._base_model = dataclasses.replace(base_model)
        self._owner = weakref.ref(base_model)
        self._vocabulary = Vocabulary(base_model.tokenizer, frozenset(base_model.eos_token_ids))
        self._defaults = model_defaults(base_model.model)
        is_seq2seq = base_model.kind == "seq2seq"
        runner: type[Runner] = EncoderDecoderRunner if is_seq2seq else PackedRunner
        self._runner = runner(
            self._base_model,
            max_kv_bytes=self._options.max_kv_bytes,
            max_rows=self._options.max_running,
            max_prefix_bytes=self._options.max_prefix_bytes,
            merging=self._options.merging,
        )
        self.is_rounded = self._options.weights == "int8"
        if self.is_rounded and not self._runner.use_int8_weights():
            self.is_rounded = False
            log.warning("Base model %s keeps its float weights", base_model.name)
        self._scheduler = Scheduler(
            self._runner.memory, self._options.scheduling_on(base_model.device)
        )
        self._prompt_lookup = PromptLookup(
            self._runner.memory,
            max_tokens=self._options.prompt_lookup_tokens,
            max_rows=self._options.prompt_lookup_max_rows,
        )
        self._arrivals = Arrivals(
            self._runner.deltas,
            max_device_bytes=self._options.max_adapter_bytes,
            max_host_bytes=self._options.max_host_adapter_bytes,
            when_ready=self._arrive,
        )
        self._decoder_start_ids = (
            (decoder_start_token_id(self._base_model),) if is_seq2seq else None
        )
        self._snapshots = Snapshots()
        self._state = threading.Condition()
        self._is_closed = False
        self._failure = ""
        self._whole_models: PlainEngine | None = None
        self._watch: StepWatch[BatchRow] = StepWatch(
            self._options.max_step_seconds, on_hang=self._end_while_hanging
        )
        self._thread = threading.Thread(target=self._live, name="batched-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> TokenStream:
        """Accept a request; see ``Engine``."""
        self._options.check_priority(request.priority)
        if self._runs_alone(request):
            return self._engine_for_whole_models(request.tenant).submit(request)
        adapter = request.adapter
        model = self._base_model.model
        has_deltas = adapter is not None and self._arrivals.takes(adapter)
        if adapter is not None and not has_deltas and adapter.tuned_model(model) is not model:
            log.debug("A row of method %s runs beside the batch", adapter.method)
            return self._engine_for_whole_models(request.tenant).submit(request)
        key = ""
        if adapter is not None:
            is_kept = self._arrivals.keeps if has_deltas else None
            key, adapter = self._snapshots.take(adapter, is_kept=is_kept)
            request = dataclasses.replace(request, adapter=adapter)
        # Deltas stand before nothing: the prompt is that of the bare base.
        bare = dataclasses.replace(request, adapter=None) if has_deltas else request
        num_beams = _num_beams(request)
        self._options.check_beams(num_beams)
        prompt = self._fitting(prepare_prompt(self._base_model, bare), num_beams)
        row = self._row(self._sequence(request, prompt), key, num_beams)
        with self._state:
            self._check_accepts(request.tenant)
            if adapter is None or not has_deltas or self._arrivals.expect(row, adapter):
                self._scheduler.waiting.add(row)
            self._state.notify()
        return ChannelStream(row.channel, keep_alive=self._owner())

    def _row(self, sequence: RowSequence, adapter_key: str, num_beams: int) -> BatchRow:
        """The row of a request, or the first of its beams."""
        if num_beams == 1:
            return BatchRow(
                sequence, adapter_key=adapter_key, decoder_start_ids=self._decoder_start_ids
            )
        assert isinstance(sequence, GeneratedSequence)
        return BeamGroup(
            sequence, adapter_key=adapter_key, decoder_start_ids=self._decoder_start_ids
        ).rows[0]

    def _runs_alone(self, request: Request) -> bool:
        """Whether what is asked for, whatever its adapter, is none of the batch's business."""
        if not isinstance(request, ClassificationRequest):
            return False
        require_head_fits(self._base_model, request.head)
        return not self._runner.gives_hidden

    def _sequence(self, request: Request, prompt: Prompt) -> RowSequence:
        if isinstance(request, ClassificationRequest):
            return ScoredSequence(request, prompt=prompt)
        return GeneratedSequence(
            request,
            prompt=prompt,
            vocabulary=self._vocabulary,
            prior_token_ids=prior_token_ids(self._base_model, prompt),
            defaults=self._defaults,
        )

    def status(self) -> EngineStatus:
        """How the engine is doing; see ``Engine``."""
        with self._state:
            detail = self._failure or ("closed" if self._is_closed else self._arrivals.failure)
            detail = detail or self._watch.problem()
            num_running = len(self._scheduler.running)
            num_waiting = self._num_waiting()
            beside = self._whole_models
        if beside is not None:
            num_running += beside.status().num_running
            num_waiting += beside.status().num_waiting
            detail = detail or beside.status().detail
        return EngineStatus(not detail, num_running, num_waiting, detail)

    def keeps_deltas(self, adapter: Adapter) -> bool:
        """Whether the pass adds all that the adapter does; see ``Engine``."""
        return self._arrivals.takes(adapter)

    def adapter_status(self) -> PoolStatus:
        """Which deltas are where, for metrics. Thread-safe."""
        return self._arrivals.pool_status()

    def close(self) -> None:
        """End every stream and the thread; see ``Engine``."""
        with self._state:
            self._is_closed = True
            self._state.notify_all()
        if self._thread is not threading.current_thread() and self._watch.join(self._thread):
            self._runner.close()
        self._watch.close()
        self._arrivals.close()
        if self._whole_models is not None:
            self._whole_models.close()

    def _engine_for_whole_models(self, tenant: str) -> PlainEngine:
        """Adapters that replace the network share no forward pass with anybody."""
        with self._state:
            self._check_accepts(tenant)
            if self._whole_models is None:
                log.info("Some rows run beside the batch, each by itself")
                self._whole_models = PlainEngine(self._owner() or self._base_model, self._options)
            return self._whole_models

    def _fitting(self, prompt: Prompt, num_beams: int) -> Prompt:
        """The prompt with its room cut to what the arena holds, for each of its beams."""
        num_tokens = self._runner.memory.allocator.num_tokens
        num_asked = prompt.num_decoder_virtual_tokens + len(prompt.token_ids)
        num_used, num_encoder = num_asked, 0
        if self._decoder_start_ids is not None:
            num_asked += prompt.num_encoder_virtual_tokens + len(self._decoder_start_ids)
            num_encoder = prompt.num_encoder_virtual_tokens + len(prompt.token_ids)
            num_used = num_asked - num_encoder
        num_left = num_tokens - whole_blocks(num_encoder)
        num_held = num_left // num_beams // BLOCK_TOKENS * BLOCK_TOKENS
        if num_used >= num_held:
            for_each = f" for each of {num_beams} beams" if num_beams > 1 else ""
            raise InvalidInputError(
                f"the prompt has {num_asked} tokens, virtual ones included; the engine's key-value "
                f"cache holds {num_tokens // num_beams}{for_each}"
            )
        room = num_held - num_used if prompt.room is None else min(prompt.room, num_held - num_used)
        return dataclasses.replace(prompt, room=room)

    def _check_accepts(self, tenant: str) -> None:
        if self._failure:
            raise EngineError(f"the engine has stopped: {self._failure}")
        if self._is_closed:
            raise EngineError("the engine is closed")
        self._watch.check()
        self._options.check_waiting(
            self._num_waiting(),
            num_of_tenant=self._scheduler.waiting.num_of(tenant)
            + sum(row.tenant == tenant for row in self._arrivals),
            tenant=tenant,
            base_model=self._base_model.name,
        )

    def _num_waiting(self) -> int:
        return len(self._scheduler.waiting) + len(self._arrivals)

    def _arrive(self, row: BatchRow, error: LuthierError | None) -> None:
        """Let a row into the batch whose adapter has come, or end it."""
        with self._state:
            if not self._arrivals.arrive(row):
                return
            if error is None:
                self._scheduler.waiting.add(row)
                self._state.notify()
                return
            self._arrivals.forget(row)
        deliver([(row.channel, error)])

    def _release(self, row: BatchRow, item: Item) -> None:
        """Forget a row that ended, wherever it is."""
        if not self._arrivals.forget(row.head):
            self._scheduler.release(row, is_broken=isinstance(item, LuthierError))

    def _live(self) -> None:
        """The thread's life. However it ends, nobody is left waiting."""
        failure = ""
        try:
            while self._wait_for_rows():
                with self._watch.step(self._scheduler.running):
                    self._step()
        except BaseException as error:
            failure = f"its thread died of {type(error).__name__}: {error}"
            log.error("Engine died", exc_info=True)
        finally:
            self._end_all(failure)

    def _wait_for_rows(self) -> bool:
        """Block while there is nothing to do; False when the engine is closed."""
        with self._state:
            while not self._is_closed:
                if self._scheduler.running or len(self._scheduler.waiting):
                    return True
                if not len(self._arrivals):
                    self._state.wait()
                elif not self._state.wait(_LOOK_SECONDS):
                    return True  # nothing runs, but who waits for an adapter may have left
        return False

    def _end_all(self, failure: str) -> None:
        with self._state:
            self._failure = failure
            lost = self._all_rows()
            for row in lost:
                self._arrivals.forget(row)
        for row in lost:
            error = EngineError(f"the engine has stopped: {failure}")
            deliver([(row.channel, error if failure else _end(row, FinishReason.CANCELLED))])
        with self._state:
            self._scheduler.take_all()

    def _end_while_hanging(self, _: Collection[BatchRow], problem: str) -> None:
        """Leave nobody waiting for a step that hangs; if it ends, the next one drops the rows."""
        with self._state:
            lost = self._all_rows()
        for row in lost:
            row.channel.fail(EngineError(f"the engine does not answer: {problem}"))

    def _all_rows(self) -> list[BatchRow]:
        """One row of each request, wherever it is."""
        rows = [*self._scheduler.running, *self._scheduler.waiting, *self._arrivals]
        return [row for row in rows if row.head is row]

    def _step(self) -> None:
        """One round: drop who is gone, plan, compute, choose, tell."""
        items = self._end_early()
        with self._state:
            slices = self._with_drafts(self._scheduler.plan())
        results = self._run(slices)
        best = _chosen_together(results.values())
        for each in slices:
            made = _made(partial(self._take, each, results.get(each.row), best.get(each.row)))
            items.extend(made if isinstance(made, list) else [(each.row, made)])
        with self._state:
            for row, item in items:
                if isinstance(item, LuthierError) or item.is_last:
                    self._release(row, item)
        deliver((row.channel, item) for row, item in items)

    def _with_drafts(self, slices: list[RowSlice]) -> list[RowSlice]:
        try:
            return self._prompt_lookup.with_drafts(slices)
        except Exception:
            log.error("Guessing tokens failed; none are guessed in this step", exc_info=True)
            return slices

    def _take(
        self,
        each: RowSlice,
        result: SliceLogits | LuthierError | None,
        best: tuple[int, float] | None,
    ) -> list[tuple[BatchRow, Item]]:
        """What a computed slice gives its row."""
        if isinstance(result, LuthierError):
            return [(each.row, result)]
        each.row.num_computed = each.stop - len(each.drafted)
        if each.count > 1 and not each.drafted:
            self._runner.memory.keep(each.row)
        return [] if result is None else self._advance(result, best)

    def _end_early(self) -> list[tuple[BatchRow, Item]]:
        with self._state:
            items: list[tuple[BatchRow, Item]] = []
            for row in self._all_rows():
                if row.channel.is_cancelled:
                    items.append((row, _end(row, FinishReason.CANCELLED)))
                elif row.sequence.is_overdue:
                    made = _made(partial(_ended_in_time, row))
                    ends = made if isinstance(made, list) else [made]
                    items.extend((row, item) for item in ends)
            for row, item in items:
                self._release(row, item)
        return items

    def _run(self, slices: list[RowSlice]) -> dict[BatchRow, SliceLogits | LuthierError]:
        """Compute the slices together; if that fails, one by one, so that only the broken fail."""
        try:
            self._runner.begin(slices)
            return {each.slice.row: each for each in self._runner.run(slices)} if slices else {}
        except torch.AcceleratorError:
            raise  # the device's state is lost, and with it every row and step to come
        except Exception as error:
            log.error("Step failed", exc_info=True)
            if len(slices) == 1:
                return {slices[0].row: EngineError(f"generation failed: {error}")}
            results: dict[BatchRow, SliceLogits | LuthierError] = {}
            for each in slices:
                results.update(self._run([each]))
            return results

    def _check_draft(self, result: SliceLogits) -> list[tuple[BatchRow, Item]]:
        """Choose one token after the other, as long as each is the one that was guessed."""
        row, drafted = result.slice.row, result.slice.drafted
        items: list[tuple[BatchRow, Item]] = []
        for place, logits in enumerate(result.logits):
            ((_, item),) = self._choose(row, logits)
            items.append((row, item))
            if isinstance(item, LuthierError) or item.is_last or place == len(drafted):
                break
            if row.sequence.token_ids[-1] != drafted[place]:
                break
            row.num_computed += 1
        # Wrong guesses cost: a text that copies nothing soon makes short ones only.
        row.max_drafted = 1 + 2 * (row.num_computed - result.slice.start - 1)
        return items

    def _advance(
        self, result: SliceLogits, best: tuple[int, float] | None
    ) -> list[tuple[BatchRow, Item]]:
        row, sequence = result.slice.row, result.slice.row.sequence
        if isinstance(sequence, ScoredSequence):
            hidden = result.hidden
            assert hidden is not None
            return [(row, _made(lambda: sequence.score(hidden)))]
        if row.reports_prompt:
            assert isinstance(sequence, GeneratedSequence)
            sequence.report_prompt(result.logits, start=result.slice.start - row.num_virtual)
        if not result.slice.reaches_end:
            return []
        if isinstance(row, BeamRow):
            return self._advance_beams(row, result.logits[-1])
        if result.slice.drafted:
            return self._check_draft(result)
        return self._choose(row, result.logits[-1], best=best)

    def _advance_beams(self, row: BeamRow, logits: torch.Tensor) -> list[tuple[BatchRow, Item]]:
        """A step of a search, once the last of its beams has been computed."""
        if not row.group.takes_step(row, logits):
            return []
        memory = self._runner.memory
        made = _made(lambda: list(row.group.advance(memory)))
        return [(row, item) for item in (made if isinstance(made, list) else [made])]

    def _choose(
        self, row: BatchRow, logits: torch.Tensor, *, best: tuple[int, float] | None = None
    ) -> list[tuple[BatchRow, Item]]:
        sequence = row.sequence
        assert isinstance(sequence, GeneratedSequence)
        return [(row, _made(lambda: sequence.advance(logits, best=best)))]


def _num_beams(request: Request) -> int:
    return 1 if isinstance(request, ClassificationRequest) else request.sampling.num_beams


def _end(row: BatchRow, reason: FinishReason) -> Item:
    """The last chunk of a row that ends without a further token."""
    return _made(partial(row.sequence.end, reason))


def _ended_in_time(row: BatchRow) -> list[GenerationChunk]:
    """The last chunks of a row whose time is over."""
    if isinstance(row, BeamRow):
        return list(row.group.cut())
    return [row.sequence.end(FinishReason.TIME_LIMIT)]


def _made(make: Callable[[], Made]) -> Made | LuthierError:
    """What a row is given next; what goes wrong is its own."""
    try:
        return make()
    except LuthierError as error:
        return error
    except Exception as error:
        log.error("Making an answer failed", exc_info=True)
        return EngineError(f"generation failed: {error}")


def _chosen_together(
    results: Iterable[SliceLogits | LuthierError],
) -> dict[BatchRow, tuple[int, float]]:
    """The next tokens of all rows that get one: a GPU is asked only once."""
    rows: list[BatchRow] = []
    samplers: list[Sampler] = []
    logits: list[torch.Tensor] = []
    for each in results:
        if not isinstance(each, SliceLogits) or not each.slice.reaches_end or each.slice.drafted:
            continue
        row = each.slice.row
        sampler = getattr(row.sequence, "sampler", None)
        if isinstance(sampler, Sampler) and not row.is_beam:
            rows.append(row)
            samplers.append(sampler)
            logits.append(each.logits[-1])
    try:
        return dict(zip(rows, choose_together(samplers, logits), strict=True))
    except Exception:
        log.error("Choosing tokens together failed; each row chooses by itself", exc_info=True)
        return {}
