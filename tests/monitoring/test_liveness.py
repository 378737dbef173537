"""Laws of the sign of life: it is given exactly while every room is accounted for."""

from hypothesis import given
from hypothesis import strategies as st

from roomtone.monitoring.liveness import RETRY_TIMEOUT_S, SAMPLE_TIMEOUT_S, Liveness

LONGEST_BACKOFF = 30.0
LONGEST_OPENING = 30.0


def test_samples_account_for_ten_seconds() -> None:
    """A room that brought samples to the disk is accounted for during the next 10 s, and no longer."""
    health = Liveness(["desk"], 0.0)
    health.samples("desk", 100.0)

    assert health.unaccounted(110.0) == ()
    assert health.unaccounted(110.1) == ("desk",)


def test_a_gap_accounts_while_its_source_is_tried() -> None:
    """An open gap is accounted for as long as its source is tried again within the longest back-off."""
    health = Liveness(["desk"], 0.0)
    health.gap("desk", "device", 0.0)
    for attempt in range(1, 100):
        begun = attempt * (LONGEST_BACKOFF + LONGEST_OPENING) - LONGEST_OPENING
        assert health.unaccounted(begun) == ()
        health.tried("desk", begun)
        assert health.unaccounted(begun + LONGEST_OPENING) == ()
        health.gap("desk", "device", begun + LONGEST_OPENING)

    assert health.unaccounted(6000.0 + RETRY_TIMEOUT_S) == ("desk",)


def test_a_recorder_that_gives_up_is_unaccounted_for() -> None:
    """A gap whose source is not tried is not accounted for: the service manager shall restart the daemon."""
    health = Liveness(["desk", "kitchen"], 0.0)
    health.gap("desk", "device", 0.0)
    health.samples("kitchen", 59.0)

    assert health.unaccounted(60.0) == ("desk",)


def test_samples_end_a_gap() -> None:
    """After samples the ten seconds hold again, not the patience of the gap before."""
    health = Liveness(["desk"], 0.0)
    health.gap("desk", "device", 1.0)
    health.samples("desk", 2.0)

    assert health.rooms(2.0)[0].cause is None
    assert health.unaccounted(2.0 + SAMPLE_TIMEOUT_S + 0.1) == ("desk",)


def test_a_muted_room_needs_no_attempts() -> None:
    """Mute closes the device: a muted room is accounted for however long it takes."""
    health = Liveness(["desk"], 0.0)
    health.gap("desk", "muted", 0.0)

    assert health.unaccounted(1e9) == ()


def test_an_ended_room_is_accounted_for() -> None:
    """A file that was recorded to its end asks for nothing more."""
    health = Liveness(["talk"], 0.0)
    health.samples("talk", 1.0)
    health.ended("talk", 2.0)

    assert health.unaccounted(1e9) == ()
    assert health.rooms(3.0)[0].ended


def test_the_start_is_over_when_every_source_is_known() -> None:
    """A room is settled with its first samples, its first gap, or its end; the start is over with the last room."""
    health = Liveness(["desk", "kitchen", "talk"], 0.0)
    health.tried("desk", 1.0)
    assert not health.settled()

    health.samples("desk", 1.0)
    health.gap("kitchen", "device", 1.0)
    assert not health.settled()

    health.ended("talk", 1.0)
    assert health.settled()


def test_a_gap_lasts_from_its_beginning() -> None:
    """Each further failure of the same cause leaves the gap's age alone; another cause begins anew."""
    health = Liveness(["desk"], 0.0)
    health.gap("desk", "device", 10.0)
    health.gap("desk", "device", 40.0)
    assert health.rooms(50.0)[0].lasting == 40.0
    assert health.rooms(50.0)[0].silence == 10.0

    health.gap("desk", "disk full", 60.0)
    assert health.rooms(61.0)[0].lasting == 1.0


def test_rooms_come_and_go() -> None:
    """A room is asked for while it is at work, and no longer; one that comes later begins with the gap of a start."""
    health = Liveness(["desk"], 0.0)
    with health.watch("desk", 1.0), health.watch("kitchen", 50.0):
        assert health.unaccounted(51.0) == ("desk",)
        assert health.unaccounted(100.0) == ("desk", "kitchen")
        assert not health.settled()

    assert health.rooms(100.0) == ()
    assert health.unaccounted(100.0) == ()


@given(st.lists(st.tuples(st.sampled_from(["tried", "samples", "gap"]), st.floats(0, 100)), max_size=30))
def test_accounted_follows_from_the_last_word_alone(reported: list[tuple[str, float]]) -> None:
    """Whatever came before: a room with samples or an attempt within 10 s is accounted for, and a room without either
    within the longest timeout is not.
    """
    health = Liveness(["desk"], 0.0)
    now = 0.0
    for what, pause in reported:
        now += pause
        match what:
            case "tried":
                health.tried("desk", now)
            case "samples":
                health.samples("desk", now)
            case _:
                health.gap("desk", "device", now)

    assert health.unaccounted(now + SAMPLE_TIMEOUT_S - 0.001) == ()
    assert health.unaccounted(now + RETRY_TIMEOUT_S + 1) == ("desk",)
