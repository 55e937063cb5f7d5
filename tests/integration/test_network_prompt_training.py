"""P-tuning and prefix tuning through the one loop and through both engines, against PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.network_prompts import NETWORK_PROMPTS, NetworkPrompt, peft_gradients
from fixtures.padded_rows import padded_by_hand

from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.data_model.sampling import SamplingParams
from luthier.errors import NotSupportedError
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.examples import Example
from luthier.training.loop import tune
from luthier.training.networks.network import TrainingNetwork

NUM_STEPS = 20
RECORDS = [
    GenerationTrainRecord(input=f"message {number} about {word}", output=word)
    for number, word in enumerate(["billing", "account", "delivery", "technical"])
]


@pytest.fixture(params=["tiny_causal_base", "tiny_seq2seq_base"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    found: BaseModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=NETWORK_PROMPTS)
def method(request: pytest.FixtureRequest) -> NetworkPrompt:
    return NETWORK_PROMPTS[request.param]


def _batch(base: BaseModel) -> TokenBatch:
    is_seq2seq = base.kind == "seq2seq"
    causal = [
        Example(1, (5, 6, 7, 8, 9), (-100, -100, -100, 8, 9)),
        Example(2, (5, 6, 3), (-100, 6, 3)),
    ]
    seq2seq = [Example(1, (5, 6, 7, 8, 1), (9, 4, 1)), Example(2, (5, 1), (6, 3, 7, 8, 1))]
    rows = seq2seq if is_seq2seq else causal
    return collate(rows, pad_token_id=base.pad_token_id, is_seq2seq=is_seq2seq, device=base.device)


def _text(base: BaseModel, row: GenerationTrainRecord) -> tuple[list[int], list[int]]:
    source = base.tokenizer(row.input)["input_ids"]
    target = base.tokenizer(row.output, add_special_tokens=False)["input_ids"]
    return source, [*target, base.tokenizer.eos_token_id]


def test_loss_and_gradients_are_those_of_peft(base: BaseModel, method: NetworkPrompt) -> None:
    adapter, batch = method.ours(base), _batch(base)
    loss = TrainingNetwork(base, adapter).loss_sum(batch) / batch.num_label_tokens
    loss.backward()
    peft_model = method.theirs(base)
    expected = peft_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    expected.backward()

    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    gradients = peft_gradients(peft_model)
    assert gradients.keys() == {name for name, _ in adapter.named_parameters()}
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-3)
    assert any(parameter.grad.abs().max() > 1e-3 for _, parameter in adapter.named_parameters())


def test_the_loop_goes_down_the_curve_of_peft(base: BaseModel, method: NetworkPrompt) -> None:
    # Where the tiny T5 learns faster, every rounding of a gradient sends it another way.
    learning_rate = 2e-3 if base.kind == "causal" else 2e-5
    adapter = method.ours(base)
    options = TrainingOptions(
        num_epochs=NUM_STEPS,
        learning_rate=learning_rate,
        batch_size=4,
        accumulate_steps=1,
        schedule="constant",
        weight_decay=0.0,
    )
    ours = [point.value for point in tune(base, adapter, RECORDS, options=options).losses]

    peft_model = method.theirs(base)
    parameters = [each for each in peft_model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    rows = _rows_by_hand(base)
    theirs = []
    for _ in range(NUM_STEPS):
        loss = peft_model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours[-1] < ours[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 2e-3


def _rows_by_hand(base: BaseModel) -> dict[str, torch.Tensor]:
    rows = [_text(base, record) for record in RECORDS]
    if base.kind == "causal":
        rows = [(source + target, [-100] * len(source) + target) for source, target in rows]
    return padded_by_hand(rows, pad_token_id=base.pad_token_id)


@pytest.mark.parametrize("kind", ["p_tuning_lstm", "prefix_projection"])
def test_what_is_read_again_can_be_tuned_on(
    tiny_causal_base: BaseModel, kind: str, tmp_path: Any
) -> None:
    base = tiny_causal_base
    adapter = NETWORK_PROMPTS[kind].ours(base)
    options = TrainingOptions(num_epochs=2, batch_size=4, accumulate_steps=1, learning_rate=1e-3)
    first = tune(base, adapter, RECORDS, options=options)
    save_adapter(adapter, tmp_path / "adapter", base_model_name="tiny")
    again = load_adapter(tmp_path / "adapter", base_model=base)
    before = again.content_hash()
    second = tune(base, again, RECORDS, options=options)
    assert second.losses[0].value < first.losses[0].value
    assert again.content_hash() != before


def test_checkpointing_is_refused_for_a_prefix(tiny_causal_base: BaseModel) -> None:
    adapter = NETWORK_PROMPTS["prefix"].ours(tiny_causal_base)
    with pytest.raises(NotSupportedError, match="prefix tuning has no gradient checkpointing"):
        TrainingNetwork(tiny_causal_base, adapter, gradient_checkpointing=True)


def _texts(engine: Engine, requests: list[GenerationRequest]) -> list[str]:
    streams = [engine.submit(request) for request in requests]
    return ["".join(chunk.text for chunk in stream) for stream in streams]


def _requests(base: BaseModel, *adapters: Any) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            tuple(base.tokenizer(text)["input_ids"]),
            SamplingParams(max_new_tokens=12),
            adapter=adapter,
        )
        for text in ("My package never arrived", "Label", "I was charged twice for the same order")
        for adapter in adapters
    ]


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_both_engines_write_what_peft_writes(base: BaseModel, method: NetworkPrompt) -> None:
    adapter, peft_model = method.ours(base).served(), method.theirs(base)
    requests = _requests(base, adapter, None)
    expected = []
    for request in requests:
        ids = torch.tensor([request.input_ids])
        written = (base.model if request.adapter is None else peft_model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=base.pad_token_id,
        )[0]
        new = written[1:] if base.kind == "seq2seq" else written[ids.shape[1] :]
        expected.append(base.tokenizer.decode(new, skip_special_tokens=True))
    assert expected[0::2] != expected[1::2]
    # NOTE: what the batched engine does not take on yet, it refuses when it is made.
    engines = (PlainEngine, BatchedEngine) if base.kind == "causal" else (PlainEngine,)
    for make in engines:
        engine: Engine = make(base)
        try:
            assert _texts(engine, requests) == expected
            assert _texts(engine, requests) == expected
        finally:
            engine.close()
