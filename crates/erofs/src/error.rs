//! Why a tree cannot be written.

/// What is wrong with an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XattrProblem {
    /// The kernel would hide it.
    #[error(
        "its name has none of the prefixes that EROFS knows (user., trusted., security., system.posix_acl_*)"
    )]
    Prefix,
    /// Nothing after the prefix, or something where nothing may be: it could be listed, not read.
    #[error("its name is not one that can be read")]
    Name,
    /// The name has more bytes than Linux allows.
    #[error("its name is longer than 255 bytes")]
    NameTooLong,
    /// The value has more bytes than the format can say.
    #[error("its value is longer than 65535 bytes")]
    ValueTooLong,
    /// Two of one name.
    #[error("it is there twice")]
    Twice,
}

/// What is wrong with an entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A directory names a node that the tree does not have.
    #[error("there is no node {0}")]
    NoNode(u32),
    /// No name at all, `.` or `..`.
    #[error("the name is empty, \".\" or \"..\"")]
    Name,
    /// A NUL byte or a slash in a name.
    #[error("the name has a NUL byte or a slash")]
    NameByte,
    /// More bytes than Linux allows.
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    /// One name twice in a directory.
    #[error("the name is there twice")]
    NameTwice,
    /// A directory that is found in two places, or in itself.
    #[error("the directory has a second name")]
    DirectoryTwice,
    /// The root of a tree must be a directory.
    #[error("the root is no directory")]
    RootKind,
    /// Bits that are no permissions.
    #[error("the mode {0:o} has other bits than 7777")]
    Mode(u16),
    /// Its time has as many nanoseconds as a second, or more.
    #[error("the modification time has {0} nanoseconds")]
    Nanoseconds(u32),
    /// A device number that Linux does not have.
    #[error("the device number {0}:{1} is larger than 4095:1048575")]
    Device(u32, u32),
    /// A symbolic link that leads nowhere a link can lead.
    #[error("the link target is empty, longer than 4095 bytes, or has a NUL byte")]
    Link,
    /// A file that does not begin at a block.
    #[error("the content begins at byte {0} of the data file, which is no multiple of 4096")]
    Address(u64),
    /// A file whose bytes are not all in the data file.
    #[error("the content, {size} bytes from byte {address}, ends after the data file")]
    BeyondData {
        /// Where it begins.
        address: u64,
        /// Its bytes.
        size: u64,
    },
    /// Two files in the same blocks.
    #[error("the content, from byte {0} of the data file, shares blocks with that of another file")]
    Overlap(u64),
    /// An extended attribute that cannot be written.
    #[error("extended attribute {name:?}: {problem}")]
    Xattr {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: XattrProblem,
    },
    /// More than the inode can say: 262,148 bytes encoded.
    #[error("the extended attributes are too large together ({0} bytes)")]
    XattrsTooLarge(u64),
    /// More names than Linux lists: 65,536 bytes.
    #[error("the names of the extended attributes are too long together ({0} bytes)")]
    XattrListTooLong(u64),
}

/// Why an image cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// An entry that the format, or Linux, does not have.
    #[error("cannot describe {path:?} in an EROFS image: {problem}")]
    Entry {
        /// Its path from the root, `/` being the root itself.
        path: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The data file is no whole number of blocks, or has more of them than 32 bits can number.
    #[error(
        "a data file of {0} bytes cannot be addressed: it must be a multiple of 4096, at most 16 TiB - 4 KiB"
    )]
    DataLength(u64),
    /// The tree is larger than the writer can number.
    #[error("the tree is too large for an EROFS image of 128 GiB")]
    TooLarge,
    /// No memory for the image.
    #[error("no memory for an EROFS image of {0} bytes")]
    Memory(u64),
    /// The tree was not the same when it was asked again.
    #[error("the tree changed while its EROFS image was written")]
    Changed,
}
