from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.lora_models import disturb
from fixtures.marker_tokens import marker_lora

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.key_values import prefix_shape_of
from luthier.adapters.prompts.prefix_tuning import new_prefix_tuning
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.errors import NotSupportedError, ReplacedError
from luthier.inference.engine_process.sent_adapters import (
    ReceivedPrompt,
    SentThings,
    describe_adapter,
    head_key,
    key_of,
    num_bytes_of,
    receive_adapter,
)
from luthier.resources.base_model import BaseModel


def handed_over(adapter: Adapter, base_model: BaseModel, folder: Path) -> Adapter:
    content_hash = adapter.content_hash()
    key = key_of(adapter, content_hash)
    ((name, sent_key, about),), blobs = describe_adapter(key, adapter, content_hash, folder)
    assert (name, sent_key) == ("adapter", key)
    return receive_adapter(about, list(blobs), base_model=base_model)


def lora(base_model: BaseModel, *, seed: int, **config: object) -> Adapter:
    adapter = create_lora(base_model.model, LoraConfig(rank=4, **config), seed=seed)  # type: ignore[arg-type]
    disturb(adapter, seed=seed)
    return adapter


def logits(base_model: BaseModel, adapter: Adapter) -> torch.Tensor:
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        result: torch.Tensor = adapter.tuned_model(base_model.model)(input_ids=ids).logits
    return result


@pytest.mark.parametrize("parts", ["decoder", "encoder", "both"])
def test_virtual_tokens_come_over(
    make_prompt: Callable[..., Adapter], seq2seq_base: BaseModel, tmp_path: Path, parts: str
) -> None:
    adapter = make_prompt(seq2seq_base, seed=1, parts=parts)
    came = handed_over(adapter, seq2seq_base, tmp_path)
    assert isinstance(came, ReceivedPrompt)
    for place in ("decoder", "encoder"):
        ours, theirs = (getattr(each.soft_prompt(), place) for each in (adapter, came))
        assert (ours is None) == (theirs is None) == (parts not in (place, "both"))
        assert ours is None or torch.equal(ours, theirs)
    assert came.prefix_key_values() is None
    assert came.content_hash() == adapter.content_hash()
    assert came.snapshot() is came
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_comes_over(causal_base: BaseModel, tmp_path: Path) -> None:
    adapter = new_prefix_tuning(
        5,
        prefix_shape_of(causal_base),
        kind="causal",
        options=PromptEncoderOptions(),
        generator=torch.Generator().manual_seed(1),
    )
    came = handed_over(adapter, causal_base, tmp_path)
    expected = adapter.prefix_key_values().detach()
    got = came.prefix_key_values()
    assert got is not None
    assert torch.equal(got, expected)
    half = came.to(device=torch.device("cpu"), dtype=torch.bfloat16).prefix_key_values()
    assert half is not None
    assert torch.equal(half, expected.to(torch.bfloat16))
    assert came.soft_prompt().decoder is None


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"modules_to_save": ("lm_head",)}])
def test_a_lora_in_memory_comes_over_through_a_folder(
    causal_base: BaseModel, tmp_path: Path, config: dict[str, object]
) -> None:
    adapter = lora(causal_base, seed=3, **config)
    came = handed_over(adapter, causal_base, tmp_path)
    assert torch.equal(logits(causal_base, came), logits(causal_base, adapter))
    assert came.delta_layers() == adapter.delta_layers()
    assert came.whole_layers() == adapter.whole_layers()


def test_tokens_of_an_adapters_own_come_over_before_it_is_read(
    causal_base: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    adapter = marker_lora(causal_base)
    save_adapter(adapter, folder, base_model_name="tiny")
    direct = load_adapter(folder, base_model=causal_base)
    came = handed_over(StoredAdapter(direct, folder, base_model=causal_base), causal_base, tmp_path)
    expected, got = adapter.own_tokens(), came.own_tokens()
    assert expected is not None
    assert got is not None
    assert isinstance(came, StoredAdapter)
    assert came._kept() is None
    assert got.ids == expected.ids == came.added_tokens()
    assert torch.equal(got.rows, expected.rows)
    written = handed_over(adapter, causal_base, tmp_path)
    assert written.added_tokens() == expected.ids


def test_an_adapter_in_a_folder_is_read_by_whoever_needs_it(
    causal_base: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    adapter = lora(causal_base, seed=3, modules_to_save=("norm",))
    save_adapter(adapter, folder, base_model_name="tiny")
    direct = load_adapter(folder, base_model=causal_base)
    stored = StoredAdapter(direct, folder, base_model=causal_base)
    expected = logits(causal_base, direct)
    del direct
    gc.collect()
    came = handed_over(stored, causal_base, tmp_path)
    assert isinstance(came, StoredAdapter)
    assert stored._kept() is None
    assert came._kept() is None
    assert came.delta_layers() == stored.delta_layers()
    assert came.whole_layers() == stored.whole_layers() == adapter.whole_layers()
    assert torch.equal(logits(causal_base, came), expected)
    save_adapter(lora(causal_base, seed=4), folder, base_model_name="tiny", overwrite=True)
    gc.collect()
    with pytest.raises(ReplacedError, match="replaced by another"):
        came.loaded()


def test_a_whole_model_is_no_adapter_to_hand_over(causal_base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="whole model"):
        handed_over(FullWeights(causal_base.model), causal_base, tmp_path)


def test_what_was_received_cannot_be_saved(causal_base: BaseModel, tmp_path: Path) -> None:
    came = ReceivedPrompt({"decoder": torch.zeros(2, 32)}, "hash")
    with pytest.raises(NotSupportedError, match="received for serving"):
        save_adapter(came, tmp_path / "adapter", base_model_name="tiny")
    with pytest.raises(NotSupportedError, match="received for serving"):
        came.peft_state()
    assert list(came.named_parameters()) == []


def test_one_content_in_two_places_has_two_keys(causal_base: BaseModel, tmp_path: Path) -> None:
    adapter = lora(causal_base, seed=3)
    content_hash = adapter.content_hash()
    keys = {key_of(adapter, content_hash)}
    for name in ("one", "two"):
        save_adapter(adapter, tmp_path / name, base_model_name="tiny")
        stored = StoredAdapter(adapter, tmp_path / name, base_model=causal_base)
        keys.add(key_of(stored, content_hash))
        assert num_bytes_of(stored) == 0
    assert len(keys) == 3
    assert num_bytes_of(adapter) == sum(p.nbytes for _, p in adapter.named_parameters()) > 0


def test_a_head_is_known_by_its_content() -> None:
    head = torch.randn(2, 4)
    keys = {head_key(head), head_key(head.clone()), head_key(head.T.contiguous().T)}
    assert len(keys) == 1
    others = {head_key(head + 1), head_key(head.view(4, 2)), head_key(head.view(torch.int32))}
    assert len(others | keys) == 4


def test_what_was_used_least_lately_makes_room() -> None:
    sent = SentThings(max_bytes=30_000)
    assert not sent.holds("a")
    assert sent.add("a", 8000) == []
    assert sent.add("b", 8000) == []
    assert sent.holds("a")
    assert sent.add("c", 8000) == ["b"]
    assert not sent.holds("b")
    assert sent.add("large", 10**9) == ["a", "c"]
    assert sent.holds("large"), "what a request needs is sent, however large"
    assert sent.add("d", 0) == ["large"]


def test_adapters_that_cost_next_to_nothing_do_not_pile_up() -> None:
    sent = SentThings(max_bytes=100_000)
    dropped = [key for number in range(1000) for key in sent.add(str(number), 0)]
    assert dropped == [str(number) for number in range(len(dropped))]
    assert 900 < len(dropped) < 1000


def test_what_is_discarded_makes_room_and_is_held_no_more() -> None:
    things = SentThings(20_000)
    assert things.add("a", 10_000) == []
    assert things.discard("a")
    assert not things.discard("a")
    assert not things.holds("a")
    assert things.add("b", 10_000) == []
    assert things.holds("b")
