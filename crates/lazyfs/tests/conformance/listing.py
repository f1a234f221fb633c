"""Lists a directory in every awkward way, and compares with `os.listdir` of another.

listing.py OURS THEIRS
"""

import ctypes
import errno
import os
import random
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
OURS, THEIRS = sys.argv[1:3]
RANDOM = random.Random(1)


def getdents(fd, size):
    """Entries (place after it, kind, name) of one call; raises EINVAL if not one fits."""
    buffer = ctypes.create_string_buffer(size)
    length = libc.syscall(GETDENTS64, fd, buffer, size)
    if length < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    raw, at, entries = buffer.raw[:length], 0, []
    while at < length:
        _, place, record, kind = struct.unpack_from("=QqHB", raw, at)
        entries.append((place, kind, raw[at + 19 : at + record].split(b"\0", 1)[0]))
        at += record
    return entries


def all_of(fd, size):
    found = []
    while entries := getdents(fd, size):
        found += entries
    return found


def check(what, got, wanted):
    if got == wanted:
        return
    missing, extra = set(wanted) - set(got), set(got) - set(wanted)
    sys.exit(f"{what}: {len(got)} entries, {len(wanted)} wanted; missing {sorted(missing)[:3]}, extra {sorted(extra)[:3]}")


def main():
    wanted = sorted([os.fsencode(name) for name in os.listdir(THEIRS)] + [b".", b".."])
    fd = os.open(OURS, os.O_RDONLY | os.O_DIRECTORY)
    first = all_of(fd, 1 << 20)
    order = [name for _, _, name in first]
    check("one large buffer", sorted(order), wanted)
    # The smallest buffer that holds the longest entry: 19 bytes, the name, a NUL, rounded up to 8.
    longest = max(len(name) for name in order)
    smallest = (19 + longest + 1 + 7) // 8 * 8
    for size in [smallest, smallest + 8, 4096]:
        os.lseek(fd, 0, os.SEEK_SET)
        check(f"a buffer of {size}", [name for _, _, name in all_of(fd, size)], order)
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        getdents(fd, 20)
        sys.exit("a buffer of 20 bytes held an entry")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Back to any place, in any order: telldir and seekdir.
    places = [(0, 0)] + [(place, at + 1) for at, (place, _, _) in enumerate(first)]
    for place, at in RANDOM.sample(places, min(len(places), 300)):
        os.lseek(fd, place, os.SEEK_SET)
        size = RANDOM.choice([smallest, 1000, 32768])
        names = [name for _, _, name in getdents(fd, max(size, smallest))]
        check(f"from place {at}", names, order[at : at + len(names)])
        if not names and at != len(order):
            sys.exit(f"nothing after place {at} of {len(order)}")
    # While the kernel forgets what it knows.
    os.lseek(fd, 0, os.SEEK_SET)
    found = []
    while entries := getdents(fd, 4096):
        found += [name for _, _, name in entries]
        if len(found) % 7 == 0:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if len(found) * 4 // len(order) != (len(found) - len(entries)) * 4 // len(order):
            with open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("2")
    check("while caches are dropped", found, order)
    # Two at once, in step.
    other = os.open(OURS, os.O_RDONLY | os.O_DIRECTORY)
    os.lseek(fd, 0, os.SEEK_SET)
    one, two = [], []
    while True:
        a, b = getdents(fd, smallest), getdents(other, 2000)
        one += [name for _, _, name in a]
        two += [name for _, _, name in b]
        if not a and not b:
            break
    check("one of two", one, order)
    check("the other of two", two, order)
    for name in RANDOM.sample(order, min(len(order), 500)):
        os.lstat(os.path.join(os.fsencode(OURS), name))
    print(len(order), "entries")


main()
