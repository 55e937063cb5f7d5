"""Whose base model is leased: the caller's, or the one that a saved model names."""

from __future__ import annotations

import pytest

from luthier.errors import NameNotAllowedError
from luthier.modules.leasing import lease_base_model, lease_saved_base_model


def test_a_resource_in_memory_is_leased_as_it_is(here, tiny_causal_base):
    with lease_base_model(tiny_causal_base, here, quantization="int8") as base:
        assert base is tiny_causal_base


def test_a_name_is_found_in_the_precision_that_is_asked_for(here):
    with lease_base_model("tiny-causal", here, dtype="bfloat16") as base:
        assert str(base.dtype) == "torch.bfloat16"


def test_a_saved_name_may_not_reach_beyond_what_the_operator_allows(here, tmp_path):
    with pytest.raises(NameNotAllowedError):
        lease_saved_base_model(str(tmp_path), None, here)
    with lease_saved_base_model("tiny-causal", None, here) as base:
        assert base.name == "tiny-causal"


def test_the_callers_base_model_counts_more_than_the_saved_name(here, tiny_causal_base):
    with lease_saved_base_model("gone", tiny_causal_base, here) as base:
        assert base is tiny_causal_base
