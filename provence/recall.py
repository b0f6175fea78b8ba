"""The calibration behind `target_recall`: given, or found where the model is, and checked before it is used.

    Pruner.load(calibration=...) | calibration.json in the model's folder | the server's -> Promise.check -> Calibration

Raises `ConfigError` where there is none, or where it is of another model or of texts shown in another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provence.assemble import Request
    from provence.calibration import Calibration
    from provence.home import Home
    from provence.policy import Policy

__all__ = ["Promise"]


class Promise:
    """Where a pruner's `target_recall` finds its thresholds; several threads may use one.

    Args:
        home: The model.
        calibration: The one to use; None looks for one where the model is, the first time a recall is asked for.
    """

    def __init__(self, home: Home, calibration: Calibration | None) -> None:
        self._home, self._given = home, calibration
        self._found, self._checked = calibration, False

    def settled(self, policy: Policy) -> bool:
        """Whether nothing is left to look up for this policy."""
        return policy.target_recall is None or self._checked

    def check(self, policy: Policy, requests: Sequence[Request]) -> None:
        """Find the calibration if the policy needs one, and refuse one of another model or other texts."""
        if policy.target_recall is None:
            return
        if self._found is None:
            self._found = self._home.calibration()
        if not self._checked:
            self._found.check(self._home.digest)
            self._checked = True
        for request in requests:
            request.check(self._found)

    def of(self, policy: Policy) -> Calibration | None:
        """The calibration, for a policy that needs one."""
        return None if policy.target_recall is None else self._found
