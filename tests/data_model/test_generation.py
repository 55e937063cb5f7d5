"""The objects of generation have caikit's and caikit-nlp's names and numbers."""

import pytest

from luthier.data_model import generation


def numbers(data_object):
    return {field.name: field.number for field in data_object.get_proto_class().DESCRIPTOR.fields}


def test_the_decay_penalty_is_caikit_nlps():
    penalty = generation.ExponentialDecayLengthPenalty
    assert penalty.get_proto_class().DESCRIPTOR.full_name == (
        "caikit_data_model.caikit_nlp.ExponentialDecayLengthPenalty"
    )
    assert numbers(penalty) == {"start_index": 1, "decay_factor": 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "GeneratedTextResult",
            {
                "generated_text": 1,
                "generated_tokens": 2,
                "finish_reason": 3,
                "producer_id": 4,
                "input_token_count": 5,
                "seed": 6,
                "tokens": 7,
                "input_tokens": 8,
            },
        ),
        (
            "GeneratedTextStreamResult",
            {"generated_text": 1, "tokens": 2, "details": 3, "producer_id": 4, "input_tokens": 5},
        ),
        (
            "TokenStreamDetails",
            {"finish_reason": 1, "generated_tokens": 2, "seed": 3, "input_token_count": 4},
        ),
        ("GeneratedToken", {"text": 1, "logprob": 3, "rank": 4}),
        ("TokenizationResults", {"results": 1, "token_count": 4}),
    ],
)
def test_results_are_caikits(name, expected):
    assert numbers(getattr(generation, name)) == expected


def test_a_penalty_survives_the_wire():
    penalty = generation.ExponentialDecayLengthPenalty(start_index=3, decay_factor=1.5)
    again = generation.ExponentialDecayLengthPenalty.from_proto(penalty.to_proto())
    assert (again.start_index, again.decay_factor) == (3, 1.5)
