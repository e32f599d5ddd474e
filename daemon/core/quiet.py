"""Quiet hours: when backfill work leaves the provider and the databases to others.

Judged by the clock on the wall of the place that is named, so a day of 23 or 25 hours has its quiet hours at the
usual time. Within them backfill work may begin in the first part of each minute only, or not at all; live changes are
never held back. Pure: the instant is an argument, zones are given as values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Quiet:
    """days: on which they begin. end: exclusive; at or before `start`, of the next day. share: of each minute."""

    days: frozenset[str]
    start: time
    end: time
    zone: tzinfo
    share: float = 0.0

    def covers(self, at: datetime) -> bool:
        """at: with a zone."""
        local = at.astimezone(self.zone)
        clock, today = local.time(), DAYS[local.weekday()]
        if self.start < self.end:
            return today in self.days and self.start <= clock < self.end
        yesterday = DAYS[(local.date() - timedelta(days=1)).weekday()]
        return (today in self.days and clock >= self.start) or (yesterday in self.days and clock < self.end)


def backfill_may_begin(hours: Iterable[Quiet], at: datetime) -> bool:
    """Whether backfill work may begin at this instant; where hours overlap, the strictest decide."""
    shares = [quiet.share for quiet in hours if quiet.covers(at)]
    second = at.second + at.microsecond / 1_000_000
    return not shares or second < 60 * min(shares)
