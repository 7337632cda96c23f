"""A server for `openenv_env.py`: a number from 1 to 9 is to be guessed in three tries. `openenv_server.py PORT`."""

import random
import sys
from typing import Any
from uuid import uuid4

import uvicorn
from openenv.core import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    """A try."""

    guess: str


class Hint(Observation):
    """What is said to a try."""

    hint: str


class Number(Environment[Guess, Hint, State]):
    """One game. The right guess is worth 1, each wrong one costs 0.1."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state, self._number = State(episode_id=str(uuid4())), 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **given: Any) -> Hint:
        """Think of a number: that of the row, or one of the seed."""
        self._state = State(episode_id=episode_id or str(uuid4()))
        self._number = int(given.get("number") or random.Random(seed).randint(1, 9))
        return Hint(hint="Guess a number from 1 to 9.")

    def step(self, action: Guess, timeout_s: float | None = None, **given: Any) -> Hint:
        """Say whether it is higher or lower."""
        self._state.step_count += 1
        done = self._state.step_count == 3
        if not action.guess.strip().isdigit():
            return Hint(hint="Say a number.", reward=-0.1, done=done)
        guess = int(action.guess)
        if guess == self._number:
            return Hint(hint="Right.", reward=1.0, done=True)
        return Hint(hint="Higher." if guess < self._number else "Lower.", reward=-0.1, done=done)

    @property
    def state(self) -> State:
        """How far the game is."""
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Number, Guess, Hint, max_concurrent_envs=256)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
