//! The containerd snapshotter: layers that are mounted before they have arrived.
//!
//! containerd asks for snapshots over gRPC on a Unix socket and mounts what it is told. Most of it is book
//! keeping, and ordinary layers are overlays as everywhere. The one thing that is not: when a client names,
//! by labels, the image and the table of contents of a layer, the layer is mounted lazily and committed at
//! once, and containerd need not download it.
//!
//! * [`start`] serves; [`Handle`] tells what is mounted; [`Config`] reads stargz-snapshotter's file.
//! * `service` is the gRPC face of `snapshots`, where each call is done.
//! * `meta` keeps names, parents and labels, durable before any answer; `filter` is its query language.
//! * `metrics` is what it counts, for Prometheus and `pantala status`; `leftover` knows what stargz-snapshotter left.
//! * `host` looks before anything else whether this machine can mount layers.
//! * `claims` compares what images say of their layers before a root file system is handed out.
//! * `dirs` and `overlay` know the directories and how they are mounted together; `usage` measures them.
//! * `labels` reads what a client wants; `layer` is what is needed of lazy layers, `lazy` the real thing
//!   behind it, `mounted` the table of those that are mounted.
//!
//! **Invariants.** `ALREADY_EXISTS` is answered when the commit is on disk, never before. Metadata is never
//! locked while the network is waited for. containerd's own snapshots API is never called: it may be waiting
//! for us. One chain ID and parent never shows two images' bytes: what an image claims is not shared with
//! another that claims the same with other digests.
//!
//! Deliberately absent: how bytes arrive.

mod claims;
mod config;
mod cri;
mod dirs;
mod filter;
mod host;
mod keychain;
mod labels;
mod layer;
mod lazy;
mod leftover;
mod meta;
mod metrics;
mod mounted;
mod overlay;
mod serve;
mod service;
mod snapshots;
mod socket;
mod usage;

/// What the fuzz targets (`fuzz/`) reach of this crate. A decoder of bytes from elsewhere is no part of the
/// interface, and a target is a crate of its own.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::claims::{Document, chains};
    pub use crate::cri::fuzz_pull_request;
    pub use crate::filter::{Filter, FilterError};
    pub use crate::keychain::{fuzz_event, fuzz_kubeconfig};
    pub use crate::labels::{
        DIFF_ID, LabelError, Labels, LayerRequest, MAX_LABEL_BYTES, PARENT_CHAIN_ID, PREFETCH, TOC_DIGEST,
        clean,
    };
}

pub use claims::ClaimOptions;
pub use config::{
    Config, ConfigError, CriKeychainConfig, DEFAULT_ADDRESS, DEFAULT_CONFIG, DEFAULT_ROOT, Driver,
    KeychainsConfig, KubeKeychainConfig, Warning,
};
pub use cri::{ImageProxy, PullGuard};
pub use dirs::DirError;
pub use host::{HostError, check_host};
pub use keychain::Keychains;
pub use labels::LayerSource;
pub use layer::{LayerBackend, LayerError, LayerMount, OpenLayer, Progress};
pub use meta::MetaError;
pub use metrics::{Fallback, Reason};
pub use overlay::Overlay;
pub use serve::{
    Handle, MountedLayer, Running, ServeError, ServeOptions, serve, start, start_claiming, start_with,
};
pub use snapshots::{Limits, SnapshotError};
pub use socket::SocketError;
