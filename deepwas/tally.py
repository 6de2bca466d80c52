"""Counting what happens to variants: kept, changed, dropped, each by reason and with the first case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["kept", "changed", "dropped", "noted"]


@dataclass
class Count:
    """How many variants met one fate for one reason; `first` describes the first of them."""

    step: str
    action: Action
    reason: str
    count: int
    first: str = ""


@dataclass
class Tally:
    """An ordered log of counts, one row per (step, action, reason); zero counts are not recorded.

    No row of a table may vanish without a line here: at every step, kept + dropped equals what came in.
    """

    rows: list[Count] = field(default_factory=list)

    def add(self, step: str, action: Action, reason: str, count: int, first: str = "") -> None:
        """Record `count` variants; counts of the same step, action and reason add up."""
        if count < 0:
            raise ValueError(f"a count cannot be negative: {step}, {reason}, {count}")
        if count == 0:
            return
        for row in self.rows:
            if (row.step, row.action, row.reason) == (step, action, reason):
                row.count += int(count)
                row.first = row.first or first
                return
        self.rows.append(Count(step, action, reason, int(count), first))

    def extend(self, other: Tally) -> None:
        """Append another tally's rows."""
        for row in other.rows:
            self.add(row.step, row.action, row.reason, row.count, row.first)

    def total(self, action: Action, step: str | None = None) -> int:
        """Sum of the counts of one action, over all steps or one."""
        return sum(r.count for r in self.rows if r.action == action and (step is None or r.step == step))

    def as_list(self) -> list[dict[str, Any]]:
        """Rows as JSON-ready dictionaries, for `run.json`."""
        return [vars(row).copy() for row in self.rows]

    def lines(self) -> list[str]:
        """Rows as text for the log: `step: 1,204 dropped: reason (first: rs3131972)`."""
        out = []
        for row in self.rows:
            first = f" (first: {row.first})" if row.first else ""
            out.append(f"{row.step}: {row.count:,} {row.action}: {row.reason}{first}")
        return out
