"""What caikit sees of ``run`` and ``run_stream_out``, and what callers may pass."""

import inspect

import pytest

from luthier.data_model.sampling import SAMPLING_FIELDS, SamplingParams
from luthier.errors import InvalidInputError, UnknownKeyError
from luthier.modules import PeftPromptTuning, TextGeneration
from luthier.modules.text_generation.task_signature import with_sampling_parameters


class Recorder:
    @with_sampling_parameters
    def run(self, text: str, sampling: SamplingParams) -> tuple:
        """Give back what came in."""
        return text, sampling


@pytest.mark.parametrize("module", [PeftPromptTuning, TextGeneration])
@pytest.mark.parametrize("method", ["run", "run_stream_out"])
def test_every_field_is_shown_in_the_order_of_the_wire(module, method):
    parameters = inspect.signature(getattr(module, method)).parameters
    assert tuple(parameters) == ("self", "text", *SAMPLING_FIELDS)
    defaults = SamplingParams()
    for name in SAMPLING_FIELDS:
        expected = getattr(defaults, name)
        assert parameters[name].default == (None if expected == () else expected)


def test_fields_go_by_name_and_by_position():
    text, sampling = Recorder().run("a", 3, 1, top_p=1)
    assert text == "a"
    assert sampling == SamplingParams(max_new_tokens=3, min_new_tokens=1, top_p=1)


@pytest.mark.parametrize(
    ("positional", "named", "error"),
    [
        ((), {"max_tokens": 5}, UnknownKeyError),
        ((3,), {"max_new_tokens": 5}, InvalidInputError),
        (tuple(range(len(SAMPLING_FIELDS) + 1)), {}, InvalidInputError),
    ],
)
def test_what_is_no_field_or_given_twice_is_refused(positional, named, error):
    with pytest.raises(error):
        Recorder().run("a", *positional, **named)
