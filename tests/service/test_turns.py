import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from service.turns import Turns


async def visit(turns: Turns, name: int, let_in: list[int], inside: set[int]) -> None:
    async with turns:
        let_in.append(name)
        inside.add(name)
        try:
            await asyncio.Event().wait()
        finally:
            inside.discard(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


ACTIONS = st.lists(
    st.one_of(
        st.just("come"),
        st.tuples(st.sampled_from(["leave", "leave at once"]), st.integers(0, 99)),
        st.tuples(st.just("room"), st.integers(1, 4)),
    ),
    max_size=60,
)


@settings(max_examples=500, deadline=None)
@given(ACTIONS)
def test_all_get_in_in_order_as_many_as_there_is_room_for_and_never_more(actions: list) -> None:
    async def go() -> None:
        room = 2
        most = room  # whoever is inside when the room shrinks stays
        turns = Turns(lambda: room)
        let_in: list[int] = []
        inside: set[int] = set()
        tasks: list[asyncio.Task[None]] = []
        for action in actions:
            asked = False  # how much room there is
            if action == "come":
                await settled()  # who is let in before goes in before
                tasks.append(asyncio.create_task(visit(turns, len(tasks), let_in, inside)))
            elif action[0] == "room":
                room = action[1]
            elif tasks:
                name = action[1] % len(tasks)
                asked = action[0] == "leave" and name in inside
                tasks[name].cancel()
            if action[0] != "leave at once":
                await settled()
            most = max(room, min(most, len(inside)))
            assert len(inside) <= most
            if asked:
                assert len(inside) >= min(room, sum(not task.done() for task in tasks))
        room = 1
        while waiting := [task for task in tasks if not task.done()]:
            assert inside or not waiting
            waiting[0].cancel()
            await settled()
        assert let_in == sorted(let_in)

    asyncio.run(go())


async def test_who_is_let_in_and_cancelled_at_once_loses_nobody_a_turn() -> None:
    turns = Turns(lambda: 1)
    let_in: list[int] = []
    first, second, third = (asyncio.create_task(visit(turns, n, let_in, set())) for n in range(3))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)  # the second is let in, and does not know it yet
    second.cancel()
    await settled()
    assert let_in == [0, 2]
    third.cancel()
