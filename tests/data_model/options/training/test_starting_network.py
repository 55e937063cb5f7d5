"""The network of a training: what is refused."""

import pytest
from fixtures.refused_options import assert_refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("torch_dtype", "float23", "did you mean 'float32'"),
        ("quantization", "int4", "'quantization' must be one of"),
        ("intermediate_dropout", 0.6, "'intermediate_dropout' must be at most 0.5, got 0.6"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: object, message: str) -> None:
    assert_refused(name, value, message)
