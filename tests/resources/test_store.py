import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from luthier.errors import BaseModelNotFoundError, ConflictError, InvalidInputError
from luthier.resources import store as store_module
from luthier.resources.hardware import parse_dtype
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore


@pytest.fixture
def sources(tiny_base_models_dir):
    return BaseModelSources(base_models_dir=tiny_base_models_dir)


@pytest.fixture
def store(sources):
    return BaseModelStore(sources)


@pytest.fixture
def loads(monkeypatch):
    """Counts loads, and holds each until ``gate`` is set."""
    calls = []
    calls_gate = threading.Event()
    calls_gate.set()

    def counted(location, **options):
        calls.append(location.name)
        assert calls_gate.wait(30)
        return load_base_model(location, **options)

    monkeypatch.setattr(store_module, "load_base_model", counted)
    return calls, calls_gate


def test_two_leases_share_one_copy(store, tiny_causal_dir):
    first = store.acquire("tiny-causal", from_request=True)
    second = store.acquire(tiny_causal_dir)
    assert first.base_model is second.base_model
    assert store.num_loaded == 1


def test_another_dtype_is_another_copy(store):
    first = store.acquire("tiny-causal")
    second = store.acquire("tiny-causal", dtype="bfloat16")
    assert first.base_model is not second.base_model
    assert second.base_model.dtype is torch.bfloat16
    assert store.acquire("tiny-causal", dtype="torch.float32").base_model is first.base_model
    assert store.num_loaded == 2


def test_a_quantised_copy_is_a_copy_of_its_own(store, tiny_seq2seq_base):
    leases = [
        store.acquire("tiny-causal", quantization=word) for word in (None, "none", "nf4", "nf4")
    ]
    plain, also_plain, quantised, also_quantised = (lease.base_model for lease in leases)
    assert plain is also_plain
    assert quantised is also_quantised
    assert [plain.quantization, quantised.quantization] == ["none", "nf4"]
    assert store.num_loaded == 2
    for lease in leases:
        lease.release()
    assert store.num_loaded == 0
    store.add(tiny_seq2seq_base)
    with store.acquire(tiny_seq2seq_base.name, quantization="int8") as in_memory:
        assert in_memory.quantization == "int8"
        assert in_memory.embedding_weight is tiny_seq2seq_base.embedding_weight


def test_the_last_release_frees_the_copy(store):
    first = store.acquire("tiny-causal")
    second = store.acquire("tiny-causal")
    model = weakref.ref(first.base_model.model)
    first.release()
    first.release()
    gc.collect()
    assert model() is second.base_model.model
    second.release()
    gc.collect()
    assert model() is None
    assert store.num_loaded == 0


def test_a_released_lease_gives_nothing(store):
    lease = store.acquire("tiny-causal")
    with lease as base_model:
        assert base_model.name == "tiny-causal"
    with pytest.raises(ConflictError, match="released"):
        _ = lease.base_model


def test_a_model_is_loaded_once_however_many_ask_at_once(store, loads):
    calls, gate = loads
    gate.clear()
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(store.acquire, "tiny-causal") for _ in range(16)]
        threading.Timer(0.1, gate.set).start()
        leases = [future.result(timeout=60) for future in futures]
    assert len(calls) == 1
    assert len({id(lease.base_model) for lease in leases}) == 1
    for lease in leases:
        lease.release()
    assert store.num_loaded == 0


def test_models_that_are_asked_for_at_once_are_all_whole(store):
    """transformers loads under process-wide switches; without our lock keys go missing."""
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            names = ["tiny-causal", "tiny-seq2seq"] * 2
            dtypes = ["float32", "float32", "bfloat16", "bfloat16"]
            leases = list(pool.map(lambda n, d: store.acquire(n, dtype=d), names, dtypes))
        for lease, name, dtype in zip(leases, names, dtypes, strict=True):
            assert lease.base_model.name == name
            assert {p.dtype for p in lease.base_model.model.parameters()} == {parse_dtype(dtype)}
            lease.release()


def test_threads_that_come_and_go_leave_nothing(store):
    def use(_):
        with store.acquire("tiny-causal") as base_model:
            return base_model.hidden_size

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(40))) == {32}
    assert store.num_loaded == 0


def test_a_failed_load_reaches_everybody_and_the_next_one_tries_again(store, loads, monkeypatch):
    _, gate = loads
    gate.clear()
    counted = store_module.load_base_model

    def failing(location, **options):
        counted(location, **options)
        raise InvalidInputError("broken")

    monkeypatch.setattr(store_module, "load_base_model", failing)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(store.acquire, "tiny-causal") for _ in range(4)]
        threading.Timer(0.1, gate.set).start()
        for future in futures:
            with pytest.raises(InvalidInputError, match="broken"):
                future.result(timeout=60)
    assert store.num_loaded == 0
    monkeypatch.setattr(store_module, "load_base_model", counted)
    assert store.acquire("tiny-causal").base_model.name == "tiny-causal"


def test_a_model_in_memory_comes_before_every_other_source(store, tiny_seq2seq_base):
    store.add(tiny_seq2seq_base)
    lease = store.acquire("tiny-seq2seq", dtype="bfloat16", from_request=True)
    assert lease.base_model is tiny_seq2seq_base
    assert store.num_loaded == 0
    store.remove("tiny-seq2seq")
    store.remove("tiny-seq2seq")
    assert lease.base_model is tiny_seq2seq_base
    assert store.acquire("tiny-seq2seq").base_model is not tiny_seq2seq_base


def test_two_models_in_memory_cannot_share_a_name(store, tiny_causal_base, sources):
    store.add(tiny_causal_base)
    store.add(tiny_causal_base)
    other = BaseModelStore(sources).acquire("tiny-causal").base_model
    with pytest.raises(ConflictError, match="already in memory"):
        store.add(other)


def test_an_unknown_name_leaves_nothing_behind(store):
    with pytest.raises(BaseModelNotFoundError):
        store.acquire("no-such-model", from_request=True)
    assert store.num_loaded == 0


def test_a_lease_is_kept_by_a_block_that_succeeds_and_released_by_one_that_fails(store):
    kept = store.acquire("tiny-causal")
    with kept.kept_if_no_error() as base_model:
        assert base_model is kept.base_model
    assert store.num_loaded == 1
    with pytest.raises(KeyboardInterrupt), kept.kept_if_no_error():
        raise KeyboardInterrupt
    with pytest.raises(ConflictError):
        kept.base_model  # noqa: B018
    assert store.num_loaded == 0
