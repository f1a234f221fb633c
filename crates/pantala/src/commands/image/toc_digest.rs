//! `pantala image toc-digest`.

use anyhow::{Context, anyhow};

use super::{places, print};
use crate::cli::{Output, TocDigestArgs};
use crate::out;

/// `pantala image toc-digest`.
pub async fn toc_digest(args: TocDigestArgs) -> anyhow::Result<()> {
    let source = places(&args.places)?.source(&args.image).await?;
    let report = convert::toc_digests(&*source, args.platform.as_ref(), args.layer).await?;
    if args.layer.is_none() || args.output == Output::Json {
        return print(args.output, &report);
    }
    let layer = report.layers.first().context("there is no such layer")?;
    if let Some(digest) = layer.toc_digest {
        return out::print(format!("{digest}\n"));
    }
    let why = layer.problem.clone().unwrap_or_else(|| "it is an ordinary layer".to_owned());
    Err(anyhow!("layer {} ({}) has no table of contents: {why}", layer.number, layer.digest))
}
