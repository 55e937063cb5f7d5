import pytest

from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.errors import InvalidInputError


def test_the_defaults_can_be_meant():
    PromptEncoderOptions().validate()
    PromptEncoderOptions("LSTM", 64, 3, 0.1, True).validate()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reparameterization_type": "LSTN"}, "'encoder_reparameterization_type' .* 'LSTM'"),
        ({"hidden_size": 0}, "'encoder_hidden_size'.*1"),
        ({"hidden_size": 10**9}, "'encoder_hidden_size'"),
        ({"num_layers": 0}, "'encoder_num_layers'"),
        ({"num_layers": True}, "'encoder_num_layers'"),
        ({"dropout": 1.0}, "'encoder_dropout'"),
        ({"dropout": float("nan")}, "'encoder_dropout'"),
        ({"prefix_projection": "yes"}, "'prefix_projection'"),
    ],
)
def test_what_no_network_can_be_made_of_is_refused(given, message):
    with pytest.raises(InvalidInputError, match=message):
        PromptEncoderOptions(**given).validate()
