"""Reading while something else computes: one thread, a few items ahead."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_PATIENCE_SECONDS = 0.1


@contextlib.contextmanager
def read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Iterator[Item]]:
    """Iterate over items that a thread takes from their source before they are asked for.

    An error of the source is raised where its item would have come, with its traceback. When the block ends, for
    whatever reason, the thread ends after the item it is at. It is a daemon: an interpreter that must go need not wait.

    Args:
        items: The source; it is iterated in the other thread, once.
        depth: Items that may wait; one more is being read.

    Yields:
        The items, in order.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(depth)
    over = threading.Event()

    def put(item: Item | None, error: BaseException | None = None, *, last: bool) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error, last), timeout=_PATIENCE_SECONDS)
                return

    def read() -> None:
        try:
            for item in items:
                put(item, last=False)
                if over.is_set():
                    return
            put(None, last=True)
        except BaseException as error:  # to be raised in the thread that waits for it
            put(None, error, last=True)

    def taken() -> Iterator[Item]:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # an item that is not the last is one

    thread = threading.Thread(target=read, name="read_ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        over.set()
        thread.join(timeout=5.0)  # a source that blocks must not hold up an interrupt
