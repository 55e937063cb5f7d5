"""Both doors are given the same services."""

from __future__ import annotations

import dataclasses

import pytest

from luthier.runtime.services.bundle import Services


def test_the_bundle_cannot_be_changed_under_a_door():
    services = Services(*([None] * len(dataclasses.fields(Services))))
    with pytest.raises(dataclasses.FrozenInstanceError):
        services.inference = None
