//! Content on disk: sparse files of pieces, each with its proof beside it.
//!
//! One folder per content, named by the text form of its [`ContentId`]:
//!
//! * `data`: a sparse file as long as the content. A piece lies at its own offset.
//! * `map`: one fixed record per piece: digest, who read it at the origin, that node's signature, a flag
//!   and a checksum. A record is written after its piece.
//! * `head.json`: length, piece size, where the content came from, whether it was hashed whole.
//!
//! Nothing is synced on the hot path, on purpose. A killed process loses nothing that the kernel has; a
//! lost machine may lose pages in any order, but a piece is only ever shown after its BLAKE3 was
//! compared with its record. Torn, rotten and never written bytes all look the same: the digest
//! disagrees, the piece is dropped, and it is fetched again. For the same reason a hole can never be
//! read as data: there is no record for it.
//!
//! A piece only goes from absent to present (or is dropped whole), so writers need no order among
//! themselves; two writers of one piece take turns.
//!
//! All calls block. They are sized for the page cache; callers that run on an async runtime move them
//! to its blocking pool.

mod budget;
mod content;
mod error;
mod folder;
mod record;

pub use budget::{Store, StoreOptions};
pub use content::{Content, PIECE};
pub use error::StoreError;
pub use folder::Head;
pub use record::Proof;

#[doc(no_inline)]
pub use ::content::ContentId;
