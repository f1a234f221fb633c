//! containerd's API, as far as it is needed: one connection, one namespace, and no snapshots.
//!
//! [`Client`] builds requests that carry namespace and lease, and hands out the generated clients of the
//! services; [`Image`] is an image's record; [`Error`] tells whether nobody answered or containerd said no.
//!
//! containerd's own snapshots API is deliberately absent: whoever is called by containerd as its snapshotter
//! must not call it back, because its garbage collection may be waiting for that very answer.

mod blob;
mod client;
mod error;
mod image;

pub use client::{Client, DEFAULT_ADDRESS};
pub use error::{Error, is_not_found, words};
pub use image::Image;
