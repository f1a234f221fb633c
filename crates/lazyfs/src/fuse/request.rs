//! Requests as the kernel writes them, read with every length checked.
//!
//! The kernel is trusted with the machine, yet a descriptor can be handed over or fuzzed: nothing here can
//! panic, and whatever is not understood is refused rather than guessed.

use super::abi::{IN_HEADER, init, op};

/// What the kernel asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation<'a> {
    /// The first request: what can you do?
    Init {
        /// Major version of the kernel's protocol.
        major: u32,
        /// Minor version.
        minor: u32,
        /// Largest readahead in bytes that the kernel is willing to do.
        max_readahead: u32,
        /// What it offers, see [`super::abi::init`].
        flags: u64,
    },
    /// Find a name in a directory.
    Lookup {
        /// The name.
        name: &'a [u8],
    },
    /// The kernel dropped an inode. Never answered.
    Forget,
    /// Show an inode's attributes.
    GetAttr,
    /// Where does a symbolic link point?
    ReadLink,
    /// Bytes of a file.
    Read {
        /// First byte.
        offset: u64,
        /// How many.
        size: u32,
    },
    /// Entries of a directory.
    ReadDir {
        /// Where to go on: 0, or what an entry said.
        offset: u64,
        /// Longest reply.
        size: u32,
        /// With attributes.
        plus: bool,
    },
    /// An extended attribute.
    GetXattr {
        /// Its name.
        name: &'a [u8],
        /// Room for it; 0 asks for the length.
        size: u32,
    },
    /// The names of all extended attributes.
    ListXattr {
        /// Room for them; 0 asks for the length.
        size: u32,
    },
    /// Size of the file system.
    StatFs,
    /// Whoever waits for the request `unique` does not any more.
    Interrupt {
        /// The request.
        unique: u64,
    },
    /// The last request.
    Destroy,
    /// Something that would change the file system.
    Modify,
    /// Closing what was never opened here. Answered with success.
    Release,
    /// Anything else.
    Unsupported,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// Names the request; the reply carries it.
    pub unique: u64,
    /// The inode that it is about.
    pub node: u64,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// A request that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// Its name, if that much could be read: it gets an error as its reply.
    pub unique: Option<u64>,
}

/// Takes numbers off the front of a byte string.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (value, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*value))
    }

    fn u64(&mut self) -> Option<u64> {
        let (value, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*value))
    }

    /// A name that ends with a zero byte.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = self.0.get(..end)?;
        self.0 = self.0.get(end + 1..)?;
        Some(name)
    }
}

impl<'a> Request<'a> {
    /// Reads one request. `bytes` is what one `read` of the device gave.
    ///
    /// # Errors
    /// [`Malformed`] if a length does not fit.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let (Some(len), Some(opcode), Some(unique), Some(node)) =
            (fields.u32(), fields.u32(), fields.u64(), fields.u64())
        else {
            return Err(Malformed { unique: None });
        };
        let malformed = Malformed { unique: Some(unique) };
        if len as usize != bytes.len() {
            return Err(malformed);
        }
        let body = Fields(bytes.get(IN_HEADER..).ok_or(malformed)?);
        let operation = Self::operation(opcode, body).ok_or(malformed)?;
        Ok(Self { unique, node, operation })
    }

    fn operation(opcode: u32, mut body: Fields<'a>) -> Option<Operation<'a>> {
        Some(match opcode {
            op::INIT => {
                let (major, minor) = (body.u32()?, body.u32()?);
                // Absent in the oldest versions, which are refused by their number; the last one until 5.17.
                let max_readahead = body.u32().unwrap_or(0);
                let low = u64::from(body.u32().unwrap_or(0));
                let high = if low & init::INIT_EXT == 0 { 0 } else { body.u32().unwrap_or(0) };
                Operation::Init { major, minor, max_readahead, flags: low | u64::from(high) << 32 }
            }
            op::LOOKUP => Operation::Lookup { name: body.name()? },
            op::FORGET | op::BATCH_FORGET => Operation::Forget,
            op::GETATTR => Operation::GetAttr,
            op::READLINK => Operation::ReadLink,
            op::READ => {
                let _handle = body.u64()?;
                Operation::Read { offset: body.u64()?, size: body.u32()? }
            }
            op::READDIR | op::READDIRPLUS => {
                let _handle = body.u64()?;
                Operation::ReadDir { offset: body.u64()?, size: body.u32()?, plus: opcode == op::READDIRPLUS }
            }
            op::GETXATTR => {
                let size = body.u32()?;
                let _padding = body.u32()?;
                Operation::GetXattr { name: body.name()?, size }
            }
            op::LISTXATTR => Operation::ListXattr { size: body.u32()? },
            op::STATFS => Operation::StatFs,
            op::INTERRUPT => Operation::Interrupt { unique: body.u64()? },
            op::DESTROY => Operation::Destroy,
            op::RELEASE | op::RELEASEDIR => Operation::Release,
            op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::WRITE
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::CREATE
            | op::FALLOCATE
            | op::TMPFILE => Operation::Modify,
            _ => Operation::Unsupported,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(IN_HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        bytes.extend(1u64.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_lookup_is_read() {
        let bytes = request(op::LOOKUP, b"usr\0");
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request, Request { unique: 9, node: 1, operation: Operation::Lookup { name: b"usr" } });
    }

    #[test]
    fn a_read_is_read() {
        let mut body = Vec::new();
        body.extend(0u64.to_ne_bytes());
        body.extend(4096u64.to_ne_bytes());
        body.extend(131_072u32.to_ne_bytes());
        body.extend([0; 20]);
        let bytes = request(op::READ, &body);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.operation, Operation::Read { offset: 4096, size: 131_072 });
    }

    #[test]
    fn a_name_without_end_is_refused_and_the_request_named() {
        let bytes = request(op::LOOKUP, b"usr");
        assert_eq!(Request::parse(&bytes), Err(Malformed { unique: Some(9) }));
    }

    #[test]
    fn every_cut_is_refused() {
        for opcode in 0..60 {
            let whole = request(opcode, &[0; 64]);
            for cut in 0..whole.len() {
                assert!(Request::parse(&whole[..cut]).is_err(), "opcode {opcode} cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic(opcode in 0u32..64, body in prop::collection::vec(any::<u8>(), 0..200), raw in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::parse(&raw);
            let _ = Request::parse(&request(opcode, &body));
        }
    }
}
