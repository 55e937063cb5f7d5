from __future__ import annotations

import pytest
import torch

from luthier.errors import CapacityError, InvalidInputError
from luthier.inference.options import EngineOptions


def test_the_step_budget_suits_the_device_unless_it_is_given() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert EngineOptions().step_tokens_on(cpu) < EngineOptions().step_tokens_on(gpu)
    assert EngineOptions(max_step_tokens=7).step_tokens_on(gpu) == 7


def test_a_tenant_without_a_weight_gets_the_default_one() -> None:
    weights = {"acme": 4, "__default__": 2}
    weight_of = EngineOptions(tenant_weights=weights).scheduling_on(torch.device("cpu")).weight_of
    assert [weight_of(tenant) for tenant in ("acme", "other", "")] == [4, 2, 2]
    assert EngineOptions().scheduling_on(torch.device("cpu")).weight_of("anybody") == 1


@pytest.mark.parametrize("priority", [11, -11])
def test_a_priority_out_of_bounds_is_refused(priority: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"'priority' must be in -10..10, got {priority}"):
        EngineOptions().check_priority(priority)
    EngineOptions().check_priority(10)


def test_a_full_queue_is_refused_for_all_or_for_the_tenant_that_filled_it() -> None:
    options = EngineOptions(max_waiting=8, max_waiting_per_tenant=4)
    options.check_waiting(7, num_of_tenant=3, tenant="acme", base_model="m")
    options.check_waiting(7, num_of_tenant=7, tenant="", base_model="m")
    with pytest.raises(CapacityError, match="8 requests wait for base model 'm', at most 8 may"):
        options.check_waiting(8, num_of_tenant=0, tenant="acme", base_model="m")
    with pytest.raises(CapacityError, match=r"4 requests of tenant 'acme' wait.*at most 4 of one"):
        options.check_waiting(4, num_of_tenant=4, tenant="acme", base_model="m")


def test_more_beams_than_may_run_at_once_are_refused() -> None:
    EngineOptions(max_beam_rows=4).check_beams(4)
    with pytest.raises(InvalidInputError, match="'num_beams' must be at most 4, got 5"):
        EngineOptions(max_beam_rows=4).check_beams(5)
    with pytest.raises(InvalidInputError, match="'num_beams' must be at most 2, got 3"):
        EngineOptions(max_running=2).check_beams(3)
    EngineOptions(max_running=1).check_beams(1)
