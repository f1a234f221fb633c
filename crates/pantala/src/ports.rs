//! Binding ports and waiting for the end, with errors that say what to do.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on `address` for `what`; `key` is the setting that moves it elsewhere.
///
/// # Errors
/// With the reason, and what to do about it.
pub fn bind(address: SocketAddr, what: &str, key: &str) -> anyhow::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A node that is restarted at once must not wait for its old connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address).and_then(|()| socket.listen(BACKLOG)).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("another process has that port: stop it (`ss -ltnp` shows it), or set {key}")
            }
            std::io::ErrorKind::AddrNotAvailable => format!("this machine has no such address: set {key}"),
            std::io::ErrorKind::PermissionDenied => format!("ports below 1024 need root: set {key}"),
            _ => format!("set {key} to listen elsewhere"),
        };
        anyhow::anyhow!("cannot listen on {address} for {what}: {error}; {advice}")
    })
}

/// Signals within this time are one wish: `timeout`, shells and supervisors send it to the process and to its
/// group.
const ONE_WISH: std::time::Duration = std::time::Duration::from_millis(500);

/// A token that is cancelled by SIGINT or SIGTERM. A second signal ends the process at once, mounts and all.
///
/// # Errors
/// If the signals cannot be watched.
pub fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
    let cancelled = token.clone();
    // Lives as long as the process: it is the one that hears the second signal.
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        tracing::info!("stopping");
        cancelled.cancel();
        let began = tokio::time::Instant::now();
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if began.elapsed() >= ONE_WISH {
                break;
            }
        }
        tracing::warn!("stopped by a second signal before everything was put away");
        std::process::exit(130);
    });
    Ok(token)
}

/// Cancels `hand_over` and then `shutdown` on SIGUSR2: the supervisor wants another process to go on.
///
/// # Errors
/// If the signal cannot be watched.
pub fn hand_over_on_signal(hand_over: CancellationToken, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut wish = signal(SignalKind::user_defined2()).context("cannot watch SIGUSR2")?;
    // Lives as long as the process, as the signal may come at any time.
    tokio::spawn(async move {
        if wish.recv().await.is_some() {
            tracing::info!("handing over");
            hand_over.cancel();
            shutdown.cancel();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_told_with_the_setting_that_moves_it() {
        let first = bind(([127, 0, 0, 1], 0).into(), "pieces", "upload.tcpListen.port").unwrap();
        let error =
            bind(first.local_addr().unwrap(), "pieces", "upload.tcpListen.port").unwrap_err().to_string();
        assert!(error.contains("another process") && error.contains("upload.tcpListen.port"), "{error}");
    }
}
