"""MVP, whose layers attend by code of their own; the reference is transformers' generate."""

from __future__ import annotations

import torch
from transformers import BartConfig, BartModel, MvpConfig, MvpForConditionalGeneration

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.runners.seq2seq.own_cross_attention import replace_own_attention
from luthier.resources.base_model import BaseModel


def test_mvp_gives_what_transformers_generates(seq2seq_base: BaseModel) -> None:
    sizes = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    config = MvpConfig(
        vocab_size=400,
        d_model=32,
        **sizes,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    model = MvpForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    base = BaseModel.from_memory(model, seq2seq_base.tokenizer, name="mvp")
    engine = BatchedEngine(base)
    prompts = [tuple((7 * n + 11 * i) % 390 + 5 for i in range(2 + 3 * n)) for n in range(12)]
    sampling = SamplingParams(max_new_tokens=8)
    streams = [engine.submit(GenerationRequest(ids, sampling)) for ids in prompts]
    answers = [[token.token_id for chunk in s for token in chunk.tokens] for s in streams]
    engine.close()
    for ids, answer in zip(prompts, answers, strict=True):
        expected = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            num_beams=1,
            max_new_tokens=8,
            eos_token_id=list(base.eos_token_ids),
        )
        assert answer == expected[0, 1:].tolist()
    assert len({tuple(answer) for answer in answers}) > 6


def test_layers_that_can_be_told_are_left_alone() -> None:
    model = BartModel(BartConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1))
    before = [module.forward for module in model.modules()]
    replace_own_attention(model)
    assert [module.forward for module in model.modules()] == before
