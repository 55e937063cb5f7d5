"""What a request runs with is what it came with, and is held once however many came."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import torch

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.inference.snapshots import Snapshots
from luthier.resources.base_model import BaseModel

MakePrompt = Callable[..., Adapter]


def retune(adapter: Adapter) -> None:
    for _, parameter in adapter.named_parameters():
        parameter.data.mul_(-1.5)


def test_requests_of_one_content_share_one_copy_and_the_next_gets_another(
    causal_base: BaseModel, make_prompt: MakePrompt
) -> None:
    adapter, snapshots = make_prompt(causal_base, seed=1), Snapshots()
    first = snapshots.take(adapter)
    assert first == snapshots.take(adapter)
    assert first[1] is not adapter
    retune(adapter)
    second = snapshots.take(adapter)
    assert second[0] == adapter.content_hash() != first[0] == first[1].content_hash()
    assert not torch.equal(second[1].soft_prompt().decoder, first[1].soft_prompt().decoder)
    assert len(snapshots) == 2
    del first
    gc.collect()
    assert len(snapshots) == 1, "nobody runs with the old one any more"


def test_what_the_engine_keeps_by_its_hash_is_not_copied(
    causal_base: BaseModel, make_prompt: MakePrompt
) -> None:
    adapter, snapshots = make_prompt(causal_base, seed=1), Snapshots()
    key = adapter.content_hash()
    assert snapshots.take(adapter, is_kept=lambda asked: asked == key) == (key, adapter)
    assert snapshots.take(adapter, is_kept=lambda asked: False)[1] is not adapter


def test_a_whole_model_is_neither_copied_nor_hashed(causal_base: BaseModel) -> None:
    whole = FullWeights(causal_base.model)
    assert Snapshots().taken(whole) is whole
    assert whole._hashed is None


def test_the_hash_is_that_of_the_copy_whoever_changes_the_adapter_meanwhile(
    causal_base: BaseModel, make_prompt: MakePrompt
) -> None:
    adapter, snapshots = make_prompt(causal_base, seed=1), Snapshots()
    is_done = threading.Event()

    def tune_on() -> None:
        while not is_done.is_set():
            retune(adapter)

    thread = threading.Thread(target=tune_on)
    thread.start()
    try:
        taken = [snapshots.take(adapter) for _ in range(200)]
    finally:
        is_done.set()
        thread.join()
    for key, copy in taken:
        fresh = copy.snapshot()
        fresh._hashed = None
        assert fresh.content_hash() == key
