"""Microphones by name."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from roomtone.capture.source.devices import (
    Card,
    DeviceRoute,
    Inventory,
    Port,
    Source,
    find,
    list_cards,
    names_of,
    parse_sources,
)
from roomtone.capture.source.ring import CaptureFailure
from roomtone.capture.source_process import list_devices
from support.pulse import PulseServer, open_pulse

CAM = "alsa_input.usb-046d_C920_ABC-02.analog-stereo"
ROOM = Inventory(
    cards=(
        Card("PCH", 0, "sound card", None),
        Card("C920", 1, "HD Pro Webcam", "046d:082d:ABC"),
        Card("Mic", 2, "Mic", "1b3f:2008"),
        Card("Mic_1", 3, "Mic", "1b3f:2008"),
    ),
    sources=(
        Source("alsa_output.pci.monitor", "Monitor of Built-in", 0, monitor=True),
        Source(CAM, "HD Pro Webcam Analog Stereo", 1, monitor=False),
    ),
    ports=(
        Port("HDA Intel PCH: ALC269 (hw:0,0)", 0, 44100),
        Port("Mic: USB Audio (hw:2,0)", 1, 48000),
        Port("Mic: USB Audio (hw:3,0)", 2, 48000),
        Port("Mic: USB Audio #1 (hw:3,1)", 3, 48000),
        Port("pulse", 4, 44100),
        Port("default", 5, 44100),
    ),
)


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Iterator[PulseServer]:
    with open_pulse() as server:
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
        yield server


@pytest.mark.parametrize(
    ("wanted", "route"),
    [
        ("default", DeviceRoute(ROOM.ports[5])),
        ("pulse", DeviceRoute(ROOM.ports[4])),
        (CAM, DeviceRoute(ROOM.ports[4], CAM)),
        ("alsa_output.pci.monitor", DeviceRoute(ROOM.ports[4], "alsa_output.pci.monitor")),
        ("PCH", DeviceRoute(ROOM.ports[0])),  # its only source is a monitor, which is not what it hears
        ("C920", DeviceRoute(ROOM.ports[4], CAM)),  # the server holds it, so the way is through the server
        ("usb:046d:082d", DeviceRoute(ROOM.ports[4], CAM)),
        ("046D:082D:ABC", DeviceRoute(ROOM.ports[4], CAM)),
        ("Mic_1", DeviceRoute(ROOM.ports[2])),
        ("hw:CARD=Mic_1", DeviceRoute(ROOM.ports[2])),
        ("hw:Mic_1,1", DeviceRoute(ROOM.ports[3])),
        ("plughw:CARD=Mic,DEV=0", DeviceRoute(ROOM.ports[1])),
        ("alc269", DeviceRoute(ROOM.ports[0])),
    ],
)
def test_a_name_means_one_device(wanted: str, route: DeviceRoute) -> None:
    """Each kind of stable name finds its device, wherever ALSA and PortAudio have put it this time."""
    assert find(wanted, ROOM) == route


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        ("desk", "device.absent", "no microphone is called desk; there are: pulse, default, alsa_input"),
        ("pipewire", "device.absent", "no microphone is called pipewire"),
        ("usb:1b3f:2008", "device.absent", "is the name of 2 cards"),
        ("usb:046d:082d:XYZ", "device.absent", "no microphone is called"),
        ("usb audio", "device.absent", "usb audio is a part of 3 names"),
        ("hw:C920", "device.busy", "card hw:C920 is there, but cannot be opened"),
        ("hw:Nope", "device.absent", "no microphone is called hw:Nope"),
    ],
)
def test_another_microphone_is_never_taken_instead(wanted: str, code: str, words: str) -> None:
    """An unknown or ambiguous name is refused, with the names that there are."""
    with pytest.raises(CaptureFailure) as refusal:
        find(wanted, ROOM)
    assert refusal.value.code == code
    assert words in str(refusal.value)
    assert f"there are: pulse, default, {CAM}, alsa_output.pci.monitor, PCH, C920, usb:046d:082d:ABC" in str(
        refusal.value
    )


def test_default_is_whatever_can_record() -> None:
    """Without a sound server, `default` is the first device; without any, the text says where to look."""
    bare = Inventory((), (), ROOM.ports[:2])
    assert find("default", bare) == DeviceRoute(ROOM.ports[0])
    with pytest.raises(CaptureFailure, match=r"no microphone is visible to this process.*PULSE_SERVER.*; no answer"):
        find("default", Inventory((), (), (), ("no answer",)))


def test_a_source_without_a_way_to_it_names_the_missing_package() -> None:
    """The server has the microphone, but ALSA lacks the plugin: the text says which package brings it."""
    with pytest.raises(CaptureFailure, match="install libasound2-plugins"):
        find(CAM, ROOM._replace(ports=ROOM.ports[:3]))


def test_every_name_that_is_told_can_be_used() -> None:
    """`find` finds each name in the list, except names that are not unique, for which it raises."""
    for name, _ in names_of(ROOM):
        if name != "usb:1b3f:2008":
            find(name, ROOM)


def test_cards_are_known_by_what_the_kernel_shows(tmp_path: Path) -> None:
    """The id, the number of today, and the USB device above the card; a card that cannot record is none."""
    sound = tmp_path / "class"
    for number, name in enumerate(("HDMI", "PCH", "C920")):
        device = tmp_path / "devices" / name / "1-2:1.0"
        (device / "sound" / f"card{number}").mkdir(parents=True)
        (device / "sound" / f"card{number}" / "id").write_text(name + "\n")
        (device / "sound" / f"card{number}" / "device").symlink_to(device)
        sound.mkdir(exist_ok=True)
        (sound / f"card{number}").symlink_to(device / "sound" / f"card{number}")
    for entry in ("pcmC0D3p", "pcmC1D0c", "pcmC1D0p", "pcmC2D0c", "controlC2", "timer"):
        (sound / entry).mkdir()
    for file, text in {"idVendor": "046d", "idProduct": "082d", "serial": "ABC", "product": "HD Pro Webcam"}.items():
        (tmp_path / "devices" / "C920" / file).write_text(text + "\n")
    assert list_cards(sound) == (Card("PCH", 1, "sound card", None), Card("C920", 2, "HD Pro Webcam", "046d:082d:ABC"))
    assert list_cards(tmp_path / "nowhere") == ()


LISTING = """Source #0
\tState: SUSPENDED
\tName: alsa_output.pci.monitor
\tDescription: Monitor of Built-in Audio
\tMonitor of Sink: alsa_output.pci
\tProperties:
\t\tdevice.class = "monitor"
\t\talsa.card = "0"

Source #1
\tName: alsa_input.usb
\tDescription: Webcam
\tMonitor of Sink: n/a
\tProperties:
\t\talsa.card = "1"
"""


def test_the_servers_sources_are_read_from_its_listing() -> None:
    """Name, words, card, and whether it is a loudspeaker's monitor; a server elsewhere has cards of its own."""
    assert list(parse_sources(LISTING)) == [
        Source("alsa_output.pci.monitor", "Monitor of Built-in Audio", 0, monitor=True),
        Source("alsa_input.usb", "Webcam", 1, monitor=False),
    ]
    assert [source.card for source in parse_sources(LISTING, local=False)] == [None, None]


async def test_the_list_is_as_of_now(pulse: PulseServer) -> None:
    """A device that was plugged in a moment ago is in the list of this older process: a child process looks."""
    pulse.plug("desk")
    listing = await list_devices()
    assert [name for name, _ in listing.devices] == ["room.monitor", "desk.monitor", "pulse", "default"]
    assert listing.problems == ()


async def test_a_server_that_is_down_is_said_so(pulse: PulseServer) -> None:
    """The list is short then, and says why."""
    pulse.kill()
    listing = await list_devices()
    assert listing.devices == ()
    assert "the sound server cannot be asked" in listing.problems[0]
    assert "refused" in listing.problems[0]


async def test_a_frozen_server_freezes_nobody(pulse: PulseServer) -> None:
    """PortAudio never returns from asking it. The list comes nevertheless, and says so."""
    pulse.freeze()
    with trio.fail_after(60):
        listing = await list_devices(5.0)
    assert "the sound server does not answer" in listing.problems


async def test_without_pactl_the_list_says_what_is_missing(pulse: PulseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of the server are unknown then, its default is not."""
    monkeypatch.setenv("PATH", "/nowhere")
    listing = await list_devices()
    assert [name for name, _ in listing.devices] == ["pulse", "default"]
    assert "pactl is not installed" in listing.problems[0]


def test_pactl_still_speaks_as_expected(pulse: PulseServer) -> None:
    """The text form of the listing is an interface of ours: the real one has the fields that are read."""
    listing = pulse.control("list", "sources")
    assert list(parse_sources(listing)) == [Source("room.monitor", "Monitor of Null Output", None, monitor=True)]
    subprocess.run(["pactl", "--version"], check=True, capture_output=True)
