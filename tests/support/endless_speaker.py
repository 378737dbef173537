"""A room that never stops talking: `python talking.py RATE` says numbers, in real time, as s16le on its stdout.

It begins at a number that no earlier run has said, so that a transcript tells which run said what, and once.
"""

import sys
import time

from roomtone.testing.encoded_speech import quiet, speak

WORDS = 500


def main() -> None:
    rate = int(sys.argv[1])
    first = int(time.time() * 10) % 10_000_000
    audio = quiet(0.3, rate) + speak(range(first, first + WORDS), rate, turn=3, break_=1.4)
    frame = 2 * rate // 20
    begun = time.monotonic()
    for count, start in enumerate(range(0, len(audio), frame)):
        time.sleep(max(0.0, begun + count / 20 - time.monotonic()))
        sys.stdout.buffer.write(audio[start : start + frame])
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
