//! The image as a file in the layer's folder: `erofs-t.img` or `erofs-u.img`, after the attribute that marks opaque
//! directories.
//!
//! It is written once, durably and at once ([`replace`]), and used again by every mount and every process after. Behind
//! the image stands one more block, which the kernel does not look at: whose image it is, which version of the writer
//! made it, and the BLAKE3 of all of it. A process reads and hashes the file before it uses it the first time. What
//! passes is byte for byte what the writer wrote, so that the laborious check of each record
//! (`erofs::check`) has nothing to find; what does not is written anew.
//!
//! ```text
//! image  │ "PANTIMG\0"  u32 version  u32 opaque  [32] TOC digest  u64 data_len  u64 image_len  [32] BLAKE3 of the image
//!        │ [32] BLAKE3 of the block so far  zeros
//! ```

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use content::Digest;
use rustix::fs::{Mode, OFlags};

use crate::fill::replace;
use crate::tree::OpaqueXattr;

const MAGIC: &[u8; 8] = b"PANTIMG\0";
/// Changes whenever the image of the same table does, in the writer or in the view of the layer.
const VERSION: u32 = 2;
const SEAL: usize = 4096;
const SEALED: usize = 8 + 4 + 4 + 32 + 8 + 8 + 32;
/// What is read and hashed at once.
const STEP: usize = 256 * 1024;

/// Whose image it is.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) toc: Digest,
    pub(crate) data_len: u64,
    pub(crate) opaque: OpaqueXattr,
}

impl Identity {
    /// Name of the file.
    pub(crate) const fn name(&self) -> &'static str {
        match self.opaque {
            OpaqueXattr::Trusted => "erofs-t.img",
            OpaqueXattr::User => "erofs-u.img",
        }
    }

    /// The block behind an image of `len` bytes with this hash.
    fn seal(&self, len: u64, hash: &blake3::Hash) -> Vec<u8> {
        let opaque: u32 = match self.opaque {
            OpaqueXattr::Trusted => 0,
            OpaqueXattr::User => 1,
        };
        let mut seal = Vec::with_capacity(SEAL);
        seal.extend_from_slice(MAGIC);
        seal.extend_from_slice(&VERSION.to_le_bytes());
        seal.extend_from_slice(&opaque.to_le_bytes());
        seal.extend_from_slice(self.toc.as_bytes());
        seal.extend_from_slice(&self.data_len.to_le_bytes());
        seal.extend_from_slice(&len.to_le_bytes());
        seal.extend_from_slice(hash.as_bytes());
        debug_assert_eq!(seal.len(), SEALED, "as the module says");
        let hash = blake3::hash(&seal);
        seal.extend_from_slice(hash.as_bytes());
        seal.resize(SEAL, 0);
        seal
    }
}

/// Opens the image in `folder`. `is_known` says that this process looked at all of it before.
///
/// `None` if there is none, or it is not this one.
///
/// # Errors
/// That the file cannot be opened or read.
pub(crate) fn open(folder: &OwnedFd, identity: &Identity, is_known: bool) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::openat(folder, identity.name(), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if is_known || is_whole(&file, identity)? {
        return Ok(Some(file));
    }
    tracing::warn!(image = identity.name(), toc = %identity.toc, "a metadata image is damaged or of another version, writing it anew");
    Ok(None)
}

/// Whether every byte is as it was written.
fn is_whole(file: &File, identity: &Identity) -> io::Result<bool> {
    let Some(len) = file.metadata()?.len().checked_sub(SEAL as u64).filter(|len| *len > 0) else {
        return Ok(false);
    };
    let mut seal = vec![0; SEAL];
    file.read_exact_at(&mut seal, len)?;
    if !seal.starts_with(MAGIC) {
        return Ok(false);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < len {
        let step = usize::try_from(len - at).unwrap_or(usize::MAX).min(STEP);
        let Some(part) = buffer.get_mut(..step) else { return Ok(false) };
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += step as u64;
    }
    Ok(seal == identity.seal(len, &hasher.finalize()))
}

/// Writes the image, so that a crash leaves all of it or what was there before, and opens it.
///
/// # Errors
/// What the system said.
pub(crate) fn write(folder: &OwnedFd, identity: &Identity, mut image: Vec<u8>) -> io::Result<File> {
    let seal = identity.seal(image.len() as u64, &blake3::hash(&image));
    image.extend_from_slice(&seal);
    replace(folder, identity.name(), &image)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the image went away as it was written");
    open(folder, identity, true)?.ok_or_else(gone)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn folder(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn identity(toc: &[u8]) -> Identity {
        Identity { toc: Digest::of(toc), data_len: 8192, opaque: OpaqueXattr::Trusted }
    }

    #[test]
    fn an_image_is_used_again_only_if_every_byte_is_as_it_was_written() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path());
        let ours = identity(b"toc");
        assert!(open(&folder, &ours, false).unwrap().is_none());
        write(&folder, &ours, vec![7; 8192]).unwrap();
        assert!(open(&folder, &ours, false).unwrap().is_some());
        let others = [
            identity(b"other"),
            Identity { data_len: 4096, ..ours },
            Identity { opaque: OpaqueXattr::User, ..ours },
        ];
        std::fs::copy(place.path().join("erofs-t.img"), place.path().join("erofs-u.img")).unwrap();
        for other in others {
            assert!(open(&folder, &other, false).unwrap().is_none());
        }
        let path = place.path().join("erofs-t.img");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, bad).unwrap();
            assert!(
                open(&folder, &ours, false).unwrap().is_none(),
                "a flipped bit in byte {at} was believed"
            );
        }
        for cut in [0, 1, 4096, 8192, 12_287] {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(open(&folder, &ours, false).unwrap().is_none(), "an image cut at {cut} was believed");
        }
    }
}
