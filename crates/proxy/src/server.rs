//! Accepting connections, and the way of one request.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use content::ContentOpener;
use http::header::{PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, VIA};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use registry::{Client, Upstream, Upstreams};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ProxyError;
use crate::answer::{Blame, Body, error};
use crate::blob::{self, Outcome};
use crate::config::ProxyConfig;
use crate::grants::Grants;
use crate::headers::{OUTPUT_PATH, value};
use crate::pass::pass;
use crate::route;
use crate::rules::Rules;
use crate::tunnel::tunnel;

/// A caller that does not finish its head in this time, or says nothing on an idle connection, is let go.
const HEAD_LIMIT: Duration = Duration::from_mins(1);
/// How long answers under way may go on after the stop.
const GRACE: Duration = Duration::from_secs(10);
/// HTTP/2 windows for callers: blobs are large.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Requests of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;

/// What all requests share.
pub(crate) struct Shared {
    mirror_client: Client,
    forward_client: Client,
    pub(crate) forward_upstreams: Upstreams,
    pub(crate) has_white_list: bool,
    pub(crate) opener: Arc<dyn ContentOpener>,
    pub(crate) grants: Grants,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    mirror: Upstream,
    mirror_is_direct: bool,
    rules: Rules,
    /// Hash of the expected `Proxy-Authorization`: compared in constant time, whatever its length.
    basic_auth: Option<[u8; 32]>,
    /// This proxy's name in `Via`: a request that carries it has come in a circle.
    via: String,
}

impl Shared {
    /// The client whose allow-list fits the form of the request.
    pub(crate) fn client(&self, mirror: bool) -> &Client {
        if mirror { &self.mirror_client } else { &self.forward_client }
    }

    /// Leaves this proxy's name in a request.
    pub(crate) fn add_via(&self, headers: &mut HeaderMap) {
        headers.append(VIA, value(&format!("1.1 {}", self.via)));
    }

    fn new(
        config: &ProxyConfig,
        client: &Client,
        opener: Arc<dyn ContentOpener>,
        stop: CancellationToken,
    ) -> Result<Self, ProxyError> {
        let forward_upstreams = config.forward_upstreams(client)?;
        let basic_auth = config.basic_auth.as_ref().map(|auth| {
            let expected = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
            Sha256::digest(format!("Basic {expected}")).into()
        });
        Ok(Self {
            mirror_client: client.with_upstreams(config.upstreams(client)?),
            forward_client: client.with_upstreams(forward_upstreams.clone()),
            forward_upstreams,
            has_white_list: !config.white_list.is_empty(),
            opener,
            grants: Grants::default(),
            stop,
            tasks: TaskTracker::new(),
            mirror: config.mirror(client)?,
            mirror_is_direct: config.registry_mirror.direct,
            rules: Rules::new(&config.rules)?,
            basic_auth,
            via: format!("pantala-{:016x}", RandomState::new().hash_one(0)),
        })
    }
}

/// Serves the proxy on `listener` until `stop` is cancelled, then lets answers under way end.
///
/// # Errors
/// That the configuration is wrong. Once it serves, it serves until it is stopped.
pub async fn serve(
    listener: TcpListener,
    config: ProxyConfig,
    client: Client,
    opener: Arc<dyn ContentOpener>,
    stop: CancellationToken,
) -> Result<(), ProxyError> {
    let shared = Arc::new(Shared::new(&config, &client, opener, stop.clone())?);
    let room = Arc::new(Semaphore::new(config.max_connections.max(1)));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, _)) => {
                let connection = connection(Arc::clone(&shared), tcp);
                shared.tasks.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, or a caller that went away: neither is a reason to stop serving.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    shared.tasks.close();
    if tokio::time::timeout(GRACE, shared.tasks.wait()).await.is_err() {
        tracing::warn!("connections are cut that did not end in {} s", GRACE.as_secs());
    }
    Ok(())
}

async fn connection(shared: Arc<Shared>, tcp: TcpStream) {
    let _ = tcp.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(HEAD_LIMIT);
    let stop = shared.stop.clone();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(handle(&shared, request).await) }
    });
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The way of one request.
async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    if !may_use(shared, request.headers()) {
        let mut response =
            error(StatusCode::PROXY_AUTHENTICATION_REQUIRED, Blame::Proxy, "this proxy wants a password");
        response
            .headers_mut()
            .insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"pantala\""));
        return response;
    }
    if request.method() == Method::CONNECT {
        return tunnel(shared, request).await;
    }
    if request.headers().contains_key(OUTPUT_PATH) {
        let message = "X-Dragonfly-Output-Path is refused: this node opens no path that a request names";
        return error(StatusCode::BAD_REQUEST, Blame::Proxy, message);
    }
    let came_back = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains(&shared.via));
    if request.headers().get_all(VIA).iter().any(came_back) {
        let message = "this proxy was asked by itself: its mirror or a rule leads back to it";
        return error(StatusCode::LOOP_DETECTED, Blame::Proxy, message);
    }
    let route = match route::find(&request, &shared.mirror, shared.client(true)) {
        Ok(route) => route,
        Err(none) => return error(none.status, none.blame, &none.message),
    };
    let asked = route.url.origin();
    let decision = shared.rules.decide(route.url);
    // Only the mirror's own certificate may go unchecked, not that of a host that a rule leads to.
    let insecure = route.insecure && decision.url.origin() == asked;
    let direct = !decision.p2p || (route.mirror && shared.mirror_is_direct);
    if request.method() == Method::GET
        && !direct
        && let Some(found) = route::blob(&decision.url, insecure)
    {
        let outcome = blob::serve(shared, &found, &decision.url, request.headers(), route.mirror).await;
        if let Outcome::Answer(response) = outcome {
            return response;
        }
    }
    pass(shared, request, decision.url, insecure, route.mirror).await
}

fn may_use(shared: &Shared, headers: &HeaderMap) -> bool {
    let Some(expected) = &shared.basic_auth else { return true };
    let shown = headers.get(PROXY_AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let shown: [u8; 32] = Sha256::digest(shown).into();
    shown.iter().zip(expected).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}
