from __future__ import annotations

from caikit.interfaces.nlp.data_model import FinishReason as WireFinishReason

from luthier.inference.base import FinishReason, GenerationChunk


def test_finish_reasons_have_the_names_and_numbers_of_the_wire() -> None:
    wire = {reason.name: reason.value for reason in WireFinishReason}
    ours = {reason.name: reason.value for reason in FinishReason}
    assert ours == {name: wire[name] for name in ours}


def test_only_a_chunk_with_a_reason_is_last() -> None:
    assert not GenerationChunk(text="a").is_last
    assert GenerationChunk(text="a", finish_reason=FinishReason.EOS_TOKEN).is_last
