//! What a container runs on: the layers, each mounted lazily by this process, and an overlay on top.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{BlobSource, Digest, OpenBlob};
use lazyfs::{LayerSpec, Layers, LayersOptions, Mount, MountOptions, Prefetch};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::error::RehearsalError;
use crate::options::{Network, Options};
use crate::record::LayerTouches;
use crate::spec::{Files, hosts, resolv_conf};

/// Longest text of options that mount(2) takes: a page.
const MOST_OPTIONS: usize = 4095;
/// How long an overlay may take to be idle. A process that runc has just killed may not be gone yet.
const IDLE: Duration = Duration::from_secs(2);

/// A layer that can be mounted lazily.
pub struct StageLayer {
    /// sha256 of its table of contents.
    pub toc_digest: Digest,
    /// Digest of its blob.
    pub layer_digest: Digest,
    /// Its blob.
    pub source: Arc<dyn BlobSource>,
}

/// The mounted image.
pub(crate) struct Stage {
    layers: Arc<Layers>,
    records: Arc<Vec<lazyfs::Record>>,
    mounts: Vec<Mount>,
    root: Root,
    files: Files,
    dir: TempDir,
}

/// What `runc` is given.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Where its description is.
    pub(crate) dir: PathBuf,
    /// Where runc keeps what it knows.
    pub(crate) state: PathBuf,
    /// Where runc says what went wrong.
    pub(crate) log: PathBuf,
}

impl Stage {
    /// Mounts `layers`, lowest first.
    pub(crate) async fn set(layers: Vec<StageLayer>, dir: &Path) -> Result<Self, RehearsalError> {
        let dir = tempfile::Builder::new()
            .prefix("pantala-run-")
            .tempdir_in(dir)
            .map_err(RehearsalError::file("making a directory in", dir))?;
        for name in ["l", "up", "work", "root", "bundle", "runc"] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).map_err(RehearsalError::file("making", &path))?;
        }
        let path = |name: &str| dir.path().join(name);
        let files = Files { resolv: path("resolv.conf"), hosts: path("hosts"), root: path("root") };
        // Nothing is fetched that nobody asked for: this would only cost time.
        let options = LayersOptions { background_fetches: 0, keep_free: 0, ..LayersOptions::default() };
        let store = Layers::open(path("layers"), &options)
            .map_err(|source| RehearsalError::Layer { number: 0, source })?;
        let mut stage = Self {
            layers: store,
            records: Arc::default(),
            mounts: Vec::new(),
            root: Root { path: files.root.clone(), mounted: false },
            files,
            dir,
        };
        match stage.mount(layers).await {
            Ok(()) => Ok(stage),
            Err(error) => {
                if let Err(second) = stage.strike().await {
                    tracing::debug!(error = %second, "taking mounts away after a failure");
                }
                Err(error)
            }
        }
    }

    async fn mount(&mut self, layers: Vec<StageLayer>) -> Result<(), RehearsalError> {
        let mut records = Vec::with_capacity(layers.len());
        let mut places = Vec::with_capacity(layers.len());
        let count = layers.len();
        for (index, layer) in layers.into_iter().enumerate() {
            let number = index.saturating_add(1);
            let source = layer.source;
            let spec = LayerSpec {
                toc_digest: layer.toc_digest,
                layer_digest: layer.layer_digest,
                open: Arc::new(move || {
                    let source = Arc::clone(&source);
                    Box::pin(async move { Ok(OpenBlob { source, tail: None }) })
                }),
                external_toc: None,
                prefetch: Prefetch { enabled: false, size: 0 },
                background: false,
            };
            let opened = self.layers.layer(spec).await;
            let opened = opened.map_err(|source| RehearsalError::Layer { number, source })?;
            // Before the mount: the kernel asks once only.
            records.push(opened.record());
            let at = self.dir.path().join("l").join(index.to_string());
            std::fs::create_dir(&at).map_err(RehearsalError::file("making", &at))?;
            let mounted = lazyfs::mount(opened, &at, &MountOptions::default()).await;
            self.mounts.push(mounted.map_err(|source| RehearsalError::Mount { number, source })?);
            places.push(at);
        }
        self.records = Arc::new(records);
        let options = overlay_options(&places, &self.dir.path().join("up"), &self.dir.path().join("work"));
        if options.len() > MOST_OPTIONS {
            return Err(RehearsalError::TooManyLayers(count));
        }
        let path = self.root.path.clone();
        rustix::mount::mount(
            "overlay",
            &path,
            "overlay",
            MountFlags::empty(),
            Some(to_c(options)?.as_c_str()),
        )
        .map_err(|error| RehearsalError::Overlay { path, source: error.into() })?;
        self.root.mounted = true;
        Ok(())
    }

    /// Where the image is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.root.path
    }

    /// Files that are made for the container.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Writes what runc needs.
    pub(crate) fn bundle(&self, spec: &Value, options: &Options) -> Result<Bundle, RehearsalError> {
        let write = |path: &Path, text: &[u8]| {
            std::fs::write(path, text).map_err(RehearsalError::file("writing", path))
        };
        let own = |name: &str| std::fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
        let shared = options.network == Network::Host;
        let resolv =
            if shared && options.dns.servers.is_empty() { own("resolv.conf") } else { resolv_conf(options) };
        write(&self.files.resolv, resolv.as_bytes())?;
        let names = if shared { own("hosts") + &hosts(options) } else { hosts(options) };
        write(&self.files.hosts, names.as_bytes())?;
        let path = |name: &str| self.dir.path().join(name);
        let bundle = Bundle { dir: path("bundle"), state: path("runc"), log: path("runc.log") };
        write(&bundle.dir.join("config.json"), spec.to_string().as_bytes())?;
        Ok(bundle)
    }

    /// What was touched until `end`.
    pub(crate) async fn touches(&self, end: Instant) -> Result<Vec<LayerTouches>, RehearsalError> {
        let records = Arc::clone(&self.records);
        // Reads the layers' trees.
        let read = tokio::task::spawn_blocking(move || {
            records
                .iter()
                .enumerate()
                .map(|(index, record)| {
                    let mut touches = record.touches().map_err(|source| RehearsalError::Layer {
                        number: index.saturating_add(1),
                        source,
                    })?;
                    touches.retain(|touch| touch.at <= end);
                    Ok(LayerTouches { index, touches })
                })
                .collect()
        });
        read.await.unwrap_or(Err(RehearsalError::Interrupted))
    }

    /// Takes everything away.
    pub(crate) async fn strike(self) -> Result<(), RehearsalError> {
        let Self { layers, records, mounts, mut root, dir, .. } = self;
        let unmounted = root.unmount().await;
        drop(records);
        for mount in mounts {
            if let Err(error) = mount.unmount().await {
                tracing::debug!(%error, path = %mount.path().display(), "unmounting a layer");
            }
        }
        layers.shutdown().await;
        drop(layers);
        unmounted?;
        let path = dir.path().to_owned();
        dir.close().map_err(RehearsalError::file("removing", path))
    }
}

/// The mounted overlay. Goes when it is dropped.
struct Root {
    path: PathBuf,
    mounted: bool,
}

impl Root {
    async fn unmount(&mut self) -> Result<(), RehearsalError> {
        let start = Instant::now();
        while self.mounted {
            match rustix::mount::unmount(&self.path, UnmountFlags::empty()) {
                Ok(()) => self.mounted = false,
                Err(rustix::io::Errno::BUSY) if start.elapsed() < IDLE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // Whoever still uses it keeps it; it has no place any more.
                Err(_) => {
                    rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
                        .map_err(io::Error::from)
                        .map_err(RehearsalError::file("unmounting", &self.path))?;
                    self.mounted = false;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
        {
            tracing::warn!(%error, path = %self.path.display(), "an overlay could not be unmounted");
        }
    }
}

fn to_c(text: String) -> Result<std::ffi::CString, RehearsalError> {
    std::ffi::CString::new(text).map_err(|error| RehearsalError::File {
        doing: "mounting below",
        path: PathBuf::from("TMPDIR"),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })
}

/// The options of an overlay over `layers`, lowest first.
fn overlay_options(layers: &[PathBuf], upper: &Path, work: &Path) -> String {
    let lower: Vec<String> = layers.iter().rev().map(|path| escape(path)).collect();
    format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), escape(upper), escape(work))
}

/// A path as overlayfs reads it.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_layer_comes_first() {
        let options =
            overlay_options(&["/t/l/0".into(), "/t/l/1".into()], Path::new("/t/up"), Path::new("/t/w:o"));
        assert_eq!(options, "lowerdir=/t/l/1:/t/l/0,upperdir=/t/up,workdir=/t/w\\:o");
    }
}
