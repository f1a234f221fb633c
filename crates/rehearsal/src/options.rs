//! How a container is run.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How a container is run. What is `None` or empty, the image's config says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Arguments of the entry point.
    pub args: Option<Vec<String>>,
    /// The entry point.
    pub entrypoint: Option<Vec<String>>,
    /// More variables, `NAME=value`.
    pub env: Vec<String>,
    /// Directory in which it starts.
    pub cwd: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// What else is mounted.
    pub mounts: Vec<Binding>,
    /// Which network it sees.
    pub network: Network,
    /// Who answers its questions for names.
    pub dns: Dns,
    /// Names that it knows by itself.
    pub hosts: Vec<(String, IpAddr)>,
    /// It has a terminal: this process' own.
    pub terminal: bool,
    /// It has this process' standard input.
    pub interactive: bool,
    /// Its standard output goes where its errors go: this process' own output is for something else.
    pub quiet: bool,
    /// When it has run for long enough.
    pub until: Until,
    /// The program that runs containers.
    pub runc: PathBuf,
    /// Cancelled when all of it is not wanted any more.
    pub abort: CancellationToken,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            args: None,
            entrypoint: None,
            env: Vec::new(),
            cwd: None,
            user: None,
            mounts: Vec::new(),
            network: Network::Own,
            dns: Dns::default(),
            hosts: Vec::new(),
            terminal: false,
            interactive: false,
            quiet: false,
            until: Until::default(),
            runc: "runc".into(),
            abort: CancellationToken::new(),
        }
    }
}

/// When a container has run for long enough. It also ends when its program does.
#[derive(Clone, Debug)]
pub struct Until {
    /// After this time; `None` for never.
    pub period: Option<Duration>,
    /// When a line of its output has this in it.
    pub line: Option<String>,
    /// When this is cancelled.
    pub enough: CancellationToken,
}

impl Default for Until {
    fn default() -> Self {
        Self { period: Some(Duration::from_secs(10)), line: None, enough: CancellationToken::new() }
    }
}

/// Which network a container sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// One of its own, with a loopback device alone.
    Own,
    /// That of this machine.
    Host,
}

/// A container's `/etc/resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Domains that names are looked for in.
    pub search: Vec<String>,
    /// Options, as `resolv.conf` has them.
    pub options: Vec<String>,
}

/// A mount, as `ctr` and `ctr-remote` have it: `type=bind,src=/a,dst=/b,options=rbind:ro`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Type of the file system.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where the container sees it.
    pub destination: String,
    /// As in fstab.
    pub options: Vec<String>,
}

/// A text that names no mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no mount: write it like type=bind,src=/data,dst=/data,options=rbind:ro")]
pub struct OptionError(String);

impl FromStr for Binding {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let wrong = || OptionError(text.chars().take(80).collect());
        let mut binding = Self {
            kind: "bind".to_owned(),
            source: String::new(),
            destination: String::new(),
            options: Vec::new(),
        };
        for field in text.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(wrong)?;
            match key {
                "type" => value.clone_into(&mut binding.kind),
                "src" | "source" => value.clone_into(&mut binding.source),
                "dst" | "destination" | "target" => value.clone_into(&mut binding.destination),
                "options" => binding.options = value.split(':').map(str::to_owned).collect(),
                _ => return Err(wrong()),
            }
        }
        if !binding.destination.starts_with('/') || binding.kind.is_empty() {
            return Err(wrong());
        }
        if binding.kind == "bind" && binding.source.is_empty() {
            return Err(wrong());
        }
        Ok(binding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_written_as_for_ctr() {
        let binding: Binding = "type=bind,src=/a,dst=/b,options=rbind:ro".parse().unwrap();
        assert_eq!(
            binding,
            Binding {
                kind: "bind".to_owned(),
                source: "/a".to_owned(),
                destination: "/b".to_owned(),
                options: vec!["rbind".to_owned(), "ro".to_owned()]
            }
        );
        assert_eq!("type=tmpfs,dst=/t".parse::<Binding>().unwrap().kind, "tmpfs");
        for wrong in ["", "/a:/b", "src=/a", "src=/a,dst=b", "type=bind,dst=/b", "src=/a,dst=/b,x=y"] {
            assert!(wrong.parse::<Binding>().is_err(), "{wrong}");
        }
    }
}
