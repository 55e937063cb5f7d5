from luthier.data_model.options.quantisation import NONE, QUANTISATIONS
from luthier.data_model.options.training_options import TrainingOptions


def test_nothing_is_quantised_unless_asked_for() -> None:
    assert QUANTISATIONS[0] == NONE == TrainingOptions().quantization
