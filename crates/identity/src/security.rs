//! Dialling and accepting.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::incoming::{HANDSHAKE_TIME, accept_tls};
use crate::tls::{self, SCHEDULER_NAME};
use crate::{Credentials, PeerIdentity, SecureStream};

/// Longest wait for a TCP connection.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A silent connection to the scheduler is probed so often, and given up after one more such time.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Receive window of the connection to the scheduler: its messages are small.
const WINDOW: u32 = 256 * 1024;

/// How the members of a cluster talk to each other.
#[derive(Clone)]
pub enum Security {
    /// Plain TCP: an explicit choice for networks where every machine is trusted.
    Insecure,
    /// TLS 1.3; both sides show certificates of the cluster's authority.
    Mutual(Arc<Credentials>),
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// No TCP connection.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// Whom.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// No handshake: no TLS, a certificate of somebody else, for another address, or ended.
    #[error("{address} is not trusted, or does not trust this node: {source}")]
    Handshake {
        /// The other end.
        address: SocketAddr,
        /// What rustls says.
        source: io::Error,
    },
    /// The other end said nothing for too long.
    #[error("{address} does not answer the TLS handshake")]
    Timeout {
        /// The other end.
        address: SocketAddr,
    },
    /// A certificate of the authority, but not of a node.
    #[error("{address} has a certificate without an Ed25519 key")]
    ForeignKey {
        /// The other end.
        address: SocketAddr,
    },
}

impl SecurityError {
    /// Whether the other end only looked whether somebody listens, as load balancers and probes do.
    pub(crate) fn is_hang_up(&self) -> bool {
        let Self::Handshake { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
    }

    /// Whether it was the other side's certificate that was not accepted.
    fn is_about_certificate(&self) -> bool {
        let Self::Handshake { source, .. } = self else { return false };
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
    }
}

impl Security {
    /// Connects to another node. With [`Security::Mutual`] its certificate must be of the cluster's
    /// authority and carry `address`.
    ///
    /// # Errors
    /// [`SecurityError`].
    pub async fn connect(&self, address: SocketAddr) -> Result<(SecureStream, PeerIdentity), SecurityError> {
        let tcp = connect_tcp(address, None)
            .await
            .map_err(|source| SecurityError::Connect { to: address.to_string(), source })?;
        let stream = match self {
            Self::Insecure => SecureStream::plain(tcp, PeerIdentity { address, public_key: None }),
            Self::Mutual(credentials) => {
                let name = ServerName::from(address.ip().to_canonical());
                let client = Arc::clone(&credentials.material().client);
                connect_tls(tcp, address, name, client, Server::Node).await?
            }
        };
        let peer = stream.peer();
        Ok((stream, peer))
    }

    /// Takes a connection of another node. With [`Security::Mutual`] it must show a certificate of the
    /// cluster's authority.
    ///
    /// # Errors
    /// [`SecurityError`].
    pub async fn accept(&self, tcp: TcpStream) -> Result<(SecureStream, PeerIdentity), SecurityError> {
        let prepared = tcp.peer_addr().and_then(|address| tcp.set_nodelay(true).map(|()| address));
        let address =
            prepared.map_err(|source| SecurityError::Connect { to: "the caller".to_owned(), source })?;
        let stream = match self {
            Self::Insecure => SecureStream::plain(tcp, PeerIdentity { address, public_key: None }),
            Self::Mutual(credentials) => {
                accept_tls(tcp, address, Arc::clone(&credentials.material().server)).await?
            }
        };
        let peer = stream.peer();
        Ok((stream, peer))
    }

    /// A lazy connection to the scheduler (`host:port`), made again whenever it breaks. With
    /// [`Security::Mutual`] it leaves from the address in the certificate, and enrols again when the
    /// certificate has ended or the scheduler has another authority.
    pub fn channel(&self, scheduler: &str) -> Channel {
        let from = match self {
            Self::Insecure => None,
            Self::Mutual(credentials) => Some(credentials.address()),
        };
        self.channel_from(scheduler, from)
    }

    /// As [`Security::channel`], leaving from the local address `from` if that is possible: what the
    /// scheduler sees is the address that other nodes are told.
    pub fn channel_from(&self, scheduler: &str, from: Option<IpAddr>) -> Channel {
        let security = self.clone();
        let scheduler: Arc<str> = scheduler.into();
        let connector = tower::service_fn(move |_: Uri| {
            let (security, scheduler) = (security.clone(), Arc::clone(&scheduler));
            async move { security.reach_scheduler(&scheduler, from).await.map(TokioIo::new) }
        });
        endpoint().connect_with_connector_lazy(connector)
    }

    async fn reach_scheduler(
        &self,
        scheduler: &str,
        from: Option<IpAddr>,
    ) -> Result<SecureStream, SecurityError> {
        let Self::Mutual(credentials) = self else {
            let (tcp, address) = connect_by_name(scheduler, from).await?;
            return Ok(SecureStream::plain(tcp, PeerIdentity { address, public_key: None }));
        };
        if !credentials.is_valid_at(SystemTime::now()) {
            renew(credentials).await;
        }
        let client = Arc::clone(&credentials.material().client);
        match dial_scheduler(scheduler, from, client).await {
            Err(error) if error.is_about_certificate() => {
                tracing::warn!(%error, scheduler, "the scheduler has another authority, enrolling again");
                renew(credentials).await;
                dial_scheduler(scheduler, from, Arc::clone(&credentials.material().client)).await
            }
            other => other,
        }
    }
}

async fn renew(credentials: &Credentials) {
    if let Err(error) = credentials.renew().await {
        tracing::warn!(%error, "cannot enrol again");
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insecure => f.write_str("Insecure"),
            Self::Mutual(credentials) => write!(f, "Mutual({credentials:?})"),
        }
    }
}

fn endpoint() -> Endpoint {
    // The name is for HTTP's sake; the connector knows where to go. Plain `http` because the stream below
    // does the encryption.
    Endpoint::from_static("http://scheduler.pantala")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
}

/// A channel over `stream` that is not made again when it breaks.
pub(crate) async fn one_connection(stream: SecureStream) -> Result<Channel, String> {
    let once = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| error.to_string())
}

/// A TLS stream to the scheduler.
pub(crate) async fn dial_scheduler(
    scheduler: &str,
    from: Option<IpAddr>,
    client: Arc<ClientConfig>,
) -> Result<SecureStream, SecurityError> {
    let (tcp, address) = connect_by_name(scheduler, from).await?;
    let name = ServerName::try_from(SCHEDULER_NAME).map_err(|_| SecurityError::ForeignKey { address })?;
    connect_tls(tcp, address, name, client, Server::Scheduler).await
}

/// Who is dialled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Node,
    Scheduler,
}

async fn connect_tls(
    tcp: TcpStream,
    address: SocketAddr,
    name: ServerName<'static>,
    client: Arc<ClientConfig>,
    server: Server,
) -> Result<SecureStream, SecurityError> {
    let handshake = TlsConnector::from(client).connect(name, tcp);
    let stream = tokio::time::timeout(HANDSHAKE_TIME, handshake)
        .await
        .map_err(|_| SecurityError::Timeout { address })?
        .map_err(|source| SecurityError::Handshake { address, source })?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    let public_key = shown.and_then(tls::public_key_of);
    if server == Server::Node && public_key.is_none() {
        return Err(SecurityError::ForeignKey { address });
    }
    Ok(SecureStream::tls(stream.into(), PeerIdentity { address, public_key }))
}

async fn connect_by_name(to: &str, from: Option<IpAddr>) -> Result<(TcpStream, SocketAddr), SecurityError> {
    let failed = |source| SecurityError::Connect { to: to.to_owned(), source };
    let addresses = tokio::net::lookup_host(to).await.map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match connect_tcp(address, from).await {
            Ok(tcp) => return Ok((tcp, address)),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

async fn connect_tcp(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(CONNECT_TIME, async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from.filter(|from| from.is_ipv4() == to.is_ipv4() && !from.is_unspecified()) {
            // Not this machine's address (behind NAT): the other end will say what it sees.
            if let Err(error) = socket.bind(SocketAddr::new(from, 0)) {
                tracing::debug!(%from, %error, "cannot connect from the advertised address");
            }
        }
        socket.connect(to).await
    });
    let tcp = connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
