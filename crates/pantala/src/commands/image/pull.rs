//! `pantala image pull`.

use anyhow::ensure;
use convert::{ConvertError, PullOptions};
use tokio_util::sync::CancellationToken;

use super::stop::{Stopped, stop_on_signal};
use super::{places, print, progress};
use crate::cli::PullArgs;

/// `pantala image pull`.
pub async fn pull(args: PullArgs) -> anyhow::Result<()> {
    // Flags of `ctr-remote` that ask for what there is not.
    ensure!(
        !args.skip_content_verify,
        "--skip-content-verify is not supported: what is read is always verified"
    );
    ensure!(!args.ipfs, "--ipfs is not supported: images are pulled from registries and their mirrors");
    let places = places(&args.places)?;
    let options = PullOptions {
        snapshotter: args.snapshotter,
        platform: args.platform,
        prefetch: if args.no_prefetch { 0 } else { args.prefetch.0 },
        stop: CancellationToken::new(),
    };
    let signal = stop_on_signal(std::slice::from_ref(&options.stop))?;
    let progress = progress(args.output);
    let pulled = convert::pull(&places, &args.image, &options, &*progress).await;
    // Bars are taken down before anything else is said.
    drop(progress);
    match (pulled, signal.get()) {
        (Ok(report), _) => print(args.output, &report),
        (Err(ConvertError::Interrupted), Some(signal)) => Err(Stopped::new(*signal, &args.image).into()),
        (Err(error), _) => Err(error.into()),
    }
}
