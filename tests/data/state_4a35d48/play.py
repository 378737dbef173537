"""Plays 8 kHz at its own pace: `play.py speech.pcm`, or silence without a file."""

import sys
import time
from pathlib import Path

audio = b"".join(Path(name).read_bytes() for name in sys.argv[1:]) or bytes(16_000 * 600)
begun = time.monotonic()
for block in range(len(audio) // 3200):
    sys.stdout.buffer.write(audio[block * 3200 : (block + 1) * 3200])
    sys.stdout.buffer.flush()
    time.sleep(max(0.0, begun + (block + 1) * 0.2 - time.monotonic()))
