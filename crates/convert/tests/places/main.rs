//! Places against the tools that everybody uses: skopeo, umoci, `docker-registry`, containerd.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and its helpers do as well"
)]

mod common;
mod containerd;
mod files;
mod lies;
mod registry;
