//! The scheduler's door: connections, after their handshake, as a stream that a gRPC server takes.
//!
//! Handshakes run beside each other, bounded in number and time, so that a client that says nothing keeps
//! nobody waiting. A failed handshake is logged and forgotten.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::Stream;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::authority::AuthorityError;
use crate::security::SecurityError;
use crate::tls::{self, Clients};
use crate::{Authority, NodeKey, PeerIdentity, SecureStream};

/// Handshakes at once. Each holds a socket and some kilobytes.
const MAX_HANDSHAKES: usize = 128;
/// Longest handshake.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Pause after the system refused a connection (too many open files): accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The scheduler's certificate is made anew after this time, long before it ends.
const RENEW_AFTER: Duration = Duration::from_hours(24);

/// Takes connections for a scheduler.
#[derive(Clone)]
pub struct Acceptor(Option<Arc<TlsDoor>>);

struct TlsDoor {
    authority: Arc<Authority>,
    current: Mutex<(Instant, Arc<ServerConfig>)>,
}

impl Acceptor {
    /// Connections as they are: the cluster is insecure by explicit choice.
    pub const fn insecure() -> Self {
        Self(None)
    }

    /// TLS with a certificate of `authority`. A client may show none (to enrol), but no bad one.
    ///
    /// # Errors
    /// If the scheduler's certificate cannot be made.
    pub fn tls(authority: Arc<Authority>) -> Result<Self, AuthorityError> {
        let config = scheduler_config(&authority)?;
        Ok(Self(Some(Arc::new(TlsDoor { authority, current: Mutex::new((Instant::now(), config)) }))))
    }

    async fn accept(&self, tcp: TcpStream, address: SocketAddr) -> Result<SecureStream, SecurityError> {
        let Some(door) = &self.0 else {
            return Ok(SecureStream::plain(tcp, PeerIdentity { address, public_key: None }));
        };
        accept_tls(tcp, address, door.config()).await
    }
}

impl TlsDoor {
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0.elapsed() > RENEW_AFTER {
            match scheduler_config(&self.authority) {
                Ok(config) => *current = (Instant::now(), config),
                Err(error) => tracing::error!(%error, "cannot renew the scheduler's certificate"),
            }
        }
        Arc::clone(&current.1)
    }
}

/// The scheduler's key is made anew with its certificate and never stored.
fn scheduler_config(authority: &Authority) -> Result<Arc<ServerConfig>, AuthorityError> {
    let key = NodeKey::generate()?;
    let certificate = authority.issue_scheduler(&key.public_key())?;
    Ok(Arc::new(tls::server_config(authority.certificate(), certificate, &key, Clients::AlsoUnknown)?))
}

/// The server's side of a handshake. Who showed a certificate without an Ed25519 key is refused.
pub(crate) async fn accept_tls(
    tcp: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
) -> Result<SecureStream, SecurityError> {
    let handshake = TlsAcceptor::from(config).accept(tcp);
    let stream = tokio::time::timeout(HANDSHAKE_TIME, handshake)
        .await
        .map_err(|_| SecurityError::Timeout { address })?
        .map_err(|source| SecurityError::Handshake { address, source })?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    let public_key = match shown {
        None => None,
        Some(certificate) => {
            Some(tls::public_key_of(certificate).ok_or(SecurityError::ForeignKey { address })?)
        }
    };
    Ok(SecureStream::tls(stream.into(), PeerIdentity { address, public_key }))
}

/// The connections of `listener`, each after its handshake. Ends never; dropping it closes the door and
/// ends handshakes under way.
pub fn incoming(
    listener: TcpListener,
    acceptor: Acceptor,
) -> impl Stream<Item = io::Result<SecureStream>> + Send {
    let door = Door { listener, acceptor, handshakes: JoinSet::new() };
    futures::stream::unfold(door, |mut door| async move { Some((Ok(door.next().await), door)) })
}

struct Door {
    listener: TcpListener,
    acceptor: Acceptor,
    handshakes: JoinSet<Result<SecureStream, SecurityError>>,
}

impl Door {
    async fn next(&mut self) -> SecureStream {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.handshakes.len() < MAX_HANDSHAKES => {
                    self.begin(accepted).await;
                }
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(stream)) => return stream,
                    Ok(Err(error)) if error.is_hang_up() => tracing::debug!(%error, "connection without a word"),
                    Ok(Err(error)) => tracing::warn!(%error, "connection refused"),
                    Err(error) => tracing::error!(%error, "handshake broke off"),
                },
            }
        }
    }

    async fn begin(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((tcp, address)) => {
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%error, %address, "cannot set TCP_NODELAY");
                }
                let acceptor = self.acceptor.clone();
                self.handshakes.spawn(async move { acceptor.accept(tcp, address).await });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
