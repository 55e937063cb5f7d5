from __future__ import annotations

from fixtures.reference_settings import reference_rows

from luthier.data_model.other_systems.studio_items import CREATION_ITEMS, USER_SETTINGS


def test_every_item_of_the_screens_has_its_answer() -> None:
    names = [row[0].split(" (`")[0] for row in reference_rows(2)]
    assert names == list(CREATION_ITEMS)
    assert all(CREATION_ITEMS.values())


def test_every_user_setting_has_its_answer() -> None:
    assert [row[0] for row in reference_rows(6)] == list(USER_SETTINGS)
    assert all(USER_SETTINGS.values())
