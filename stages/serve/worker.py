"""The engine on a thread of its own, and requests to it from the server's loop.

The loop hands requests over and is told of each step's tokens; a step of the model never keeps it from answering
others.
"""

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable

from postmill.stages.progress import Progress
from postmill.stages.shared.engine.protocol import Constraint, Event, Reply, Request, Sampling, StepEngine


class Worker:
    """Drives one engine. All methods but the thread's own are called from the server's loop."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[str, asyncio.Queue[Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.died = asyncio.Event()
        """Set when the engine has failed: it answers nothing more."""

    def start(self) -> None:
        """Begin; the running loop is the one that is told."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way."""
        self._commands.put(None)
        self._thread.join(timeout=30)

    @property
    def num_running(self) -> int:
        """Requests that are not answered yet."""
        return len(self._listeners)

    def submit(self, request: Request, sampling: Sampling, events: asyncio.Queue[Event]) -> None:
        """Ask; tokens and the reply come to `events`."""
        self._listeners[request.key] = events
        self._commands.put(lambda: self._engine.submit(request, sampling))

    def abort(self, keys: list[str]) -> None:
        """Forget requests: nothing more of them comes."""
        gone = [key for key in keys if self._listeners.pop(key, None) is not None]
        if gone:
            self._commands.put(lambda: self._engine.abort(gone))

    def constraint_fault(self, constraint: Constraint) -> str:
        """Why no answer can be held to it; empty if one can. Takes time; any thread may ask."""
        return self._engine.constraint_fault(constraint)

    def do(self, work: Callable[[], None]) -> None:
        """Do something with the engine between two steps, some time."""
        self._commands.put(work)

    async def call(self, work: Callable[[], object]) -> None:
        """Do something with the engine between two steps. Raises what it raises."""
        assert self._loop is not None
        loop, done = self._loop, asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                work()
            except Exception as error:
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, None)

        self._commands.put(run)
        await done

    def _run(self) -> None:
        try:
            while True:
                # wait for something to do, then take all there is
                waiting = [self._commands.get()] if self._engine.is_idle else []
                while not self._commands.empty():
                    waiting.append(self._commands.get())
                for command in waiting:
                    if command is None:
                        return
                    command()
                events = self._engine.step()
                if events and self._loop is not None:
                    self._loop.call_soon_threadsafe(self._tell, events)
        except Exception as error:
            Progress.show("".join(traceback.format_exception(error)).rstrip())
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._die, f"{type(error).__name__}: {error}")

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            listener = self._listeners.get(event.key)
            if listener is not None:
                listener.put_nowait(event)
                if isinstance(event, Reply):
                    del self._listeners[event.key]

    def _die(self, why: str) -> None:
        self.died.set()
        for key, listener in self._listeners.items():
            listener.put_nowait(Reply(key=key, error=f"the engine failed: {why}"))
        self._listeners.clear()
