from __future__ import annotations

import pytest

from luthier.data_model.options.lora_starts import (
    INITIALISATIONS,
    PissaInit,
    parse_initialisation,
    require_loftq_base,
)
from luthier.errors import InvalidInputError


def test_words_of_pissa() -> None:
    assert parse_initialisation("pissa") == PissaInit(None)
    assert parse_initialisation("pissa_niter_0") == PissaInit(0)
    assert parse_initialisation("pissa_niter_16") == PissaInit(16)


def test_every_word_of_peft_is_known() -> None:
    """Those of the documentation of ``LoraConfig.init_lora_weights`` in PEFT 0.21.2, and lora_ga
    of its code."""
    theirs = {
        "gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica", "lora_ga",
    }  # fmt: skip
    assert theirs <= set(INITIALISATIONS)
    assert all(parse_initialisation(word) for word in theirs)


def test_an_unknown_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'corda'"):
        parse_initialisation("cordas")


def test_loftq_needs_a_base_that_stays_quantised() -> None:
    require_loftq_base("eva", quantization="none", serve_quantized=False)
    require_loftq_base("loftq", quantization="nf4", serve_quantized=True)
    with pytest.raises(InvalidInputError, match="set 'quantization'"):
        require_loftq_base("loftq", quantization="none", serve_quantized=True)
    with pytest.raises(InvalidInputError, match="set 'serve_quantized'"):
        require_loftq_base("loftq", quantization="nf4", serve_quantized=False)
