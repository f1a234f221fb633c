//! The scheduler's file.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Accepted, Security};

/// Port on which Dragonfly's scheduler listens, and ours.
pub const DEFAULT_PORT: u16 = 8002;

/// `pantala scheduler --config FILE`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SchedulerFile {
    /// Where it listens and keeps its certificate authority.
    pub server: Server,
    /// Who may join.
    pub security: Security,
    /// Debug logs.
    pub verbose: bool,
    /// Accepted: logs go to standard error in any case.
    pub console: Option<Accepted>,
    /// Accepted.
    #[serde(alias = "pprof-port")]
    pub pprof_port: Option<Accepted>,
    /// Accepted.
    pub scheduler: Option<Accepted>,
    /// Accepted.
    pub manager: Option<Accepted>,
    /// Accepted.
    pub metrics: Option<Accepted>,
    /// Accepted.
    pub database: Option<Accepted>,
    /// Accepted.
    pub resource: Option<Accepted>,
    /// Accepted.
    pub job: Option<Accepted>,
    /// Accepted.
    pub dynconfig: Option<Accepted>,
    /// Accepted.
    pub host: Option<Accepted>,
    /// Accepted.
    pub storage: Option<Accepted>,
    /// Accepted.
    pub jaeger: Option<Accepted>,
}

/// The `server` section.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Server {
    /// Address to listen on.
    #[serde(rename = "listenIP")]
    pub listen_ip: IpAddr,
    /// Address that nodes reach it under, told in logs.
    #[serde(rename = "advertiseIP")]
    pub advertise_ip: Option<IpAddr>,
    /// TCP port.
    pub port: u16,
    /// Where the certificate authority is kept.
    pub data_dir: PathBuf,
    /// Accepted.
    pub host: Option<Accepted>,
    /// Accepted.
    pub work_home: Option<Accepted>,
    /// Accepted.
    pub cache_dir: Option<Accepted>,
    /// Accepted.
    pub log_dir: Option<Accepted>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen_ip: IpAddr::from([0, 0, 0, 0]),
            advertise_ip: None,
            port: DEFAULT_PORT,
            data_dir: "/var/lib/pantala/scheduler".into(),
            host: None,
            work_home: None,
            cache_dir: None,
            log_dir: None,
        }
    }
}

impl SchedulerFile {
    /// One warning for each key that was given and does nothing.
    pub fn warnings(&self) -> Vec<String> {
        let later = "has no effect yet: this release has neither a manager nor its jobs";
        let soft = "has no effect: the scheduler keeps soft state in memory and rebuilds it from its nodes";
        super::pointless::warnings(vec![
            ("console", self.console.is_some(), "has no effect: logs go to standard error"),
            (
                "pprofPort",
                self.pprof_port.is_some(),
                "has no effect yet: there is no profiling port in this release",
            ),
            ("scheduler", self.scheduler.is_some(), "has no effect: the policy needs no tuning by hand"),
            ("manager", self.manager.is_some(), later),
            (
                "metrics",
                self.metrics.is_some(),
                "has no effect yet: there is no metrics port in this release",
            ),
            ("database", self.database.is_some(), soft),
            ("resource", self.resource.is_some(), soft),
            ("job", self.job.is_some(), later),
            ("dynconfig", self.dynconfig.is_some(), later),
            ("host", self.host.is_some(), "has no effect on a scheduler"),
            ("storage", self.storage.is_some(), soft),
            ("jaeger", self.jaeger.is_some(), "has no effect: traces will use OTLP"),
            (
                "server.host",
                self.server.host.is_some(),
                "has no effect: nodes are told the address they dialled",
            ),
            ("server.workHome", self.server.work_home.is_some(), "has no effect: use server.dataDir"),
            ("server.cacheDir", self.server.cache_dir.is_some(), "has no effect: nothing is cached on disk"),
            ("server.logDir", self.server.log_dir.is_some(), "has no effect: logs go to standard error"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_contract_is_read() {
        let text = "server: {listenIP: 127.0.0.1, advertiseIP: 10.0.0.3, port: 8102, dataDir: /data}\nsecurity: {joinToken: 0123456789abcdef}\n";
        let file: SchedulerFile = serde_saphyr::from_str(text).unwrap();
        assert_eq!(file.server.advertise_ip, Some([10, 0, 0, 3].into()));
        assert_eq!((file.server.port, file.server.data_dir), (8102, "/data".into()));
        assert_eq!(file.security.join_token.as_deref(), Some("0123456789abcdef"));
    }

    #[test]
    fn what_is_left_out_has_a_default_and_what_is_pointless_is_told() {
        let file: SchedulerFile = serde_saphyr::from_str("verbose: true\nmanager: {addr: x}\n").unwrap();
        assert_eq!(file.server.port, DEFAULT_PORT);
        assert_eq!(file.warnings().len(), 1);
    }
}
