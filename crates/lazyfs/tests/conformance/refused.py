"""Tries to have what is not there, and to change what is. refused.py ROOT"""

import errno
import os
import sys

ROOT = sys.argv[1]
os.chdir(ROOT)
faults = []


def must(number, what, attempt):
    try:
        attempt()
        faults.append(f"{what}: nothing happened instead of {errno.errorcode[number]}")
    except OSError as error:
        if error.errno != number:
            faults.append(f"{what}: {error} instead of {errno.errorcode[number]}")


ABSENT = ["absent", "d/absent", "d/.wh.gone", ".wh.x", ".no.prefetch.landmark", ".prefetch.landmark", "stargz.index.json",
          "d/" + "n" * 255, "lost+found", "D", "d/F", "d/f\n"]
for _ in range(2):  # the second time from what the kernel remembers
    for name in ABSENT:
        must(errno.ENOENT, f"stat {name}", lambda: os.lstat(name))
        must(errno.ENOENT, f"open {name}", lambda: os.open(name, os.O_RDONLY))
must(errno.ENAMETOOLONG, "a name of 256 bytes", lambda: os.lstat("n" * 256))
must(errno.ENOTDIR, "below a file", lambda: os.lstat("d/f/x"))
must(errno.ENOTDIR, "a file with a slash", lambda: os.lstat("d/f/"))
must(errno.ENOTDIR, "list a file", lambda: os.listdir("d/f"))
must(errno.EISDIR, "read a directory", lambda: os.read(os.open("d", os.O_RDONLY), 1))
must(errno.EINVAL, "readlink of a file", lambda: os.readlink("d/f"))
must(errno.ELOOP, "O_NOFOLLOW", lambda: os.open("d/l", os.O_RDONLY | os.O_NOFOLLOW))
must(errno.ENODATA, "an absent attribute", lambda: os.getxattr("d/f", "user.absent"))
must(errno.ENODATA, "an attribute of overlayfs", lambda: os.getxattr("d", "trusted.overlay.opaque"))

READ_ONLY = {
    "create": lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
    "write": lambda: os.open("d/f", os.O_WRONLY),
    "truncate": lambda: os.truncate("d/f", 0),
    "mkdir": lambda: os.mkdir("d/new"),
    "unlink": lambda: os.unlink("d/f"),
    "rmdir": lambda: os.rmdir("d"),
    "rename": lambda: os.rename("d/f", "d/g"),
    "link": lambda: os.link("d/f", "d/g"),
    "symlink": lambda: os.symlink("x", "d/g"),
    "mkfifo": lambda: os.mkfifo("d/g"),
    "chmod": lambda: os.chmod("d/f", 0),
    "chown": lambda: os.chown("d/f", 1, 1),
    "utime": lambda: os.utime("d/f", (0, 0)),
    "setxattr": lambda: os.setxattr("d/f", "user.x", b"1"),
    "removexattr": lambda: os.removexattr("d/f", "user.x"),
}
for what, attempt in READ_ONLY.items():
    must(errno.EROFS, what, attempt)

total = os.statvfs(".")
if total.f_namemax != 255 or total.f_bsize < 512 or total.f_bavail or not total.f_flag & os.ST_RDONLY:
    faults.append(f"statvfs says {total}")
if os.lstat("..").st_ino == os.lstat(".").st_ino and os.lstat("..").st_dev == os.lstat(".").st_dev:
    faults.append(".. of the root does not leave it")
if os.lstat("d/..").st_ino != os.lstat(".").st_ino:
    faults.append("d/.. is not the root")
sys.exit("\n".join(faults) or 0)
