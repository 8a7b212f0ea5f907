"""Prefetching: a thread reads the next items while the caller computes."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Iterator[Item]]:
    """Iterate over items that a thread reads ahead of the caller.

    An error of the source is raised at the position of its item, with its traceback. When the block ends, for whatever
    reason, the thread ends after its current item. It is a daemon thread: it does not delay the interpreter's exit.

    Args:
        items: The source; the other thread iterates over it once.
        depth: Size of the buffer; one more item is being read.

    Yields:
        An iterator over the items, in order.
    """
    buffer: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None = None, *, last: bool) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                buffer.put((item, error, last), timeout=_POLL_SECONDS)
                return

    def read() -> None:
        try:
            for item in items:
                put(item, last=False)
                if stopped.is_set():
                    return
            put(None, last=True)
        except BaseException as error:  # raised in the consuming thread
            put(None, error, last=True)

    def consume() -> Iterator[Item]:
        while True:
            item, error, last = buffer.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # None only marks the end

    thread = threading.Thread(target=read, name="read_ahead", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        thread.join(timeout=5.0)  # a blocking source must not delay an interrupt
