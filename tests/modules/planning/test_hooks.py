"""Whose limits hold."""

import pytest
from fixtures.train_plans import plan, plan_request
from fixtures.train_rows import ROWS

from luthier.errors import (
    InvalidInputError,
)


@pytest.fixture(autouse=True)
def here(configured):
    """An environment of each test's own, in which a plan loads nothing."""
    own = configured()
    yield own
    assert own.base_models.num_loaded == 0


def test_the_limits_of_the_server_hold_for_requests(configured):
    configured(
        TRAINING_LIMITS_MAX_EPOCHS="3",
        TRAINING_LIMITS_MAX_ROWS="5",
        TRAINING_LIMITS_MAX_VIRTUAL_TOKENS="4",
    )
    for changes, message in [
        ({"num_epochs": 4}, "'num_epochs' must be at most 3"),
        ({"num_epochs": 3}, "more than 5 records"),
        ({"num_epochs": 3, "train_stream": ROWS[:5]}, "num_virtual_tokens' must be at most 4"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            plan_request(**changes)
    assert plan(num_epochs=4).options.num_epochs == 4
