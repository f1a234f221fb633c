//! The stream to the scheduler: made again for ever, and everything said again after each time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::ContentId;
use identity::Security;
use proto::cluster::scheduler_client::SchedulerClient;
use proto::cluster::{self, NodeMessage, SchedulerMessage, node_message, scheduler_message};
use rand::RngExt;
use store::PIECE;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::actor::Event;
use crate::node::{Node, lock};
use crate::wire::PROTOCOL;

/// First wait between two attempts; it doubles up to [`LAST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(2);

/// For the scheduler to answer, or to take a message.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What the node has is told at most so often.
const HAVE_EVERY: Duration = Duration::from_secs(1);

/// Messages on their way into the stream.
const QUEUE: usize = 256;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{}", said(.0))]
    Status(Box<tonic::Status>),
    #[error("the scheduler closed the stream")]
    Closed,
    #[error("the scheduler does not answer")]
    Silent,
    #[error("the scheduler speaks protocol {0} with pieces of {1} bytes")]
    Foreign(u32, u32),
    #[error("shutting down")]
    Shutdown,
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// What a status says, without the words of the protocol around it.
fn said(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if inner_text != "transport error" && !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    if text.is_empty() { status.code().to_string() } else { text }
}

/// A client of a scheduler.
pub(crate) fn client(security: &Security, node: &Node, scheduler: &str) -> SchedulerClient<Channel> {
    let channel = security.channel_from(scheduler, Some(node.config.advertise));
    // What a node has of a large content, in single pieces, is longer than the default of 4 MiB allows.
    SchedulerClient::new(channel).max_decoding_message_size(16 << 20)
}

/// Keeps a session with one of the schedulers until the node shuts down.
pub(crate) async fn run(node: Arc<Node>, mut outbox: mpsc::Receiver<node_message::Kind>) {
    let mut wait = FIRST_WAIT;
    let mut returning = false;
    let mut told = false;
    while !node.cancel.is_cancelled() {
        for scheduler in node.config.schedulers.clone() {
            let began = Instant::now();
            let ended = session(&node, &scheduler, returning, &mut outbox).await;
            let stood = node.connected.send_replace(false);
            returning |= stood;
            // A node that goes itself is not left by anybody.
            if stood && !node.cancel.is_cancelled() {
                tracing::warn!(scheduler, reason = %ended, "the scheduler is gone, going on without");
                tell_actors(&node, || Event::Scheduler(false)).await;
            } else if !told && !node.cancel.is_cancelled() {
                // Once: it is tried for ever, and the reason rarely changes.
                told = true;
                tracing::warn!(
                    scheduler, reason = %ended,
                    "no session with the scheduler, trying again: check that it runs at this address, and that it \
                     and this node have the same security.joinToken (or are both insecure)"
                );
            } else {
                tracing::debug!(scheduler, reason = %ended, "no session with the scheduler");
            }
            // What was to be said to the old one is said anew.
            while outbox.try_recv().is_ok() {}
            if node.cancel.is_cancelled() {
                return;
            }
            if stood && began.elapsed() > LAST_WAIT {
                wait = FIRST_WAIT;
            }
        }
        let jitter = rand::rng().random::<f64>();
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = tokio::time::sleep(wait.mul_f64(0.5 + jitter / 2.0)) => {}
        }
        wait = (wait * 2).min(LAST_WAIT);
    }
}

async fn tell_actors(node: &Node, event: impl Fn() -> Event) {
    let inboxes: Vec<_> = lock(&node.actors).values().map(|handle| handle.inbox.clone()).collect();
    for inbox in inboxes {
        let _ = inbox.send(event()).await;
    }
}

async fn session(
    node: &Arc<Node>,
    scheduler: &str,
    returning: bool,
    outbox: &mut mpsc::Receiver<node_message::Kind>,
) -> Ended {
    let (to, stream) = mpsc::channel(QUEUE);
    let mut client = client(&node.config.security, node, scheduler);
    let attempt = async {
        say(&to, hello(node, returning)).await?;
        let mut from = client.session(ReceiverStream::new(stream)).await?.into_inner();
        let welcome = from.message().await?.and_then(|message| message.kind);
        Ok::<_, Ended>((from, welcome))
    };
    let began = tokio::select! {
        () = node.cancel.cancelled() => return Ended::Shutdown,
        began = tokio::time::timeout(ANSWER_TIME, attempt) => began,
    };
    let from = match began {
        Err(_) => return Ended::Silent,
        Ok(Err(ended)) => return ended,
        Ok(Ok((_, None))) => return Ended::Closed,
        Ok(Ok((from, Some(first)))) => {
            if let scheduler_message::Kind::Welcome(welcome) = &first
                && (welcome.protocol, welcome.piece_size) != (PROTOCOL, PIECE)
            {
                return Ended::Foreign(welcome.protocol, welcome.piece_size);
            }
            node.on_scheduler(first).await;
            from
        }
    };
    match talk(node, scheduler, &to, from, outbox).await {
        Ok(()) => Ended::Closed,
        Err(ended) => ended,
    }
}

fn hello(node: &Node, returning: bool) -> node_message::Kind {
    node_message::Kind::Hello(cluster::Hello {
        node: node.id.as_bytes().to_vec(),
        public_key: node.config.key.public_key().to_vec(),
        hostname: node.config.hostname.clone(),
        piece_port: node.port.into(),
        seed: node.config.seed,
        protocol: PROTOCOL,
        idc: node.config.idc.clone(),
        location: node.config.location.clone(),
        returning,
    })
}

async fn say(to: &mpsc::Sender<NodeMessage>, kind: node_message::Kind) -> Result<(), Ended> {
    let message = NodeMessage { kind: Some(kind) };
    match tokio::time::timeout(ANSWER_TIME, to.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::Closed),
        Err(_) => Err(Ended::Silent),
    }
}

/// Says what there is to say until the stream ends.
async fn talk(
    node: &Arc<Node>,
    scheduler: &str,
    to: &mpsc::Sender<NodeMessage>,
    mut from: Streaming<SchedulerMessage>,
    outbox: &mut mpsc::Receiver<node_message::Kind>,
) -> Result<(), Ended> {
    // A scheduler that has restarted knows nothing: it hears of everything that is here before it hears
    // of any want, so that it sends nobody to the origin for what this node has.
    node.take_changed();
    for content in node.config.store.all() {
        if content.have().is_empty() {
            continue;
        }
        // Pieces are only as good as their signers, and those a new scheduler has never heard of.
        let reading = Arc::clone(&content);
        let signers = tokio::task::spawn_blocking(move || reading.signers()).await;
        let signers = signers.ok().and_then(Result::ok).unwrap_or_default();
        if let Some(have) = node.have_message(content.id(), &signers) {
            say(to, have).await?;
        }
    }
    tracing::info!(scheduler, "connected to the scheduler");
    node.connected.send_replace(true);
    tell_actors(node, || Event::Scheduler(true)).await;
    let opening: Vec<ContentId> = lock(&node.opens).keys().copied().collect();
    for id in opening {
        if let Some(open) = crate::open::open_message(node, &id) {
            say(to, open).await?;
        }
    }
    let mut told = Instant::now();
    let mut due: Option<Instant> = None;
    loop {
        let telling = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = node.cancel.cancelled() => {
                tell_changes(node, to).await?;
                return Err(Ended::Shutdown);
            }
            message = from.message() => match message? {
                Some(SchedulerMessage { kind: Some(kind) }) => node.on_scheduler(kind).await,
                Some(_) => {}
                None => return Ok(()),
            },
            kind = outbox.recv() => match kind {
                Some(kind) => say(to, kind).await?,
                None => return Ok(()),
            },
            () = node.have_changed.notified(), if due.is_none() => due = Some(told + HAVE_EVERY),
            () = telling => {
                (told, due) = (Instant::now(), None);
                tell_changes(node, to).await?;
            }
        }
    }
}

async fn tell_changes(node: &Arc<Node>, to: &mpsc::Sender<NodeMessage>) -> Result<(), Ended> {
    for id in node.config.store.take_evicted() {
        say(to, node_message::Kind::Forget(cluster::Forget { content: id.to_string() })).await?;
    }
    for id in node.take_changed() {
        if let Some(have) = node.have_message(&id, &BTreeSet::new()) {
            say(to, have).await?;
        }
    }
    Ok(())
}
