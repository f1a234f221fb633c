//! Which driver shows a layer, and what becomes of mounts when a process follows another.
//!
//! One [`Mounter`] per process. It probes the machine once, takes over what the process before it left with the
//! [keeper](crate::keeper), and mounts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use content::Digest;

use crate::fuse::{self, Fuse, MountError, MountOptions};
use crate::keeper::Keep;
use crate::keeper::names::GROUP;
use crate::layer::Layer;
use crate::native::{self, Native, NativeMount, ProbeError};

/// Which driver is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DriverChoice {
    /// The best that this machine can do.
    #[default]
    Auto,
    /// EROFS, filled through fanotify; an error if the machine cannot.
    Native,
    /// FUSE.
    Fuse,
}

/// A driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// EROFS, filled through fanotify.
    Native,
    /// FUSE.
    Fuse,
}

impl Driver {
    /// Its name, for people and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fuse => "fuse",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No driver has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no driver: write auto, native or fuse")]
pub struct UnknownDriver(String);

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "fuse" => Ok(Self::Fuse),
            _ => Err(UnknownDriver(text.to_owned())),
        }
    }
}

/// What a [`Mounter`] is told.
#[derive(Clone, Debug)]
pub struct MounterOptions {
    /// Which driver.
    pub choice: DriverChoice,
    /// Who keeps descriptors for the next process.
    pub keep: Arc<dyn Keep>,
    /// A directory for trials, on the file system of the layer store. Made if it is not there.
    pub scratch: PathBuf,
}

/// What the native driver needs, for whoever wonders why it does not work.
const NEEDS: &str = "it needs Linux 6.14 or newer with FANOTIFY_ACCESS_PERMISSIONS and EROFS_FS_BACKED_BY_FILE, the \
                     capability CAP_SYS_ADMIN, and the layer store on ext4, xfs or btrfs";

/// Something that is still read though it has no mountpoint any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// The layer's table of contents.
    pub toc: Digest,
    /// The digest of its blob, if that is known.
    pub layer: Option<Digest>,
}

/// Mounts layers.
pub struct Mounter {
    choice: DriverChoice,
    driver: Driver,
    native: Option<Arc<Native>>,
    fuse: Arc<Fuse>,
}

impl Mounter {
    /// Probes the machine, and looks for what the process before left. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// That the forced driver cannot work here, and which step of the probe failed; or that none can.
    pub async fn start(options: MounterOptions) -> Result<Arc<Self>, MountError> {
        let MounterOptions { choice, keep, scratch } = options;
        let looked = {
            let keep = Arc::clone(&keep);
            blocking(move || {
                let native = if choice == DriverChoice::Fuse { None } else { Some(native::probe(&scratch)) };
                // What was mounted before this driver was chosen is served by its own.
                let adopts = keep.names().map_err(MountError::Keep)?.iter().any(|name| name == GROUP);
                Ok((native, adopts, fuse::probe(), Fuse::start(keep)?))
            })
        };
        let (native, adopts, fuse_works, fuse) = looked.await?;
        let driver = choose(choice, native, fuse_works)?;
        let native = if driver == Driver::Native || adopts { Some(Native::start(keep)?) } else { None };
        Ok(Arc::new(Self { choice, driver, native, fuse }))
    }

    /// The driver of new mounts.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Mounts `layer` at `at`, an existing directory.
    ///
    /// # Errors
    /// [`MountError`]. Nothing stays mounted then.
    pub async fn mount(
        &self,
        layer: Arc<Layer>,
        at: &Path,
        options: &MountOptions,
    ) -> Result<Mount, MountError> {
        let native = self.native.as_ref().filter(|_| self.driver == Driver::Native);
        let Some(native) = native else { return Ok(Mount::Fuse(self.fuse.mount(layer, at, options).await?)) };
        let error = match native.mount(Arc::clone(&layer), at, options.opaque_xattr).await {
            Ok(mount) => return Ok(Mount::Native(mount)),
            Err(error) => error,
        };
        // What EROFS has no words for, FUSE can still show. Anything else is a fault of the machine, which whoever
        // forced the driver wants to see.
        if self.choice == DriverChoice::Native && !error.is_of_layer() {
            return Err(error.into());
        }
        tracing::warn!(
            layer = %layer.layer_digest(), %error,
            "the native driver cannot show this layer: it is shown through FUSE"
        );
        Ok(Mount::Fuse(self.fuse.mount(layer, at, options).await?))
    }

    /// What the process before mounted at `at`, if it is `layer` as `options` want it, and can still be served.
    ///
    /// # Errors
    /// [`MountError`]. Whatever is mounted there stays.
    pub async fn take_over(
        &self,
        layer: Arc<Layer>,
        at: &Path,
        options: &MountOptions,
    ) -> Result<Option<Mount>, MountError> {
        if let Some(mount) = self.fuse.take_over(Arc::clone(&layer), at, options).await? {
            return Ok(Some(Mount::Fuse(mount)));
        }
        let Some(native) = &self.native else { return Ok(None) };
        Ok(native.take_over(layer, at, options.opaque_xattr).await?.map(Mount::Native))
    }

    /// What the process before left and what has no mountpoint any more: somebody may still read it, below an
    /// overlay or through an open file, and waits until its layer is given to [`Mounter::serve`]. Blocks shortly.
    pub fn orphans(&self) -> Vec<Orphan> {
        let mut orphans: Vec<Orphan> =
            self.fuse.orphans().into_iter().map(|(toc, layer)| Orphan { toc, layer: Some(layer) }).collect();
        if let Some(native) = &self.native {
            for toc in native.kept_layers() {
                if orphans.iter().all(|orphan| orphan.toc != toc) {
                    orphans.push(Orphan { toc, layer: None });
                }
            }
        }
        orphans.sort_by_key(|orphan| *orphan.toc.as_bytes());
        orphans.dedup_by_key(|orphan| orphan.toc);
        orphans
    }

    /// Serves all [orphans](Mounter::orphans) that show `layer`, until nobody reads them any more. Blocks shortly.
    ///
    /// # Errors
    /// [`MountError`]. Its readers go on waiting.
    pub fn serve(&self, layer: &Arc<Layer>) -> Result<(), MountError> {
        self.fuse.serve(layer)?;
        if let Some(native) = &self.native {
            native.serve(layer)?;
        }
        Ok(())
    }

    /// Gives up what shows a layer that cannot be opened: whoever reads it gets errors instead of waiting. Blocks
    /// shortly.
    pub fn abandon(&self, toc: &Digest) {
        self.fuse.abandon(toc);
        if let Some(native) = &self.native {
            native.abandon(toc);
        }
    }

    /// The end of this process, after all mounts were taken away: what is still read is left to the next one.
    pub async fn leave(&self) {
        self.fuse.leave(false);
        if let Some(native) = &self.native {
            native.leave().await;
        }
    }

    /// The end of this process, with another one to follow at once: everything stays mounted, also what is dropped
    /// from now on.
    pub async fn hand_over(&self) {
        self.fuse.leave(true);
        if let Some(native) = &self.native {
            native.hand_over().await;
        }
    }
}

/// Which driver it is. Says so, once.
fn choose(
    choice: DriverChoice,
    native: Option<Result<(), ProbeError>>,
    fuse: Result<(), MountError>,
) -> Result<Driver, MountError> {
    match (choice, native, fuse) {
        (_, Some(Ok(())), _) => {
            tracing::info!(driver = %Driver::Native, "lazy layers are shown by the kernel itself");
            Ok(Driver::Native)
        }
        (DriverChoice::Native, Some(Err(error)), _) => Err(MountError::Unable(format!(
            "driver = native cannot work here: {error}; {NEEDS}; or choose driver = fuse"
        ))),
        (_, Some(Err(error)), Ok(())) => {
            tracing::info!(
                driver = %Driver::Fuse, native = %error, needs = NEEDS,
                "lazy layers are shown through FUSE, since the native driver does not work here"
            );
            Ok(Driver::Fuse)
        }
        (_, Some(Err(native)), Err(fuse)) => Err(MountError::Unable(format!(
            "no driver for lazy layers works here. fuse: {fuse}; native: {native} ({NEEDS})"
        ))),
        (_, None, Ok(())) => {
            tracing::info!(driver = %Driver::Fuse, "lazy layers are shown through FUSE");
            Ok(Driver::Fuse)
        }
        (_, None, Err(fuse)) => Err(fuse),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    let failed = |error: tokio::task::JoinError| Err(MountError::Unable(error.to_string()));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(failed)
}

/// A mounted layer. Dropping it unmounts it; what still has files open there keeps being served.
pub enum Mount {
    /// Shown by FUSE.
    Fuse(fuse::Mount),
    /// Shown by the kernel's EROFS.
    Native(NativeMount),
}

impl Mount {
    /// Which driver shows it.
    pub fn driver(&self) -> Driver {
        match self {
            Self::Fuse(_) => Driver::Fuse,
            Self::Native(_) => Driver::Native,
        }
    }

    /// Whether anything still shows it: the mount, or something that has files open in it.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Fuse(mount) => mount.is_alive(),
            Self::Native(mount) => mount.is_alive(),
        }
    }

    /// Takes the mount away. Nobody can open anything there any more; who has files open, or uses it below an
    /// overlay, reads on.
    ///
    /// # Errors
    /// What the system said; that nothing is mounted there is no error.
    pub async fn unmount(&self) -> std::io::Result<()> {
        match self {
            Self::Fuse(mount) => mount.unmount().await,
            Self::Native(mount) => mount.unmount().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(fine: bool) -> Result<(), ProbeError> {
        let source = std::io::ErrorKind::Unsupported.into();
        if fine { Ok(()) } else { Err(ProbeError { step: "marking a file", source }) }
    }

    fn device(fine: bool) -> Result<(), MountError> {
        if fine { Ok(()) } else { Err(MountError::Device(std::io::ErrorKind::NotFound.into())) }
    }

    #[test]
    fn the_best_driver_is_chosen_and_a_forced_one_must_work() {
        use DriverChoice::{Auto, Fuse, Native};
        let chosen = |choice, native, fuse| choose(choice, native, fuse).map_err(|error| error.to_string());
        assert_eq!(chosen(Auto, Some(probe(true)), device(false)), Ok(Driver::Native));
        assert_eq!(chosen(Auto, Some(probe(false)), device(true)), Ok(Driver::Fuse));
        assert_eq!(chosen(Native, Some(probe(true)), device(true)), Ok(Driver::Native));
        assert_eq!(chosen(Fuse, None, device(true)), Ok(Driver::Fuse));
        let error = chosen(Native, Some(probe(false)), device(true)).unwrap_err();
        assert!(error.contains("marking a file") && error.contains("driver = fuse"), "{error}");
        let error = chosen(Auto, Some(probe(false)), device(false)).unwrap_err();
        assert!(error.contains("marking a file") && error.contains("/dev/fuse"), "{error}");
        assert!(chosen(Fuse, None, device(false)).unwrap_err().contains("/dev/fuse"));
    }

    #[test]
    fn choices_have_names() {
        for (name, choice) in
            [("auto", DriverChoice::Auto), ("native", DriverChoice::Native), ("fuse", DriverChoice::Fuse)]
        {
            assert_eq!(name.parse(), Ok(choice));
        }
        assert!("fusedev".parse::<DriverChoice>().unwrap_err().to_string().contains("auto, native or fuse"));
    }
}
