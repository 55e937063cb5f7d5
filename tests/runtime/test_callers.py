"""Headers and metadata that say who calls."""

import pytest

from luthier.data_model.caller import Caller
from luthier.errors import InvalidInputError
from luthier.runtime.callers import PRIORITY_KEY, TENANT_KEY, caller_of


def test_without_headers_it_is_nobody_in_particular():
    assert caller_of({"host": "here"}) == Caller()


def test_tenant_and_priority_are_read():
    assert caller_of({TENANT_KEY: " team a ", PRIORITY_KEY: "-3"}) == Caller("team a", -3)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({TENANT_KEY: "a" * 129}, "'x-luthier-tenant' has 129 characters, at most 128"),
        ({TENANT_KEY: "a\x00b"}, "'x-luthier-tenant' must be printable text"),
        ({PRIORITY_KEY: "high"}, "'x-luthier-priority' must be int, got 'high'"),
        ({PRIORITY_KEY: "1.5"}, "'x-luthier-priority' must be int, got '1.5'"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_value(headers, message):
    with pytest.raises(InvalidInputError, match=message):
        caller_of(headers)
