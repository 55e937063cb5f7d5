from __future__ import annotations

import torch
from transformers import (
    BartConfig,
    BartModel,
    LEDConfig,
    LEDModel,
    M2M100Config,
    M2M100Model,
    PegasusXConfig,
    PegasusXModel,
)

from luthier.inference.runners.seq2seq.packed_positions import PackedPositions


def test_a_table_looks_up_where_tokens_stand_in_their_own_rows() -> None:
    model = BartModel(BartConfig(vocab_size=40, d_model=16, max_position_embeddings=32))
    table = model.encoder.embed_positions
    alone = [table(torch.zeros(1, count)) for count in (3, 2)]
    PackedPositions(model).set([0, 1, 2, 0, 1], torch.device("cpu"))
    torch.testing.assert_close(table(torch.zeros(1, 5)), torch.cat(alone, dim=1))


def test_word_embeddings_are_left_alone() -> None:
    model = BartModel(BartConfig(vocab_size=40, d_model=16, max_position_embeddings=32))
    ids = torch.tensor([[5, 6]])
    before = model.shared(ids)
    PackedPositions(model).set([7, 9], torch.device("cpu"))
    torch.testing.assert_close(model.shared(ids), before)


def test_a_computed_table_is_looked_up_likewise_and_grows() -> None:
    config = M2M100Config(vocab_size=40, d_model=16, max_position_embeddings=8)
    alone, model = M2M100Model(config), M2M100Model(config)
    counts = (3, 20, 2)
    expected = [
        alone.encoder.embed_positions(inputs_embeds=torch.zeros(1, count, 16)) for count in counts
    ]
    positions = PackedPositions(model)
    positions.set([place for count in counts for place in range(count)], torch.device("cpu"))
    looked_up = model.encoder.embed_positions(inputs_embeds=torch.zeros(1, 25, 16))
    torch.testing.assert_close(looked_up, torch.cat(expected, dim=1))


def test_tables_that_are_asked_in_another_way_are_told_too() -> None:
    sizes = {"vocab_size": 40, "d_model": 16, "decoder_layers": 1, "encoder_layers": 1}
    led = LEDModel(LEDConfig(**sizes, attention_window=8)).decoder
    pegasus = PegasusXModel(PegasusXConfig(**sizes)).decoder
    for decoder, ask in (
        (led, lambda count: led.embed_positions(torch.Size((1, count)), 0)),
        (pegasus, lambda count: pegasus.embed_positions(torch.zeros(1, count, 16), 0, None)[0]),
    ):
        expected = torch.cat([ask(count) for count in (3, 5, 2)])
        positions = PackedPositions(decoder)
        positions.set([0, 1, 2, 0, 1, 2, 3, 4, 0, 1], torch.device("cpu"))
        torch.testing.assert_close(ask(10), expected)
