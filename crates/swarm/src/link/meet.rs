//! How two nodes meet: dialling, accepting, and the hellos.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::{NodeId, PeerIdentity, SecureStream};
use proto::peer::{self, PeerHello, peer_message::Kind};
use store::PIECE;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::run;
use crate::node::{Node, lock};
use crate::wire::{self, PROTOCOL, WireError};

/// Until both sides have said hello.
const HELLO_TIME: Duration = Duration::from_secs(5);

/// A node that could not be reached is not dialled again for so long.
const REDIAL: Duration = Duration::from_secs(2);

/// Connections that may be in their handshake at once.
const HANDSHAKES: usize = 64;

/// Accepts neighbours until the node shuts down.
pub(crate) async fn accept(node: Arc<Node>, listener: TcpListener) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = node.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, address)) => {
                let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
                let serving = Arc::clone(&node);
                node.tracker.spawn(async move {
                    let answered = answer(&serving, tcp).await;
                    drop(permit);
                    match answered {
                        Ok(ready) => run(serving, ready).await,
                        Err(error) => tracing::debug!(%address, %error, "a connection came to nothing"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly. Nothing tells when there are some again.
                tracing::warn!(%error, "cannot accept a neighbour");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Connects to a node, unless there is a stream already or one is being made, or could not be made just now.
pub(crate) fn dial(node: &Arc<Node>, id: NodeId, address: SocketAddr) {
    let (linked, have) = {
        let links = lock(&node.links);
        (links.len(), links.contains_key(&id))
    };
    if have || node.is_banned(&id) || linked >= node.config.limits.links {
        return;
    }
    {
        let mut dialled = lock(&node.dialled);
        dialled.retain(|_, at| at.elapsed() < REDIAL);
        if dialled.insert(id, Instant::now()).is_some() {
            return;
        }
    }
    let dialling = Arc::clone(node);
    node.tracker.spawn(async move {
        let attempt = tokio::select! {
            () = dialling.cancel.cancelled() => Err("shutting down".to_owned()),
            attempt = call(&dialling, id, address) => attempt,
        };
        match attempt {
            Ok(ready) => {
                lock(&dialling.dialled).remove(&id);
                run(dialling, ready).await;
            }
            Err(error) => tracing::debug!(node = ?id, %address, %error, "cannot reach a neighbour"),
        }
    });
}

/// A stream after the hellos.
pub(super) struct Ready {
    pub(super) stream: SecureStream,
    pub(super) hello: PeerHello,
    pub(super) node: NodeId,
    pub(super) dialled: bool,
}

async fn call(node: &Node, id: NodeId, address: SocketAddr) -> Result<Ready, String> {
    let (stream, peer) = node.config.security.connect(address).await.map_err(|error| error.to_string())?;
    let ready = greet(node, stream, peer, true).await?;
    if ready.node != id {
        return Err(format!("{address} is {:?}, not the node that was named", ready.node));
    }
    Ok(ready)
}

async fn answer(node: &Node, tcp: TcpStream) -> Result<Ready, String> {
    let accepted = tokio::time::timeout(HELLO_TIME, node.config.security.accept(tcp)).await;
    let (stream, peer) = accepted.map_err(|_| "no handshake in time")?.map_err(|error| error.to_string())?;
    greet(node, stream, peer, false).await
}

/// Says hello and hears it. In a mutual cluster the key must be that of the certificate.
async fn greet(
    node: &Node,
    mut stream: SecureStream,
    peer: PeerIdentity,
    dialled: bool,
) -> Result<Ready, String> {
    let ours = Kind::Hello(PeerHello {
        protocol: PROTOCOL,
        node: node.id.as_bytes().to_vec(),
        public_key: node.config.key.public_key().to_vec(),
        seed: node.config.seed,
        piece_size: PIECE,
    });
    let exchange = async {
        stream.write_all(&wire::frame(ours)).await.map_err(WireError::Io)?;
        stream.flush().await.map_err(WireError::Io)?;
        first(&mut stream).await
    };
    let hello = tokio::time::timeout(HELLO_TIME, exchange)
        .await
        .map_err(|_| "no hello in time")?
        .map_err(|error| error.to_string())?;
    let key: [u8; 32] = hello.public_key.as_slice().try_into().map_err(|_| "a key of the wrong length")?;
    let id = NodeId::of(&key);
    if hello.node != id.as_bytes() {
        return Err("a name that is not that of the key".into());
    }
    if peer.public_key.is_some_and(|certified| certified != key) {
        return Err("a key that is not that of the certificate".into());
    }
    if (hello.protocol, hello.piece_size) != (PROTOCOL, PIECE) {
        return Err(format!("protocol {} with pieces of {} bytes", hello.protocol, hello.piece_size));
    }
    if id == node.id || node.is_banned(&id) {
        return Err("itself, or a node that lied".into());
    }
    Ok(Ready { stream, hello, node: id, dialled })
}

/// The hello, read byte for byte: what follows it belongs to the reader task.
async fn first(stream: &mut SecureStream) -> Result<PeerHello, WireError> {
    use tokio::io::AsyncReadExt;
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not a hello");
    let len = stream.read_u32().await?;
    if len > 1024 {
        return Err(bad().into());
    }
    let mut frame = vec![0; len as usize];
    stream.read_exact(&mut frame).await?;
    match prost::Message::decode(&frame[..]).map(|message: peer::PeerMessage| message.kind)? {
        Some(Kind::Hello(hello)) => Ok(hello),
        _ => Err(bad().into()),
    }
}
