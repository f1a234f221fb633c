//! The proxy: how programs that know nothing of Pantala read through the cluster.
//!
//! One port speaks three dialects:
//!
//! * **registry mirror**: `GET /v2/…`, as containerd's `hosts.toml` and stargz-snapshotter's mirrors ask. The
//!   registry is named by `X-Dragonfly-Registry`, by `?ns=`, or by the configuration;
//! * **forward proxy**: `GET http://…`;
//! * **tunnel**: `CONNECT host:port`, not looked into.
//!
//! The way of a request: may the caller use the proxy; is it a tunnel; which upstream is it for
//! (`route`); does a rule send it through the cluster (`rules`). A `GET` of a registry blob that a rule
//! matches is read through the [`content::ContentOpener`] (`blob`), everything else passes through (`pass`).
//!
//! What must hold on every path:
//!
//! * no upstream that a caller names is asked unless the allow-list lets it be ([`registry::Upstreams`]);
//! * no cached byte reaches a caller whose own credentials the registry has not accepted (`grants`);
//! * a body that cannot be completed ends the connection, it never ends early as if it were whole;
//! * no path that a request names is opened.
//!
//! Deliberately absent: pieces and peers.

mod answer;
mod blob;
mod config;
mod grants;
mod headers;
mod pass;
mod range;
mod route;
mod rules;
mod server;
mod tunnel;

/// What the fuzz targets (`fuzz/`) reach of this crate. A decoder of bytes from elsewhere is no part of the
/// interface, and a target is a crate of its own.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::range::{Wanted, wanted};
}

pub use config::{BasicAuth, ProxyConfig, ProxyRule, RegistryMirror};
pub use server::serve;

/// Why a proxy does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The configuration is wrong.
    #[error("the proxy's configuration: {0}")]
    Config(String),
}
