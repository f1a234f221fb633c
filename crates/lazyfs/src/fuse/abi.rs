//! The kernel's FUSE protocol, as far as a read-only file system needs it: numbers, and the layouts of
//! replies.
//!
//! Facts come from the kernel's `include/uapi/linux/fuse.h` (protocol 7.38); field names are kept so that
//! the two can be read side by side. The protocol uses the byte order of the machine.

/// Major version of the protocol.
pub const MAJOR: u32 = 7;
/// The newest minor version that this code knows.
pub const MINOR: u32 = 38;
/// The oldest minor version that is accepted: Linux 5.4, the first with zero-message opendir.
pub const OLDEST_MINOR: u32 = 31;
/// The inode number of the root.
pub const ROOT: u64 = 1;
/// Length of a request's header.
pub const IN_HEADER: usize = 40;
/// Length of a reply's header.
pub const OUT_HEADER: usize = 16;
/// Longest payload of a WRITE that is announced. Nothing is ever written, so it is the least allowed.
pub const MAX_WRITE: u32 = 4096;
/// Largest READ in pages; the kernel's own limit is 256 (1 MiB) unless `fs.fuse.max_pages_limit` is raised.
pub const MAX_PAGES: u16 = 256;

/// Opcodes.
pub mod op {
    #![allow(missing_docs)] // the names are the kernel's
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const TMPFILE: u32 = 51;
}

/// Flags of INIT.
pub mod init {
    #![allow(missing_docs)] // the names are the kernel's
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// The flags from bit 32 on are in a second number.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Says that [`super::notify::RESEND`] works; nothing has to be agreed on.
    pub const HAS_RESEND: u64 = 1 << 39;
    /// Mounts may be shown with other owners (Linux 6.12), as containers in user namespaces want them.
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// What the kernel can be told without having asked.
pub mod notify {
    /// Send again all requests that were taken and not answered (Linux 6.9). Their unique numbers get bit 63.
    pub const RESEND: i32 = 7;
}

/// Something that the kernel is told without having asked: a number of [`notify`].
pub fn notification(code: i32) -> [u8; OUT_HEADER] {
    // No request has the number 0, and no error is positive.
    out_header(0, -code, 0)
}

/// What `stat` shows of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, seconds since 1970; also shown as access and change time.
    pub mtime: u64,
    /// Nanoseconds of the modification time.
    pub mtimensec: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in the kernel's 32-bit encoding ([`encode_dev`]).
    pub rdev: u32,
}

/// How long the kernel may believe what it was told, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity(pub u64);

impl Validity {
    /// As long as the mount lives. 136 years, since the largest numbers overflow in some kernels.
    pub const FOREVER: Self = Self(u32::MAX as u64);
    /// Ask again each time.
    pub const NOT: Self = Self(0);
}

/// Builds the payload of a reply.
#[derive(Default, Debug)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// An empty payload with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Adds a 16-bit number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Adds a 32-bit number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Adds a 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Adds bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds zeros up to a multiple of eight, as between directory entries.
    pub fn align(&mut self) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    /// Length so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// `struct fuse_attr`, 88 bytes.
    pub fn attr(&mut self, attr: &Attr) -> &mut Self {
        self.u64(attr.ino).u64(attr.size).u64(attr.size.div_ceil(512));
        self.u64(attr.mtime).u64(attr.mtime).u64(attr.mtime);
        self.u32(attr.mtimensec).u32(attr.mtimensec).u32(attr.mtimensec);
        self.u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid).u32(attr.rdev);
        self.u32(4096).u32(0)
    }

    /// `struct fuse_entry_out`, 128 bytes.
    pub fn entry(&mut self, attr: &Attr, entry_valid: Validity, attr_valid: Validity) -> &mut Self {
        self.u64(attr.ino).u64(0).u64(entry_valid.0).u64(attr_valid.0).u32(0).u32(0).attr(attr)
    }

    /// A `struct fuse_entry_out` without an inode: the name does not exist, and that may be remembered.
    pub fn no_entry(&mut self) -> &mut Self {
        self.u64(0).u64(0).u64(Validity::FOREVER.0).u64(0).u32(0).u32(0).attr(&Attr::default())
    }

    /// `struct fuse_attr_out`, 104 bytes.
    pub fn attr_out(&mut self, attr: &Attr, valid: Validity) -> &mut Self {
        self.u64(valid.0).u32(0).u32(0).attr(attr)
    }

    /// `struct fuse_dirent` with its name and padding.
    pub fn dirent(&mut self, ino: u64, next: u64, mode: u32, name: &[u8]) -> &mut Self {
        // DT_* of a type is the type's bits of the mode, shifted.
        let kind = (mode & libc_mode::FORMAT) >> 12;
        self.u64(ino).u64(next).u32(u32::try_from(name.len()).unwrap_or(0)).u32(kind).bytes(name).align()
    }

    /// `struct fuse_init_out`, 64 bytes.
    pub fn init_out(&mut self, minor: u32, max_readahead: u32, flags: u64, max_background: u16) -> &mut Self {
        let (low, high) = (flags & u64::from(u32::MAX), flags >> 32);
        let half = |bits: u64| u32::try_from(bits).unwrap_or(0);
        self.u32(MAJOR).u32(minor).u32(max_readahead).u32(half(low));
        self.u16(max_background).u16(max_background / 4 * 3);
        self.u32(MAX_WRITE).u32(1).u16(MAX_PAGES).u16(0).u32(half(high));
        self.bytes(&[0; 28])
    }

    /// `struct fuse_statfs_out`, 80 bytes: `bytes` of data, `files` inodes, nothing free.
    pub fn statfs(&mut self, bytes: u64, files: u64) -> &mut Self {
        self.u64(bytes.div_ceil(4096)).u64(0).u64(0).u64(files).u64(0);
        self.u32(4096).u32(255).u32(4096).u32(0).bytes(&[0; 24])
    }
}

/// Length that a directory entry takes in a reply; with `plus`, with its attributes.
pub fn dirent_len(name: &[u8], plus: bool) -> usize {
    (24 + name.len()).next_multiple_of(8) + if plus { 128 } else { 0 }
}

/// A reply's header.
pub fn out_header(unique: u64, errno: i32, payload: usize) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    let len = u32::try_from(OUT_HEADER + payload).unwrap_or(u32::MAX);
    for (to, from) in header
        .iter_mut()
        .zip(len.to_ne_bytes().into_iter().chain((-errno).to_ne_bytes()).chain(unique.to_ne_bytes()))
    {
        *to = from;
    }
    header
}

/// A device number as the kernel passes it in 32 bits (`new_encode_dev`): 12 bits of major, 20 of minor.
pub const fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Type bits of a mode.
pub mod libc_mode {
    /// Mask of the type.
    pub const FORMAT: u32 = 0o170_000;
    /// Directory.
    pub const DIR: u32 = 0o040_000;
    /// Regular file.
    pub const FILE: u32 = 0o100_000;
    /// Symbolic link.
    pub const LINK: u32 = 0o120_000;
    /// Character device.
    pub const CHAR: u32 = 0o020_000;
    /// Block device.
    pub const BLOCK: u32 = 0o060_000;
    /// Named pipe.
    pub const FIFO: u32 = 0o010_000;
    /// Permissions with setuid, setgid and sticky.
    pub const PERMISSIONS: u32 = 0o7777;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(build: impl FnOnce(&mut Payload)) -> Vec<u8> {
        let mut payload = Payload::default();
        build(&mut payload);
        payload.finish()
    }

    /// The lengths are `sizeof` of the structures in the kernel's header.
    #[test]
    fn replies_have_the_kernels_lengths() {
        let attr = Attr::default();
        assert_eq!(payload(|p| _ = p.attr(&attr)).len(), 88);
        assert_eq!(payload(|p| _ = p.entry(&attr, Validity::FOREVER, Validity::FOREVER)).len(), 128);
        assert_eq!(payload(|p| _ = p.no_entry()).len(), 128);
        assert_eq!(payload(|p| _ = p.attr_out(&attr, Validity::NOT)).len(), 104);
        assert_eq!(payload(|p| _ = p.init_out(38, 0, 0, 64)).len(), 64);
        assert_eq!(payload(|p| _ = p.statfs(1, 1)).len(), 80);
    }

    #[test]
    fn directory_entries_are_padded_to_eight() {
        for name in [&b"a"[..], b"abcdefgh", b"abcdefghi", &[b'x'; 255]] {
            let plain = payload(|p| _ = p.dirent(1, 2, libc_mode::FILE, name));
            assert_eq!(plain.len(), dirent_len(name, false));
            assert_eq!(plain.len() % 8, 0);
            assert_eq!(&plain[24..24 + name.len()], name);
            assert_eq!(plain[20], 8, "DT_REG");
        }
    }

    #[test]
    fn an_error_is_negative_on_the_wire() {
        let header = out_header(7, 5, 0);
        assert_eq!(header[..4], 16u32.to_ne_bytes());
        assert_eq!(header[4..8], (-5i32).to_ne_bytes());
        assert_eq!(header[8..], 7u64.to_ne_bytes());
    }

    #[test]
    fn device_numbers_survive_beyond_eight_bits() {
        assert_eq!(encode_dev(0, 0), 0);
        assert_eq!(encode_dev(1, 3), 0x103);
        assert_eq!(encode_dev(259, 0x1_2345), (0x45) | (259 << 8) | (0x1_2300 << 12));
    }
}
