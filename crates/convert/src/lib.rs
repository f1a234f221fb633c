//! Whole images, from registry to registry: ordinary ones become eStargz, and any can be looked into.
//!
//! [`convert`] reads an image of one or many platforms, turns every layer into an eStargz blob, and pushes
//! blobs, configs, manifests and index in that order, so that a name never points to something incomplete.
//! What an image says about itself is kept: history, annotations, environment. What must change does:
//! layer descriptors (digest, size, media type, the annotations that lazy mounts need), the config's diffIDs,
//! and media types, which become those of OCI because Docker's have no annotations.
//!
//! Nothing of the source is believed: a blob counts when its digest was seen, and a layer when it has the
//! diffID that the config claims. A layer's bytes pass through once: download, inflate, cut, compress, and
//! into a temporary file, from where they are pushed when everything was right.
//!
//! Deliberately absent: the layer format, which is `estargz`'s, and the registry's protocol, `registry`'s.

mod convert;
mod error;
mod inspect;
mod layer;
mod pipe;
mod platform;
mod progress;
mod report;
mod table;

pub use convert::{ConvertOptions, convert};
pub use error::ConvertError;
pub use inspect::{ImageReport, LayerKind, LayerReport, PlatformReport, inspect};
pub use platform::{PlatformError, PlatformSpec};
pub use progress::{Bars, LayerProgress, Progress, Silent};
pub use report::{ConvertReport, ConvertedImage, ConvertedLayer, Outcome};
