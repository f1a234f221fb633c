//! Membership: enrolment, the swarm, and what the node does while it has none.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use content::{ContentOpener, DirectOpener, Locator, OpenBlob, Origin, ReadError};
use identity::{Credentials, EnrollError, JoinToken, NodeKey, Security};
use store::Store;
use swarm::{OriginFinder, Swarm, SwarmConfig};
use tokio_util::sync::CancellationToken;

/// A start waits so long for a scheduler; after that it goes on without and joins later.
const FIRST_WAIT: Duration = Duration::from_secs(3);
/// Between later attempts: doubles up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How this node proves that it belongs to the cluster.
pub struct Membership {
    /// Who it is.
    pub key: Arc<NodeKey>,
    /// `None` switches TLS off.
    pub token: Option<JoinToken>,
    /// Schedulers, `host:port`.
    pub schedulers: Vec<String>,
    /// The address that the certificate is for.
    pub advertise: IpAddr,
    /// Where the certificate is kept.
    pub credentials: PathBuf,
}

/// The parts of a [`SwarmConfig`] that do not depend on membership.
#[derive(Clone)]
pub struct SwarmTemplate {
    pub store: Store,
    pub listen: SocketAddr,
    pub hostname: String,
    pub idc: String,
    pub location: String,
    pub seed: bool,
    pub client: registry::Client,
}

/// The cluster as the rest of the node sees it: through the swarm once it has joined, straight from the
/// registries before.
#[derive(Default)]
pub struct Cluster {
    joined: OnceLock<Joined>,
}

struct Joined {
    swarm: Arc<Swarm>,
    credentials: Option<Arc<Credentials>>,
}

impl Cluster {
    /// The swarm, once the node has joined.
    pub fn swarm(&self) -> Option<&Arc<Swarm>> {
        self.joined.get().map(|joined| &joined.swarm)
    }

    /// Ends the swarm.
    pub async fn leave(&self) {
        if let Some(swarm) = self.swarm() {
            swarm.shutdown().await;
        }
    }
}

#[async_trait]
impl ContentOpener for Cluster {
    async fn open(&self, origin: Arc<dyn Origin>, tail: u64) -> Result<OpenBlob, ReadError> {
        match self.swarm() {
            Some(swarm) => swarm.open(origin, tail).await,
            None => DirectOpener.open(origin, tail).await,
        }
    }
}

/// Origins for leases that the scheduler grants to a node that did not ask: what another node located is
/// held against the allow-list and read in this node's own name.
struct Finder(registry::Client);

#[async_trait]
impl OriginFinder for Finder {
    async fn find(&self, locator: &Locator) -> Result<Arc<dyn Origin>, ReadError> {
        self.0.origin_of(locator, None).map_err(ReadError::from)
    }
}

/// Tries once, for a bounded time.
///
/// # Errors
/// If the scheduler *refuses* this node, or it cannot keep its certificate: a start is when to tell.
pub async fn join_first(
    cluster: &Cluster,
    membership: &Membership,
    template: &SwarmTemplate,
) -> anyhow::Result<()> {
    match tokio::time::timeout(FIRST_WAIT, join(cluster, membership, template)).await {
        Ok(Err(JoinError::Enroll(error))) if !is_about_the_way(&error) => Err(error.into()),
        Ok(Err(JoinError::Start(error))) => Err(error),
        Ok(Err(JoinError::Enroll(error))) => {
            tracing::warn!(
                %error,
                "no scheduler yet, starting without: registries are read directly, and joining is tried again; \
                 if it goes on, check scheduler.netAddrs and that the scheduler runs"
            );
            Ok(())
        }
        Err(_) => {
            tracing::warn!(
                schedulers = ?membership.schedulers,
                "the scheduler does not answer, starting without: registries are read directly, and joining is \
                 tried again; if it goes on, check scheduler.netAddrs and the firewall on the way there"
            );
            Ok(())
        }
        Ok(Ok(())) => Ok(()),
    }
}

/// Whether it is the scheduler that is not there, or not the right one: both may mend themselves.
const fn is_about_the_way(error: &EnrollError) -> bool {
    use EnrollError::{Cancelled, NotProved, Unreachable, WrongCertificate};
    matches!(error, Unreachable { .. } | NotProved(_) | WrongCertificate(_) | Cancelled)
}

/// Joins if that is still to be done, then keeps the certificate fresh until `stop`.
///
/// # Errors
/// If the swarm cannot start.
pub async fn keep(
    cluster: Arc<Cluster>,
    membership: Membership,
    template: SwarmTemplate,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut pause = RETRY.0;
    while cluster.swarm().is_none() {
        // The first attempt was made at the start, and told.
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
        pause = (pause * 2).min(RETRY.1);
        match stop.run_until_cancelled(join(&cluster, &membership, &template)).await {
            None => return Ok(()),
            Some(Ok(())) => break,
            Some(Err(JoinError::Start(error))) => return Err(error),
            Some(Err(JoinError::Enroll(error))) => {
                tracing::warn!(%error, "cannot join the cluster, trying again");
            }
        }
    }
    match cluster.joined.get().and_then(|joined| joined.credentials.clone()) {
        Some(credentials) => {
            stop.run_until_cancelled(credentials.keep_fresh()).await;
        }
        None => stop.cancelled().await,
    }
    Ok(())
}

enum JoinError {
    Enroll(EnrollError),
    Start(anyhow::Error),
}

async fn join(cluster: &Cluster, membership: &Membership, template: &SwarmTemplate) -> Result<(), JoinError> {
    let credentials = match &membership.token {
        Some(token) => Some(Arc::new(enroll(membership, token).await.map_err(JoinError::Enroll)?)),
        None => None,
    };
    let security = credentials.clone().map_or(Security::Insecure, Security::Mutual);
    let swarm = Swarm::start(SwarmConfig {
        store: template.store.clone(),
        key: Arc::clone(&membership.key),
        security,
        schedulers: membership.schedulers.clone(),
        listen: template.listen,
        advertise: membership.advertise,
        hostname: template.hostname.clone(),
        idc: template.idc.clone(),
        location: template.location.clone(),
        seed: template.seed,
        finder: Some(Arc::new(Finder(template.client.clone()))),
        limits: swarm::Limits::default(),
        tamper: None,
    })
    .await
    .map_err(|error| JoinError::Start(error.into()))?;
    // Only one task joins at a time, so nobody was faster.
    let _ = cluster.joined.set(Joined { swarm, credentials });
    Ok(())
}

/// Asks one scheduler after the other; the first that answers decides.
async fn enroll(membership: &Membership, token: &JoinToken) -> Result<Credentials, EnrollError> {
    let mut last = Err(EnrollError::Cancelled);
    for scheduler in &membership.schedulers {
        let dir = &membership.credentials;
        last = identity::enroll(scheduler, token, &membership.key, membership.advertise, dir).await;
        if !matches!(last, Err(EnrollError::Unreachable { .. })) {
            break;
        }
    }
    last
}
