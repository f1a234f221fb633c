//! `pantala image verify`.

use convert::{Unwatched, VerifyBars, VerifyOptions, VerifyReport, Watch};

use super::{places, print};
use crate::cli::{Output, VerifyArgs};
use crate::failure::Exit;

/// `pantala image verify`.
pub async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let output = args.output;
    let report = report(args).await.map_err(|error| Exit::failed(2, error))?;
    print(output, &report)?;
    if report.truthful { Ok(()) } else { Err(Exit::told(1).into()) }
}

async fn report(args: VerifyArgs) -> anyhow::Result<VerifyReport> {
    let places = places(&args.places)?;
    let source = places.source(&args.image).await?;
    let options = VerifyOptions {
        platform: args.platform,
        require_lazy: args.require_lazy,
        temporary: places.temporary.clone(),
    };
    let watch: Box<dyn Watch> = match args.output {
        Output::Table => Box::new(VerifyBars::default()),
        Output::Json => Box::new(Unwatched),
    };
    Ok(convert::verify(&*source, &options, &*watch).await?)
}
