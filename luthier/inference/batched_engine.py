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
from collections.abc import Collection

import alog
import torch

from luthier.adapters.base import Adapter
from luthier.errors import EngineError, LuthierError, ReplacedError
from luthier.inference.base import (
    AdapterStatus,
    ClassificationRequest,
    Engine,
    EngineStatus,
    FinishReason,
    Request,
    TokenStream,
)
from luthier.inference.batch_rows import BatchRow, RowSlice, SliceLogits
from luthier.inference.channels import ChannelStream, Item, deliver
from luthier.inference.options import EngineOptions
from luthier.inference.plain_engine import PlainEngine
from luthier.inference.runners.base import Runner, RunnerLimits
from luthier.inference.runners.model_runner import PackedRunner
from luthier.inference.runners.seq2seq.encoder_decoder_runner import EncoderDecoderRunner
from luthier.inference.sampling.prompt_lookup import PromptLookup
from luthier.inference.sampling.step_answers import RowItems, StepAnswers, end_of, ended_in_time
from luthier.inference.scheduling.admission import Admission
from luthier.inference.scheduling.arrivals import Arrivals
from luthier.inference.scheduling.scheduler import Scheduler
from luthier.inference.scheduling.step_watch import StepWatch
from luthier.inference.scored_sequence import require_head_fits
from luthier.inference.snapshots import Snapshots
from luthier.resources.base_model import BaseModel

log = alog.use_channel(__name__)

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
        self.base_model_name = base_model.name
        self._owner = weakref.ref(base_model)
        runner: type[Runner] = PackedRunner if base_model.kind == "causal" else EncoderDecoderRunner
        limits = RunnerLimits(
            max_kv_bytes=self._options.max_kv_bytes,
            max_rows=self._options.max_running,
            max_prefix_bytes=self._options.max_prefix_bytes,
            merging=self._options.merging,
        )
        self._runner = runner(self._base_model, limits)
        self.is_rounded = self._options.weights == "int8"
        if self.is_rounded and not self._runner.use_int8_weights():
            self.is_rounded = False
            log.warning("Base model %s keeps its float weights", base_model.name)
        memory = self._runner.memory
        self._admission = Admission(self._base_model, self._options, memory)
        self._scheduler = Scheduler(memory, self._options.scheduling_on(base_model.device))
        self._answers = StepAnswers(memory)
        self._prompt_lookup = PromptLookup(
            memory,
            max_tokens=self._options.prompt_lookup_tokens,
            max_rows=self._options.prompt_lookup_max_rows,
        )
        self._arrivals = Arrivals(
            self._runner.deltas,
            max_device_bytes=self._options.max_adapter_bytes,
            max_host_bytes=self._options.max_host_adapter_bytes,
            max_load_seconds=self._options.max_load_seconds,
            when_ready=self._arrive,
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
        try:
            return self._submit(request, may_be_kept=True)
        except ReplacedError:
            # Dropped from the device after it was found there: this time a copy is taken along.
            return self._submit(request, may_be_kept=False)

    def _submit(self, request: Request, *, may_be_kept: bool) -> TokenStream:
        self._options.check_priority(request.priority)
        if self._runs_alone(request):
            return self._engine_for_whole_models(request.tenant).submit(request)
        adapter = request.adapter
        model = self._base_model.model
        changes_layers = adapter is not None and self._arrivals.takes(adapter)
        if adapter is not None and not changes_layers and adapter.tuned_model(model) is not model:
            log.debug("A row of method %s runs beside the batch", adapter.method)
            return self._engine_for_whole_models(request.tenant).submit(request)
        key, is_kept = "", False
        if adapter is not None:
            # Its own tokens come with each request, so they must be of the same content.
            may_be_kept = may_be_kept and changes_layers and not adapter.added_tokens()
            key, adapter, is_kept = self._taken(adapter, may_be_kept=may_be_kept)
            request = dataclasses.replace(request, adapter=adapter)
        # What is done to layers stands before nothing: the prompt is that of the bare base.
        row = self._admission.row_of(request, adapter_key=key, is_bare=changes_layers)
        with self._state:
            self._check_accepts(request.tenant)
            brought = None if is_kept else adapter
            if adapter is None or not changes_layers or self._arrivals.expect(row, brought):
                self._scheduler.waiting.add(row)
            self._state.notify()
        return ChannelStream(row.channel, keep_alive=self._owner())

    def _taken(self, adapter: Adapter, *, may_be_kept: bool) -> tuple[str, Adapter, bool]:
        """What a request runs with: its key, a copy of it, and whether there was no need for one,
        because what it does to layers is on the device or on its way there."""
        if may_be_kept and self._arrivals.keeps(key := adapter.content_hash()):
            return key, adapter, True
        return *self._snapshots.take(adapter), False

    def _runs_alone(self, request: Request) -> bool:
        """Whether what is asked for, whatever its adapter, is none of the batch's business."""
        if not isinstance(request, ClassificationRequest):
            return False
        require_head_fits(self._base_model, request.head)
        return not self._runner.gives_hidden

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

    def adapter_status(self) -> AdapterStatus | None:
        """Which deltas are where; see ``Engine``."""
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
            deliver([(row.channel, error if failure else end_of(row, FinishReason.CANCELLED))])
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
        self._tell(self._end_early())  # at once: who has left must not wait for a step that hangs
        with self._state:
            slices = self._with_drafts(self._scheduler.plan())
            failed: RowItems = [*self._scheduler.take_failed()]
        self._tell(failed)
        self._tell(self._answers.take(slices, self._run(slices)))

    def _tell(self, items: RowItems) -> None:
        """Release the rows that end, and give each row what is its own."""
        if not items:
            return
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

    def _end_early(self) -> RowItems:
        """The last items of rows whose reader, or whose time, is gone."""
        with self._state:
            items: RowItems = []
            for row in self._all_rows():
                if row.channel.is_cancelled:
                    items.append((row, end_of(row, FinishReason.CANCELLED)))
                elif row.sequence.is_overdue:
                    items += ended_in_time(row)
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
