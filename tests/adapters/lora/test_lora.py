"""LoRA against PEFT 0.21 on the same tiny networks: logits, loss, gradients; and side by side."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from fixtures.lora_models import (
    FAMILIES,
    disturb,
    make_inputs,
    make_llama,
    make_t5,
    peft_parameters,
    with_peft,
)

from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig

KINDS = {
    "lora": ({}, {}),
    "rslora": ({"use_rslora": True}, {"use_rslora": True}),
    "dora": ({"use_dora": True}, {"use_dora": True}),
    "pissa": ({"initialisation": "pissa"}, {"init_lora_weights": "pissa"}),
    "pissa dora": (
        {"initialisation": "pissa", "use_dora": True},
        {"init_lora_weights": "pissa", "use_dora": True},
    ),
    "patterns": (
        {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 3}},
        {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 3}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_gradients_are_those_of_peft(family: str, kind: str) -> None:
    ours, theirs = KINDS[kind]
    model = FAMILIES[family]()
    expected = with_peft(FAMILIES[family](), seed=3, r=4, lora_alpha=6, **theirs)
    adapter = create_lora(model, LoraConfig(rank=4, alpha=6, **ours), seed=3)
    disturb(adapter, expected)

    inputs = make_inputs(model)
    result, reference = adapter.tuned_model(model)(**inputs), expected(**inputs)
    result.loss.backward()
    reference.loss.backward()

    base = model(**inputs)
    assert (base.logits - result.logits).abs().max() > 0.05
    torch.testing.assert_close(result.logits, reference.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.loss, reference.loss, atol=1e-5, rtol=0)
    parameters = peft_parameters(expected)
    assert parameters.keys() == {name for name, _ in adapter.named_parameters()}
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_whole_modules_learn_as_in_peft(family: str) -> None:
    names = {"llama": ["lm_head", "norm"], "t5": ["lm_head", "final_layer_norm"]}[family]
    model = FAMILIES[family]()
    expected = with_peft(FAMILIES[family](), seed=3, r=4, modules_to_save=names)
    adapter = create_lora(model, LoraConfig(rank=4, alpha=8, modules_to_save=tuple(names)), seed=3)
    disturb(adapter, expected)

    inputs = make_inputs(model)
    result, reference = adapter.tuned_model(model)(**inputs), expected(**inputs)
    result.loss.backward()
    reference.loss.backward()

    torch.testing.assert_close(result.logits, reference.logits, atol=1e-5, rtol=1e-5)
    parameters = peft_parameters(expected)
    assert parameters.keys() == {name for name, _ in adapter.named_parameters()}
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-5, rtol=1e-4)


def test_fifty_steps_of_training_follow_peft() -> None:
    for kind in ("lora", "dora"):
        ours, theirs = KINDS[kind]
        model = make_llama()
        expected = with_peft(make_llama(), seed=3, r=4, lora_alpha=8, **theirs)
        adapter = create_lora(model, LoraConfig(rank=4, alpha=8, **ours), seed=3)
        inputs = make_inputs(model)
        losses = []
        for network, parameters in (
            (adapter.tuned_model(model), [p for _, p in adapter.named_parameters()]),
            (expected, [p for p in expected.parameters() if p.requires_grad]),
        ):
            optimizer = torch.optim.AdamW(parameters, lr=1e-2)
            curve = []
            for _ in range(50):
                loss = network(**inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                curve.append(loss.item())
            losses.append(curve)
        assert losses[0][-1] < 0.5 * losses[0][0]
        assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-3


def test_a_new_adapter_changes_nothing_and_the_base_is_never_touched() -> None:
    for initialisation in ("default", "gaussian", "pissa", "olora", "mica"):
        model = make_llama()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        inputs = make_inputs(model)
        plain = model(**inputs).logits
        config = LoraConfig(
            rank=4, initialisation=initialisation, use_dora=True, modules_to_save=("lm_head",)
        )
        adapter = create_lora(model, config, seed=1)
        start = adapter.tuned_model(model)(**inputs)
        torch.testing.assert_close(start.logits, plain, atol=1e-5, rtol=1e-5)
        start.loss.backward()
        disturb(adapter)
        assert not torch.allclose(adapter.tuned_model(model)(**inputs).logits, plain, atol=1e-2)
        assert torch.equal(model(**inputs).logits, plain)
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(type(layer).__name__ != "LoraLinear" for layer in model.modules())


def test_adapters_and_the_bare_base_run_side_by_side_in_threads() -> None:
    model = make_llama()
    adapters = [create_lora(model, LoraConfig(rank=rank), seed=rank) for rank in (2, 3, 5)]
    for index, adapter in enumerate(adapters):
        disturb(adapter, seed=index, by=0.2)
    rows = [make_inputs(model, seed=seed)["input_ids"] for seed in range(6)]
    networks = [model, *(adapter.tuned_model(model) for adapter in adapters)]
    with torch.no_grad():
        alone = [[network(ids).logits for ids in rows] for network in networks]
    problems: list[str] = []

    def run(index: int) -> None:
        for turn in range(40):
            chosen = (index + turn) % len(networks)
            network = model if chosen == 0 else adapters[chosen - 1].tuned_model(model)
            row = turn % len(rows)
            with torch.no_grad():
                if not torch.equal(network(rows[row]).logits, alone[chosen][row]):
                    problems.append(f"network {chosen}, row {row}")

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert not torch.allclose(alone[0][0], alone[1][0], atol=1e-2)


def test_the_tuned_network_sees_training_at_once_and_is_made_once() -> None:
    model = make_llama()
    adapter = create_lora(model, LoraConfig(rank=2, use_dora=True), seed=1)
    network = adapter.tuned_model(model)
    inputs = make_inputs(model)
    with torch.no_grad():
        before = network(**inputs).logits
        disturb(adapter)
        after = network(**inputs).logits
    assert not torch.allclose(before, after, atol=1e-2)
    assert adapter.tuned_model(model) is network


def test_generation_with_a_cache_is_that_of_peft() -> None:
    for make in (make_llama, make_t5):
        model = make()
        expected = with_peft(make(), seed=3, r=4, use_dora=True)
        adapter = create_lora(model, LoraConfig(rank=4, alpha=8, use_dora=True), seed=3)
        disturb(adapter, expected, by=0.2)
        ids = make_inputs(model)["input_ids"][:1]
        arguments = {"input_ids": ids, "max_new_tokens": 12, "do_sample": False}
        ours = adapter.tuned_model(model).generate(**arguments)
        assert torch.equal(ours, expected.generate(**arguments))
        assert not torch.equal(ours, model.generate(**arguments))


def test_half_precision_bases_get_factors_in_full_precision() -> None:
    model = make_llama().to(torch.bfloat16)
    expected = with_peft(make_llama().to(torch.bfloat16), seed=3, r=4, lora_alpha=8)
    adapter = create_lora(model, LoraConfig(rank=4, alpha=8), seed=3)
    assert {parameter.dtype for _, parameter in adapter.named_parameters()} == {torch.float32}
    disturb(adapter, expected)
    inputs = make_inputs(model)
    result, reference = adapter.tuned_model(model)(**inputs), expected(**inputs)
    assert result.logits.dtype == torch.bfloat16
    torch.testing.assert_close(result.logits, reference.logits, atol=0.1, rtol=0.05)


def test_moving_copies_and_leaves_the_first_as_it_was() -> None:
    model = make_llama()
    adapter = create_lora(
        model,
        LoraConfig(rank=2, use_dora=True, initialisation="pissa", unfreeze_layers=("norm",)),
        seed=1,
    )
    cpu = torch.device("cpu")
    assert adapter.to(device=cpu, dtype=torch.float32) is adapter
    moved = adapter.to(device=cpu, dtype=torch.float64)
    assert {parameter.dtype for _, parameter in moved.named_parameters()} == {torch.float64}
    assert {parameter.dtype for _, parameter in adapter.named_parameters()} == {torch.float32}
    assert [n for n, _ in moved.named_parameters()] == [n for n, _ in adapter.named_parameters()]
    inputs = make_inputs(model)
    exact = moved.tuned_model(model.to(torch.float64))(**inputs).logits
    assert exact.dtype == torch.float64


def test_a_copy_in_another_precision_is_made_once_per_state() -> None:
    model = make_llama()
    adapter = create_lora(model, LoraConfig(rank=2), seed=1)
    there = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    first = adapter.to(**there)
    assert adapter.to(**there) is first
    disturb(adapter)
    second = adapter.to(**there)
    assert second is not first
    tuned = second.tuned_model(model.to(torch.bfloat16))
    assert second.to(**there) is second
    assert tuned is adapter.to(**there).tuned_model(model)


def test_a_snapshot_shares_nothing_that_training_changes() -> None:
    model = make_llama()
    config = LoraConfig(
        rank=2, use_dora=True, initialisation="pissa", modules_to_save=("norm", "lm_head")
    )
    adapter = create_lora(model, config, seed=1)
    disturb(adapter)
    inputs = make_inputs(model)
    before, first_hash = adapter.tuned_model(model)(**inputs).logits, adapter.content_hash()
    snapshot = adapter.snapshot()
    for _, parameter in adapter.named_parameters():
        parameter.data.mul_(1.5)
    assert adapter.content_hash() != first_hash == snapshot.content_hash()
    assert torch.equal(snapshot.tuned_model(model)(**inputs).logits, before)
    assert not torch.equal(adapter.tuned_model(model)(**inputs).logits, before)


def test_the_hash_changes_with_every_tensor_and_setting() -> None:
    model = make_llama()

    def made(**options: object) -> str:
        config = LoraConfig(rank=2, initialisation="mica", modules_to_save=("norm",))
        return create_lora(
            model, LoraConfig.from_mapping(options, defaults=config), seed=1
        ).content_hash()

    assert made() == made()
    assert len({made(), made(alpha=17), made(use_rslora=True), made(rank=3)}) == 4
    adapter = create_lora(
        model, LoraConfig(rank=2, initialisation="mica", modules_to_save=("norm",)), seed=1
    )
    hashes = {adapter.content_hash()}
    tensors = [f.lora_b for f in adapter.factors.values()][:1]
    tensors += [parameter for _, parameter in adapter.named_parameters()]
    for tensor in tensors:
        with torch.no_grad():
            tensor.flatten()[0].add_(1.0)
        hashes.add(adapter.content_hash())
    assert len(hashes) == 1 + len(tensors)


def test_an_adapter_lets_go_of_a_base_that_is_gone() -> None:
    model = make_llama()
    adapter = create_lora(model, LoraConfig(rank=2), seed=1)
    adapter.tuned_model(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert adapter.soft_prompt().decoder is None


def test_b_may_learn_faster_than_all_else() -> None:
    config = LoraConfig(rank=2, use_dora=True, modules_to_save=("norm",), lora_plus_ratio=16)
    adapter = create_lora(make_llama(), config, seed=1)
    factors = {name: adapter.learning_rate_factor(name) for name, _ in adapter.named_parameters()}
    assert {name.partition(".lora_")[2] for name, f in factors.items() if f == 16} == {"B.weight"}
    assert set(factors.values()) == {1.0, 16}
