//! The node's file: the keys of Dragonfly v2.0.7's dfdaemon, and `security`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::units::{Bytes, Span};
use super::{Accepted, ConfigError, NetAddr, Security};

/// `pantala node --config FILE`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NodeFile {
    /// Everything the node keeps: pieces, keys, its socket.
    pub data_dir: Option<PathBuf>,
    /// Used for `dataDir` if that is not given.
    pub work_home: Option<PathBuf>,
    /// Where the scheduler is.
    pub scheduler: Schedulers,
    /// What this node is called and where it stands.
    pub host: Host,
    /// Port for pieces.
    pub upload: Upload,
    /// Disk budget.
    pub storage: Storage,
    /// Health port.
    pub health: Health,
    /// Proxy and registry mirror.
    pub proxy: Proxy,
    /// Who may join.
    pub security: Security,
    /// Debug logs.
    pub verbose: bool,
    /// Accepted: limits of download.
    pub download: Download,
    /// Accepted.
    pub keep_storage: Option<bool>,
    /// Accepted.
    pub cache_dir: Option<Accepted>,
    /// Accepted.
    pub log_dir: Option<Accepted>,
    /// Accepted.
    pub console: Option<Accepted>,
    /// Accepted.
    #[serde(alias = "pprof-port")]
    pub pprof_port: Option<Accepted>,
    /// Accepted.
    pub metrics: Option<Accepted>,
    /// Accepted.
    pub alive_time: Option<Accepted>,
    /// Accepted.
    pub gc_interval: Option<Accepted>,
    /// Accepted.
    pub jaeger: Option<Accepted>,
    /// Accepted.
    pub object_storage: Option<Accepted>,
}

/// The `scheduler` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Schedulers {
    /// Where schedulers listen.
    pub net_addrs: Vec<NetAddr>,
    /// Accepted.
    pub manager: Option<Accepted>,
    /// Accepted.
    pub disable_auto_back_source: Option<bool>,
    /// Accepted.
    pub schedule_timeout: Option<Accepted>,
}

/// The `host` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Host {
    /// Shown by `pantala status`; the machine's name if not given.
    pub hostname: Option<String>,
    /// Address under which other nodes reach this one.
    #[serde(rename = "advertiseIP")]
    pub advertise_ip: Option<IpAddr>,
    /// Rack or row, parts joined by `|`.
    pub location: String,
    /// Data centre.
    pub idc: String,
    /// Accepted.
    pub security_domain: Option<Accepted>,
    /// Accepted.
    pub net_topology: Option<Accepted>,
}

/// `{listen, port}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TcpListen {
    /// Address to listen on, all if not given.
    pub listen: Option<IpAddr>,
    /// TCP port.
    pub port: Option<u16>,
    /// Accepted.
    pub namespace: Option<Accepted>,
}

impl TcpListen {
    /// The address to bind, with `default` for a port that is not given.
    pub fn address(&self, default: u16) -> std::net::SocketAddr {
        (self.listen.unwrap_or_else(|| [0, 0, 0, 0].into()), self.port.unwrap_or(default)).into()
    }
}

/// The `upload` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Upload {
    /// Port on which pieces are served, 65002.
    pub tcp_listen: TcpListen,
    /// Accepted.
    pub rate_limit: Option<Bytes>,
    /// Accepted.
    pub security: Option<Accepted>,
}

/// The `download` section.
#[allow(clippy::struct_field_names, reason = "Dragonfly's names")]
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Download {
    /// Accepted.
    pub total_rate_limit: Option<Bytes>,
    /// Accepted.
    pub per_peer_rate_limit: Option<Bytes>,
    /// Accepted.
    pub piece_download_timeout: Option<Span>,
    /// Accepted.
    pub prefetch: Option<bool>,
    /// Accepted.
    #[serde(rename = "downloadGRPC")]
    pub download_grpc: Option<Accepted>,
    /// Accepted.
    #[serde(rename = "peerGRPC")]
    pub peer_grpc: Option<Accepted>,
    /// Accepted.
    pub concurrent: Option<Accepted>,
    /// Accepted.
    pub transport_option: Option<Accepted>,
    /// Accepted.
    pub calculate_digest: Option<Accepted>,
}

/// The `storage` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Storage {
    /// Pieces beyond this are evicted, least recently used first.
    #[serde(rename = "diskGCThreshold")]
    pub disk_gc_threshold: Option<Bytes>,
    /// Accepted.
    #[serde(rename = "diskGCThresholdPercent")]
    pub disk_gc_threshold_percent: Option<Accepted>,
    /// Accepted.
    pub task_expire_time: Option<Span>,
    /// Accepted.
    pub strategy: Option<Accepted>,
    /// Accepted.
    pub multiplex: Option<Accepted>,
}

/// The `health` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Health {
    /// Port of `GET /server/ping`, 40901.
    pub tcp_listen: TcpListen,
    /// Accepted: `/server/ping` is always there.
    pub path: Option<Accepted>,
    /// Accepted.
    pub security: Option<Accepted>,
}

/// The `proxy` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Proxy {
    /// Where it listens, port 65001.
    pub tcp_listen: TcpListen,
    /// Query parameters that do not name content, joined by `&`.
    pub default_filter: Option<String>,
    /// Accepted.
    pub default_tag: Option<String>,
    /// User and password that every caller must give.
    pub basic_auth: Option<BasicAuth>,
    /// The registry behind the mirror.
    pub registry_mirror: RegistryMirror,
    /// Which requests go through the swarm, first match wins.
    pub proxies: Vec<Rule>,
    /// Upstreams that a request may name; may list private hosts.
    pub white_list: Vec<WhiteListEntry>,
    /// Accepted: the proxy's port speaks HTTP.
    pub security: Option<Accepted>,
    /// Accepted.
    #[serde(rename = "hijackHTTPS")]
    pub hijack_https: Option<Accepted>,
    /// Accepted.
    pub max_concurrency: Option<Accepted>,
}

/// `proxy.basicAuth`.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BasicAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// `proxy.registryMirror`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RegistryMirror {
    /// Registry that a request without `X-Dragonfly-Registry` or `?ns=` means.
    pub url: Option<String>,
    /// Whether a request may name another public registry.
    pub dynamic: bool,
    /// Whether the registry's certificate goes unchecked.
    pub insecure: bool,
    /// Accepted.
    pub certs: Option<Accepted>,
    /// Everything passes through.
    pub direct: Option<bool>,
    /// Accepted.
    pub use_proxies: Option<Accepted>,
}

/// One of `proxy.proxies`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// Regular expression that is searched for in the URL.
    pub regx: String,
    /// Ask the upstream by https.
    #[serde(default, rename = "useHTTPS")]
    pub use_https: bool,
    /// Not through the swarm.
    #[serde(default)]
    pub direct: bool,
    /// Host to ask instead.
    #[serde(default)]
    pub redirect: Option<String>,
}

/// One of `proxy.whiteList`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhiteListEntry {
    /// Host name or address.
    pub host: Option<String>,
    /// Regular expression on the host.
    pub regx: Option<String>,
    /// Ports; all if empty.
    pub ports: Vec<Port>,
}

/// A port, written as a number or as a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u16),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(port) => Ok(Self(port)),
            Either::Text(text) => text
                .parse()
                .map(Self)
                .map_err(|_| serde::de::Error::custom(format!("{text:?} is not a port"))),
        }
    }
}

/// Default ports of Dragonfly's dfdaemon.
pub mod ports {
    /// Proxy and registry mirror.
    pub const PROXY: u16 = 65001;
    /// Pieces.
    pub const PIECES: u16 = 65002;
    /// Health.
    pub const HEALTH: u16 = 40901;
}

impl NodeFile {
    /// Where the node keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir
            .clone()
            .or_else(|| self.work_home.clone())
            .unwrap_or_else(|| "/var/lib/pantala/node".into())
    }

    /// Addresses of schedulers, `host:port`.
    pub fn schedulers(&self) -> Result<Vec<String>, ConfigError> {
        for addr in &self.scheduler.net_addrs {
            if addr.kind.as_deref().is_some_and(|kind| kind != "tcp") {
                return Err(ConfigError::Invalid(format!(
                    "scheduler.netAddrs: type {:?} is not supported, write tcp",
                    addr.kind.as_deref().unwrap_or_default()
                )));
            }
            if addr.addr.rsplit_once(':').is_none_or(|(host, port)| {
                host.is_empty() || host.contains('/') || port.parse::<u16>().is_err()
            }) {
                return Err(ConfigError::Invalid(format!(
                    "scheduler.netAddrs: {:?} is not host:port, as in 10.0.0.3:8002",
                    addr.addr
                )));
            }
        }
        Ok(self.scheduler.net_addrs.iter().map(|addr| addr.addr.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dfdaemon values of the page that users followed, as the chart writes them into the file.
    const CONTRACT: &str = r"
verbose: true
pprofPort: 18066
metrics: ':8000'
download:
  prefetch: true
proxy:
  defaultFilter: 'Expires&Signature&ns'
  security:
    insecure: true
  tcpListen:
    listen: 0.0.0.0
    port: 65001
  registryMirror:
    dynamic: true
    url: https://index.docker.io
  proxies:
    - regx: blobs/sha256.*
  whiteList:
    - host: 10.0.0.2
      ports: ['5000', 443]
scheduler:
  netAddrs:
    - type: tcp
      addr: 10.0.0.3:8002
host:
  advertiseIP: 10.0.0.4
storage:
  diskGCThreshold: 50Gi
";

    #[test]
    fn the_file_of_the_contract_is_read() {
        let file: NodeFile = serde_saphyr::from_str(CONTRACT).unwrap();
        assert_eq!(file.proxy.registry_mirror.url.as_deref(), Some("https://index.docker.io"));
        assert_eq!(file.proxy.tcp_listen.address(1), ([0, 0, 0, 0], 65001).into());
        assert_eq!(file.upload.tcp_listen.address(ports::PIECES).port(), 65002);
        assert_eq!(file.schedulers().unwrap(), ["10.0.0.3:8002"]);
        assert_eq!(file.proxy.white_list[0].ports, [Port(5000), Port(443)]);
        assert_eq!(file.storage.disk_gc_threshold, Some(Bytes(50 << 30)));
        let warnings = super::super::pointless::node(&file);
        assert!(warnings.iter().any(|w| w.starts_with("pprofPort ")), "{warnings:?}");
        assert_eq!(warnings.len(), 4, "{warnings:?}");
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        let file: NodeFile =
            serde_saphyr::from_str("scheduler: {netAddrs: [{type: tcp, addr: 10.0.0.3}]}").unwrap();
        assert!(file.schedulers().unwrap_err().to_string().contains("host:port"));
    }
}
