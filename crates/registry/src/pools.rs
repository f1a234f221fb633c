//! Connection pools. A pool reuses connections without resolving or checking again, so there is one for
//! each way in which connections differ: how far inside their addresses may lie, with which TLS they are
//! made, and through which proxy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use url::Url;

use crate::error::RegistryError;
use crate::tls::Tls;
use crate::zone::{CeilingResolver, Zone};

/// A host that does not complete a handshake in this time is as good as down; the next one is asked.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept per host: as many as parallel ranges of one layer.
const IDLE_PER_HOST: usize = 8;
/// HTTP/2 windows. The protocol's 64 KiB would hold one stream to 26 Mbit/s at 20 ms.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// More pools than configured hosts with a TLS of their own. Beyond that, the old ones are let go.
const MAX_POOLS: usize = 256;

/// How the connections of a pool are made.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Way {
    pub ceiling: Zone,
    pub tls: Arc<Tls>,
    pub proxy: Option<Url>,
    /// A connection for each request: for when those that are kept may be dead.
    pub anew: bool,
}

/// The pools.
pub(crate) struct Pools {
    by_way: Mutex<HashMap<Way, reqwest::Client>>,
    extra_roots: Vec<reqwest::Certificate>,
    user_agent: String,
}

impl Pools {
    /// Pools that trust `extra_roots` (PEM, any number of certificates each) in all their connections.
    pub(crate) fn new(user_agent: &str, extra_roots: &[Vec<u8>]) -> Result<Self, RegistryError> {
        // The binary has done this already; a test or a tool may not have. The second time is no error.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let everywhere = Tls { roots: extra_roots.to_vec(), ..Tls::default() };
        Ok(Self {
            by_way: Mutex::default(),
            extra_roots: everywhere.certificates()?,
            user_agent: user_agent.to_owned(),
        })
    }

    pub(crate) fn of(&self, way: &Way) -> Result<reqwest::Client, RegistryError> {
        let mut pools = self.by_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(way) {
            return Ok(pool.clone());
        }
        let pool = self.make(way)?;
        if pools.len() >= MAX_POOLS {
            pools.clear();
        }
        pools.insert(way.clone(), pool.clone());
        Ok(pool)
    }

    fn make(&self, way: &Way) -> Result<reqwest::Client, RegistryError> {
        let mut roots = self.extra_roots.clone();
        roots.extend(way.tls.certificates()?);
        let identity = way.tls.shown()?;
        let failed = |error: &reqwest::Error| RegistryError::Setup(crate::failure::chain(error));
        let proxy = way.proxy.clone().map(reqwest::Proxy::all).transpose().map_err(|error| failed(&error))?;
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(&self.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .no_proxy()
                .tcp_nodelay(true)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_max_idle_per_host(if way.anew { 0 } else { IDLE_PER_HOST })
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .tls_danger_accept_invalid_certs(way.tls.skip_verify)
                .dns_resolver(Arc::new(CeilingResolver(way.ceiling)));
            let builder = match &identity {
                Some(identity) => builder.identity(identity.clone()),
                None => builder,
            };
            match &proxy {
                Some(proxy) => builder.proxy(proxy.clone()),
                None => builder,
            }
        };
        let with_system_roots = builder().tls_certs_merge(roots.iter().cloned()).build();
        let pool = with_system_roots.or_else(|error| {
            // A machine without ca-certificates still talks to plain-HTTP and extra-CA registries.
            tracing::warn!(%error, "no CA certificates on this machine: https registries need an extra CA file");
            builder().tls_certs_only(roots.iter().cloned()).build()
        });
        pool.map_err(|error| failed(&error))
    }
}
