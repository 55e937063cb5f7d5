"""The caller is that of the innermost block, in tasks and threads started there as well."""

import asyncio

from luthier.data_model.caller import Caller, acting_for, current_caller


def test_outside_a_block_it_is_nobody_in_particular():
    assert current_caller() == Caller(tenant="", priority=0)


def test_the_innermost_block_counts():
    with acting_for(Caller("a", 1)):
        with acting_for(Caller("b", 2)):
            assert current_caller() == Caller("b", 2)
        assert current_caller() == Caller("a", 1)
    assert current_caller() == Caller()


def test_tasks_and_threads_take_it_along_and_keep_it():
    async def ask() -> list[Caller]:
        with acting_for(Caller("a", 1)):
            task = asyncio.create_task(later())
            in_thread = await asyncio.to_thread(current_caller)
        return [in_thread, await task, current_caller()]

    async def later() -> Caller:
        await asyncio.sleep(0)
        return current_caller()

    assert asyncio.run(ask()) == [Caller("a", 1), Caller("a", 1), Caller()]
