//! The shared words of the house: what content is called, which part of it is meant, how urgently
//! it is needed, and where it can be read.
//!
//! Everything above this floor talks about bytes in these terms and in no others. The crate knows no
//! network, no disk and no format; it only says what the others may promise each other.
//!
//! * [`Digest`] is an OCI digest (`sha256:…`), checked when it is parsed.
//! * [`ContentId`] names an immutable byte string, and says how far that name can be trusted.
//! * [`ByteRange`] and [`RangeSet`] say which part.
//! * [`Urgency`] says who waits for it.
//! * [`BlobSource`] is the one trait in the middle: an immutable byte string that can be read by range.
//! * [`Origin`] is a blob where it comes from (a registry), [`ContentOpener`] turns an origin into a
//!   [`BlobSource`], either directly or through the cluster.

mod digest;
mod error;
mod id;
mod range;
mod source;

pub use digest::{Digest, DigestError, Hasher};
pub use error::{Fault, ReadError, ReadErrorKind};
pub use id::{ContentId, ContentIdError, ContentKind};
pub use range::{ByteRange, RangeSet};
pub use source::{
    BlobSource, ByteStream, ContentOpener, DirectOpener, Locator, OpenBlob, Origin, Provenance, Tail,
    Urgency, stream_by_reads,
};
