//! Who is who in a cluster, and how two of its members get a private, authenticated stream.
//!
//! * A node *is* its Ed25519 key ([`NodeKey`]); its name ([`NodeId`]) is the SHA-256 of the public key, so
//!   a name cannot be claimed without the key. The same key signs the digests of pieces.
//! * The cluster's [`Authority`] lives with the scheduler. It turns proof of the join token into a
//!   short-lived certificate that carries one address: the one that the node was *seen* at. A stolen token
//!   therefore does not let one machine pose as another machine's address.
//! * The join token never travels ([`JoinToken`] keys MACs in both directions), so a node may say its first
//!   word to a server that it cannot verify yet: the answer is authentic or it is refused.
//! * [`Security`] is what everybody else holds: it dials and accepts streams, and is either [`Mutual`]
//!   (TLS 1.3, both sides certified) or, by explicit choice, [`Insecure`].
//!
//! Nothing here relies on a process-wide crypto provider.
//!
//! [`Mutual`]: Security::Mutual
//! [`Insecure`]: Security::Insecure

mod authority;
mod credentials;
mod enroll;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod incoming;
mod key;
mod security;
mod stream;
mod tls;
mod token;

#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, EnrollRefused};
pub use credentials::Credentials;
pub use enroll::{EnrollError, enroll};
pub use files::FileError;
pub use incoming::{Acceptor, incoming};
pub use key::{KeyError, NodeId, NodeKey, verify};
pub use security::{Security, SecurityError};
pub use stream::{PeerIdentity, SecureStream};
pub use tls::{SCHEDULER_NAME, TlsSetupError};
pub use token::{JoinToken, TokenError};
