//! One stream type for plain and encrypted connections, and who is at its other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::NodeId;

/// Who is at the other end of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerIdentity {
    /// The address that the connection comes from, or went to. Observed, never told.
    pub address: SocketAddr,
    /// The key in the peer's certificate, which the peer has proved to hold. `None` on a plain stream, and
    /// for a client that showed no certificate where none is demanded.
    pub public_key: Option<[u8; 32]>,
}

impl PeerIdentity {
    /// The name that follows from the key.
    pub fn node(&self) -> Option<NodeId> {
        self.public_key.as_ref().map(NodeId::of)
    }
}

/// A byte stream to another member of the cluster.
pub struct SecureStream {
    inner: Inner,
    peer: PeerIdentity,
}

enum Inner {
    Plain(TcpStream),
    // TLS state is a thousand bytes and more.
    Tls(Box<TlsStream<TcpStream>>),
}

impl SecureStream {
    pub(crate) const fn plain(tcp: TcpStream, peer: PeerIdentity) -> Self {
        Self { inner: Inner::Plain(tcp), peer }
    }

    pub(crate) fn tls(stream: TlsStream<TcpStream>, peer: PeerIdentity) -> Self {
        Self { inner: Inner::Tls(Box::new(stream)), peer }
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> PeerIdentity {
        self.peer
    }

    /// The socket below, for its options. Reading or writing it would break the stream.
    pub fn tcp(&self) -> &TcpStream {
        match &self.inner {
            Inner::Plain(tcp) => tcp,
            Inner::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Connected for SecureStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Inner::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Inner::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Inner::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Plain(tcp) => tcp.is_write_vectored(),
            Inner::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Inner::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Inner::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}
