//! Whole images, from place to place: ordinary ones become eStargz or zstd:chunked, and any can be looked into,
//! verified and compared.
//!
//! [`place`] says where images are. [`convert`] reads an image of one or many platforms, brings every layer to
//! the target in the wished format, and writes configs, manifests and index after them, so that a name never
//! points to something incomplete. What an image says about itself is kept: history, annotations,
//! environment. What must change does: layer descriptors (digest, size, media type, the annotations that lazy
//! mounts need), the config's diffIDs, and media types, which become those of OCI because Docker's have no
//! annotations.
//!
//! Nothing of the source is believed: a blob counts when its digest was seen, and a layer when it has the
//! diffID that the config claims. A layer's bytes pass through once: download, inflate, cut, compress, upload
//! at the same time, in memory that does not depend on the layer's size. The result depends on the image and
//! the options alone.
//!
//! [`pull`] brings an image into containerd, its layers mounted by a snapshotter before their bytes are here.
//!
//! Deliberately absent: the layer format, which is `estargz`'s, and the registry's protocol, `registry`'s.

mod budget;
mod convert;
mod diff;
mod engine;
mod error;
mod inspect;
mod layer;
mod mountable;
mod options;
mod pipe;
pub mod place;
mod plan;
mod platform;
mod prefetch;
mod progress;
mod pull;
mod report;
mod reuse;
mod table;
mod tail;
mod toc_image;
mod verify;

pub use convert::convert;
pub use diff::{
    Aspect, AspectError, Change, ChangeKind, ConfigChange, DiffOptions, DiffReport, FieldChange, Side, diff,
};
pub use error::ConvertError;
pub use inspect::{
    FileReport, ImageReport, InspectOptions, LayerKind, LayerReport, LayerToc, LookError, PlatformReport,
    StartReport, TocDigests, inspect, toc_digests,
};
pub use mountable::{Mountable, MountableLayer, mountable};
pub use options::{ConvertOptions, Platforms};
pub use place::{
    BlobWriter, Containerd, ImageSource, ImageTarget, Place, PlaceError, PlaceParseError, Places,
};
pub use platform::{PlatformError, PlatformSpec};
pub use prefetch::{Glob, GlobError, Prefetch, PrefetchError};
pub use progress::{Bars, LayerProgress, Lines, Progress, Silent};
pub use pull::{PullOptions, PullReport, PulledAs, PulledLayer, pull};
pub use report::{ConvertReport, ConvertedImage, ConvertedLayer, Outcome};
pub use verify::{
    LayerVerdict, LayerWatch, LieReport, PlatformVerdict, Unwatched, Verdict, VerifyBars, VerifyOptions,
    VerifyReport, Watch, verify,
};
