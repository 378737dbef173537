"""roomtone.recognizer.moonshine: the default engine hears what is said, and nothing where nothing is said."""

import hashlib
import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from roomtone.recognizer.alignment import open_aligner
from roomtone.recognizer.engine import EngineSettings, EngineUnavailable, Hypothesis, StreamEngine, TurnSettings
from roomtone.recognizer.engines import open_engine, open_with_fallback
from roomtone.recognizer.model_files import digest_of
from support import make_speech
from support.word_error import RATE, THREE_LINES, demo_audio, demo_lines, frames, noise, word_error_rate

TIME = np.arange(30 * RATE) / RATE


@pytest.fixture(scope="module")
def engine() -> StreamEngine:
    return open_engine("moonshine", EngineSettings())


def hear(engine: StreamEngine, audio: bytes) -> list[Hypothesis]:
    """Everything that the engine makes of the audio, the open turn ended."""
    with engine.open(TurnSettings()) as stream:
        return [*(hypothesis for frame in frames(audio) for hypothesis in stream.feed(frame)), *stream.endpoint()]


def text_of(hypotheses: list[Hypothesis]) -> str:
    return " ".join(word.text for hypothesis in hypotheses if hypothesis.final for word in hypothesis.words)


def resident() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_the_demo_reads_like_prose(engine: StreamEngine) -> None:
    """One final a sentence with capitals and marks, words in order and inside of the recording."""
    hypotheses = hear(engine, demo_audio(THREE_LINES))
    finals = [hypothesis for hypothesis in hypotheses if hypothesis.final]
    assert len(finals) == 3
    assert word_error_rate(" ".join(demo_lines()[:3]), text_of(finals)) <= 0.1
    assert text_of(finals[:2]) == " ".join(demo_lines()[:2]).replace("morning.", "morning,")
    words = [word for final in finals for word in final.words]
    assert all(0 <= word.start < word.end <= THREE_LINES * RATE for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))
    assert len(hypotheses) > len(finals)


def test_sentences_that_it_was_not_chosen_by(engine: StreamEngine) -> None:
    """Three voices, clean and with noise 10 dB below: the errors that were measured, with a margin."""
    lines = list(zip(2 * make_speech.VOICES, make_speech.HELD_OUT[:6], strict=True))
    spoken = " ".join(text for _, text in lines)
    assert word_error_rate(spoken, text_of(hear(engine, make_speech.converse(lines)))) <= 0.15
    noisy = make_speech.with_noise(make_speech.converse(lines[:3]), 10)
    assert word_error_rate(" ".join(text for _, text in lines[:3]), text_of(hear(engine, noisy))) <= 0.45


def test_words_are_where_they_were_said() -> None:
    """Aligned words lie where the synthesizer has put them: within 60 ms in the median, 200 ms nearly always."""
    aligner = open_aligner()
    errors: list[float] = []
    for text in make_speech.HELD_OUT[:3]:
        audio, said = make_speech.speak_timed(text)
        times = aligner.align(make_speech.room(audio), text.split())
        errors += [
            abs(found / RATE - true)
            for word, time in zip(said, times, strict=True)
            for found, true in zip(time, (word.start, word.end), strict=True)
        ]
    assert statistics.median(errors) < 0.06
    assert statistics.quantiles(errors, n=20)[-1] < 0.2


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(noise(30, 2000), id="a loud fan"),
        pytest.param((3000 * make_speech.pink(30)).astype("<i2").tobytes(), id="rain"),
        pytest.param(
            (8000 * np.sin(2 * np.pi * 120 * TIME) * np.exp(-40 * (TIME % 0.6))).astype("<i2").tobytes(), id="knocking"
        ),
        pytest.param((20_000 * (np.arange(len(TIME)) % 4801 == 0)).astype("<i2").tobytes(), id="clicks"),
        pytest.param(
            np.sum(
                [3000 * np.sin(2 * np.pi * 220 * up * np.floor(1 + TIME % 4) * TIME) for up in (1, 1.25, 1.5)], axis=0
            )
            .astype("<i2")
            .tobytes(),
            id="chords",
        ),
    ],
)
def test_nothing_is_invented(engine: StreamEngine, audio: bytes) -> None:
    """Where nobody speaks there is not a word."""
    assert [h.words for h in hear(engine, audio) if h.words] == []


def test_memory_is_flat_over_turns(engine: StreamEngine) -> None:
    """Turn after turn, the process does not grow."""
    audio = demo_audio(2.5)
    for _ in range(3):
        hear(engine, audio)
    before = resident()
    for _ in range(8):
        hear(engine, audio)
    assert resident() - before < 15


def test_two_rooms_speak_concurrently(engine: StreamEngine) -> None:
    """Both get their own words, and the two together do not take more processor time than two in turn."""
    heard: dict[int, str] = {}
    begun = time.process_time()
    hear(engine, demo_audio(2.5))
    alone = time.process_time() - begun

    def listen(number: int) -> None:
        heard[number] = text_of(hear(engine, demo_audio(2.5)))

    begun = time.process_time()
    rooms = [threading.Thread(target=listen, args=(number,)) for number in range(2)]
    for room in rooms:
        room.start()
    for room in rooms:
        room.join()
    assert len(heard) == 2
    assert set(heard.values()) == {text_of(hear(engine, demo_audio(2.5)))}
    assert time.process_time() - begun < 8 * alone


# --- models and engines that are not as they should be ---------------------------------------------------------------


def refusal(name: str, settings: EngineSettings) -> str:
    with pytest.raises(EngineUnavailable) as refused:
        open_engine(name, settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_model_that_is_wrong_gets_one_line(tmp_path: Path) -> None:
    """The line names the table, the key and the files that the engine wants."""
    missing = refusal("moonshine", EngineSettings(model=tmp_path / "absent"))
    assert "[recognizer] model" in missing
    assert "encoder_model.ort, decoder_model_merged.ort, tokenizer.bin" in missing
    (tmp_path / "tokenizer.bin").write_bytes(b"x")
    assert "lacks encoder_model.ort, decoder_model_merged.ort" in refusal("moonshine", EngineSettings(model=tmp_path))
    for name in ("encoder_model.ort", "decoder_model_merged.ort"):
        (tmp_path / name).write_bytes(b"x")
    assert "[recognizer] model" in refusal("moonshine", EngineSettings(model=tmp_path))
    assert "architecture" in refusal("moonshine", EngineSettings(options={"architecture": "enormous"}))
    assert "[recognizer.options] colour" in refusal("moonshine", EngineSettings(options={"colour": 1}))
    assert "threads" in refusal("moonshine", EngineSettings(threads=4))


def test_a_model_with_another_digest_is_refused(tmp_path: Path) -> None:
    """The digest of a file is its SHA-256; that of a folder is over the lines that sha256sum prints."""
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one")
    lines = "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in (("a", b"one"), ("b", b"two")))
    assert digest_of(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert digest_of(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()
    assert "another digest" in refusal("moonshine", EngineSettings(model=tmp_path, sha256="0" * 64))
    assert "no such file" in refusal("moonshine", EngineSettings(model=tmp_path / "c", sha256="0" * 64))


def test_the_floor_takes_the_place_of_an_engine_that_does_not_open(tmp_path: Path) -> None:
    """There are words in any case, and the reason is said."""
    engine, reason = open_with_fallback("moonshine", EngineSettings(model=tmp_path))
    assert engine.info.engine == "pocketsphinx"
    assert str(tmp_path) in (reason or "")
    engine, reason = open_with_fallback("no.such.package:engine", EngineSettings())
    assert engine.info.engine == "pocketsphinx"
    assert "cannot be loaded" in (reason or "")
