from __future__ import annotations

import itertools

from fixtures.fake_rows import fake_row
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.inference.scheduling.fair_shares import fair_shares, shares_of_rows

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@settings(derandomize=True)
@given(budget=st.integers(0, 200), demands=COUNTS)
def test_shares_use_up_the_budget_and_are_max_min_fair(budget: int, demands: list[int]) -> None:
    shares = fair_shares(budget, demands)
    assert sum(shares) == min(budget, sum(demands))
    assert all(share <= demand for share, demand in zip(shares, demands, strict=True))
    for (mine, demand), (theirs, _) in itertools.permutations(zip(shares, demands, strict=True), 2):
        if mine < demand:
            assert mine >= theirs - 1, "who could use more has no less than any other"


def test_weights_count() -> None:
    assert fair_shares(40, [100, 100], [3, 1]) == [30, 10]
    assert fair_shares(40, [6, 100], [3, 1]) == [6, 34]


def shares_by_name(budget: int, *rows: tuple[str, str, int], **weights: int) -> list[int]:
    made = [fake_row(count, tenant=tenant, key=key) for tenant, key, count in rows]
    return shares_of_rows(budget, made, lambda tenant: weights.get(tenant, 1))


def test_a_tenant_gets_its_share_however_many_prompts_another_has() -> None:
    flood = [("many", f"{index}", 100) for index in range(10)]
    shares = shares_by_name(100, *flood, ("one", "", 100))
    assert shares[-1] == 1 + (100 - 11 + 1) // 2
    assert sum(shares) == 100


def test_adapters_of_a_tenant_share_alike_then_the_rows_of_each() -> None:
    rows = [("", "a", 100)] * 3 + [("", "b", 100)]
    assert shares_by_name(64, *rows) == [11, 11, 11, 31]


def test_what_one_cannot_use_goes_to_the_others() -> None:
    assert shares_by_name(64, ("a", "", 4), ("b", "", 100)) == [4, 60]
    assert shares_by_name(1000, ("a", "", 4), ("b", "", 100)) == [4, 100]


def test_every_row_gets_a_token_of_a_tight_budget() -> None:
    rows = [("heavy", "", 50), ("light", "", 50), ("light", "", 50)]
    assert shares_by_name(3, *rows, heavy=100) == [1, 1, 1]
