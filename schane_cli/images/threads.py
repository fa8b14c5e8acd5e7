"""Work on images in a few threads, results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_HANDFUL = 16  # handing a single image to a thread takes as long as decoding a small one


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int = 4) -> Iterator[Result]:
    """`work(item)` of each item in order, a few handfuls ahead of whoever takes the results."""

    def work_on(handful: list[Item]) -> list[Result]:
        return [work(item) for item in handful]

    left, pending = iter(items), deque[Future[list[Result]]]()
    with ThreadPoolExecutor(threads) as pool:
        while handful := list(islice(left, _HANDFUL)):
            pending.append(pool.submit(work_on, handful))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
