"""A thread that reads ahead of whoever takes what it reads; its errors reach the taker."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(
    items: Iterator[Item], end: Callable[[], None], *, most: int
) -> Generator[list[Item], None, None]:
    """Run an iterator in a thread; yield all that wait, then what went wrong there is raised here.

    Args:
        items: Where they come from.
        end: Makes ``items`` end where it waits; called from this thread.
        most: Items that wait to be taken.
    """
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(maxsize=most)
    stop = threading.Event()
    worker = threading.Thread(target=_fill, args=(items, ready, stop), daemon=True)
    worker.start()
    try:
        waiting: list[Item | BaseException | None] = []
        while None not in waiting:
            waiting = [ready.get(), *(ready.get_nowait() for _ in range(ready.qsize()))]
            here: list[Item] = []
            for item in waiting:
                if isinstance(item, BaseException):
                    if here:
                        yield here
                    raise item
                here += [item] if item is not None else []
            yield here
    finally:
        stop.set()
        end()
        worker.join(timeout=10)


def _fill(
    items: Iterator[Item],
    ready: "queue.Queue[Item | BaseException | None]",
    stop: threading.Event,
) -> None:
    """Put items into a queue, then None; or what went wrong, in place of None."""

    def put(item: Item | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    try:
        for item in items:
            put(item)
            if stop.is_set():
                return
        put(None)
    except BaseException as error:  # handed to the consumer
        put(error)
