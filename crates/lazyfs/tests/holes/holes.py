"""Reads what may not be there yet, in random ways; everything it gets must be right. Errors are no fault.

holes.py FOLDER SEED ATTEMPTS STRICT; says how many attempts gave bytes, and how many an error.
FOLDER holds `root/N` and `merged/N`, mounted, and `originals/N`. If it is strict, an error is told and counts.
"""

import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../conformance"))
import reading

folder, seed, attempts, strict = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
chance = random.Random(seed)
originals = {}
for layer in os.listdir(f"{folder}/originals"):
    for name in os.listdir(f"{folder}/originals/{layer}"):
        with open(f"{folder}/originals/{layer}/{name}", "rb") as file:
            originals[layer, name] = file.read()
held, maps = [], []
good = failed = 0


def compare(what, got, wanted):
    if got == wanted:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
    end = at + 64
    kind = "ZEROS" if got[at:end].count(0) == len(got[at:end]) else "other bytes"
    sys.exit(f"seed {seed}: {what}: {kind} from {at} on ({len(got)} bytes of {len(wanted)})")


def a_file():
    """An open file: often one that was opened long ago, of a mount that may be gone."""
    if held and chance.random() < 0.6:
        return chance.choice(held)
    (layer, name), content = chance.choice(sorted(originals.items()))
    path = f"{folder}/{chance.choice(['root', 'merged', 'merged'])}/{layer}/{name}"
    held.append((os.open(path, os.O_RDONLY), path, content))
    if len(held) > 40:
        os.close(held.pop(chance.randrange(20))[0])
    return held[-1]


def a_map():
    """Memory that was mapped long ago, perhaps before its bytes came."""
    fd, path, content = a_file()
    if len(maps) < 10 or chance.random() < 0.3:
        maps.append((reading.Mapping(fd, 0, len(content)), path, content))
        if len(maps) > 15:
            maps.pop(0)[0].__exit__()
    mapping, path, content = chance.choice(maps)
    start = chance.randrange(len(content))
    length = min(chance.choice([1, 4096, 50_000]), len(content) - start)
    compare(f"{path} mapped, at {start}", mapping.bytes(start, length), content[start : start + length])


def a_read():
    fd, path, content = a_file()
    way = chance.choice(sorted(reading.WAYS))
    start = chance.randrange(len(content))
    length = chance.choice([1, 4096, 30_000, 200_000, len(content)])
    if chance.random() < 0.3:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    got = reading.WAYS[way](fd, start, length)
    wanted = content[start : start + length]
    compare(f"{path} by {way}, {length} at {start}", got, wanted[: len(got)] if way == "RWF_NOWAIT" else wanted)


def a_hole():
    fd, path, content = a_file()
    start = chance.randrange(len(content))
    data = os.lseek(fd, start, os.SEEK_DATA)
    if data != start:
        sys.exit(f"seed {seed}: {path}: SEEK_DATA calls {start} to {data} a hole")


def a_program():
    layer, content = chance.choice([(key[0], value) for key, value in sorted(originals.items()) if key[1] == "0"])
    done = subprocess.run([f"{folder}/merged/{layer}/cat"], input=b"alive", capture_output=True)
    if done.returncode == 0:
        compare(f"what {layer}/cat prints", done.stdout, b"alive")
    elif done.returncode < 0:
        # Killed by what it could not load.
        raise OSError(f"killed by signal {-done.returncode}")


# As often as wanted, and then until whoever disturbs us has had his turn.
while good + failed < attempts or not (strict or os.path.exists(f"{folder}/enough")):
    try:
        chance.choices([a_read, a_map, a_program, a_hole], [70, 20, 5, 5])[0]()
        good += 1
    except OSError as error:
        failed += 1
        if strict and error.errno not in {11, 18, 22, 95}:
            print(f"seed {seed}: {error}", file=sys.stderr)
        elif strict:
            failed, good = failed - 1, good + 1
        # Errors come fast: leave the others some time.
        time.sleep(0.02)
print(good, failed)
