//! Proof: hashing a whole blob, both ways, once for ever.
//!
//! The blob is read as lazily mounted layers read it, so a cluster's copy is taken where there is one, into a file
//! without a name. Then it is audited: its digest, the digest of what it inflates to, and that its table of contents
//! says the same as its tar. The last is not idle: who mounts never looks at the tar, and a compressed stream has room
//! in which a second table of contents can hide without changing what it inflates to.
//!
//! A blob that is true and has no table of contents to say so, an ordinary layer say, cannot be put into a lazy
//! snapshot. Then a copy is made that has one, and kept as long as a snapshot holds it.
//!
//! What is found is a [`Fact`] about a digest, whoever served the bytes, and is kept in the database. That the bytes
//! could not be had, or were others, is remembered for a short while only.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use content::{ByteRange, Digest, Hasher, Urgency};
use estargz::audit::{Audit, AuditOptions, Claims as Said, Lie, ReadAt, audit};
use estargz::{Format, Options};
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::judge::{Candidate, Fact, Known};
use crate::layer::LayerBackend;
use crate::meta::Meta;

/// Blobs that are proven at once: each takes a core and as much disk as the blob is long.
const AT_ONCE: usize = 2;
/// Proofs that may be asked for at once, running ones included.
const WAITING: usize = 1024;
/// Parts of a blob that wait to be written.
const PARTS: usize = 8;
/// For how long a failure is an answer. Long enough that nobody hammers a registry, short enough for a retry.
const FAILED_FOR: Duration = Duration::from_secs(15);
/// How long a copy stays that no snapshot holds.
const COPY_STAYS: Duration = Duration::from_mins(10);
/// Age from which on an unfinished copy is nobody's.
const LEFT_FOR: Duration = Duration::from_hours(24);
/// zstd's level for copies: somebody waits.
const COPY_LEVEL: u8 = 1;
/// Failures that are remembered.
const FAILURES: usize = 1024;

/// How a proof ended.
type Outcome = Option<Result<Fact, String>>;
/// How far a copy is.
pub enum Copied {
    /// It is there; its table of contents has this digest.
    Made(Digest),
    /// It is being made.
    Working(Proof),
    /// It cannot be made now.
    Failed(String),
}
/// Tells how a proof ends.
pub type Proof = watch::Receiver<Outcome>;
/// A blob, and by whose name it is asked for.
type Job = (Digest, String);

/// Proves blobs.
pub struct Prover {
    backend: Arc<dyn LayerBackend>,
    meta: Arc<Meta>,
    /// Where blobs lie while they are hashed.
    scratch: PathBuf,
    running: Mutex<HashMap<Job, Proof>>,
    failed: Mutex<HashMap<Job, (Instant, String)>>,
    /// Copies that were made, and the digests of their tables of contents.
    copies: Mutex<HashMap<Digest, (Instant, Digest)>>,
    /// Counts proofs that ended.
    finished: watch::Sender<u64>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Prover {
    pub fn new(
        backend: Arc<dyn LayerBackend>,
        meta: Arc<Meta>,
        scratch: PathBuf,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            backend,
            meta,
            scratch,
            running: Mutex::default(),
            failed: Mutex::default(),
            copies: Mutex::default(),
            finished: watch::Sender::new(0),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            tasks,
            stop,
        }
    }

    /// What is known of `candidate`. Looks into the database: for blocking threads.
    pub fn known(&self, candidate: &Candidate) -> Known {
        match self.meta.fact(&candidate.layer) {
            Ok(Some(fact)) => return Known::Fact(fact),
            Ok(None) => {}
            Err(error) => return Known::Failed(error.to_string()),
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (at, _)| at.elapsed() < FAILED_FOR);
        let mut reason = "no image that names it has a name by which it can be asked for".to_owned();
        for reference in &candidate.references {
            match failed.get(&(candidate.layer, reference.clone())) {
                Some((_, error)) => reason.clone_from(error),
                None => return Known::Nothing,
            }
        }
        Known::Failed(reason)
    }

    /// Changes whenever a proof ends.
    pub fn finished(&self) -> watch::Receiver<u64> {
        self.finished.subscribe()
    }

    /// Begins to prove a candidate by each of its names, or joins who began before; tells whether it began.
    pub fn start(self: &Arc<Self>, candidate: &Candidate) -> Vec<(Proof, bool)> {
        let jobs = candidate.references.iter().map(|reference| (candidate.layer, reference.clone()));
        jobs.filter_map(|job| self.start_one(job, false)).collect()
    }

    /// A copy of the proven blob `layer` that can be mounted, if it was made; else begins to make it.
    pub fn copy(self: &Arc<Self>, layer: &Digest, reference: &str) -> Copied {
        if let Some((_, toc)) = self.copies.lock().unwrap_or_else(PoisonError::into_inner).get(layer) {
            return Copied::Made(*toc);
        }
        let job = (*layer, format!("a copy of {reference}"));
        {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.retain(|_, (at, _)| at.elapsed() < FAILED_FOR);
            if let Some((_, error)) = failed.get(&job) {
                return Copied::Failed(error.clone());
            }
        }
        match self.start_one(job, true) {
            Some((proof, _)) => Copied::Working(proof),
            None => Copied::Failed("too many layers are being verified".to_owned()),
        }
    }

    /// Deletes copies that are not of one of these blobs. Blocks.
    pub fn keep_only(&self, layers: &HashSet<Digest>) {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was just made is about to be put in place.
        copies.retain(|layer, (at, _)| layers.contains(layer) || at.elapsed() < COPY_STAYS);
        for entry in std::fs::read_dir(&self.scratch).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_old =
                || entry.metadata().ok()?.modified().ok()?.elapsed().ok().filter(|age| *age > LEFT_FOR);
            if name.to_string_lossy().starts_with(".tmp") && is_old().is_some() {
                // What a process left that was killed.
                let _deleted = std::fs::remove_file(entry.path());
            }
            let layer = name.to_str().and_then(|name| format!("sha256:{name}").parse::<Digest>().ok());
            if let Some(layer) = layer
                && !layers.contains(&layer)
                && !copies.contains_key(&layer)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(%layer, %error, "a copy of a layer stays until the next cleanup");
            }
        }
    }

    fn start_one(self: &Arc<Self>, job: Job, copy: bool) -> Option<(Proof, bool)> {
        let (sender, receiver) = watch::channel(None);
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(joined) = running.get(&job) {
                return Some((joined.clone(), false));
            }
            if running.len() >= WAITING {
                return None;
            }
            running.insert(job.clone(), receiver.clone());
        }
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let work = async { if copy { this.make_copy(&job).await } else { this.prove(&job).await } };
            let proven = this.stop.clone().run_until_cancelled_owned(work).await;
            let outcome = match proven {
                Some(outcome) => outcome,
                None => Err("the snapshotter is shutting down".to_owned()),
            };
            if let Err(error) = &outcome {
                tracing::warn!(layer = %job.0, image = job.1, error, "a layer could not be verified");
                let mut failed = this.failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.len() >= FAILURES {
                    failed.clear();
                }
                failed.insert(job.clone(), (Instant::now(), error.clone()));
            }
            this.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
            sender.send_replace(Some(outcome));
            this.finished.send_modify(|count| *count = count.wrapping_add(1));
        });
        Some((receiver, true))
    }

    async fn prove(&self, (layer, reference): &Job) -> Result<Fact, String> {
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        // By another name, while this one waited.
        if let Ok(Some(fact)) = self.meta.fact(layer) {
            return Ok(fact);
        }
        let begun = Instant::now();
        let (file, len) = self.fetch(reference, layer).await?;
        let claimed = *layer;
        let audited = self.tasks.spawn_blocking(move || {
            let said = Said { digest: Some(claimed), ..Said::default() };
            audit(&Spool(file), len, &said, &AuditOptions::default())
        });
        let audited = audited.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let fact = fact_of(audited, reference)?;
        let (meta, layer, kept) = (Arc::clone(&self.meta), *layer, fact.clone());
        let written = self.tasks.spawn_blocking(move || meta.keep_fact(&layer, &kept));
        written.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        tracing::info!(
            %layer, image = reference.as_str(), bytes = len, milliseconds = begun.elapsed().as_millis(),
            "a layer was hashed whole"
        );
        Ok(fact)
    }

    /// Makes a copy of a proven blob that has a table of contents: the same tar, byte by byte, in other clothes.
    async fn make_copy(&self, (layer, named): &Job) -> Result<Fact, String> {
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        let fact = self.meta.fact(layer).ok().flatten().ok_or("it was not proven")?;
        let (file, len) = self.fetch(&fact.reference, layer).await?;
        let (scratch, expected, diff_id) = (self.scratch.clone(), *layer, fact.diff_id);
        let built = self.tasks.spawn_blocking(move || build_copy(file, &scratch, &expected, diff_id));
        let toc = built.await.map_err(|error| error.to_string())??;
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).insert(*layer, (Instant::now(), toc));
        tracing::info!(%layer, image = named.as_str(), bytes = len, "a layer was copied to be mounted");
        Ok(Fact { toc: Some(toc), ..fact })
    }

    /// Reads the whole blob into a file without a name.
    async fn fetch(&self, reference: &str, layer: &Digest) -> Result<(File, u64), String> {
        let blob = self.backend.blob(reference, layer).await.map_err(|error| error.0)?;
        let len = blob.source.len();
        let scratch = self.scratch.clone();
        let made = self.tasks.spawn_blocking(move || {
            std::fs::create_dir_all(&scratch)?;
            let room = rustix::fs::statvfs(&scratch)?;
            let free = room.f_bavail.saturating_mul(room.f_frsize);
            if len > free / 2 {
                return Err(io::Error::other(format!(
                    "a layer of {len} bytes has to be hashed, and only {free} bytes are free"
                )));
            }
            tempfile::tempfile_in(&scratch)
        });
        let mut file = made.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let (sender, mut receiver) = mpsc::channel::<Bytes>(PARTS);
        let writer = self.tasks.spawn_blocking(move || -> io::Result<(File, u64)> {
            let mut written = 0_u64;
            while let Some(part) = receiver.blocking_recv() {
                file.write_all(&part)?;
                written = written.saturating_add(part.len() as u64);
            }
            Ok((file, written))
        });
        let mut stream = blob.source.stream(ByteRange::new(0, len), Urgency::Prefetch);
        let mut failed = None;
        while let Some(part) = stream.next().await {
            match part {
                Ok(part) => {
                    if sender.send(part).await.is_err() {
                        break; // the writer failed, and tells why below
                    }
                }
                Err(error) => {
                    failed = Some(error.to_string());
                    break;
                }
            }
        }
        drop(sender);
        let (file, written) =
            writer.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        match failed {
            Some(error) => Err(error),
            None if written != len => Err(format!("{written} of {len} bytes came")),
            None => Ok((file, len)),
        }
    }
}

/// What an audit says of the blob's digest, for ever. Bytes of another digest say nothing about it.
fn fact_of(audited: Audit, reference: &str) -> Result<Fact, String> {
    let Audit { lie, diff_id, toc_digest, .. } = audited;
    if let Some(lie @ (Lie::Size { .. } | Lie::Digest { .. })) = lie {
        return Err(format!("what {reference} serves is another blob: {lie}"));
    }
    if let Some(lie) = &lie {
        tracing::warn!(image = reference, %lie, "a layer does not say what is in it");
    }
    let toc = toc_digest.filter(|_| lie.is_none());
    Ok(Fact { diff_id, toc, reference: reference.to_owned() })
}

/// Writes the copy of the blob in `file` below `scratch`; answers the digest of its table of contents.
fn build_copy(
    mut file: File,
    scratch: &Path,
    layer: &Digest,
    diff_id: Option<Digest>,
) -> Result<Digest, String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    file.rewind().map_err(|error| told(&error))?;
    let mut hasher = Hasher::new();
    io::copy(&mut BufReader::with_capacity(1 << 16, &file), &mut hasher).map_err(|error| told(&error))?;
    let found = hasher.finish();
    if found != *layer {
        return Err(format!("what came has the digest {found}"));
    }
    file.rewind().map_err(|error| told(&error))?;
    let tar = estargz::decompress(BufReader::new(file)).map_err(|error| told(&error))?;
    let mut copy = tempfile::NamedTempFile::new_in(scratch).map_err(|error| told(&error))?;
    // A table of contents in a frame of its own leaves the tar as it is.
    let options = Options {
        format: Format::ZstdChunked,
        keep_diff_id: true,
        level: Some(COPY_LEVEL),
        ..Options::default()
    };
    let built = estargz::build(tar, BufWriter::new(&mut copy), &options).map_err(|error| told(&error))?;
    if Some(built.diff_id) != diff_id {
        return Err(format!("its copy inflates to {}", built.diff_id));
    }
    copy.as_file().sync_all().map_err(|error| told(&error))?;
    copy.persist(scratch.join(layer.hex())).map_err(|error| told(&error))?;
    Ok(built.toc_digest)
}

struct Spool(File);

impl ReadAt for Spool {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}
