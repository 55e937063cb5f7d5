"""What the contract asks of those who implement it."""

from __future__ import annotations

import pytest

from luthier.adapters.start_probe import GradientProbe, InputProbe, StartProbe


@pytest.mark.parametrize(
    ("kind", "method"), [(InputProbe, "see_inputs"), (GradientProbe, "see_gradients")]
)
def test_each_kind_must_say_what_it_makes_of_what_it_is_shown(
    kind: type[StartProbe], method: str
) -> None:
    common = dict.fromkeys(StartProbe.__abstractmethods__)
    with pytest.raises(TypeError, match=f"abstract method '?{method}"):
        type("_Blind", (kind,), common)()
    type("_Seeing", (kind,), {**common, method: lambda *_: None})()
