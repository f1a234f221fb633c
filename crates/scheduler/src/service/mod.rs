//! The scheduler's gRPC face.
//!
//! A node has one stream. Its first message is its hello; what follows are events for the [`core`], in the
//! order in which they arrive. Answers go into a bounded queue per node; a node that does not read its
//! queue is dropped, because waiting for it would make everybody wait. The core is called under a lock that
//! is never held across an await.
//!
//! A node's address is where its connection comes from, with the port that it says. With a join token every
//! call but `Enroll` needs a certificate, and a hello must name the certificate's key.
//!
//! [`core`]: crate::core

mod sessions;
#[cfg(test)]
mod tests;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use identity::{
    Acceptor, Authority, AuthorityError, JoinToken, NodeId, PeerIdentity, SecureStream, incoming,
};
use proto::cluster::scheduler_server::{Scheduler, SchedulerServer};
use proto::cluster::{
    ClusterRequest, ClusterResponse, EnrollRequest, EnrollResponse, NodeMessage, SchedulerMessage,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use self::sessions::Sessions;
use crate::core::Event;

/// The core's tick: leases and lookups time out in seconds, members are looked after once a second.
const TICK: Duration = Duration::from_millis(250);
/// Longest wait for a hello.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// Largest message of a node: what it has of a large content, in single pieces.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// A silent connection is probed so often, and dropped when the probe is not answered in the same time.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Receive window per connection; messages are small.
const WINDOW: u32 = 256 * 1024;
/// Calls at once on one connection.
const STREAMS: u32 = 16;
/// How long connections may take to close at shutdown.
const GOODBYE: Duration = Duration::from_secs(3);

/// How a scheduler is set up.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Where the certificate authority is kept. Not used by an insecure scheduler.
    pub data_dir: PathBuf,
    /// Who may talk to it.
    pub security: SchedulerSecurity,
}

/// Who may talk to a scheduler.
#[derive(Clone, Debug)]
pub enum SchedulerSecurity {
    /// Everybody, in plain text: an explicit choice for networks where every machine is trusted.
    Insecure,
    /// Nodes with a certificate; who knows the token gets one.
    Token(JoinToken),
}

/// Why a scheduler does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its certificate authority.
    #[error("scheduler: {0}")]
    Authority(#[from] AuthorityError),
    /// Its server.
    #[error("scheduler: cannot serve: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Serves the connections of `listener` until `cancel`; then every session ends and all is awaited.
///
/// # Errors
/// If the authority cannot be loaded or made, or the server fails.
pub async fn serve(
    listener: TcpListener,
    config: SchedulerConfig,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    let (acceptor, enrolment) = match config.security {
        SchedulerSecurity::Insecure => (Acceptor::insecure(), None),
        SchedulerSecurity::Token(token) => {
            let authority = Arc::new(Authority::load_or_create(&config.data_dir)?);
            (Acceptor::tls(Arc::clone(&authority))?, Some(Enrolment { authority, token }))
        }
    };
    // Ends tasks on every way out of here, also when the future is dropped.
    let stop = cancel.child_token();
    let _stopped = stop.clone().drop_guard();
    let tasks = TaskTracker::new();
    let sessions = Arc::new(Sessions::new());
    tasks.spawn(tick(Arc::clone(&sessions), stop.clone()));
    let service = SchedulerServer::new(Service {
        enrolment,
        sessions: Arc::clone(&sessions),
        tasks: tasks.clone(),
        stop: stop.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let connections: futures::stream::BoxStream<'static, std::io::Result<SecureStream>> =
        Box::pin(incoming(listener, acceptor));
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .max_concurrent_streams(STREAMS)
        .serve_with_incoming_shutdown(service, connections, stop.clone().cancelled_owned());
    let goodbye = async {
        stop.cancelled().await;
        tokio::time::sleep(GOODBYE).await;
    };
    let served = tokio::select! {
        served = server => served,
        // A connection that does not close is dropped.
        () = goodbye => Ok(()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(served?)
}

async fn tick(sessions: Arc<Sessions>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => sessions.handle(Event::Tick),
        }
    }
}

struct Enrolment {
    authority: Arc<Authority>,
    token: JoinToken,
}

struct Service {
    /// `None` when the cluster is insecure.
    enrolment: Option<Enrolment>,
    sessions: Arc<Sessions>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    /// Who calls; with a join token, only somebody with a certificate.
    fn caller<T>(&self, request: &Request<T>) -> Result<PeerIdentity, Status> {
        let peer = *request
            .extensions()
            .get::<PeerIdentity>()
            .ok_or_else(|| Status::internal("the connection has no address"))?;
        if self.enrolment.is_some() && peer.public_key.is_none() {
            return Err(Status::unauthenticated("this call needs a certificate of the cluster: enrol first"));
        }
        Ok(peer)
    }
}

#[tonic::async_trait]
impl Scheduler for Service {
    type SessionStream = ReceiverStream<Result<SchedulerMessage, Status>>;

    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let Some(enrolment) = &self.enrolment else {
            return Err(Status::failed_precondition(
                "this scheduler runs without a join token (insecure): nodes need none",
            ));
        };
        let peer = request
            .extensions()
            .get::<PeerIdentity>()
            .ok_or_else(|| Status::internal("the connection has no address"))?;
        let address = peer.address;
        match enrolment.authority.enroll(&enrolment.token, request.get_ref(), address.ip()) {
            Ok(response) => {
                tracing::info!(%address, "a node got a certificate");
                Ok(Response::new(response))
            }
            Err(refused) => {
                tracing::warn!(%address, %refused, "a node got no certificate");
                Err(refused.into())
            }
        }
    }

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = self.caller(&request)?;
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIME, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("a session begins with a hello"))??;
        let info = wire::hello(first, &caller)?;
        let node = info.node;
        let (session, stream) = self.sessions.begin(info, &self.stop)?;
        let sessions = Arc::clone(&self.sessions);
        self.tasks.spawn(async move {
            // However this task ends, the node is gone then.
            let session = session;
            let ended = listen(&sessions, &session, &mut messages).await;
            tracing::info!(%node, address = %caller.address, ended, "session ended");
        });
        Ok(Response::new(stream))
    }

    async fn cluster(&self, request: Request<ClusterRequest>) -> Result<Response<ClusterResponse>, Status> {
        self.caller(&request)?;
        Ok(Response::new(self.sessions.cluster()))
    }
}

/// Hears a node until its session ends; says why.
async fn listen(
    sessions: &Sessions,
    session: &sessions::Session,
    messages: &mut Streaming<NodeMessage>,
) -> String {
    loop {
        let message = tokio::select! {
            () = session.ended() => return session.why(),
            message = messages.message() => message,
        };
        let said = match message {
            Ok(Some(message)) => wire::said(session.peer(), message),
            Ok(None) => return "the node closed it".to_owned(),
            Err(status) => return status.message().chars().take(200).collect(),
        };
        match said {
            Ok(Some(event)) => sessions.handle(event),
            Ok(None) => {}
            Err(error) => {
                session.refuse(Status::invalid_argument(error.to_string()));
                return error.to_string();
            }
        }
    }
}

/// For logs and errors: whom a hello names.
fn named(node: &[u8]) -> String {
    NodeId::try_from(node).map_or_else(|_| "nobody".to_owned(), |node| node.short())
}
