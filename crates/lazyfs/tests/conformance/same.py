"""Compares a tree with another: all that a process could notice. Says every difference, and fails if there is one.

same.py OURS THEIRS OPTIONS: JSON {"overlay": bool, "seed": number, "direct": bool}
"""

import errno
import json
import os
import random
import stat
import sys

import reading

OURS, THEIRS = (os.fsencode(path) for path in sys.argv[1:3])
OPTIONS = {"overlay": False, "seed": 1, "direct": False, **json.loads(sys.argv[3])}
RANDOM = random.Random(OPTIONS["seed"])
differences = []


def differs(path, what, ours, theirs):
    if ours != theirs:
        differences.append(f"{os.fsdecode(path) or '/'}: {what}: {str(ours)[:300]} instead of {str(theirs)[:300]}")


def wrong(path, what):
    differences.append(f"{os.fsdecode(path) or '/'}: {what}")


def names(root):
    """Every name below a tree, and its kind and number as the listing has them."""
    found, folders = {b"": None}, [b""]
    while folders:
        folder = folders.pop()
        listing = list(os.scandir(os.path.join(root, folder)))
        listed = [entry.name for entry in listing]
        if len(set(listed)) != len(listed):
            wrong(folder, "a name is listed twice")
        for entry in listing:
            path = os.path.join(folder, entry.name)
            found[path] = entry
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
    return found


def kind_of(entry):
    kinds = [(entry.is_symlink(), stat.S_IFLNK)]
    if not entry.is_symlink():
        kinds += [(entry.is_dir(follow_symlinks=False), stat.S_IFDIR)]
        kinds += [(entry.is_file(follow_symlinks=False), stat.S_IFREG)]
    return next((kind for is_it, kind in kinds if is_it), None)


def xattrs(path):
    listed = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in listed}


def attributes(path, ours, theirs, entry):
    a, b = os.lstat(ours), os.lstat(theirs)
    is_dir = stat.S_ISDIR(b.st_mode)
    for field in ["st_mode", "st_uid", "st_gid", "st_rdev"]:
        differs(path, field, getattr(a, field), getattr(b, field))
    if path:
        differs(path, "st_mtime_ns", a.st_mtime_ns, b.st_mtime_ns)
    if not is_dir:
        differs(path, "st_size", a.st_size, b.st_size)
    if not is_dir or (path and not OPTIONS["overlay"]):
        differs(path, "st_nlink", a.st_nlink, b.st_nlink)
    if stat.S_ISREG(b.st_mode):
        least, most = -(-a.st_size // 512), -(-a.st_size // 4096) * 8
        if not least <= a.st_blocks <= most:
            wrong(path, f"{a.st_blocks} blocks for {a.st_size} bytes")
    if not 512 <= a.st_blksize <= 1 << 21:
        wrong(path, f"st_blksize {a.st_blksize}")
    if entry:
        kind = kind_of(entry)
        if kind and kind != stat.S_IFMT(b.st_mode):
            wrong(path, f"listed as {kind:o}, and is {b.st_mode:o}")
        if entry.inode() != a.st_ino and not OPTIONS["overlay"]:
            wrong(path, f"listed with number {entry.inode()}, and has {a.st_ino}")
    if a.st_ino == 0:
        wrong(path, "has number 0")
    if stat.S_ISLNK(b.st_mode):
        differs(path, "target", os.readlink(ours), os.readlink(theirs))
    differs(path, "xattrs", xattrs(ours), xattrs(theirs))
    return a, b


def content(path, ours, theirs):
    with open(theirs, "rb") as file:
        expected = file.read()
    fd = os.open(ours, os.O_RDONLY)
    try:
        # A part first, by a way that chance chooses: then the pages come in any order.
        ways = RANDOM.sample(sorted(reading.WAYS), 3) + ["pread", "mmap"]
        for way in ways:
            start = RANDOM.randrange(len(expected) + 1)
            length = RANDOM.choice([1, 4096, 100_000, len(expected)])
            if way == ways[-2]:
                start, length = 0, len(expected) + 10
            one_way(path, way, fd, start, length, expected)
        last_page(path, fd, expected)
        holes(path, fd, expected)
    finally:
        os.close(fd)
    direct(path, ours, expected)


def one_way(path, way, fd, start, length, expected):
    try:
        got = reading.WAYS[way](fd, start, length)
    except OSError as error:
        if error.errno not in reading.MAY_FAIL.get(way, set()):
            wrong(path, f"{way} of {length} bytes at {start}: {error}")
        return
    wanted = expected[start : start + length]
    if way == "RWF_NOWAIT":
        wanted = wanted[: len(got)]
    if got != wanted:
        at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
        wrong(path, f"{way} of {length} bytes at {start}: {len(got)} bytes, wrong from {start + at} on")


def last_page(path, fd, expected):
    """Behind the end, mapped memory is zeros up to the end of the page."""
    tail = len(expected) % reading.PAGE
    if not tail:
        return
    with reading.Mapping(fd, len(expected) - tail, tail) as mapping:
        page = mapping.bytes(0, reading.PAGE)
    if page[:tail] != expected[-tail:]:
        wrong(path, "the last page is wrong")
    if page[tail:].strip(b"\0"):
        wrong(path, "bytes behind the end are not zeros")


def holes(path, fd, expected):
    """What is called a hole is zeros, and the answers make progress up to the end."""
    at = 0
    while at < len(expected):
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            data = len(expected)
            if error.errno != errno.ENXIO:
                return wrong(path, f"SEEK_DATA: {error}")
        if data < at or expected[at:data].strip(b"\0"):
            return wrong(path, f"SEEK_DATA at {at} says {data}, over bytes that are no hole")
        if data >= len(expected):
            break
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        if not data < hole <= len(expected):
            return wrong(path, f"SEEK_HOLE at {data} says {hole}")
        at = hole
    try:
        os.lseek(fd, len(expected), os.SEEK_DATA)
        wrong(path, "there is data at the end")
    except OSError as error:
        differs(path, "SEEK_DATA at the end", error.errno, errno.ENXIO)


def direct(path, ours, expected):
    try:
        got = reading.direct(ours, len(expected))
    except OSError as error:
        # Under an overlay the file below decides.
        if OPTIONS["direct"] or error.errno != errno.EINVAL:
            wrong(path, f"O_DIRECT: {error}")
        return
    if not OPTIONS["direct"] and not OPTIONS["overlay"]:
        wrong(path, "O_DIRECT was granted")
    if got != expected:
        wrong(path, "O_DIRECT reads other bytes")


def main():
    shown, wanted = names(OURS), names(THEIRS)
    for path in shown.keys() - wanted.keys():
        wrong(path, "should not be there")
    for path in wanted.keys() - shown.keys():
        wrong(path, "is missing")
    groups_ours, groups_theirs, numbers = {}, {}, {}
    both = sorted(shown.keys() & wanted.keys())
    RANDOM.shuffle(both)
    for path in both:
        ours, theirs = os.path.join(OURS, path), os.path.join(THEIRS, path)
        a, b = attributes(path, ours, theirs, shown[path])
        numbers[path] = (a.st_dev, a.st_ino)
        groups_ours.setdefault((a.st_dev, a.st_ino), set()).add(path)
        groups_theirs.setdefault((b.st_dev, b.st_ino), set()).add(path)
        if stat.S_ISREG(b.st_mode):
            content(path, ours, theirs)
    if set(map(frozenset, groups_ours.values())) != set(map(frozenset, groups_theirs.values())):
        wrong(b"", "hard links group other names together")
    for path in both:
        a = os.lstat(os.path.join(OURS, path))
        if OPTIONS["overlay"] and stat.S_ISDIR(a.st_mode):
            continue
        differs(path, "number, the second time", (a.st_dev, a.st_ino), numbers[path])
    if differences:
        print("\n".join(differences[:40]))
        sys.exit(f"{len(differences)} differences")
    print(len(both), "names are the same")


main()
