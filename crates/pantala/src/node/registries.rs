//! How a node reaches registries, put together from everything that its files say about them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use registry::{ClientConfig, CredentialSource, HostsConfig, Proxies, Retries};

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Mirrors, by registry.
    pub hosts: HostsConfig,
    /// `host[:port]` of registries that speak plain HTTP.
    pub plain_http: Vec<String>,
    /// Docker's configuration; `None` is where Docker has it.
    pub docker_config: Option<PathBuf>,
    /// Who is asked for credentials behind that, in this order.
    pub credentials: Vec<CredentialSource>,
    /// Longest time for the head of one answer.
    pub request_timeout: Option<Duration>,
    /// How often requests are tried again.
    pub retries: Retries,
}

impl Registries {
    /// A client for what this node itself wants, nothing that the network names.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn own_client(&self) -> anyhow::Result<registry::Client> {
        if let Some(path) = &self.docker_config {
            let what = "name a config.json as `docker login` writes it";
            let found = std::fs::metadata(path)
                .with_context(|| format!("--docker-config {}: {what}", path.display()))?;
            ensure!(!found.is_dir(), "--docker-config {} is a directory: {what}", path.display());
        }
        let docker = CredentialSource::DockerConfig(self.docker_config.clone());
        let credentials = match self.credentials.as_slice() {
            [] => docker,
            more => CredentialSource::Chain([&[docker], more].concat()),
        };
        Ok(registry::Client::new(ClientConfig {
            hosts: self.hosts.clone(),
            credentials,
            request_timeout: self.request_timeout,
            retries: self.retries,
            plain_http: self.plain_http.clone(),
            proxies: Proxies::from_env()?,
            ..ClientConfig::default()
        })?)
    }

    /// The client of a node: what the network names is held against the proxy's allow-list, and the
    /// registries that the operator declared to speak plain HTTP are on it.
    ///
    /// # Errors
    /// If the allow-list cannot be used.
    pub fn client(&self, rules: &proxy::ProxyConfig) -> anyhow::Result<registry::Client> {
        let client = self.own_client()?;
        let mut upstreams = rules.upstreams(&client)?;
        for host in &self.plain_http {
            if let Ok(url) = format!("http://{host}").parse() {
                upstreams = upstreams.with_listed(&url);
            }
        }
        Ok(client.with_upstreams(upstreams))
    }

    /// Takes over the mirrors of the snapshotter inside the node, less those that are this node's own proxy
    /// on `port`: its layers are read from the swarm in process, and a node that asked its own proxy would
    /// wait for itself.
    pub fn with_lazy(self, config: &snapshotter::Config, port: u16) -> Self {
        self.of_snapshotter(config).without_own_proxy(port)
    }

    /// Takes over what the snapshotter's file says of registries.
    pub fn of_snapshotter(self, config: &snapshotter::Config) -> Self {
        let mut client = ClientConfig::default();
        config.apply(&mut client);
        let ClientConfig { hosts, request_timeout, retries, .. } = client;
        Self { hosts, request_timeout, retries, ..self }
    }

    /// Asks the snapshotter's keychains too.
    pub fn with_keychains(mut self, keychains: &snapshotter::Keychains) -> Self {
        self.credentials.extend(keychains.sources());
        self
    }

    /// What a dropped entry says about the registry behind it (`X-Dragonfly-Registry: http://…`) is kept.
    fn without_own_proxy(mut self, port: u16) -> Self {
        let mut plain = Vec::new();
        self.hosts.retain(|registry, mirror| {
            let host = mirror.host.rsplit_once("://").map_or(mirror.host.as_str(), |(_, host)| host);
            let own = ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| host == format!("{name}:{port}"));
            if own {
                let behind = mirror.headers.get("x-dragonfly-registry").and_then(|value| value.to_str().ok());
                if behind.is_some_and(|url| url.starts_with("http://")) {
                    plain.push(registry.to_owned());
                }
            }
            !own
        });
        self.plain_http.extend(plain);
        self
    }
}

#[cfg(test)]
mod tests {
    use registry::Mirror;

    use super::*;

    #[test]
    fn the_nodes_own_proxy_is_not_asked_by_itself() {
        let mut hosts = HostsConfig::new();
        let mut headers = http::HeaderMap::new();
        headers.insert("x-dragonfly-registry", http::HeaderValue::from_static("http://10.0.0.2:5000"));
        hosts.add("10.0.0.2:5000", Mirror { host: "127.0.0.1:65001".into(), headers, ..Mirror::default() });
        hosts.add("10.0.0.2:5000", Mirror { host: "mirror.example".into(), ..Mirror::default() });
        let registries = Registries { hosts, ..Registries::default() }.without_own_proxy(65001);
        let rest: Vec<_> = registries.hosts.mirrors("10.0.0.2:5000").iter().map(|m| m.host.clone()).collect();
        assert_eq!(rest, ["mirror.example"]);
        assert_eq!(registries.plain_http, ["10.0.0.2:5000"]);
    }
}
