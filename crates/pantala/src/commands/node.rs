//! `pantala node`.

use std::net::{IpAddr, UdpSocket};

use anyhow::Context;
use registry::UpstreamRule;

use super::{daemon_log, warn_all};
use crate::cli::NodeArgs;
use crate::config::node::{NodeFile, ports as default_ports};
use crate::config::{self, ConfigError};
use crate::node::{self, Registries, Settings, SnapshotterSettings};
use crate::ports;

/// What Dragonfly's users expect of a mirror whose file names no registry.
pub const DEFAULT_REGISTRY: &str = "https://index.docker.io";
/// Pieces kept on disk unless the file says otherwise.
pub const DEFAULT_BUDGET: u64 = 50 << 30;

/// Runs until a signal.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let file: NodeFile = config::load(&args.config, "node")?;
    let level = if file.verbose { "debug" } else { "info" };
    daemon_log(args.log_level.as_deref().unwrap_or(level))?;
    warn_all(&args.config, config::pointless::node(&file));
    let settings = settings(&args, &file).with_context(|| args.config.display().to_string())?;
    let shutdown = ports::shutdown_on_signal()?;
    let (seed, advertise) = (settings.seed, settings.advertise);
    node::run(settings, shutdown, move || tracing::info!(seed, %advertise, "node is ready")).await
}

fn settings(args: &NodeArgs, file: &NodeFile) -> anyhow::Result<Settings> {
    let schedulers = file.schedulers()?;
    let Some(first) = schedulers.first() else {
        return Err(ConfigError::Invalid(
            "scheduler.netAddrs is empty: name the scheduler, as in scheduler: {netAddrs: [{type: tcp, addr: \
             10.0.0.3:8002}]}; for one machine alone use `pantala up`"
                .into(),
        )
        .into());
    };
    let advertise = match file.host.advertise_ip {
        Some(address) => address,
        None => address_towards(first).context("cannot tell this node's address, set host.advertiseIP")?,
    };
    let proxy = file.proxy.tcp_listen.address(default_ports::PROXY);
    let mirror = file.proxy.registry_mirror.url.clone().unwrap_or_else(|| DEFAULT_REGISTRY.into());
    let mut registries = Registries { docker_config: args.docker_config.clone(), ..Registries::default() };
    registries.plain_http.extend(plain_host(&mirror));
    let snapshotter = match &args.snapshotter {
        Some(path) => {
            let mut config = super::snapshotter::load(Some(path))?;
            config.driver = args.driver.unwrap_or(config.driver);
            registries = registries.with_lazy(&config, proxy.port());
            Some(SnapshotterSettings {
                address: args.snapshotter_address.clone(),
                root: args.snapshotter_root.clone(),
                config,
            })
        }
        None => None,
    };
    Ok(Settings {
        data_dir: file.data_dir(),
        hostname: file.host.hostname.clone().unwrap_or_else(machine_name),
        advertise,
        idc: file.host.idc.clone(),
        location: file.host.location.clone(),
        seed: args.seed,
        schedulers,
        token: file.security.token()?,
        pieces: file.upload.tcp_listen.address(default_ports::PIECES),
        health: file.health.tcp_listen.address(default_ports::HEALTH),
        proxy,
        port_keys: node::PortKeys {
            pieces: "upload.tcpListen.port",
            health: "health.tcpListen.port",
            proxy: "proxy.tcpListen.port",
        },
        budget: file.storage.disk_gc_threshold.map_or(DEFAULT_BUDGET, |bytes| bytes.0),
        rules: proxy_rules(&file.proxy, mirror),
        registries,
        snapshotter,
    })
}

fn proxy_rules(file: &config::node::Proxy, mirror: String) -> proxy::ProxyConfig {
    let defaults = proxy::ProxyConfig::default();
    proxy::ProxyConfig {
        registry_mirror: proxy::RegistryMirror {
            url: mirror,
            dynamic: file.registry_mirror.dynamic,
            insecure: file.registry_mirror.insecure,
            direct: file.registry_mirror.direct == Some(true),
        },
        rules: file
            .proxies
            .iter()
            .map(|rule| proxy::ProxyRule {
                regx: rule.regx.clone(),
                use_https: rule.use_https,
                direct: rule.direct,
                redirect: rule.redirect.clone(),
            })
            .collect(),
        default_filter: file.default_filter.clone().unwrap_or(defaults.default_filter),
        white_list: file
            .white_list
            .iter()
            .map(|entry| UpstreamRule {
                host: entry.host.clone(),
                regx: entry.regx.clone(),
                ports: entry.ports.iter().map(|port| port.0).collect(),
            })
            .collect(),
        basic_auth: file.basic_auth.as_ref().map(|auth| proxy::BasicAuth {
            username: auth.username.clone(),
            password: auth.password.clone(),
        }),
        max_connections: defaults.max_connections,
    }
}

/// `host:port` of a URL that says `http`.
pub fn plain_host(url: &str) -> Option<String> {
    let rest = url.strip_prefix("http://")?;
    Some(rest.split('/').next().unwrap_or(rest).to_owned())
}

/// The address of this machine on the way to `scheduler`. Sends nothing: connecting a UDP socket only asks
/// the routing table.
fn address_towards(scheduler: &str) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(scheduler)?;
    Ok(socket.local_addr()?.ip())
}

/// The machine's name.
pub fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_with_an_http_url_speaks_plain_http() {
        assert_eq!(plain_host("http://10.0.0.2:5000/").as_deref(), Some("10.0.0.2:5000"));
        assert_eq!(plain_host("https://index.docker.io"), None);
    }

    #[test]
    fn the_address_towards_loopback_is_loopback() {
        assert_eq!(address_towards("127.0.0.1:8002").unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
