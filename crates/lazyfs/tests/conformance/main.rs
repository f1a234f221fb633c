//! One suite for both drivers: what a mounted layer shows is the tar that it was made of, unpacked by `tar` onto a disk.
//!
//! Whoever looks is another process, as a container is: nobody who waits for bytes is the one that brings them. The
//! readers are small Python programs beside this file, since they must read in ways that safe Rust has not
//! (memory maps, raw `getdents64`). They say every difference.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../common/mod.rs"]
mod common;
mod content;
mod names;
mod permissions;
mod recorded;
mod shown;
mod stacked;
mod trees;
