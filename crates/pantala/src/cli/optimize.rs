//! The flags of `pantala image optimize`; those of `ctr-remote image optimize` mean the same.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use rehearsal::Binding;

use super::ConvertArgs;

/// `pantala image optimize`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pantala image optimize registry.example/app:1 registry.example/app:1-opt

  # Until the server says that it is ready, with what it needs around it
  pantala image optimize --wait-on-line 'ready to accept connections' --net-host \\
    --env POSTGRES_PASSWORD=x --mount type=bind,src=/srv/init,dst=/init,options=rbind:ro SRC DST

  # A command instead of the image's own, for three seconds
  pantala image optimize --period 3 --entrypoint '[\"/bin/sh\", \"-c\"]' --args '[\"python3 -c \\\"import numpy\\\"\"]' SRC DST

  # Run once, convert elsewhere
  pantala image optimize --record-out start.jsonl SRC oci:/tmp/any:1
  pantala image convert --estargz-record-in start.jsonl SRC DST

The image is run once, on this machine, by runc; containerd is not needed. What it reads in that time comes first
in its layers, in the order in which it was read, and is fetched before anything else when the image is pulled
lazily. What it writes is thrown away. It needs root. Without --platform it is the image for this machine, as with
`ctr-remote`; with --all-platforms the record of this machine's serves all.

Ended by Ctrl-C (exit code 130; with --wait-on-signal the first one ends the run only) or SIGTERM (143), DST is what
it was.")]
pub struct OptimizeArgs {
    /// How it is run.
    #[command(flatten)]
    pub run: RunArgs,
    /// How it is converted.
    #[command(flatten)]
    pub convert: ConvertArgs,
}

/// How a container is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Seconds that the container runs, unless it ends sooner
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub period: u64,
    /// Run until this process gets SIGINT or SIGTERM; then convert
    #[arg(long, conflicts_with = "period")]
    pub wait_on_signal: bool,
    /// Run until a line of output has this text in it; then convert
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["period", "terminal"], value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub wait_on_line: Option<String>,
    /// Do not run it: convert alone
    #[arg(long)]
    pub no_optimize: bool,
    /// Keep the record of what was read, one file per line, for --estargz-record-in
    #[arg(long, value_name = "FILE")]
    pub record_out: Option<PathBuf>,
    /// Arguments instead of the image's, as a JSON list
    #[arg(long, value_name = "JSON")]
    pub args: Option<Words>,
    /// Entry point instead of the image's, as a JSON list
    #[arg(long, value_name = "JSON")]
    pub entrypoint: Option<Words>,
    /// Variable NAME=value, or NAME alone with the value that it has here; may be repeated
    #[arg(long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// File with a variable per line
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Directory in which it starts
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// User that it runs as, user[:group], names or numbers
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// What else it sees, type=bind,src=/a,dst=/b,options=rbind:ro; may be repeated
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<Binding>,
    /// Give it a terminal, this one
    #[arg(long, short, requires = "interactive")]
    pub terminal: bool,
    /// Give it this process' standard input
    #[arg(long, short)]
    pub interactive: bool,
    /// Give it this machine's network. Without, it has a loopback device alone
    #[arg(long)]
    pub net_host: bool,
    /// Servers that know names [default: 8.8.8.8, or with --net-host what this machine has]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub dns_nameservers: Vec<String>,
    /// Domains that names are looked for in
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    pub dns_search_domains: Vec<String>,
    /// Options of resolv.conf
    #[arg(long, value_name = "OPTION", value_delimiter = ',')]
    pub dns_options: Vec<String>,
    /// Names that it knows by itself, NAME:ADDRESS; may be repeated
    #[arg(long, value_name = "HOST", value_delimiter = ',', value_parser = host)]
    pub add_hosts: Vec<(String, IpAddr)>,
    /// The program that runs containers
    #[arg(long, value_name = "PATH", default_value = "runc")]
    pub runc: PathBuf,
    /// Not supported: use --net-host
    #[arg(long, hide = true)]
    pub cni: bool,
    /// Not supported: use --net-host
    #[arg(long, hide = true, value_name = "DIR")]
    pub cni_plugin_conf_dir: Option<PathBuf>,
    /// Not supported: use --net-host
    #[arg(long, hide = true, value_name = "DIR")]
    pub cni_plugin_dir: Option<PathBuf>,
    /// Not supported: use --mount
    #[arg(long, hide = true, value_name = "GPU")]
    pub gpus: Vec<String>,
}

/// Words as a JSON list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

impl FromStr for Words {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|_| r#"write a JSON list, like '["/bin/sh", "-c"]'"#.to_owned())
    }
}

fn host(text: &str) -> Result<(String, IpAddr), String> {
    let wrong = || "write a name and an address, like db:10.0.0.2".to_owned();
    let (name, address) = text.split_once(':').ok_or_else(wrong)?;
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(wrong());
    }
    Ok((name.to_owned(), address.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, ImageCommand};

    fn parse(flags: &[&str]) -> Result<OptimizeArgs, String> {
        let args = [&["pantala", "image", "optimize"], flags, &["r.example/a", "r.example/b"]].concat();
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Image(ImageCommand::Optimize(args)) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_flags_of_ctr_remote_mean_the_same() {
        let run = parse(&[
            "--oci",
            "--all-platforms",
            "--reuse",
            "--wait-on-line",
            "ready",
            "--record-out",
            "r.json",
            "--user",
            "u:g",
            "--cwd",
            "/w",
            "--args",
            r#"["a b", "c"]"#,
            "--entrypoint",
            r#"["/e"]"#,
            "--env",
            "A=1",
            "--env",
            "B",
            "--env-file",
            "e",
            "--mount",
            "type=bind,src=/a,dst=/b,options=rbind:ro",
            "--dns-nameservers",
            "1.1.1.1,::1",
            "--dns-search-domains",
            "x",
            "--dns-options",
            "ndots:1",
            "--add-hosts",
            "db:10.0.0.2",
            "--add-hosts=v6:::1",
            "--net-host",
            "-i",
            "--prefetch-list",
            "l",
            "--estargz-compression-level",
            "3",
            "--zstdchunked",
        ]);
        let args = run.unwrap();
        let (run, convert) = (args.run, args.convert);
        assert_eq!(run.args, Some(Words(vec!["a b".to_owned(), "c".to_owned()])));
        assert_eq!(run.add_hosts.len(), 2);
        assert_eq!(run.dns_nameservers, ["1.1.1.1", "::1"]);
        assert_eq!((run.period, run.wait_on_line.as_deref()), (10, Some("ready")));
        assert!(convert.all_platforms && convert.reuse && convert.level == Some(3));
        assert_eq!(parse(&["--period", "3"]).unwrap().run.period, 3);
        assert!(parse(&["--wait-on-signal", "-t", "-i", "--no-optimize"]).unwrap().run.wait_on_signal);
    }

    #[test]
    fn what_cannot_be_together_is_refused() {
        for wrong in [
            &["--wait-on-signal", "--period", "3"][..],
            &["--wait-on-line", "x", "-t", "-i"],
            &["--wait-on-line", ""],
            &["--args", "a b"],
            &["--add-hosts", "db"],
            &["--mount", "/a:/b"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
