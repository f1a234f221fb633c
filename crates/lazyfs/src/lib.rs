//! Lazily filled layers, and the file systems that show them.
//!
//! A container sees all files of a layer at once. Their bytes arrive when they are touched: a read that
//! needs a chunk which is not here waits for one fetch of that chunk, however many readers wait with it.
//! Every chunk is inflated and checked against the table of contents before anybody sees a byte of it, and
//! kept on disk so that it is fetched once. Behind the reads everything else arrives.
//!
//! * [`Layers`] is the store: one folder per table of contents.
//! * [`Layer`] is one layer, shared by all that mount it.
//! * [`mount`] shows it through FUSE, with an own thin implementation of the kernel's protocol.
//! * [`Layer::metadata_image`] describes the same tree to the kernel's EROFS, whose files lie in the layer's data file.
//!
//! The crate knows neither registry nor cluster: bytes come from a [`content::BlobSource`].
//!
//! **Invariants.** A hole is never readable as data. A chunk whose digest is wrong never reaches the disk.
//! A reader gets the right bytes or an error, and gets one of them in bounded time.

mod ahead;
mod bitmap;
mod buffers;
mod desk;
mod disk;
mod engine;
mod error;
mod fill;
mod fuse;
mod index;
pub mod keeper;
mod layer;
mod layers;
mod layout;
mod limits;
pub mod memory;
mod metadata;
pub mod mounter;
mod mountpoint;
mod native;
mod numbers;
mod reserve;
mod source;
mod space;
mod tree;

/// What the fuzz targets (`fuzz/`) reach of this crate. A decoder of bytes from elsewhere is no part of the
/// interface, and a target is a crate of its own.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::fuse::request::{Malformed, Operation, Request};
    pub use crate::index::read_all as read_index;
    pub use crate::keeper::wire::{Reply as KeeperReply, Request as KeeperRequest};
    pub use crate::native::event::{Event, Events};
    pub use crate::native::{Native, NativeError, NativeMount};
}

pub use engine::LayersOptions;
pub use error::LayerError;
pub use fuse::{Mount, MountError, MountOptions, mount, unmount_stale};
pub use layer::{Layer, LayerStatus, Record, Touch};
pub use layers::{LayerSpec, Layers, Prefetch, TAIL};
pub use mountpoint::mount_points;
pub use native::{ProbeError, probe};
pub use numbers::{Numbers, Totals};
pub use source::{ExternalToc, OpenSource};
pub use tree::OpaqueXattr;
