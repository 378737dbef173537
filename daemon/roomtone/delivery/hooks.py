"""The hooks that a sink's object implements, validated by pluggy and ready to be called one by one.

Each object gets a plugin manager of its own. A shared one would call the hooks of all sinks in one loop, and the first
exception would end it for the other sinks.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pluggy

from roomtone.events import KINDS, Durable, kind_of
from roomtone.legible import text_of
from roomtone.sinks import PROJECT, Context, Hooks, Registry, Sink
from roomtone.suggestions import nearest

LIVE_HOOKS = ("interim", "level")
"""The hooks of the live feed: best effort, without acknowledgement."""

_WITHOUT_EVENT = ("flush", "register_sinks")


class InvalidHook(Exception):  # noqa: N818 - it says what is true of the object
    """An object has a misspelt hook, a hook with another argument, or none. The text says where, and what to do."""


class Hook(NamedTuple):
    """One hook of one object. `function` takes the event, or nothing for `flush`, whatever the implementation takes."""

    name: str
    function: Callable[..., Any]
    is_async: bool

    def call(self, *arguments: Any) -> None:
        """Call a synchronous hook. Raises InvalidHook if it returns an awaitable, for nothing would await it."""
        result = self.function(*arguments)
        if result is not None and inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()  # else Python warns of it somewhere far from here
            raise InvalidHook(
                f"{location_of(self.function)}: {self.name} returned an awaitable; write it as `async def`"
            )


class SinkHooks:
    """The hooks of one object by the events that they are called for."""

    def __init__(self, hooks: dict[str, Hook]) -> None:
        self.flush = hooks.get("flush")
        self.live = {name: hooks[name] for name in LIVE_HOOKS if name in hooks}
        self._durable = {
            kind: tuple(hooks[name] for name in (kind, "event") if name in hooks)
            for kind in KINDS
            if kind in hooks or "event" in hooks
        }
        self.kinds = tuple(self._durable)
        """The kinds of durable events that the object has a hook for."""
        durable = [hook for chosen in self._durable.values() for hook in chosen]
        self.is_sync = not any(hook.is_async for hook in [*durable, *filter(None, [self.flush])])

    def hooks_for(self, event: Durable) -> tuple[Hook, ...]:
        """The hooks to call for this event: the one of its kind first, then `event`."""
        return self._durable.get(kind_of(event), ())


def open_sink(sink: Sink, context: Context) -> AbstractAsyncContextManager[object]:
    """The sink's context. Raises InvalidHook if `open` returns none."""
    made = sink.open(context)
    if inspect.iscoroutine(made):
        made.close()  # else Python warns of it somewhere far from here
    if not isinstance(made, AbstractAsyncContextManager):
        raise InvalidHook(
            f"{type(sink).__qualname__}.open returns no async context manager; put @asynccontextmanager above it"
        )
    return made


def validate_hooks(plugin: object, *, name: str) -> SinkHooks:
    """The hooks of the object that a sink has opened; `name` is the sink's, for messages.

    Raises InvalidHook for a misspelt hook or argument, and for an object without hooks.
    """
    hooks = find_hooks(plugin, [Hooks, Registry], name=name)
    hooks.pop("register_sinks", None)  # a drop-in file may announce sinks and be one
    if not hooks:
        raise InvalidHook(
            f"{location_of(plugin)}: what sink {name} opened has no method marked with @hookimpl, so it gets no events"
        )
    return SinkHooks(hooks)


def find_hooks(plugin: object, specifications: Sequence[type], *, name: str) -> dict[str, Hook]:
    """The marked functions of an object by hook. Raises InvalidHook if one implements no known hook."""
    manager = pluggy.PluginManager(PROJECT)
    for specification in specifications:
        manager.add_hookspecs(specification)
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        raise InvalidHook(_explain(plugin, manager, error)) from error
    found: dict[str, Hook] = {}
    for caller in manager.get_hookcallers(plugin) or ():
        for implementation in caller.get_hookimpls():
            if caller.has_spec():
                found[caller.name] = _hook(caller.name, implementation)
            elif not implementation.optionalhook:
                known = [hook for specification in specifications for hook in vars(specification) if hook[0] != "_"]
                raise InvalidHook(f"{location_of(implementation.function)}: {_unknown(caller.name, known)}")
    return found


def _hook(name: str, implementation: pluggy.HookImpl) -> Hook:
    function: Callable[..., Any] = implementation.function
    place = location_of(function)
    if implementation.wrapper or implementation.hookwrapper:
        raise InvalidHook(f"{place}: {name} is a hook wrapper, which a sink cannot have; remove wrapper=True")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidHook(f"{place}: {name} contains `yield`, so calling it would do nothing; remove the `yield`")
    is_async = inspect.iscoroutinefunction(function)
    is_whole = name in _WITHOUT_EVENT or "event" in implementation.argnames
    return Hook(name, function if is_whole else _without_event(function), is_async)


def _without_event(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(event: object) -> Awaitable[None] | None:
        result: Awaitable[None] | None = function()
        return result

    return call


def _unknown(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
    return f"there is no hook {name}; {hint} (a function of your own needs no @hookimpl)"


def _explain(plugin: object, manager: pluggy.PluginManager, error: pluggy.PluginValidationError) -> str:
    for function in _marked(plugin, manager):
        named = inspect.signature(function).parameters.values()
        if wrong := [
            argument.name for argument in named if argument.name != "event" and argument.default is argument.empty
        ]:
            return (
                f"{location_of(function)}: {function.__name__} has the argument {', '.join(wrong)}; "
                "a hook for events takes `event`; flush and register_sinks take nothing"
            )
    return f"{location_of(plugin)}: {' '.join(text_of(error).split())}"


def _marked(plugin: object, manager: pluggy.PluginManager) -> Iterator[Any]:
    for name in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is not None:
            yield getattr(plugin, name)


def location_of(thing: object) -> str:
    """The location for a message: file and line of a function, file of a module, else file and name of the class."""
    code = getattr(inspect.unwrap(thing) if callable(thing) else thing, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    if isinstance(thing, ModuleType):
        return str(thing.__file__ or thing.__name__)
    owner = type(thing)
    try:
        return f"{Path(inspect.getfile(owner))}, {owner.__qualname__}"
    except (OSError, TypeError):
        return f"{owner.__module__}.{owner.__qualname__}"
