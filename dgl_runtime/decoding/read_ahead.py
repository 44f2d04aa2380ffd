"""A thread that reads ahead of whoever takes what it reads; its errors reach the taker."""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


def read_ahead(
    items: Iterator[Item],
    end: Callable[[], None],
    *,
    most: int,
    weigh: Callable[[Item], int] = lambda item: 1,
) -> Generator[list[Item], None, None]:
    """Run an iterator in a thread; yield all that wait, then what went wrong there is raised here.

    Args:
        items: Where they come from.
        end: Makes ``items`` end where it waits; called from this thread.
        most: What weighs so much waits to be taken, and one more.
        weigh: How much an item counts.
    """
    shelf = _Shelf(most, weigh)
    worker = threading.Thread(target=_fill, args=(items, shelf), daemon=True)
    worker.start()
    try:
        while True:
            taken, is_over, error = shelf.take()
            if taken:
                yield taken
            if error is not None:
                raise error
            if is_over:
                return
    finally:
        shelf.stop()
        end()
        worker.join(timeout=10)


class _Shelf(Generic[Item]):
    """Items between the two threads."""

    def __init__(self, most: int, weigh: Callable[[Item], int]) -> None:
        self._most, self._weigh = most, weigh
        self._items: list[Item] = []
        self._weight = 0
        self._error: BaseException | None = None
        self._is_over = self._is_stopped = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Add an item when there is room; whether anybody wants more."""
        with self._changed:
            self._changed.wait_for(lambda: self._weight < self._most or self._is_stopped)
            self._items.append(item)
            self._weight += self._weigh(item)
            self._changed.notify_all()
            return not self._is_stopped

    def finish(self, error: BaseException | None = None) -> None:
        """There will be no more."""
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify_all()

    def take(self) -> tuple[list[Item], bool, BaseException | None]:
        """Wait for some, or the end: what waits, whether that is all, and what went wrong behind it."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_over)
            items, self._items, self._weight = self._items, [], 0
            self._changed.notify_all()
            return items, self._is_over, self._error

    def stop(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()


def _fill(items: Iterator[Item], shelf: _Shelf[Item]) -> None:
    """Put items on the shelf; what goes wrong is handed to the taker."""
    try:
        for item in items:
            if not shelf.put(item):
                return
        shelf.finish()
    except BaseException as error:
        shelf.finish(error)
