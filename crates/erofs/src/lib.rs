//! EROFS images that hold metadata alone.
//!
//! EROFS is a read-only file system of the Linux kernel, whose inodes may say that their bytes lie in *another
//! device*. So a whole layer becomes two files: a small **image** with names, attributes, links and extended
//! attributes, complete before it is mounted, and a **data file** with the bytes of the regular files, each at a
//! multiple of 4 KiB, which may be sparse and fill up later. The kernel serves both without any process of ours:
//!
//! ```text
//! mount("image", "/target", "erofs", MS_RDONLY, "device=data")
//!
//!  image │ superblock, device slot │ inodes, small directories │ shared xattrs │ blocks of large directories │
//!                                     └── a file's: "5000 bytes, in device 1 from block 7 on" ──┐
//!  data  │ 0 … │ 7: 4096 bytes │ 8: 904 bytes, zeros │ … │  ◄──────────────────────────────────┘
//! ```
//!
//! [`write()`] turns a [`Tree`] into an image. The same tree always gives the same bytes: inodes stand breadth
//! first, names are sorted, times come from the tree, nothing from the machine. The kernel believes nearly
//! everything that an image says: a name out of order is listed and cannot be opened, an index too few is
//! read from the bytes that follow, a wrong device number silently means the image itself. So the writer refuses
//! whatever does not fit, and [`check`] reads an image back and accepts only what the writer could have written.
//!
//! What is used of the format: blocks of 4 KiB, extended inodes, chunk indexes into device 1, inline and shared
//! extended attributes. Neither compression nor 48-bit addresses nor the filter of attribute names.
//!
//! What whoever mounts must keep to: `device=` is always given; the data file's length is the one that was
//! given to [`write()`]; the rest of each file's last block is zeros, because `mmap` shows it; the image lies on
//! a disk file system.

mod check;
mod crc32c;
mod directory;
mod disk;
mod error;
mod tree;
mod write;
mod xattr;

pub use check::{CheckError, Checked, Fault, check};
pub use disk::{BLOCK, MAX_DATA};
pub use error::{Problem, WriteError, XattrProblem};
pub use tree::{Kind, Node, Tree};
pub use write::{Options, write};
pub use xattr::check_xattr;
