"""Every way in which a process gets the bytes of a file.

Each answers the bytes, or raises OSError: a page that cannot be had is EFAULT here and not a signal, because mapped
memory is read by the kernel (write(2) to a memory file), whose faults are the same but whose failures are told.
"""

import ctypes
import errno
import os

PAGE = 4096
PROT_READ, MAP_PRIVATE, MAP_SHARED, MAP_POPULATE = 1, 2, 1, 0x8000
MADV_WILLNEED, MADV_POPULATE_READ = 3, 22
RWF_NOWAIT = 8

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
libc.write.restype = ctypes.c_ssize_t
libc.readahead.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_size_t]


def check(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def whole(read, length):
    """All that `read(position, rest)` gives up to `length` bytes."""
    parts, done = [], 0
    while done < length:
        part = read(done, length - done)
        if not part:
            break
        parts.append(part)
        done += len(part)
    return b"".join(parts)


def pread(fd, offset, length):
    return whole(lambda done, rest: os.pread(fd, rest, offset + done), length)


def nowait(fd, offset, length):
    buffer = bytearray(length)
    return bytes(buffer[: os.preadv(fd, [buffer], offset, RWF_NOWAIT)])


def advised(advice):
    def read(fd, offset, length):
        os.posix_fadvise(fd, offset, length, advice)
        return pread(fd, offset, length)

    return read


def readahead(fd, offset, length):
    check(libc.readahead(fd, offset, length))
    return pread(fd, offset, length)


class Mapping:
    """Whole pages of a file."""

    def __init__(self, fd, offset, length, flags=MAP_PRIVATE):
        self.skip = offset % PAGE
        self.length = -(-(self.skip + length) // PAGE) * PAGE
        self.at = check(libc.mmap(None, self.length, PROT_READ, flags, fd, offset - self.skip))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        libc.munmap(self.at, self.length)

    def advise(self, advice):
        check(libc.madvise(self.at, self.length, advice))

    def bytes(self, start, length):
        memory = os.memfd_create("copy")
        try:
            done = 0
            while done < length:
                done += check(libc.write(memory, self.at + start + done, length - done))
            return pread(memory, 0, length)
        finally:
            os.close(memory)


def within(fd, offset, length):
    """How much of a range lies in the file: memory behind its end is no memory."""
    return max(0, min(length, os.fstat(fd).st_size - offset))


def mapped(flags=MAP_PRIVATE, advice=None):
    def read(fd, offset, length):
        length = within(fd, offset, length)
        if length == 0:
            return b""
        with Mapping(fd, offset, length, flags) as mapping:
            if advice is not None:
                mapping.advise(advice)
            return mapping.bytes(mapping.skip, length)

    return read


def to_memory(move):
    def read(fd, offset, length):
        memory = os.memfd_create("copy")
        try:
            done = 0
            while done < length:
                moved = move(fd, memory, offset + done, length - done)
                if moved == 0:
                    break
                done += moved
            return pread(memory, 0, done)
        finally:
            os.close(memory)

    return read


def spliced(fd, offset, length):
    reader, writer = os.pipe()
    try:
        def part(done, rest):
            moved = os.splice(fd, writer, min(rest, 32768), offset_src=offset + done)
            return os.read(reader, moved) if moved else b""

        return whole(part, length)
    finally:
        os.close(reader)
        os.close(writer)


def by_line(fd, offset, length):
    """As buffered programs do: in small steps, forwards."""
    return whole(lambda done, rest: os.pread(fd, min(rest, 5000), offset + done), length)


WAYS = {
    "pread": pread,
    "small steps": by_line,
    "RWF_NOWAIT": nowait,
    "FADV_WILLNEED": advised(os.POSIX_FADV_WILLNEED),
    "FADV_RANDOM": advised(os.POSIX_FADV_RANDOM),
    "FADV_SEQUENTIAL": advised(os.POSIX_FADV_SEQUENTIAL),
    "FADV_DONTNEED": advised(os.POSIX_FADV_DONTNEED),
    "readahead": readahead,
    "mmap": mapped(),
    "mmap shared": mapped(MAP_SHARED),
    "MAP_POPULATE": mapped(MAP_PRIVATE | MAP_POPULATE),
    "MADV_WILLNEED": mapped(advice=MADV_WILLNEED),
    "MADV_POPULATE_READ": mapped(advice=MADV_POPULATE_READ),
    "sendfile": to_memory(lambda fd, to, at, rest: os.sendfile(to, fd, at, rest)),
    "copy_file_range": to_memory(lambda fd, to, at, rest: os.copy_file_range(fd, to, rest, at)),
    "splice": spliced,
}

# What a way may answer instead of bytes though nothing is wrong.
MAY_FAIL = {
    "RWF_NOWAIT": {errno.EAGAIN, errno.EOPNOTSUPP},
    "copy_file_range": {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP},
}


def direct(path, length):
    """The first `length` bytes by O_DIRECT; raises EINVAL where there is none."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        room = -(-max(length, 1) // PAGE) * PAGE
        at = check(libc.mmap(None, room, 3, MAP_PRIVATE | 0x20, -1, 0))
        buffer = (ctypes.c_char * room).from_address(at)
        try:
            done = 0
            while done < length:
                view = memoryview(buffer)[done:]
                got = os.preadv(fd, [view], done)
                view.release()
                if got == 0:
                    break
                done += got
                if got % 512:
                    break
            return bytes(memoryview(buffer)[:done])
        finally:
            libc.munmap(at, room)
    finally:
        os.close(fd)
