"""Durations on the command line: 90s, 30m, 2h, 1d."""

import re
from typing import Any, Final

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Seconds, from a number and a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails with a usage error for text that is not a duration."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(value).strip().lower())
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is not a duration; write a number and a unit, such as 90s, 30m, 2h or 1d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


DURATION: Final = Duration()
