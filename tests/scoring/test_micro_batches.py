"""Calls that wait at the same time are computed together, by prompt, within the size of a batch."""

import asyncio
import threading

import pytest

from jrm_plugin.scoring.micro_batches import MicroBatches, QueueFullError


class Echo:
    """Answers with what it is asked, and keeps the batches; waits for `go`."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def score(self, samples, *, on_error):
        self.batches.append([*samples])
        self.go.wait()
        if "bad" in samples:
            raise MemoryError
        return [f"score of {sample}" for sample in samples]

    def critique(self, samples, *, on_error, **options):
        self.batches.append([*samples, options])
        return [f"critique of {sample}" for sample in samples]


async def begun(echo: Echo, batches: MicroBatches) -> asyncio.Future:
    """A call that is being computed."""
    first = batches.score(["first"], "p")
    while not echo.batches:
        await asyncio.sleep(0.001)
    return first


@pytest.fixture
def echo() -> Echo:
    return Echo()


def test_what_gathers_while_a_batch_is_computed_is_the_next_by_prompt_and_within_its_size(echo):
    async def main() -> list:
        batches = MicroBatches(echo, batch_window=0.0, max_batch=4)
        first = await begun(echo, batches)
        calls = [batches.score([name], name[0]) for name in ("a1", "b1", "a2", "b2", "a3")]
        large = batches.ask("score", ["large"], "l", size=9)
        waiting = asyncio.gather(first, *calls, large)
        await asyncio.sleep(0.01)
        assert batches.waiting == 6
        echo.go.set()
        answers = await waiting
        assert batches.waiting == 0 and (batches.calls, batches.samples, batches.batches) == (7, 7, 4)
        batches.close()
        return answers

    answers = asyncio.run(main())
    assert echo.batches == [["first"], ["a1", "a2", "a3", "b1"], ["b2"], ["large"]]
    assert answers == [[f"score of {name}"] for name in ("first", "a1", "b1", "a2", "b2", "a3", "large")]


def test_what_is_asked_otherwise_is_another_batch(echo):
    echo.go.set()

    async def main() -> list:
        batches = MicroBatches(echo, batch_window=0.01, max_batch=100)
        options = ({"seed": 1}, {"seed": 2}, {"seed": 1})
        scored = batches.score(["s"], "p")
        asked = [batches.ask("critique", [k], "p", options=own) for k, own in enumerate(options)]
        return await asyncio.gather(scored, *asked)

    assert asyncio.run(main()) == [["score of s"], *([f"critique of {k}"] for k in range(3))]
    assert echo.batches == [["s"], [0, 2, {"seed": 1}], [1, {"seed": 2}]]


def test_a_call_that_was_given_up_is_not_computed_and_makes_room(echo):
    async def main() -> None:
        batches = MicroBatches(echo, batch_window=0.0, max_batch=1, max_waiting=2)
        first = await begun(echo, batches)
        left, stays = (batches.score([name], "p") for name in ("left", "stays"))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError):
            batches.check_room(1)
        left.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        batches.check_room(1)
        echo.go.set()
        await asyncio.gather(first, stays)

    asyncio.run(main())
    assert echo.batches == [["first"], ["stays"]]


def test_a_batch_that_fails_is_computed_again_call_by_call(echo):
    async def main() -> list:
        batches = MicroBatches(echo, batch_window=0.01, max_batch=10)
        echo.go.set()
        return await asyncio.gather(*(batches.score([n], "p") for n in ("a", "bad", "b")), return_exceptions=True)

    good, bad, other = asyncio.run(main())
    assert (good, other) == (["score of a"], ["score of b"]) and isinstance(bad, MemoryError)
