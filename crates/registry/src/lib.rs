//! A client of OCI registries: the origin of every byte.
//!
//! What the rest of the house sees of it:
//!
//! * [`Reference`] names an image by Docker's rules.
//! * [`Client`] speaks with registries: [`Client::manifest`] fetches documents, [`Client::origin`] makes a
//!   [`content::Origin`] of a blob, [`Client::pull_blob`] streams a verified blob, and the `push` family
//!   uploads. [`Client::forward`] passes a proxy's request on as it is.
//! * [`HostsConfig`] lists mirrors, [`CredentialSource`] says in whose name is asked.
//! * [`Upstreams`] is the allow-list for whatever the *network* names: no request goes anywhere because of
//!   a header, a redirect or another node's word unless it says so. [`Zone`] tells inside from outside.
//!
//! Three rules hold on every path and are tested as such: credentials never cross from one origin (scheme,
//! host, port) to another; no address further inside is asked than the asker may; and bytes that contradict
//! what is known of a blob (length, range) are not given out. That the bytes are *right* is found out above,
//! by digests of pieces, chunks and whole blobs; here only whole documents and whole pulls are hashed.
//!
//! Deliberately absent: caching of content, peers, the layer format.

mod answer;
mod ask;
mod auth;
mod challenge;
mod client;
mod contacts;
mod credentials;
mod error;
mod failure;
mod fetch;
mod forward;
mod hosts;
mod hosts_toml;
pub mod manifest;
mod origin;
mod pace;
mod pools;
mod proxies;
mod pull;
mod push;
mod race;
mod ranges;
mod reference;
mod referrers;
mod retry;
mod tally;
mod tls;
mod transport;
mod upload;
mod upstreams;
mod zone;

/// What the fuzz targets (`fuzz/`) reach of this crate. A decoder of bytes from elsewhere is no part of the
/// interface, and a target is a crate of its own.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::challenge::{Challenge, strongest};
    pub use crate::ranges::{Part, part_of, total_of_unsatisfied};
}

pub use client::{Client, ClientConfig, Upstream};
pub use credentials::{Asked, Credential, CredentialError, CredentialSource, DockerAuths, Keychain};
pub use error::RegistryError;
pub use forward::{ForwardRequest, Forwarded};
pub use hosts::{Capabilities, HostsConfig, Mirror};
pub use hosts_toml::HostsError;
pub use manifest::{Descriptor, ImageConfig, Index, Manifest, Platform, RootFs, media_type};
pub use proxies::Proxies;
pub use reference::{DOCKER_HUB, Reference, ReferenceError, canonical_registry};
pub use retry::Retries;
pub use tally::HostAsked;
pub use tls::Tls;
pub use transport::Usage;
pub use upload::{Progress, Upload, UploadError};
pub use upstreams::{Allowed, UpstreamError, UpstreamRule, Upstreams};
pub use zone::{BeyondCeiling, Zone, below_ceiling};
