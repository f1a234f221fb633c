//! `pantala image`: convert and inspect, from registry to registry.

use convert::{Bars, ConvertOptions, Progress, Silent};
use serde::Serialize;

use crate::cli::{ConvertArgs, InspectArgs, Output, RegistryArgs};
use crate::node::Registries;
use crate::out;

/// `pantala image convert`.
pub async fn convert(args: ConvertArgs) -> anyhow::Result<()> {
    let client = client(&args.registry)?;
    let options = ConvertOptions {
        platform: args.platform,
        chunk_size: args.chunk_size,
        level: u8::try_from(args.level)?,
        force: args.force,
        ..ConvertOptions::default()
    };
    let bars = Bars::default();
    let progress: &dyn Progress = if args.output == Output::Table { &bars } else { &Silent };
    let report = convert::convert(&client, &args.source, &args.destination, &options, progress).await?;
    print(args.output, &report)
}

/// `pantala image inspect`.
pub async fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    let client = client(&args.registry)?;
    let report = convert::inspect(&client, &args.reference, args.platform.as_ref()).await?;
    print(args.output, &report)
}

fn client(args: &RegistryArgs) -> anyhow::Result<registry::Client> {
    Registries {
        plain_http: args.plain_http.clone(),
        docker_config: args.docker_config.clone(),
        ..Registries::default()
    }
    .own_client()
}

fn print(output: Output, report: &(impl Serialize + std::fmt::Display)) -> anyhow::Result<()> {
    match output {
        Output::Table => out::print(report.to_string()),
        Output::Json => out::print(serde_json::to_string_pretty(report)? + "\n"),
    }
}
