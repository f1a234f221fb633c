//! `pantala image`: what is done with whole images, wherever they are.

use std::fmt::Display;

use ::convert::{Containerd, Places};
use anyhow::Context;
use registry::HostsConfig;
use serde::Serialize;

use crate::cli::{Output, PlaceArgs, RegistryArgs};
use crate::node::Registries;
use crate::out;

mod convert;
mod diff;
mod inspect;
mod toc_digest;
mod verify;

pub use convert::{Stopped, convert};
pub use diff::diff;
pub use inspect::inspect;
pub use toc_digest::toc_digest;
pub use verify::verify;

/// What this machine can reach, as the flags have it.
fn places(args: &PlaceArgs) -> anyhow::Result<Places> {
    let hosts = match &args.hosts_dir {
        None => HostsConfig::new(),
        Some(dir) => HostsConfig::load_certs_d(dir).context("--hosts-dir")?,
    };
    Ok(Places {
        client: client(&args.registry, hosts)?,
        containerd: Containerd { address: args.address.clone(), namespace: args.namespace.clone() },
        temporary: std::env::temp_dir(),
    })
}

fn client(args: &RegistryArgs, hosts: HostsConfig) -> anyhow::Result<registry::Client> {
    Registries { hosts, plain_http: args.plain_http.clone(), docker_config: args.docker_config.clone() }
        .own_client()
}

/// Writes a report to standard output.
fn print(output: Output, report: &(impl Serialize + Display)) -> anyhow::Result<()> {
    match output {
        Output::Table => out::print(report.to_string()),
        Output::Json => out::print(serde_json::to_string_pretty(report)? + "\n"),
    }
}
