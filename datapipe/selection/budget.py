"""How much to keep: a fraction of the rows, a number of rows, or a number of tokens.

Raises `BudgetError` where the numbers cannot be meant.
"""

from __future__ import annotations

from dataclasses import dataclass

from datapipe.errors import BudgetError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a selection may keep; exactly one of the three is given.

    Attributes:
        fraction: 0 < fraction <= 1, of the rows to choose from. Keeps the nearest whole number, a half to the even one,
            and at least one row where there is any, so 0.3 of 5 rows are 2 and 0.1 of 5 rows are 1.
        rows: Keeps exactly so many rows, >= 1.
        tokens: Keeps rows of at most so many tokens together, >= 1.

    Raises:
        BudgetError: None or several are given, or one is out of range.
    """

    fraction: float | None = None
    rows: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("fraction", "rows", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of them"
            raise BudgetError(f"A budget is one of fraction, rows and tokens; got {what}.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise BudgetError(f"The fraction to keep lies above 0 and not above 1; got {self.fraction}.")
        for name, count in (("rows", self.rows), ("tokens", self.tokens)):
            if count is not None and count < 1:
                raise BudgetError(f"A budget of {name} is at least 1; got {count}.")

    def rows_of(self, accepted: int) -> int:
        """Return the number of rows to keep out of `accepted`.

        Raises:
            BudgetError: There are fewer rows than the budget asks for, or it counts tokens.
        """
        if self.fraction is not None:
            return max(round(self.fraction * accepted), min(1, accepted))
        if self.rows is None:
            raise BudgetError(f"A budget of {self.tokens} tokens says nothing about rows; it needs each row's tokens.")
        if self.rows > accepted:
            raise BudgetError(f"The budget is {self.rows} rows, but there are only {accepted} to choose from.")
        return self.rows
