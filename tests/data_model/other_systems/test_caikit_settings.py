from __future__ import annotations

import re

from fixtures.reference_settings import reference_rows

from luthier.data_model.other_systems.caikit_settings import CAIKIT_SETTINGS
from luthier.data_model.other_systems.foreign_setting import Status

BY_NAME = {setting.name: setting for setting in CAIKIT_SETTINGS}


def test_every_argument_of_the_list_is_known() -> None:
    keys = [
        key.strip() for _, cell, *_ in reference_rows(4) for key in re.split(r", (?:later )?", cell)
    ]
    server = {"torch_dtype"}
    assert len(keys) > 20
    assert [key for key in keys if key not in BY_NAME and key not in server] == []


def test_every_argument_works_but_those_of_a_server() -> None:
    others = [setting.name for setting in CAIKIT_SETTINGS if setting.state is not Status.WORKS]
    assert len(others) == 8
    assert all(BY_NAME[name].reason for name in others)
