"""An engine whose steps run in another process.

```
    submit ─► adapters, requests, cancels ─►  process: the engine that a thread would run
    streams ◄─ one message for each step  ◄─  (its base model is around the same tensors)
```

If the process dies, every stream gets an error at once, the engine is not healthy until the next
process is ready, and that one is started after a pause that grows while they keep dying.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import tempfile
import weakref
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from luthier.adapters.base import Adapter
from luthier.errors import EngineError, LuthierError
from luthier.inference.base import (
    AdapterStatus,
    ClassificationRequest,
    Engine,
    EngineStatus,
    FinishReason,
    GenerationChunk,
    Request,
    TokenStream,
)
from luthier.inference.channels import Channel, ChannelStream, Item, deliver
from luthier.inference.engine_process.child_process import ChildProcess
from luthier.inference.engine_process.messages import (
    Message,
    decode_chunk,
    decode_error,
    encode_error,
    encode_request,
    pack_tensors,
)
from luthier.inference.engine_process.sent_adapters import (
    SentThings,
    describe_adapter,
    head_key,
    key_of,
    num_bytes_of,
)
from luthier.inference.engine_process.supervisor import MakeError, Supervisor
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.inference.prompts import prepare_prompt
from luthier.inference.scored_sequence import require_head_fits
from luthier.inference.snapshots import Snapshots
from luthier.resources.base_model import BaseModel
from luthier.resources.model_copy import describe_base_model, model_tensors
from luthier.resources.shared_tensors import SharedTensors

#: By which a process may be silent for longer than a step may last.
_MARGIN_SECONDS = 30.0
#: How long a process may take to tell what it has.
_ANSWER_SECONDS = 5.0
#: Choices of layers of which it is remembered whether the process keeps what is done to them.
_MAX_KEPT_LAYERS = 256


class _Row:
    """A request that the process has been told of."""

    def __init__(self, channel: Channel, *, tenant: str, num_input: int) -> None:
        self.channel = channel
        self.tenant = tenant
        self.last = GenerationChunk(text="", input_token_count=num_input)
        self.is_started = False

    def cancelled(self) -> GenerationChunk:
        """Its last chunk, if the process can no longer make it."""
        return dataclasses.replace(
            self.last, text="", tokens=(), input_tokens=(), finish_reason=FinishReason.CANCELLED
        )


class ProcessEngine(Engine):
    """Runs one base model's engine in a process of its own.

    Args:
        base_model: Read, never changed. Its tensors are shared with the process if it was loaded
            so (``BaseModelSources.shares_memory``); if not, they are copied for it.
        options: Limits; ``process`` is about the process itself.

    Raises:
        NotSupportedError: If the model cannot be built in another process.
        EngineError: If no process can be started.
    """

    def __init__(self, base_model: BaseModel, options: EngineOptions | None = None) -> None:
        self._options = options or EngineOptions()
        self._limits = self._options.process or ProcessOptions()
        self.is_rounded = self._options.weights == "int8"  # until the process says so
        # A view of its own, so that the last lease can free the model while this engine lives.
        self._base_model = dataclasses.replace(base_model)
        self.base_model_name = base_model.name
        self._owner = weakref.ref(base_model)
        self._tensors = base_model.shared or SharedTensors(model_tensors(base_model.model))
        self._folder = tempfile.TemporaryDirectory(prefix="luthier-engine-")
        describe_base_model(base_model, Path(self._folder.name))
        self._snapshots = Snapshots()
        self._numbers = itertools.count()
        self._rows: dict[int, _Row] = {}
        self._questions: dict[int, Future[Any]] = {}
        self._kept_layers: OrderedDict[tuple[frozenset[str], frozenset[str]], bool] = OrderedDict()
        self._forget_process()
        self._supervisor = Supervisor(
            self._start,
            hear=self._hear,
            fail=self._fail,
            limits=self._limits,
            max_silent_seconds=self._max_silent_seconds,
        )
        self._state = self._supervisor.state

    def submit(self, request: Request) -> TokenStream:
        """Accept a request; see ``Engine``."""
        self._options.check_priority(request.priority)
        if isinstance(request, ClassificationRequest):
            require_head_fits(self._base_model, request.head)
        adapter, content_hash = request.adapter, ""
        # Deltas stand before nothing: the prompt is that of the bare base.
        is_bare = adapter is not None and bool(adapter.delta_layers() or adapter.whole_layers())
        bare = dataclasses.replace(request, adapter=None) if is_bare else request
        own_tokens = None if adapter is None else adapter.own_tokens()
        prompt = prepare_prompt(self._base_model, bare, own_tokens=own_tokens)
        if adapter is not None:
            # What the process has by now needs no copy.
            content_hash, adapter = self._snapshots.take(adapter, is_kept=self._is_held)
        number = next(self._numbers)
        channel = Channel(on_cancel=lambda: self._cancel(number))
        with self._state:
            process = self._supervisor.living()
            self._check_waiting(request.tenant)
            dropped: list[str] = []
            adapter_key = self._bring_adapter(process, adapter, content_hash, dropped)
            head = self._bring_head(process, request, dropped)
            values = encode_request(request, adapter_key=adapter_key, head_key=head)
            process.say(["submit", number, values])
            for key in dropped:  # not before: the head may have taken the adapter's place
                process.say(["forget", key])
            self._num_submitted += 1
            self._rows[number] = _Row(
                channel, tenant=request.tenant, num_input=len(prompt.token_ids)
            )
        return ChannelStream(channel, keep_alive=self._owner())

    def status(self) -> EngineStatus:
        """How the engine is doing; see ``Engine``."""
        with self._state:
            detail = self._supervisor.failure or ("closed" if self._supervisor.is_closed else "")
            num_waiting = self._estimated_waiting()
            return EngineStatus(not detail, len(self._rows) - num_waiting, num_waiting, detail)

    def keeps_deltas(self, adapter: Adapter) -> bool:
        """Whether the process keeps them; see ``Engine``. Waits until it can tell."""
        layers = (adapter.delta_layers(), adapter.whole_layers())
        if not any(layers):
            return False
        with self._state:
            if layers in self._kept_layers:
                self._kept_layers.move_to_end(layers)
                return self._kept_layers[layers]
            answer = self._ask("keeps", *map(sorted, layers))
        is_kept = bool(answer.result())
        with self._state:
            self._kept_layers[layers] = is_kept
            if len(self._kept_layers) > _MAX_KEPT_LAYERS:
                self._kept_layers.popitem(last=False)
        return is_kept

    def adapter_status(self) -> AdapterStatus | None:
        """Which adapters the process keeps; see ``Engine``. None while it cannot be asked."""
        with self._state:
            if not self._supervisor.is_ready:
                return None
            answer = self._ask("adapters")
        try:
            told = answer.result(_ANSWER_SECONDS)
        except (EngineError, TimeoutError):
            return None
        if told is None:
            return None
        return AdapterStatus(**{**told, "on_device": tuple(told["on_device"])})

    def close(self) -> None:
        """End every stream and the process; see ``Engine``."""
        self._supervisor.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        process = self._supervisor.process
        return None if process is None else process.pid

    @property
    def _max_silent_seconds(self) -> float | None:
        """Longer than a step may last: the process itself can say more about that."""
        longest = self._options.max_step_seconds
        return longest + _MARGIN_SECONDS if longest else None

    def _start(self) -> ChildProcess:
        process = ChildProcess(self._tensors.file_descriptor)
        about = {
            "owner_pid": os.getpid(),
            "folder": self._folder.name,
            "places": {
                name: dataclasses.astuple(place) for name, place in self._tensors.places.items()
            },
            "device": str(self._base_model.device),
            "options": dataclasses.asdict(dataclasses.replace(self._options, process=None)),
            "num_threads": torch.get_num_threads(),
            "log_level": logging.getLogger().getEffectiveLevel(),
        }
        # A message of its own, so that it is all that is read before the engine is there.
        process.say_later(lambda: Message([["start", about]]))
        return process

    def _forget_process(self) -> None:
        self._sent = SentThings(self._limits.max_adapter_bytes)
        self._num_submitted = 0
        self._num_seen = 0  # of those, when the process said how many wait
        self._num_waiting = 0

    def _is_held(self, content_hash: str) -> bool:
        with self._state:
            return self._sent.holds(content_hash)

    def _cancel(self, number: int) -> None:
        # Called from anywhere, by the collector too: it may take no lock.
        process = self._supervisor.process
        if process is not None:
            process.say(["cancel", number])

    def _check_waiting(self, tenant: str) -> None:
        num_waiting = self._estimated_waiting()
        of_tenant = sum(r.tenant == tenant and not r.is_started for r in self._rows.values())
        self._options.check_waiting(
            num_waiting,
            num_of_tenant=min(num_waiting, of_tenant),
            tenant=tenant,
            base_model=self._base_model.name,
        )

    def _estimated_waiting(self) -> int:
        """Those that the process said wait, and those that it may not know of yet."""
        num_unstarted = sum(not row.is_started for row in self._rows.values())
        return min(num_unstarted, self._num_waiting + self._num_submitted - self._num_seen)

    def _bring_adapter(
        self, process: ChildProcess, adapter: Adapter | None, content_hash: str, dropped: list[str]
    ) -> str:
        """See to it that the process has the adapter when the next operation comes; its key."""
        if adapter is None:
            return ""
        key = key_of(adapter, content_hash)
        if self._sent.holds(key):
            return key
        # Perhaps it was dropped since the caller looked, and this is no copy.
        content_hash, adapter = self._snapshots.take(adapter)
        key = key_of(adapter, content_hash)
        if not self._sent.holds(key):
            dropped += self._sent.add(key, num_bytes_of(adapter))
            folder = Path(self._folder.name)
            process.say_later(lambda: _described(key, adapter, content_hash, folder))
        return key

    def _bring_head(self, process: ChildProcess, request: Request, dropped: list[str]) -> str:
        if not isinstance(request, ClassificationRequest):
            return ""
        key = head_key(request.head)
        if not self._sent.holds(key):
            dropped += self._sent.add(key, request.head.nbytes)
            message = Message([["head", key]], [pack_tensors({"head": request.head})])
            process.say_later(lambda: message)
        return key

    def _hear(self, name: str, values: list[Any]) -> None:
        if name == "step":
            self._pass_on(*values)
        elif name == "ready":
            (self.is_rounded,) = values
        elif name == "answer":
            self._answer(*values)
        elif name == "lost":
            self._send_anew(*values)

    def _ask(self, name: str, *values: Any) -> Future[Any]:
        """Ask the process something; call it with the lock held."""
        number, answer = next(self._numbers), Future[Any]()
        self._supervisor.living().say([name, number, *values])
        self._questions[number] = answer
        return answer

    def _answer(self, number: int, told: Any, *error: Any) -> None:
        """Tell whoever asked."""
        problem = decode_error(error) if error else None
        with self._state:
            question = self._questions.pop(number)
        if problem is None:
            question.set_result(told)
        else:
            question.set_exception(problem)

    def _send_anew(self, key: str) -> None:
        """Let the next request bring what the process could not receive."""
        with self._state:
            process = self._supervisor.process
            if self._sent.discard(key) and process is not None:
                process.say(["forget", key])

    def _pass_on(self, status: list[int], chunks: list[list[Any]], errors: list[list[Any]]) -> None:
        """Give each stream what a step gave it."""
        items: list[tuple[int, Item]] = [decode_chunk(values) for values in chunks]
        items += [(number, decode_error(values)) for number, *values in errors]
        with self._state:
            self._num_seen, self._num_waiting = status
            # All are found before any is forgotten: one that is unknown ends the process, and
            # whoever is forgotten by then would never be told.
            rows = [self._row(number) for number, _ in items]
            for row, (number, item) in zip(rows, items, strict=True):
                if isinstance(item, LuthierError) or item.is_last:
                    del self._rows[number]
                else:
                    row.last, row.is_started = item, True
        deliver((row.channel, item) for row, (_, item) in zip(rows, items, strict=True))

    def _row(self, number: int) -> _Row:
        row = self._rows.get(number)
        if row is None:
            raise EngineError(f"its process answered request {number}, which is not running")
        return row

    def _fail(self, make_error: MakeError) -> None:
        """End every stream of a process that has ended."""
        with self._state:
            rows, self._rows = list(self._rows.values()), {}
            questions, self._questions = list(self._questions.values()), {}
            is_closed = self._supervisor.is_closed
            self._forget_process()
        for question in questions:
            question.set_exception(make_error())
        deliver((row.channel, row.cancelled() if is_closed else make_error()) for row in rows)


def _described(key: str, adapter: Adapter, content_hash: str, folder: Path) -> Message:
    try:
        return describe_adapter(key, adapter, content_hash, folder)
    except LuthierError as error:
        problem = error
    except (OSError, RuntimeError, ValueError) as error:
        problem = EngineError(f"the adapter could not be handed over: {error}")
    return Message([["broken", key, *encode_error(problem)]])
