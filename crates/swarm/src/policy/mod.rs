//! Who fetches which piece from whom: pure rules, without clock, sockets, threads or random source.
//!
//! Time and random numbers are arguments, nodes are small integers, so the same seed and the same events
//! give the same decisions, in a test, in a simulator and in the engine. Figures beside the constants
//! are efficiencies of a simulated cluster of 20 nodes; the policy as it stands reaches 0.981.
//!
//! * [`Child`]: which neighbour to ask for which piece, for one content.
//! * [`Parent`]: whom to serve next and whom to send away, for one node.
//! * [`Rate`]: what this node's link seems to carry, from what arrives.

mod bits;
mod child;
mod parent;
mod rate;

pub use bits::Bits;
pub use child::{Action, Child, Fallback, World};
pub use parent::{ChildKey, Parent, Request, Verdict};
pub use rate::Rate;

use std::time::Duration;

/// Queue of a parent beyond which it says busy. 2: 0.933, 4: 0.968, 12: the same as 8.
pub const QUEUE: usize = 8;

/// Time of own download that may be in flight: 12 pieces at 100 Mbit/s. 8: 0.966, 16 starves the last node.
pub const IN_FLIGHT: Duration = Duration::from_millis(63);

/// A node never has fewer pieces in flight than this, however slow its link seems.
pub const MIN_IN_FLIGHT: usize = 3;

/// Nor more: bounds memory (4 MiB) on links that the figures do not cover.
pub const MAX_IN_FLIGHT: usize = 64;

/// Background pieces in flight while somebody blocks, and [`BLOCKING_AFTER`]: a Blocking piece in the
/// middle of the bulk takes 46 ms at the 99th percentile instead of 117.
pub const IN_FLIGHT_BESIDE_BLOCKING: usize = 4;

/// How long a Blocking read keeps the background small after it ended.
pub const BLOCKING_AFTER: Duration = Duration::from_secs(1);

/// A request that is not answered for so long is made a second time elsewhere.
pub const HEDGE: Duration = Duration::from_millis(250);

/// Who waits, in the order of service. Mirrors `content::Urgency`, as a number that can index.
pub type Class = usize;

/// Number of [`Class`]es: Blocking, Prefetch, Background.
pub const CLASSES: usize = 3;

/// The class of a waiting container.
pub const BLOCKING: Class = 0;
