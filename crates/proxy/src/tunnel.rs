//! `CONNECT`: a tunnel that is not looked into.
//!
//! Where it may lead: hosts of the white list, anywhere; without a white list, public and private hosts as
//! with any forward proxy, at ports where something other than mail or a shell usually listens. Never to this
//! machine itself or to link-local addresses unless they are listed: whoever can reach the proxy could
//! otherwise reach what only this machine should.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use registry::{Allowed, Zone, below_ceiling};
use tokio::net::TcpStream;
use url::Url;

use crate::answer::{Blame, Body, error, full};
use crate::server::Shared;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Opens a tunnel, or says why not.
pub(crate) async fn tunnel(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let Some(authority) = request.uri().authority().cloned() else {
        return error(StatusCode::BAD_REQUEST, Blame::Proxy, "CONNECT needs host:port");
    };
    let target = match dial(shared, authority.host(), authority.port_u16()).await {
        Ok(target) => target,
        Err((status, message)) => {
            let blame = if status == StatusCode::FORBIDDEN { Blame::Proxy } else { Blame::Backend };
            return error(status, blame, &message);
        }
    };
    let stop = shared.stop.clone();
    shared.tasks.spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let (mut caller, mut target) = (TokioIo::new(upgraded), target);
        tokio::select! {
            () = stop.cancelled() => {}
            copied = tokio::io::copy_bidirectional(&mut caller, &mut target) => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "a tunnel broke");
                }
            }
        }
    });
    Response::new(full(""))
}

type Refusal = (StatusCode, String);

async fn dial(shared: &Shared, host: &str, port: Option<u16>) -> Result<TcpStream, Refusal> {
    let bad = |message: &str| (StatusCode::BAD_REQUEST, message.to_owned());
    let port = port.ok_or_else(|| bad("CONNECT needs host:port"))?;
    let url =
        Url::parse(&format!("https://{host}:{port}/")).map_err(|_| bad("CONNECT to what is no host"))?;
    let ceiling = ceiling(shared, &url, port).map_err(|message| (StatusCode::FORBIDDEN, message))?;
    // The URL's host and not the caller's spelling: decimal and octal addresses are plain ones now.
    let name = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let connect = async {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), port))
            .await
            .map_err(|error| (StatusCode::BAD_GATEWAY, format!("looking up {name}: {error}")))?
            .collect();
        let allowed = below_ceiling(&name, &found, ceiling).map_err(|beyond| {
            (StatusCode::FORBIDDEN, format!("{beyond}: add it to proxy.whiteList if that is meant"))
        })?;
        TcpStream::connect(allowed.as_slice())
            .await
            .map_err(|error| (StatusCode::BAD_GATEWAY, format!("connecting to {name}:{port}: {error}")))
    };
    let late = || (StatusCode::GATEWAY_TIMEOUT, format!("{name}:{port} does not answer"));
    let tcp = tokio::time::timeout(CONNECT_LIMIT, connect).await.map_err(|_| late())??;
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// How far inside a tunnel may lead.
fn ceiling(shared: &Shared, url: &Url, port: u16) -> Result<Zone, String> {
    if shared.forward_upstreams.decide(url) == Ok(Allowed::Listed) {
        return Ok(Zone::Special);
    }
    if shared.has_white_list {
        return Err(format!("{}:{port} is not on proxy.whiteList", url.host_str().unwrap_or_default()));
    }
    if !matches!(port, 80 | 443 | 1024..) {
        return Err(format!("tunnels to port {port} need an entry in proxy.whiteList"));
    }
    Ok(Zone::Private)
}
