//! A container is run once, to learn which files its start reads, and in which order.
//!
//! Every layer of the image is mounted lazily by this process itself ([`stage`]), so every first read of a chunk
//! passes through here and is noted with its time. Above the layers lies an overlay that takes what the container
//! writes. The container is what the image's config describes ([`config`], [`user`], [`spec`]), run by `runc`
//! ([`run`]); neither containerd nor a snapshotter is asked, so that this works where images are built. When it
//! has run for long enough its notes of all layers are put in one order ([`record`]).
//!
//! What is noted ends before the container is told to stop: the files of an orderly end are of no use for a start.
//!
//! Deliberately absent: what is done with the record, and where layers come from.

mod config;
mod error;
mod options;
mod record;
mod run;
mod spec;
mod stage;
mod user;

/// What the fuzz targets (`fuzz/`) reach of this crate. A decoder of bytes from elsewhere is no part of the
/// interface, and a target is a crate of its own.
#[doc(hidden)]
pub mod fuzzing {
    use crate::user::{UserError, lookup};

    /// User, group and other groups that `wanted` stands for, by these two files of an image.
    ///
    /// # Errors
    /// That there is no such user.
    pub fn user(wanted: &str, passwd: &str, group: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        lookup(wanted, passwd, group).map(|user| (user.uid, user.gid, user.groups))
    }
}

use std::path::Path;

use content::Digest;

pub use config::{ImageConfig, Process};
pub use error::RehearsalError;
pub use options::{Binding, Dns, Network, OptionError, Options, Until};
pub use record::{Entry, Record};
pub use run::Ending;
pub use stage::StageLayer;
pub use user::UserError;

/// An image that is to be run.
pub struct Image {
    /// Digest of its manifest, for the record.
    pub manifest: Digest,
    /// Its config, as OCI has it.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<StageLayer>,
}

/// What a rehearsal brought.
#[derive(Debug)]
pub struct Rehearsed {
    /// The files, in the order of their first touch.
    pub record: Record,
    /// Why it ended.
    pub ending: Ending,
}

/// Runs `image` and notes what it reads. What has to be kept on disk meanwhile goes below `dir`, and is gone
/// afterwards.
///
/// # Errors
/// [`RehearsalError`]: that something cannot be mounted, or that the container cannot be started. That its program
/// ended with an error is no error of the rehearsal ([`Ending::Exited`]).
pub async fn rehearse(image: Image, options: &Options, dir: &Path) -> Result<Rehearsed, RehearsalError> {
    let config = ImageConfig::parse(&image.config)?;
    let stage = stage::Stage::set(image.layers, dir).await?;
    // Whatever comes: what was mounted is unmounted.
    let played = play(&stage, &config, options).await;
    let struck = stage.strike().await;
    let (touches, ending) = played?;
    struck?;
    Ok(Rehearsed { record: Record::new(image.manifest, touches), ending })
}

async fn play(
    stage: &stage::Stage,
    config: &ImageConfig,
    options: &Options,
) -> Result<(Vec<record::LayerTouches>, Ending), RehearsalError> {
    let process = config.process(options)?;
    let user = user::find(stage.root(), &process.user).map_err(RehearsalError::User)?;
    let bundle = stage.bundle(&spec::spec(&process, &user, options, stage.files()), options)?;
    let (end, ending) = run::run(&bundle, options).await?;
    Ok((stage.touches(end).await?, ending))
}
