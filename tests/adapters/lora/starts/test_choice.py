"""Against PEFT: training/test_start_measurement.py."""

from __future__ import annotations

from fixtures.lora_starts import start_adapter


def test_starts_that_look_at_no_data_have_no_probe() -> None:
    for word in ("default", "pissa", "mica"):
        assert start_adapter(word).start_probe() is None
        assert start_adapter(word).start_settings() == {}
    assert start_adapter("eva").start_settings()["eva_rho"] == 2.0
