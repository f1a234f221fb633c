//! `pantala image`: what is done with whole images, wherever they are.

use std::fmt::Display;
use std::io::IsTerminal as _;

use ::convert::{Bars, Containerd, Lines, Places, Progress, Silent};
use anyhow::Context;
use registry::HostsConfig;
use serde::Serialize;

use crate::cli::{Output, PlaceArgs, RegistryArgs};
use crate::node::Registries;
use crate::out;

mod convert;
mod diff;
mod inspect;
mod optimize;
mod pull;
mod stop;
mod toc_digest;
mod verify;

pub use convert::convert;
pub use diff::diff;
pub use inspect::inspect;
pub use optimize::{hide_mounts, optimize};
pub use pull::pull;
pub use stop::Stopped;
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
    let (plain_http, docker_config) = (args.plain_http.clone(), args.docker_config.clone());
    Registries { hosts, plain_http, docker_config, ..Registries::default() }.own_client()
}

/// How far a command is, on standard error; nothing for programs.
fn progress(output: Output) -> Box<dyn Progress> {
    match output {
        Output::Json => Box::new(Silent),
        Output::Table if std::io::stderr().is_terminal() => Box::new(Bars::default()),
        Output::Table => Box::new(Lines),
    }
}

/// Writes a report to standard output.
fn print(output: Output, report: &(impl Serialize + Display)) -> anyhow::Result<()> {
    match output {
        Output::Table => out::print(report.to_string()),
        Output::Json => out::print(serde_json::to_string_pretty(report)? + "\n"),
    }
}
