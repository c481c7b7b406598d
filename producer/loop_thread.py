"""An event loop on a daemon thread: how blocking code calls async code. Used by `bridge.py` and `blocking.py`.

A process has one at most: it starts with its first user and ends with its last. A forked child has none of its
parent's threads: there the parent's loop is given up, its sockets with it, and the next user starts another.
"""

import asyncio
import concurrent.futures
import os
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Process:
    """What one process has."""

    def __init__(self) -> None:
        # Re-entrant, since the garbage collector may run somebody's `__del__`, and so a `close`, wherever it is held.
        # Nothing waits for the loop under it.
        self.lock = threading.RLock()
        self.thread: LoopThread | None = None


# By process id: a forked child begins without a lock that somebody held, and keeps what its parent had for ever.
_processes: dict[int, _Process] = {}


class LoopEnded(Exception):
    """The loop is gone, or went while the call was under way."""


class LoopThread:
    """The loop of this process; `enter` gives it."""

    def __init__(self) -> None:
        self._users: set[object] = set()
        self._is_open = True
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._all_left = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="promptq", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._all_left.wait())  # the runner then cancels what still runs, and closes the loop

    @classmethod
    def enter(cls, user: object) -> "LoopThread":
        """The loop, with one more user, who is kept until it leaves. Raises RuntimeError where a loop is running."""
        refuse_inside_a_loop()
        process = _this_process()
        with process.lock:
            found = process.thread
            if found is None or not found.is_open:
                found = process.thread = cls()
            found._users.add(user)
            return found

    @property
    def is_open(self) -> bool:
        """False when its last user has left, and in a forked child."""
        return self._is_open

    def start(self, call: Callable[[], Coroutine[Any, Any, T]]) -> "concurrent.futures.Future[T]":
        """Begin a coroutine on the loop, for a user who stays. Waits for nothing, not for a lock. Raises LoopEnded."""
        if not self._is_open:
            raise LoopEnded
        return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Block until a coroutine has run, and return or raise as it does. An interrupt of this thread cancels it.

        Raises LoopEnded, and RuntimeError where a loop is running.
        """
        refuse_inside_a_loop()
        with lock():  # what is accepted here comes before the end, which cancels it; later nobody would look at it
            future = self.start(call)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise LoopEnded from None
        except BaseException:
            future.cancel()
            raise

    def leave(self, user: object) -> None:
        """The last user to leave ends the thread, and waits for its end unless it is that thread itself."""
        with lock():
            if not self._is_open:
                return
            self._users.discard(user)
            if self._users:
                return
            self._is_open = False
            self._loop.call_soon_threadsafe(self._all_left.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def give_up(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to them.

        To close or unregister them would reach the parent's loop, which shares the poll object behind the selector.
        So their descriptors come to stand for /dev/null, and the objects are kept: none is ever finalized.
        """
        if not self._is_open:
            return
        self._is_open = False
        null = os.open(os.devnull, os.O_RDWR)
        inherited = {self._selector.fileno(), *(key.fd for key in (self._selector.get_map() or {}).values())}
        if alarm := getattr(self._loop, "_csock", None):  # what wakes the parent's loop; no selector knows it
            inherited.add(alarm.fileno())
        for fd in inherited:
            os.dup2(null, fd, inheritable=False)
        os.close(null)


def lock() -> threading.RLock:
    """A lock of this process, for what takes no time: a forked child has its own."""
    return _this_process().lock


def refuse_inside_a_loop() -> None:
    """Raises RuntimeError if this thread runs an event loop, which a blocking call would stop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "a blocking call would stop the event loop that runs in this thread;"
        " use promptq.producer.PromptQueue and await, or asyncio.to_thread"
    )


def _this_process() -> _Process:
    pid = os.getpid()
    if pid not in _processes:  # at first, or forked by a server that did not tell Python
        _give_up_all_but(pid)
    return _processes.setdefault(pid, _Process())


def _give_up_all_but(pid: int | None = None) -> None:
    for owner, process in list(_processes.items()):
        if owner != pid and process.thread is not None:
            process.thread.give_up()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_up_all_but)
