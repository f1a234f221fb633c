//! The part of a layer's way that needs a thread: inflate, compare, cut, compress.
//!
//! Without an order of files nothing is stored on the way. With one the inflated layer goes into an unlinked
//! temporary file first, because what comes first may stand last; then a wrong diffID is found before
//! anything is compressed.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{Digest, Hasher};
use estargz::{BuildError, Built};

use crate::error::ConvertError;
use crate::pipe::{Outlet, Pipe};
use crate::prefetch::Ranks;

/// Bytes that are read at once from the temporary file.
const WINDOW: usize = 256 << 10;

/// A layer to be made.
pub(super) struct Making {
    pub(super) options: estargz::Options,
    pub(super) ranks: Option<Arc<Ranks>>,
    /// Where the temporary file goes.
    pub(super) temporary: PathBuf,
    /// The source's digest, for messages.
    pub(super) digest: Digest,
    /// The diffID that the source must have.
    pub(super) claimed: Digest,
}

impl Making {
    /// Reads the source from `pipe` and writes the layer to `out`. Nothing that was written counts unless
    /// this ends well.
    pub(super) fn run(self, mut pipe: Pipe, out: Outlet) -> Result<Built, ConvertError> {
        let digest = self.digest;
        let broken = |error: io::Error| build_error(digest, BuildError::Archive(error.into()));
        let inflated = estargz::decompress(&mut pipe).map_err(broken)?;
        let mut inflated = Hashing { inner: inflated, hasher: Hasher::new() };
        if let Some(ranks) = &self.ranks {
            let file = self.spool(&mut inflated)?;
            self.compare(inflated.hasher.finish())?;
            drop(inflated.inner);
            // What stands behind the compressed stream belongs to the digest of the blob.
            io::copy(&mut pipe, &mut io::sink()).map_err(broken)?;
            let tar = BufReader::with_capacity(WINDOW, file);
            let built = estargz::build_ordered(tar, out, &self.options, &mut |path| ranks.rank(path));
            return built.map_err(|reason| build_error(digest, reason));
        }
        let built = estargz::build(&mut inflated, out, &self.options)
            .map_err(|reason| build_error(digest, reason))?;
        // What stands behind the end of the tar belongs to the diffID.
        io::copy(&mut inflated, &mut io::sink()).map_err(broken)?;
        let found = inflated.hasher.finish();
        drop(inflated.inner);
        io::copy(&mut pipe, &mut io::sink()).map_err(broken)?;
        self.compare(found)?;
        Ok(built)
    }

    fn compare(&self, found: Digest) -> Result<(), ConvertError> {
        let Self { digest, claimed, .. } = *self;
        if found == claimed { Ok(()) } else { Err(ConvertError::DiffId { digest, claimed, found }) }
    }

    /// The inflated layer in a file without a name.
    fn spool(&self, inflated: &mut impl Read) -> Result<File, ConvertError> {
        let dir = &self.temporary;
        let mut file = tempfile::tempfile_in(dir).map_err(|reason| disk_error(reason, dir))?;
        let mut buffer = vec![0; WINDOW];
        loop {
            let count = match inflated.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(build_error(self.digest, BuildError::Archive(error.into()))),
            };
            let part = buffer.get(..count).unwrap_or_default();
            io::Write::write_all(&mut file, part).map_err(|reason| disk_error(reason, dir))?;
        }
        file.rewind().map_err(|reason| disk_error(reason, dir))?;
        Ok(file)
    }
}

fn build_error(digest: Digest, reason: BuildError) -> ConvertError {
    ConvertError::Build { digest, reason }
}

fn disk_error(reason: io::Error, dir: &Path) -> ConvertError {
    let dir = dir.to_owned();
    match reason.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ConvertError::DiskFull { dir },
        _ => ConvertError::Temporary { dir, reason },
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::StreamExt;

    use super::*;
    use crate::pipe::{outlet, pipe};
    use crate::prefetch::Prefetch;

    /// Makes a layer of a stream of bytes as a download would be.
    async fn make(layer: &[u8], claimed: Digest, list: &str) -> Result<(Built, Vec<u8>), ConvertError> {
        let (feed, pipe) = pipe();
        let (outlet, drain) = outlet();
        let dir = tempfile::tempdir().unwrap();
        let mut prefetch = Prefetch::default();
        prefetch.add_list(list).unwrap();
        let digest = Digest::of(layer);
        let making = Making {
            options: estargz::Options::default(),
            ranks: prefetch.ranks(),
            temporary: dir.path().to_owned(),
            digest,
            claimed,
        };
        let work = tokio::task::spawn_blocking(move || making.run(pipe, outlet));
        let stream = futures::stream::iter([Ok(bytes::Bytes::copy_from_slice(layer))]).boxed();
        let mut kept = Kept::default();
        let (fed, drained, worked) = tokio::join!(feed.run(stream, |_| {}), drain.run(&mut kept), work);
        fed.unwrap();
        drained.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a temporary file has a name");
        Ok((worked.unwrap()?, kept.0))
    }

    #[derive(Default)]
    struct Kept(Vec<u8>);

    #[async_trait::async_trait]
    impl crate::place::BlobWriter for Kept {
        async fn write(&mut self, bytes: bytes::Bytes) -> Result<(), crate::place::PlaceError> {
            self.0.extend_from_slice(&bytes);
            Ok(())
        }
        async fn commit(
            self: Box<Self>,
            _: &registry::Descriptor,
            _: Option<&Digest>,
        ) -> Result<(), crate::place::PlaceError> {
            Ok(())
        }
        async fn abort(self: Box<Self>) {}
    }

    fn one_file() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", b"abc".as_slice()).unwrap();
        builder.into_inner().unwrap()
    }

    #[tokio::test]
    async fn the_diff_id_of_a_layer_without_its_end_is_of_what_was_there() {
        let tar = one_file();
        for list in ["", "file"] {
            let (whole, _) = make(&tar, Digest::of(&tar), list).await.unwrap();
            for end in [515, 600, 1024, 1536, tar.len()] {
                let layer = &tar[..end];
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(layer).unwrap();
                for stored in [layer.to_vec(), gzip.finish().unwrap()] {
                    let (built, bytes) = make(&stored, Digest::of(layer), list).await.unwrap();
                    assert_eq!(built, whole, "cut at {end}");
                    assert_eq!(built.digest, Digest::of(&bytes));
                }
            }
            let cut = &tar[..514];
            assert!(make(cut, Digest::of(cut), list).await.is_err(), "a file cut short was taken");
        }
    }

    #[tokio::test]
    async fn a_layer_that_is_not_what_was_claimed_is_refused() {
        let tar = one_file();
        for list in ["", "file"] {
            let error = make(&tar, Digest::of(b"other"), list).await.unwrap_err();
            assert!(
                matches!(error, ConvertError::DiffId { found, .. } if found == Digest::of(&tar)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = disk_error(io::ErrorKind::StorageFull.into(), Path::new("/somewhere"));
        assert!(error.to_string().contains("free some space"), "{error}");
    }
}
