"""Reads parts of a file in every way, in random order, and compares each with the original.

ways.py FILE ORIGINAL SEED TIMES
"""

import os
import random
import sys

import reading

path, original, seed, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
with open(original, "rb") as file:
    expected = file.read()
fd = os.open(path, os.O_RDONLY)
for _ in range(times):
    way = chance.choice(sorted(reading.WAYS))
    start = chance.randrange(len(expected) + 1)
    length = chance.choice([1, 512, 4096, 70_000, 300_000])
    if chance.random() < 0.2:
        start = max(0, len(expected) - length + chance.choice([0, 1, 4096]))
    try:
        got = reading.WAYS[way](fd, start, length)
    except OSError as error:
        if error.errno not in reading.MAY_FAIL.get(way, set()):
            sys.exit(f"seed {seed}: {way} of {length} at {start}: {error}")
        continue
    wanted = expected[start : start + length]
    if got != (wanted[: len(got)] if way == "RWF_NOWAIT" else wanted):
        sys.exit(f"seed {seed}: {way} of {length} at {start} read other bytes ({len(got)} of {len(wanted)})")
