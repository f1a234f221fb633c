//! What the core is told, and what it answers.

use std::net::SocketAddr;
use std::sync::Arc;

use content::{ByteRange, RangeSet};
use identity::NodeId;
use proto::cluster::scheduler_message::Kind;
use proto::cluster::{ClusterNode, Locator, Neighbour, PieceRange};

/// Milliseconds since the core's beginning.
pub type Millis = u64;

/// A session of a node. Given by the service, never used twice: a node that comes back is another peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer(pub u32);

/// What a node says of itself, and what was observed of it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its name.
    pub node: NodeId,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// For people.
    pub hostname: String,
    /// Where it serves pieces: the observed address and the port that it said.
    pub address: SocketAddr,
    /// Whether it reads for others.
    pub seed: bool,
    /// Its data centre or rack; nodes of one are better neighbours. Empty: unknown.
    pub idc: String,
    /// Whether it had a session with a scheduler before.
    pub returning: bool,
}

/// Ranges of what a neighbour has that are told with it: a hint, it says the rest itself.
const HAVE_TOLD: usize = 256;

impl NodeInfo {
    pub(crate) fn neighbour(&self, have: &RangeSet) -> Neighbour {
        Neighbour {
            node: self.node.as_bytes().to_vec(),
            public_key: self.public_key.to_vec(),
            address: self.address.to_string(),
            seed: self.seed,
            have: have.iter().filter_map(to_wire).take(HAVE_TOLD).collect(),
        }
    }

    pub(crate) fn cluster_node(&self) -> ClusterNode {
        ClusterNode {
            node: self.node.as_bytes().to_vec(),
            hostname: self.hostname.clone(),
            address: self.address.to_string(),
            seed: self.seed,
            contents: 0,
            bytes: 0,
        }
    }
}

/// A range of pieces as it travels.
pub(crate) fn to_wire(range: ByteRange) -> Option<PieceRange> {
    Some(PieceRange { start: u32::try_from(range.start).ok()?, end: u32::try_from(range.end).ok()? })
}

/// Size of a content, and where it is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bytes.
    pub length: u64,
    /// Bytes of a piece. Not 0.
    pub piece_size: u32,
    /// Where it can be read, if it can be told.
    pub locator: Option<Locator>,
}

impl Shape {
    /// Number of pieces.
    pub const fn pieces(&self) -> u64 {
        self.length.div_ceil(self.piece_size as u64)
    }
}

/// Pieces that a node is going to need, by urgency. Ranges are in pieces.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    /// A process waits for these.
    pub blocking: RangeSet,
    /// Soon.
    pub prefetch: RangeSet,
    /// When nothing else is to do.
    pub background: RangeSet,
}

/// What a node says about a content.
#[derive(Clone, Debug)]
pub enum Say {
    /// How long is it?
    Open {
        /// Where it can be read.
        locator: Option<Locator>,
    },
    /// So long it is; or why that could not be learned.
    Opened {
        /// Bytes, or the origin's error.
        length: Result<u64, String>,
    },
    /// All that it wants of the content from now on.
    Want {
        /// Size and place.
        shape: Shape,
        /// Which pieces.
        wants: Wants,
    },
    /// All that it has of the content.
    Have {
        /// Size and place.
        shape: Shape,
        /// Which pieces.
        pieces: RangeSet,
        /// Whose signatures they carry.
        signers: Vec<NodeId>,
    },
    /// It neither has nor wants it any more.
    Forget,
    /// One piece of the lease is left.
    LeaseNearlyDone {
        /// Which.
        lease: u64,
    },
    /// All of the lease is here.
    LeaseDone {
        /// Which.
        lease: u64,
    },
    /// The origin failed.
    LeaseFailed {
        /// Which.
        lease: u64,
        /// The origin's error.
        error: String,
    },
    /// That node served wrong bytes, twice.
    Liar {
        /// Who.
        node: NodeId,
    },
    /// Too few neighbours answer.
    More,
}

/// What happens to a scheduler.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node's session begins.
    Join {
        /// The session.
        peer: Peer,
        /// Who it is.
        info: NodeInfo,
    },
    /// A node's session has ended.
    Leave {
        /// The session.
        peer: Peer,
    },
    /// A node says something about a content.
    Said {
        /// The session.
        peer: Peer,
        /// The content's name.
        content: Arc<str>,
        /// What.
        say: Say,
    },
    /// Time has passed. Wanted about four times a second.
    Tick,
}

/// A message that is to be sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// To whom.
    pub to: Peer,
    /// What.
    pub message: Kind,
}
