//! The laboratory: what tests, benchmarks and the demo stand on.
//!
//! Real parts wherever a real part exists: Debian's containerd, runc and `docker-registry`, kernel network
//! namespaces and token buckets. The kit's own are only a meter before the registry that counts, delays and
//! misbehaves, and a factory of images.
//!
//! * [`cage`] — one lab is one set of namespaces: whatever happens, nothing of it outlives the test.
//! * [`net`] — hosts behind a bridge, each link with its own bandwidth.
//! * [`process`] — daemons with a log, a readiness signal and an end.
//! * [`http`] — the few HTTP requests that a lab itself makes.
//! * [`registry`], [`meter`] — the registry, and what was asked of it.
//! * [`shelf`] — a quick registry that is read alone, for benchmarks.
//! * [`containerd`] — one containerd per host, and the two clients that drive it.
//! * [`cri`], [`plugin`] — what the kubelet asks of containerd, and containerd of its snapshotter.
//! * [`image`] — small images made to measure, and a real Python image.
//! * [`tree`] — two file trees compared, attribute by attribute.
//! * [`peers`] — other people's converters, where they are built.
//! * [`node`] — the `pantala` binary: its processes, files and status.
//! * [`group`] — a control group of a lab's own, which is killed as one.
//! * [`service_manager`] — what systemd does for a service: hears it, and stores its descriptors.
//! * [`cluster`] — all of it put together.

// Test support: a lab that cannot be built must stop the test at once, with the place where it happened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
// Everything here returns `anyhow::Result`, and every error means the same: the lab could not be built.
#![allow(clippy::missing_errors_doc)]

pub mod cage;
pub mod cluster;
pub mod containerd;
pub mod cri;
pub mod group;
mod grpc;
pub mod http;
pub mod image;
pub mod meter;
pub mod net;
pub mod node;
pub mod peers;
pub mod plugin;
pub mod process;
pub mod registry;
pub mod service_manager;
pub mod shelf;
pub mod tree;
