"""A sink in one file, as users of that commit wrote them: it refuses the first turn of a session."""

from pathlib import Path

from roomtone import Unprocessable, hookimpl


@hookimpl
def turn(event):
    if event.turn_order == 0:
        raise Unprocessable("the first turn is never wanted")
    with Path(__file__).with_name("picky.txt").open("a") as file:
        file.write(f"{event.seq} {event.text}\n")
