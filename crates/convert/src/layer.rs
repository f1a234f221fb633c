//! One layer: read, verified, converted into a temporary file, pushed.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use content::{ByteStream, Digest, Hasher, Urgency};
use estargz::{BuildError, Built, Compression, TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION};
use registry::{Client, Descriptor, Reference, media_type};

use crate::error::ConvertError;
use crate::pipe::{Pipe, pipe, stream_file};
use crate::progress::LayerProgress;
use crate::report::{ConvertedLayer, Outcome};

/// Annotations that describe the bytes of a zstd:chunked blob, and no others.
const ZSTD_CHUNKED: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];

/// Where layers come from, where they go, and how they are made.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) client: Client,
    pub(crate) source: Reference,
    pub(crate) destination: Reference,
    pub(crate) build: estargz::Options,
    pub(crate) temporary: PathBuf,
    pub(crate) force: bool,
}

/// A layer at its destination.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) report: ConvertedLayer,
    /// What the image's config must say, if it is another one than before.
    pub(crate) diff_id: Option<Digest>,
    /// What the source's config must say, if the layer was inflated.
    pub(crate) source_diff_id: Option<Digest>,
    descriptor: Descriptor,
}

impl Done {
    /// The descriptor for a manifest whose own one was `before`: all that is said there of the layer, and
    /// nothing that was true of its old bytes alone.
    pub(crate) fn descriptor(&self, before: &Descriptor) -> Descriptor {
        if self.report.outcome != Outcome::Converted {
            return Descriptor { media_type: self.descriptor.media_type.clone(), ..before.clone() };
        }
        let mut annotations = before.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| !ZSTD_CHUNKED.iter().any(|prefix| key.starts_with(prefix)));
        annotations.extend(self.descriptor.annotations.clone().unwrap_or_default());
        let mut rest = before.rest.clone();
        // The old bytes themselves, which small blobs may carry along.
        rest.remove("data");
        Descriptor { annotations: Some(annotations), rest, ..self.descriptor.clone() }
    }
}

/// The media type in OCI's words; `None` for what is no tar.
fn oci_layer(media_type: &str) -> Option<&'static str> {
    let kind = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))?;
    match kind {
        "" => Some(media_type::OCI_LAYER),
        "+gzip" | ".gzip" => Some(media_type::OCI_LAYER_GZIP),
        "+zstd" | ".zstd" => Some(media_type::OCI_LAYER_ZSTD),
        _ => None,
    }
}

impl Job {
    /// Brings a layer to the destination, converted if it is not eStargz yet. `claimed` is the diffID that
    /// the image's config has for it.
    pub(crate) async fn layer(
        &self,
        before: &Descriptor,
        claimed: Digest,
        progress: &Arc<dyn LayerProgress>,
    ) -> Result<Done, ConvertError> {
        let started = Instant::now();
        if media_type::is_foreign(&before.media_type) {
            return Ok(kept(before, before.media_type.clone(), Outcome::Foreign, started, progress));
        }
        let oci = oci_layer(&before.media_type).ok_or_else(|| ConvertError::LayerType {
            digest: before.digest,
            media_type: before.media_type.clone(),
        })?;
        if before.annotation(TOC_DIGEST_ANNOTATION).is_some() && !self.force {
            progress.pushing(before.size);
            self.copy(before, progress).await?;
            return Ok(kept(before, oci.to_owned(), Outcome::Kept, started, progress));
        }
        let (file, built, source_diff_id) = self.convert(before, progress).await?;
        if source_diff_id != claimed {
            return Err(ConvertError::DiffId { digest: before.digest, claimed, found: source_diff_id });
        }
        progress.pushing(built.size);
        let file = Arc::new(file);
        let bytes = move || stream_file(&file, built.size);
        self.push(&built.digest, built.size, &bytes, progress).await?;
        progress.done(Outcome::Converted);
        tracing::debug!(source = %before.digest, layer = %built.digest, toc = %built.toc_digest, "converted a layer");
        let annotations = [
            (TOC_DIGEST_ANNOTATION.to_owned(), built.toc_digest.to_string()),
            (UNCOMPRESSED_SIZE_ANNOTATION.to_owned(), built.uncompressed_size.to_string()),
        ];
        let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, built.digest, built.size);
        descriptor.annotations = Some(annotations.into());
        let report = ConvertedLayer {
            outcome: Outcome::Converted,
            source_digest: before.digest,
            source_size: before.size,
            digest: built.digest,
            size: built.size,
            toc_digest: Some(built.toc_digest),
            uncompressed_size: Some(built.uncompressed_size),
            entries: Some(built.entries),
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(Done { report, diff_id: Some(built.diff_id), source_diff_id: Some(source_diff_id), descriptor })
    }

    /// Brings a blob to the destination as it is: without moving a byte if both are one registry.
    pub(crate) async fn copy(
        &self,
        blob: &Descriptor,
        progress: &Arc<dyn LayerProgress>,
    ) -> Result<(), ConvertError> {
        let (source, destination) = (&self.source, &self.destination);
        if source.registry() == destination.registry() {
            if source.repository() == destination.repository() {
                return Ok(());
            }
            match self.client.mount_blob(destination, &blob.digest, source.repository()).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // The account may push and pull, and still not mount: then the bytes travel.
                Err(error) => tracing::debug!(%error, "copying a blob that could not be mounted"),
            }
        }
        let bytes = || self.client.pull_blob(source, blob, Urgency::Prefetch);
        self.push(&blob.digest, blob.size, &bytes, progress).await
    }

    async fn push(
        &self,
        digest: &Digest,
        size: u64,
        bytes: &(dyn Fn() -> ByteStream + Send + Sync),
        progress: &Arc<dyn LayerProgress>,
    ) -> Result<(), ConvertError> {
        let progress = Arc::clone(progress);
        let pushed = Arc::new(move |bytes| progress.pushed(bytes));
        Ok(self.client.push_blob(&self.destination, digest, size, bytes, Some(pushed)).await?)
    }

    /// Downloads and converts at the same time. Answers the file, what is in it, and the source's diffID.
    async fn convert(
        &self,
        before: &Descriptor,
        progress: &Arc<dyn LayerProgress>,
    ) -> Result<(File, Built, Digest), ConvertError> {
        let stream = self.client.pull_blob(&self.source, before, Urgency::Prefetch);
        let (feed, pipe) = pipe();
        let (options, dir, digest) = (self.build.clone(), self.temporary.clone(), before.digest);
        let work = tokio::task::spawn_blocking(move || convert_pipe(pipe, &options, &dir, digest));
        let (fed, worked) = tokio::join!(feed.run(stream, |bytes| progress.read(bytes)), work);
        // A download that failed is the reason for whatever the converter says of its end.
        fed.map_err(|reason| ConvertError::Read { digest, reason })?;
        worked.map_err(|_| ConvertError::Interrupted)?
    }
}

fn kept(
    before: &Descriptor,
    media_type: String,
    outcome: Outcome,
    started: Instant,
    progress: &Arc<dyn LayerProgress>,
) -> Done {
    progress.done(outcome);
    let toc_digest = before.annotation(TOC_DIGEST_ANNOTATION).and_then(|text| text.parse().ok());
    let report = ConvertedLayer {
        outcome,
        source_digest: before.digest,
        source_size: before.size,
        digest: before.digest,
        size: before.size,
        toc_digest,
        uncompressed_size: None,
        entries: None,
        seconds: started.elapsed().as_secs_f64(),
    };
    let descriptor = Descriptor { media_type, ..before.clone() };
    Done { report, diff_id: None, source_diff_id: None, descriptor }
}

fn convert_pipe(
    mut pipe: Pipe,
    options: &estargz::Options,
    dir: &Path,
    digest: Digest,
) -> Result<(File, Built, Digest), ConvertError> {
    let file = tempfile::tempfile_in(dir).map_err(|reason| disk_error(reason, dir))?;
    let broken = |error: io::Error| ConvertError::Build { digest, reason: BuildError::Archive(error.into()) };
    let mut inflated =
        Hashing { inner: estargz::decompress(&mut pipe).map_err(broken)?, hasher: Hasher::new() };
    let compression = inflated.inner.compression();
    let out = BufWriter::with_capacity(1 << 20, &file);
    let built = estargz::build(&mut inflated, out, options).map_err(|error| match error {
        BuildError::Output(reason) => disk_error(reason, dir),
        reason => ConvertError::Build { digest, reason },
    })?;
    // What stands behind the end of the tar belongs to the diffID, and to the digest of the blob.
    io::copy(&mut inflated, &mut io::sink()).map_err(broken)?;
    let source_diff_id = inflated.hasher.finish();
    drop(inflated.inner);
    io::copy(&mut pipe, &mut io::sink()).map_err(broken)?;
    tracing::trace!(%digest, plain = compression == Compression::None, "read a layer");
    Ok((file, built, source_diff_id))
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

/// How many layers may be under way at once: each holds a few members per compressing thread in memory.
pub(crate) fn concurrency(chunk_size: u32, wanted: Option<NonZeroUsize>) -> usize {
    const MOST: u64 = 4;
    if let Some(wanted) = wanted {
        return wanted.get();
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(16) as u64;
    // Waiting, being compressed, being written: inflated and compressed together.
    let per_layer = (threads * 4 + 2) * 2 * u64::from(chunk_size.max(estargz::DEFAULT_CHUNK_SIZE));
    let fits = available_memory().unwrap_or(0) / 2 / per_layer;
    usize::try_from(fits.clamp(1, MOST)).unwrap_or(1)
}

/// What Linux says could be used without swapping, in bytes.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_types_become_oci_types() {
        for (media_type, oci) in [
            (media_type::DOCKER_LAYER_GZIP, Some(media_type::OCI_LAYER_GZIP)),
            (media_type::OCI_LAYER_ZSTD, Some(media_type::OCI_LAYER_ZSTD)),
            (media_type::OCI_LAYER, Some(media_type::OCI_LAYER)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(media_type::OCI_LAYER)),
            ("application/vnd.in-toto+json", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
        ] {
            assert_eq!(oci_layer(media_type), oci, "{media_type}");
        }
    }

    #[test]
    fn a_new_layer_keeps_what_was_said_of_the_old_one_and_forgets_what_its_bytes_were() {
        let mut before = Descriptor::new(media_type::OCI_LAYER_ZSTD, Digest::of(b"old"), 3);
        let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        before.annotations = Some(
            [
                annotation("org.example.note", "kept"),
                annotation("io.github.containers.zstd-chunked.manifest-position", "1:2:3:1"),
                annotation(TOC_DIGEST_ANNOTATION, "stale"),
            ]
            .into(),
        );
        before.rest.insert("data".into(), "b2xk".into());
        before.rest.insert("artifactType".into(), "x".into());
        let mut descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"new"), 9);
        descriptor.annotations = Some([annotation(TOC_DIGEST_ANNOTATION, "fresh")].into());
        let report = ConvertedLayer {
            outcome: Outcome::Converted,
            source_digest: before.digest,
            source_size: before.size,
            digest: descriptor.digest,
            size: descriptor.size,
            toc_digest: None,
            uncompressed_size: None,
            entries: None,
            seconds: 0.0,
        };
        let after = Done { report, diff_id: None, source_diff_id: None, descriptor }.descriptor(&before);
        assert_eq!((after.digest, after.size), (Digest::of(b"new"), 9));
        assert_eq!(after.annotation(TOC_DIGEST_ANNOTATION), Some("fresh"));
        assert_eq!(after.annotation("org.example.note"), Some("kept"));
        assert_eq!(after.annotations.unwrap().len(), 2);
        assert_eq!(after.rest.keys().collect::<Vec<_>>(), ["artifactType"]);
    }

    /// Converts a stream of bytes as a download would be.
    async fn convert_bytes(layer: &[u8]) -> Result<(File, Built, Digest), ConvertError> {
        let (feed, pipe) = pipe();
        let digest = Digest::of(layer);
        let dir = tempfile::tempdir().unwrap();
        let options = estargz::Options::default();
        let at = dir.path().to_owned();
        let work = tokio::task::spawn_blocking(move || convert_pipe(pipe, &options, &at, digest));
        let stream = futures::stream::iter([Ok(bytes::Bytes::copy_from_slice(layer))]);
        feed.run(Box::pin(stream), |_| {}).await.unwrap();
        work.await.unwrap()
    }

    #[tokio::test]
    async fn the_diff_id_of_a_layer_without_its_end_is_of_what_was_there() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", b"abc".as_slice()).unwrap();
        let tar = builder.into_inner().unwrap();
        let (_, whole, _) = convert_bytes(&tar).await.unwrap();
        for end in [515, 600, 1024, 1536, tar.len()] {
            let layer = &tar[..end];
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gzip, layer).unwrap();
            for stored in [layer.to_vec(), gzip.finish().unwrap()] {
                let (_, built, source_diff_id) = convert_bytes(&stored).await.unwrap();
                assert_eq!(source_diff_id, Digest::of(layer), "cut at {end}");
                assert_eq!(built, whole, "cut at {end}");
            }
        }
        assert!(convert_bytes(&tar[..514]).await.is_err(), "a file cut short was taken");
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = disk_error(io::ErrorKind::StorageFull.into(), Path::new("/somewhere"));
        assert!(error.to_string().contains("free some space"), "{error}");
    }
}
