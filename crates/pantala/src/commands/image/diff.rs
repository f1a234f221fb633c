//! `pantala image diff`.

use convert::{Aspect, DiffOptions, DiffReport};

use super::{places, print};
use crate::cli::DiffArgs;
use crate::failure::Exit;

/// What `--content-only` leaves out.
const NOT_CONTENT: [Aspect; 7] = [
    Aspect::Mode,
    Aspect::Owner,
    Aspect::Mtime,
    Aspect::Xattrs,
    Aspect::Device,
    Aspect::Nlink,
    Aspect::Config,
];

/// `pantala image diff`.
pub async fn diff(args: DiffArgs) -> anyhow::Result<()> {
    let output = args.output;
    let report = report(args).await.map_err(|error| Exit::failed(2, error))?;
    print(output, &report).map_err(|error| Exit::failed(2, error))?;
    if report.equal { Ok(()) } else { Err(Exit::told(1).into()) }
}

async fn report(args: DiffArgs) -> anyhow::Result<DiffReport> {
    let places = places(&args.places)?;
    let (a, b) = (places.source(&args.a).await?, places.source(&args.b).await?);
    let mut options = DiffOptions {
        platform: args.platform,
        ignore: args.ignore.into_iter().collect(),
        read_all: args.read_all,
    };
    if args.content_only {
        options.ignore.extend(NOT_CONTENT);
    }
    Ok(convert::diff(&*a, &*b, &options).await?)
}
