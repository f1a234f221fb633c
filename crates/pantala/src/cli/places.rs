//! How the places of images are reached: registries and the local containerd.

use std::path::PathBuf;

use clap::Args;

use super::RegistryArgs;

/// How places are reached.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// How registries are reached.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Mirrors and certificates of registries as containerd has them, as in /etc/containerd/certs.d
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    pub hosts_dir: Option<PathBuf>,
    /// containerd's namespace for containerd:REF
    #[arg(
        long,
        short,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        hide_env_values = true,
        default_value = "default",
        help_heading = "Places"
    )]
    pub namespace: String,
    /// containerd's socket
    #[arg(
        long,
        short,
        value_name = "SOCK",
        env = "CONTAINERD_ADDRESS",
        hide_env_values = true,
        default_value = "/run/containerd/containerd.sock",
        help_heading = "Places"
    )]
    pub address: PathBuf,
}
