//! `pantala image inspect`.

use convert::InspectOptions;

use super::{places, print};
use crate::cli::InspectArgs;

/// `pantala image inspect`.
pub async fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    let source = places(&args.places)?.source(&args.image).await?;
    let options = InspectOptions { platform: args.platform, files: args.files, layer: args.layer };
    print(args.output, &convert::inspect(&*source, &options).await?)
}
