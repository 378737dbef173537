"""Microphones by names that survive a reboot. Runs in a process of its own, because PortAudio's list is a snapshot.

Microphones are listed from three places. ALSA's cards are read from /sys, which containers see too, unlike
/proc/asound. `pactl` lists the sources of PulseAudio, or of PipeWire in its stead: PortAudio does not know them, and
libpulse uses callbacks, which need write+execute memory. PortAudio lists the devices that it can open. An index is
never a name.

Standard library only, and sounddevice late. `python -m roomtone.capture.source.devices` prints the list as JSON lines.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from roomtone.capture.source.ring import CaptureFailure

SYSFS = Path("/sys/class/sound")

SERVERS = ("default", "pulse", "pipewire")
"""The devices of ALSA's plugins that lead to a sound server, or to what the system configures as `default`."""

_HARDWARE = re.compile(r"(?:plug)?hw:(?:CARD=)?(?P<card>[^,]+)(?:,(?:DEV=)?(?P<device>\d+))?")
_USB = re.compile(r"(?:usb:)?(?P<product>[0-9a-fA-F]{4}:[0-9a-fA-F]{4})(?::(?P<serial>.+))?")
_SERVER_TIMEOUT_S = 3.0
"""Seconds that the sound server may take to answer `pactl`; a frozen one never does."""


class Card(NamedTuple):
    """A sound card that can record: ALSA's `id`, its `number` today, and for USB `vendor:product[:serial]`."""

    id: str
    number: int
    label: str
    usb: str | None


class Source(NamedTuple):
    """A source of the sound server; `card` is its ALSA card's number, if that card is this computer's."""

    name: str
    label: str
    card: int | None
    monitor: bool


class Port(NamedTuple):
    """A device that PortAudio can record from; its number and its rate are as of now."""

    name: str
    number: int
    rate: int


class Inventory(NamedTuple):
    """Everything that can record here and now, and the problems of the search."""

    cards: tuple[Card, ...]
    sources: tuple[Source, ...]
    ports: tuple[Port, ...]
    problems: tuple[str, ...] = ()


class DeviceRoute(NamedTuple):
    """The way to a wanted microphone: PortAudio's device, and the server's source behind it if one was named."""

    port: Port
    source: str | None = None


def find(wanted: str, inventory: Inventory) -> DeviceRoute:
    """The one device that this name means. Pure. Errors: CaptureFailure `device.absent`, which lists what is present.

    In this order: default, pulse, pipewire; hw: names; ALSA card ids and USB vendor:product[:serial], through the sound
    server where it holds the card; names of the server's sources; PortAudio's names, whole, else a part of one only.
    """
    ports = {port.name: port for port in reversed(inventory.ports)}
    if wanted == "default" and ports:
        return DeviceRoute(next((ports[name] for name in SERVERS if name in ports), inventory.ports[0]))
    if wanted not in SERVERS:
        if hardware := _HARDWARE.fullmatch(wanted):
            for card in inventory.cards:
                if hardware["card"] in {card.id, str(card.number)}:
                    return _hardware(wanted, card, hardware["device"], inventory)
        if cards := _cards(wanted, inventory.cards):
            return _card(wanted, cards, inventory)
        if any(source.name == wanted for source in inventory.sources):
            return _through_server(wanted, inventory)
    parts = [port for port in inventory.ports if wanted.casefold() in port.name.casefold()]
    if wanted in ports or len(parts) == 1:
        return DeviceRoute(ports.get(wanted, parts[0]))
    reason = f"{wanted} is a part of {len(parts)} names" if parts else f"no microphone is called {wanted}"
    raise CaptureFailure("device.absent", f"{reason}; {_choice(inventory)}")


def _cards(wanted: str, cards: tuple[Card, ...]) -> list[Card]:
    if usb := _USB.fullmatch(wanted):
        full = ":".join(filter(None, (usb["product"].lower(), usb["serial"])))
        return [card for card in cards if card.usb and (card.usb == full or card.usb.startswith(f"{full}:"))]
    return [card for card in cards if card.id == wanted]


def _card(wanted: str, cards: list[Card], inventory: Inventory) -> DeviceRoute:
    if len(cards) > 1:
        raise CaptureFailure("device.absent", f"{wanted} is the name of {len(cards)} cards; {_choice(inventory)}")
    held = [source for source in inventory.sources if source.card == cards[0].number and not source.monitor]
    return _through_server(held[0].name, inventory) if held else _hardware(wanted, cards[0], None, inventory)


def _hardware(wanted: str, card: Card, device: str | None, inventory: Inventory) -> DeviceRoute:
    """The card itself. PortAudio ends the names of hardware with (hw:CARD,DEVICE), both as numbers of today."""
    end = f"(hw:{card.number},{device})" if device else f"(hw:{card.number},"
    for port in inventory.ports:
        if end in port.name:
            return DeviceRoute(port)
    # PortAudio lists only what it could open.
    text = (
        f"card {wanted} is there, but cannot be opened; another program may use it, or this one lacks the group audio"
    )
    raise CaptureFailure("device.busy", f"{text}; {_choice(inventory)}")


def _through_server(source: str, inventory: Inventory) -> DeviceRoute:
    for server in ("pulse", "pipewire"):
        for port in inventory.ports:
            if port.name == server:
                return DeviceRoute(port, source)
    raise CaptureFailure(
        "device.absent",
        f"source {source} is there, but ALSA has no way to it; install libasound2-plugins or pipewire-alsa",
    )


def _choice(inventory: Inventory) -> str:
    names = ", ".join(name for name, _ in names_of(inventory))
    problems = "".join(f"; {problem}" for problem in inventory.problems)
    nothing = "no microphone is visible to this process: is PULSE_SERVER set, or is it in the group audio?"
    return (f"there are: {names}" if names else nothing) + problems


def names_of(inventory: Inventory) -> Iterator[tuple[str, str]]:
    """Every name that a configuration can use, with a label for users: servers, sources, cards, then the rest."""
    for port in inventory.ports:
        if port.name in SERVERS:
            yield (
                port.name,
                "the system's default" if port.name == "default" else f"the {port.name} server's default",
            )
    for source in sorted(inventory.sources, key=lambda source: source.monitor):
        yield source.name, source.label
    for card in inventory.cards:
        yield card.id, card.label
        if card.usb:
            yield f"usb:{card.usb}", card.label
    numbers = {str(card.number) for card in inventory.cards}
    for port in inventory.ports:
        hardware = re.search(r"\(hw:(\d+),\d+\)$", port.name)
        if port.name not in SERVERS and not (hardware and hardware[1] in numbers):
            yield port.name, "PortAudio"


def take_inventory(sounddevice: Any, *, server: bool = True) -> Inventory:
    """Look everywhere; `server=False` leaves out the sound server's sources. Never raises: what fails is a problem."""
    problems: list[str] = []
    sources = list_sources(problems.append) if server else ()
    return Inventory(list_cards(SYSFS), sources, list_ports(sounddevice), tuple(problems))


def list_ports(sounddevice: Any) -> tuple[Port, ...]:
    """PortAudio's devices with an input. `sounddevice` is the imported module: its import is what asks the devices."""
    return tuple(
        Port(device["name"], device["index"], int(device["default_samplerate"]))
        for device in sounddevice.query_devices()
        if device["max_input_channels"] > 0
    )


def list_cards(folder: Path) -> tuple[Card, ...]:
    """ALSA's cards that can record, as the kernel shows them in /sys/class/sound. Empty where there are none."""
    cards = []
    for path in sorted(folder.glob("card*")):
        number = path.name.removeprefix("card")
        if not number.isdigit() or not any(folder.glob(f"pcmC{number}D*c")):
            continue
        device = (path / "device").resolve().parent  # of a USB card: the device above its interface
        vendor, product, serial = (_read(device / name) for name in ("idVendor", "idProduct", "serial"))
        usb = ":".join(filter(None, (vendor, product, serial))) if vendor and product else None
        label = (_read(device / "product") if usb else None) or "sound card"
        cards.append(Card(_read(path / "id") or number, int(number), label, usb))
    return tuple(cards)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def list_sources(report: Callable[[str], None]) -> tuple[Source, ...]:
    """The sound server's sources, as pactl lists them; none, and a problem, if it does not answer."""
    try:
        listing = ask_server("list", "sources")
    except FileNotFoundError:
        report("pactl is not installed (pulseaudio-utils), so that the sound server's sources are unknown")
    except subprocess.TimeoutExpired:
        report("the sound server does not answer")
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().partition("\n")[0]  # pactl says it twice
        report(f"the sound server cannot be asked: {said}")
    else:
        # A server elsewhere counts its own cards, so its numbers mean nothing here.
        elsewhere = os.environ.get("PULSE_SERVER", "").startswith(("tcp:", "tcp4:", "tcp6:"))
        return tuple(parse_sources(listing, local=not elsewhere))
    return ()


def ask_server(*words: str) -> str:
    """The output of pactl, untranslated. Errors: FileNotFoundError and those of subprocess."""
    return subprocess.run(  # noqa: S603 - a constant program and our own words
        ["pactl", *words],  # noqa: S607 - wherever the system keeps it
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
        errors="replace",
        timeout=_SERVER_TIMEOUT_S,
    ).stdout


def parse_sources(listing: str, *, local: bool = True) -> Iterator[Source]:
    """Read the output of `pactl list sources`, whose text form is older and steadier than its JSON (from 16.0 only)."""
    for section in re.split(r"^Source #\d+$", listing, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^\t(Name|Description|Monitor of Sink): (.*)$", section, flags=re.MULTILINE))
        card = re.search(r'^\t\talsa\.card = "(\d+)"$', section, flags=re.MULTILINE)
        if "Name" in fields:
            yield Source(
                fields["Name"],
                fields.get("Description", ""),
                int(card[1]) if card and local else None,
                fields.get("Monitor of Sink", "n/a") != "n/a",
            )


def import_portaudio() -> Any:
    """The sounddevice module. Its import has PortAudio search for devices. Errors: CaptureFailure `device.library`."""
    try:
        import sounddevice  # noqa: PLC0415 - only a microphone needs it, and only in a process that can be replaced
    except OSError as error:  # what sounddevice raises when it does not find PortAudio
        raise CaptureFailure(
            "device.library", f"PortAudio cannot be loaded ({error}); install libportaudio2"
        ) from error
    return sounddevice


def main() -> None:
    """Print each name or problem as a line of JSON, as soon as it is known: a frozen server freezes PortAudio too."""
    printed: set[str] = set()

    def print_names(inventory: Inventory) -> None:
        for name, label in names_of(inventory):
            if name not in printed:
                printed.add(name)
                _print({"name": name, "label": label})

    def print_problem(problem: str) -> None:
        _print({"problem": problem})

    cards = list_cards(SYSFS)
    print_names(Inventory(cards, (), ()))
    sources = list_sources(print_problem)
    print_names(Inventory(cards, sources, ()))
    try:
        print_names(Inventory(cards, sources, list_ports(import_portaudio())))
    except CaptureFailure as failure:
        print_problem(str(failure))
    os._exit(0)  # PortAudio's exit handlers may hang


def _print(line: dict[str, str]) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - standard output is the interface of this program


if __name__ == "__main__":
    main()
