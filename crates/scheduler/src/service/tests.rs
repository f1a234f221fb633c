//! The service over real sockets, with sessions made by hand.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use identity::{NodeKey, Security, enroll};
use proto::cluster::node_message::Kind as Say;
use proto::cluster::scheduler_client::SchedulerClient;
use proto::cluster::scheduler_message::Kind;
use proto::cluster::{Have, Hello, LeaseReport, LeaseState, MoreNeighbours, Open, Opened, PieceRange, Want};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Code;

use super::*;
use crate::core::{PIECE_SIZE, PROTOCOL};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CONTENT: &str = "claimed-0123";
const LENGTH: u64 = 10 * PIECE_SIZE as u64;
/// Far beyond what anything here takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_mins(1);

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    async fn start(security: SchedulerSecurity, dir: &Path) -> Self {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let config = SchedulerConfig { data_dir: dir.to_owned(), security };
        let task = tokio::spawn(serve(listener, config, stop.clone()));
        Self { address, stop, task }
    }

    async fn insecure() -> Self {
        Self::start(SchedulerSecurity::Insecure, Path::new("/nonexistent")).await
    }

    fn client(&self, security: &Security) -> SchedulerClient<tonic::transport::Channel> {
        SchedulerClient::new(security.channel(&self.address.to_string()))
    }
}

fn hello(key: &NodeKey, port: u32) -> Hello {
    Hello {
        node: key.id().as_bytes().to_vec(),
        public_key: key.public_key().to_vec(),
        hostname: "test".into(),
        piece_port: port,
        protocol: PROTOCOL,
        ..Hello::default()
    }
}

struct Node {
    to: mpsc::Sender<NodeMessage>,
    from: Streaming<SchedulerMessage>,
}

impl Node {
    async fn connect(server: &Server, security: &Security, hello: Hello) -> Result<Self, Status> {
        let (to, stream) = mpsc::channel(64);
        to.send(NodeMessage { kind: Some(Say::Hello(hello)) }).await.unwrap();
        let from = server.client(security).session(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { to, from })
    }

    async fn join(server: &Server, key: &NodeKey, port: u32) -> Self {
        let mut node = Self::connect(server, &Security::Insecure, hello(key, port)).await.unwrap();
        let Some(Kind::Welcome(welcome)) = node.hear().await else { panic!("no welcome") };
        assert_eq!((welcome.protocol, welcome.piece_size), (PROTOCOL, PIECE_SIZE));
        node
    }

    async fn say(&self, kind: Say) {
        self.to.send(NodeMessage { kind: Some(kind) }).await.unwrap();
    }

    /// The next message; `None` when the session has ended.
    async fn hear(&mut self) -> Option<Kind> {
        let message = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("silence");
        message.ok().flatten().and_then(|message| message.kind)
    }

    /// Skips messages until `wanted` takes one.
    async fn hear_until<T>(&mut self, wanted: impl Fn(&Kind) -> Option<T>) -> T {
        loop {
            let message = self.hear().await.expect("the session ended");
            if let Some(taken) = wanted(&message) {
                return taken;
            }
        }
    }

    async fn want_blocking(&self, start: u32, end: u32) {
        let want = Want {
            content: CONTENT.into(),
            length: LENGTH,
            piece_size: PIECE_SIZE,
            blocking: vec![PieceRange { start, end }],
            ..Want::default()
        };
        self.say(Say::Want(want)).await;
    }
}

#[tokio::test]
async fn from_hello_to_neighbours() {
    let server = Server::insecure().await;
    let (key_a, key_b) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let mut a = Node::join(&server, &key_a, 7001).await;
    let mut b = Node::join(&server, &key_b, 7002).await;

    a.say(Say::Open(Open { content: CONTENT.into(), locator: None })).await;
    assert!(matches!(a.hear().await, Some(Kind::LookUp(_))));
    b.say(Say::Open(Open { content: CONTENT.into(), locator: None })).await;
    a.say(Say::Opened(Opened { content: CONTENT.into(), length: LENGTH, error: String::new() })).await;
    let length = b.hear_until(|m| if let Kind::Length(l) = m { Some(l.length) } else { None }).await;
    assert_eq!(length, LENGTH);

    a.want_blocking(2, 5).await;
    let lease = a.hear_until(|m| if let Kind::Lease(l) = m { Some(l.clone()) } else { None }).await;
    assert_eq!(lease.pieces, Some(PieceRange { start: 2, end: 5 }));
    let done = LeaseReport {
        content: CONTENT.into(),
        lease: lease.lease,
        state: LeaseState::Done.into(),
        error: String::new(),
    };
    a.say(Say::Lease(done)).await;

    b.want_blocking(2, 5).await;
    let neighbours = b
        .hear_until(|m| match m {
            Kind::Neighbours(n) if !n.nodes.is_empty() => Some(n.clone()),
            _ => None,
        })
        .await;
    assert_eq!(neighbours.nodes[0].node, key_a.id().as_bytes());
    // Observed address, told port.
    assert_eq!(neighbours.nodes[0].address, "127.0.0.1:7001");
    assert!(neighbours.readers.contains(&key_a.id().as_bytes().to_vec()));

    let cluster = server.client(&Security::Insecure).cluster(ClusterRequest {}).await.unwrap().into_inner();
    assert_eq!((cluster.nodes.len(), cluster.contents), (2, 1));

    drop(a);
    let gone = b.hear_until(|m| if let Kind::Gone(g) = m { Some(g.node.clone()) } else { None }).await;
    assert_eq!(gone, key_a.id().as_bytes());
}

#[tokio::test]
async fn a_node_that_comes_again_replaces_its_session() {
    let server = Server::insecure().await;
    let key = NodeKey::generate().unwrap();
    let mut first = Node::join(&server, &key, 7001).await;
    let second = Node::join(&server, &key, 7001).await;
    assert!(first.hear().await.is_none(), "the first session goes on");
    let cluster = server.client(&Security::Insecure).cluster(ClusterRequest {}).await.unwrap().into_inner();
    assert_eq!(cluster.nodes.len(), 1);
    drop(second);
}

#[tokio::test]
async fn nonsense_ends_a_session_with_the_reason() {
    let server = Server::insecure().await;
    let key = NodeKey::generate().unwrap();
    let mut node = Node::join(&server, &key, 7001).await;
    node.want_blocking(2, 4_000_000).await;
    let status = tokio::time::timeout(PATIENCE, node.from.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("4000000"), "{status}");
}

#[tokio::test]
async fn a_node_that_does_not_read_is_dropped_and_the_others_go_on() {
    let server = Server::insecure().await;
    let (deaf_key, key) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let deaf = Node::join(&server, &deaf_key, 7001).await;
    let have = Have {
        content: CONTENT.into(),
        length: LENGTH,
        piece_size: PIECE_SIZE,
        pieces: vec![PieceRange { start: 0, end: 10 }],
        ..Have::default()
    };
    deaf.say(Say::Have(have)).await;
    let mut other = Node::join(&server, &key, 7002).await;
    other.want_blocking(0, 10).await;
    let Node { to, from } = deaf;
    let flood = tokio::spawn(async move {
        // Each is answered; `from` is never read.
        let more = MoreNeighbours { content: CONTENT.into() };
        while to.send(NodeMessage { kind: Some(Say::More(more.clone())) }).await.is_ok() {}
        drop(from);
    });
    let gone = other.hear_until(|m| if let Kind::Gone(g) = m { Some(g.node.clone()) } else { None }).await;
    assert_eq!(gone, deaf_key.id().as_bytes());
    flood.abort();
}

#[tokio::test]
async fn at_shutdown_sessions_end_and_everything_is_awaited() {
    let server = Server::insecure().await;
    let key = NodeKey::generate().unwrap();
    let mut node = Node::join(&server, &key, 7001).await;
    server.stop.cancel();
    assert!(node.hear().await.is_none());
    tokio::time::timeout(PATIENCE, server.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn with_a_token_only_enrolled_nodes_are_heard_and_only_under_their_own_key() {
    let dir = tempfile::tempdir().unwrap();
    let token: JoinToken = "a token of 16 or more".parse().unwrap();
    let server = Server::start(SchedulerSecurity::Token(token.clone()), &dir.path().join("scheduler")).await;
    let key = NodeKey::generate().unwrap();
    let address = server.address.to_string();
    let credentials = enroll(&address, &token, &key, HERE, &dir.path().join("node")).await.unwrap();
    let security = Security::Mutual(Arc::new(credentials));

    let mut node = Node::connect(&server, &security, hello(&key, 7001)).await.unwrap();
    assert!(matches!(node.hear().await, Some(Kind::Welcome(_))));
    server.client(&security).cluster(ClusterRequest {}).await.unwrap();

    let other = NodeKey::generate().unwrap();
    let refused = Node::connect(&server, &security, hello(&other, 7001)).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let newer = Hello { protocol: PROTOCOL + 1, ..hello(&key, 7001) };
    let refused = Node::connect(&server, &security, newer).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("same version"));

    // Plain text does not even get an answer.
    let refused = Node::connect(&server, &Security::Insecure, hello(&key, 7001)).await;
    assert!(refused.is_err());

    let wrong: JoinToken = "another token of 16+".parse().unwrap();
    let error = enroll(&address, &wrong, &other, HERE, &dir.path().join("other")).await.unwrap_err();
    assert!(error.to_string().starts_with("join token refused: "), "{error}");
}

#[tokio::test]
async fn an_insecure_scheduler_says_so_to_whoever_wants_to_enrol() {
    let server = Server::insecure().await;
    let key = NodeKey::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let token: JoinToken = "a token of 16 or more".parse().unwrap();
    let error = enroll(&server.address.to_string(), &token, &key, HERE, dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("security.insecure"), "{error}");
}
