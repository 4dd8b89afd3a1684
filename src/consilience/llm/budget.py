"""A limit on calls, tokens, money and seconds, shared by any number of models and threads."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from consilience.errors import BudgetError, Problems, RequestError
from consilience.llm.protocol import Usage

__all__ = ["CallBudget", "Reservation"]


@dataclass(frozen=True)
class Reservation:
    """What a call under way may use at most."""

    tokens: int
    money: float


class CallBudget:
    """Limits; None means none. `prices` is money per million tokens of prompt and of answer.

    >>> budget = CallBudget(calls=1)
    >>> budget.settle(budget.reserve(10, 5), Usage(10, 3))
    >>> budget.reserve(10, 5)
    Traceback (most recent call last):
    ...
    consilience.errors.BudgetError: the budget of language model calls is used up: 1 of 1 calls
    >>> budget.spent
    {'calls': 1, 'tokens': 13, 'money': 0.0}

    A call is refused before it starts when it could pass a limit, counting the most that calls under way may use.
    Seconds run from the first call.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        tokens: int | None = None,
        money: float | None = None,
        seconds: float | None = None,
        prices: tuple[float, float] | None = None,
    ) -> None:
        problems = Problems()
        for name, limit in (("calls", calls), ("tokens", tokens), ("money", money), ("seconds", seconds)):
            if limit is not None and not limit >= 0:
                problems.add(f"{name} is {limit}; a limit is 0 or more, or None")
        if money is not None and prices is None:
            problems.add("a limit on money needs prices=(per million tokens of prompt, of answer)")
        problems.raise_if_any(RequestError, "budget")
        self.calls, self.tokens, self.money, self.seconds = calls, tokens, money, seconds
        self.prices = prices or (0.0, 0.0)
        self._lock = threading.Lock()
        self._calls, self._tokens, self._money = 0, 0, 0.0
        self._held_tokens, self._held_money = 0, 0.0
        self._started: float | None = None

    @property
    def spent(self) -> dict[str, float]:
        """Calls made, tokens and money used."""
        with self._lock:
            return {"calls": self._calls, "tokens": self._tokens, "money": self._money}

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds that are left, never below 0; None without a limit."""
        if self.seconds is None:
            return None
        passed = 0.0 if self._started is None else time.monotonic() - self._started
        return max(self.seconds - passed, 0.0)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the money that tokens cost."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def reserve(self, prompt_tokens: int, max_tokens: int | None) -> Reservation:
        """Count a call that is about to start; raise BudgetError where it could pass a limit."""
        held = Reservation(prompt_tokens + (max_tokens or 0), self.price(prompt_tokens, max_tokens or 0))
        with self._lock:
            if self._started is None:
                self._started = time.monotonic()
            over = []
            if self.calls is not None and self._calls >= self.calls:
                over.append(f"{self._calls} of {self.calls} calls")
            if self.tokens is not None and self._tokens + self._held_tokens + held.tokens > self.tokens:
                needs = (
                    f"{self._tokens + self._held_tokens} of {self.tokens} tokens, the next call may use {held.tokens}"
                )
                over.append(needs)
            if self.money is not None and self._money + self._held_money + held.money > self.money:
                needs = f"{self._money + self._held_money:g} of {self.money:g} money"
                over.append(f"{needs}, the next call may use {held.money:g}")
            if self.remaining_seconds == 0.0:
                over.append(f"all of {self.seconds:g} seconds")
            if over:
                raise BudgetError(f"the budget of language model calls is used up: {'; '.join(over)}")
            self._calls += 1
            self._held_tokens += held.tokens
            self._held_money += held.money
        return held

    def settle(self, held: Reservation, usage: Usage) -> None:
        """Replace what was held for a call by what it used."""
        with self._lock:
            self._held_tokens -= held.tokens
            self._held_money -= held.money
            self._tokens += usage.total
            self._money += self.price(usage.prompt_tokens, usage.completion_tokens)
