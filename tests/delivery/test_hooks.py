"""Laws of binding an object to the hooks."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from roomtone.delivery.hooks import LIVE_HOOKS, InvalidHook, location_of, validate_hooks
from roomtone.events import KINDS, Turn
from roomtone.sinks import Hooks, hookimpl


class Everything:
    @hookimpl
    def turn(self) -> None:
        """Takes no argument: pluggy leaves out what a hook does not name."""

    @hookimpl
    def event(self, event: Any) -> None: ...

    @hookimpl
    def level(self, event: Any) -> None: ...

    @hookimpl
    def flush(self) -> None: ...


class Asynchronous:
    @hookimpl
    async def turn(self, event: Any) -> None: ...

    @hookimpl
    def flush(self) -> None: ...


class Optional:
    @hookimpl(optionalhook=True)
    def applause(self, event: Any) -> None:
        """For a later version, or another daemon."""

    @hookimpl
    def turn(self, event: Any) -> None: ...


def test_every_hook_is_an_event_or_known_otherwise() -> None:
    """The specification has a hook for each durable kind, `event`, the live kinds and `flush`, and no other."""
    assert {name for name in vars(Hooks) if not name.startswith("_")} == {*KINDS, *LIVE_HOOKS, "event", "flush"}


def test_specific_hook_comes_first() -> None:
    """An object with both a hook for the kind and `event` has the specific one called first, whatever they name."""
    hooks = validate_hooks(Everything(), name="all")
    turn = Turn(room="desk", position=0, at=datetime.now(UTC), session_id="s", turn_order=0, text="")

    assert [hook.name for hook in hooks.hooks_for(turn)] == ["turn", "event"]
    for hook in hooks.hooks_for(turn):
        hook.call(turn)
    assert hooks.kinds == KINDS
    assert list(hooks.live) == ["level"]
    assert hooks.is_sync


def test_one_asynchronous_hook_puts_the_batch_into_the_loop() -> None:
    """An object is synchronous only if everything that a batch calls is."""
    hooks = validate_hooks(Asynchronous(), name="async")

    assert not hooks.is_sync
    assert hooks.kinds == ("turn",)


def test_optional_hook_may_be_unknown() -> None:
    """A plugin can carry a hook that this version does not have, if it says so."""
    assert validate_hooks(Optional(), name="optional").kinds == ("turn",)


def test_places_are_for_people() -> None:
    """A function is found by its file and line, a module by its file, an object by its class."""
    assert location_of(test_places_are_for_people) == f"{__file__}:{test_places_are_for_people.__code__.co_firstlineno}"
    assert location_of(Optional()) == f"{Path(__file__)}, Optional"
    assert location_of(3) == "builtins.int"


def test_object_without_hooks_is_refused() -> None:
    """A sink that opens something without any hook would get nothing, silently."""
    with pytest.raises(InvalidHook, match="has no method marked with @hookimpl"):
        validate_hooks(object(), name="empty")
