//! What a node of the swarm is told at its start.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use content::{ContentId, Locator, Origin, ReadError};
use identity::{NodeKey, Security};
use store::Store;

/// Finds the origin of a content that this node did not open itself: a seed that is granted a lease.
///
/// The network names the place, so the implementation must hold it against an allow-list.
#[async_trait]
pub trait OriginFinder: Send + Sync {
    /// The origin behind `locator`.
    ///
    /// # Errors
    /// Policy refuses the place, or it makes no sense.
    async fn find(&self, locator: &Locator) -> Result<Arc<dyn Origin>, ReadError>;
}

/// Changes a piece before it is sent. For fault suites alone: it makes this node a liar.
pub type Tamper = Arc<dyn Fn(&ContentId, u32, &mut Vec<u8>) + Send + Sync>;

/// How long a node waits for others before it goes to the origin itself.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For the scheduler to tell the length of a content that nobody here knows.
    pub open: Duration,
    /// Blocking, nobody has the piece, and the scheduler has not said a word about it.
    pub blocking: Duration,
    /// The same, and the scheduler answered: somebody is probably reading it.
    pub blocking_heard: Duration,
    /// Blocking, and the neighbour that has the piece is slow.
    pub blocking_held: Duration,
    /// Not Blocking, and nobody has the piece.
    pub other: Duration,
    /// Not Blocking, and somebody has it.
    pub held: Duration,
    /// Without a scheduler: for neighbours that were asked to say what they have.
    pub neighbours: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            open: Duration::from_secs(1),
            blocking: Duration::from_millis(400),
            blocking_heard: Duration::from_secs(2),
            blocking_held: Duration::from_millis(1500),
            other: Duration::from_secs(5),
            held: Duration::from_secs(15),
            neighbours: Duration::from_millis(200),
        }
    }
}

/// Bounds of everything that others could make grow.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Links to other nodes, dialled and accepted.
    pub links: usize,
    /// Neighbours per content.
    pub neighbours: usize,
    /// Requests at origins at once, Blocking ones apart.
    pub origin_requests: usize,
    /// Until a Blocking read fails; others get five times as long.
    pub read_deadline: Duration,
    /// A neighbour that owes a piece and says nothing for so long is dropped.
    pub silence: Duration,
    /// When to go to the origin oneself.
    pub patience: Patience,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 128,
            neighbours: 24,
            origin_requests: 8,
            read_deadline: Duration::from_mins(1),
            silence: Duration::from_secs(2),
            patience: Patience::default(),
        }
    }
}

/// Everything a node needs to take part.
#[derive(Clone)]
pub struct SwarmConfig {
    /// Where pieces are kept.
    pub store: Store,
    /// Who this node is.
    pub key: Arc<NodeKey>,
    /// How it talks to other nodes and to the scheduler.
    pub security: Security,
    /// Schedulers, `host:port`; the first that answers is used. None: everything comes from the origin
    /// or from neighbours that are known anyway.
    pub schedulers: Vec<String>,
    /// Where to serve pieces. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// The address under which others reach this node.
    pub advertise: IpAddr,
    /// Shown in `pantala status`.
    pub hostname: String,
    /// Data centre, for neighbours nearby.
    pub idc: String,
    /// Rack or zone, for neighbours nearby.
    pub location: String,
    /// Whether this node reads at origins for others.
    pub seed: bool,
    /// How a lease for a content that was not opened here finds its origin.
    pub finder: Option<Arc<dyn OriginFinder>>,
    /// Bounds.
    pub limits: Limits,
    /// For fault suites alone.
    pub tamper: Option<Tamper>,
}

impl fmt::Debug for SwarmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmConfig")
            .field("schedulers", &self.schedulers)
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("hostname", &self.hostname)
            .field("seed", &self.seed)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
