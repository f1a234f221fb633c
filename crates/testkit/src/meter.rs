//! What stands before the registry: it counts, delays and, when told to, misbehaves.
//!
//! It is an HTTP/1.1 reverse proxy on a thread of its own that lives in a host's network namespace.
//! *Counting* knows blobs by their digest and their ranges, so that bytes asked for twice can be told from bytes
//! needed once. Bytes are counted when they are handed to the connection: a client that hangs up is charged with
//! what it got. *Delay* acts like distance: half of the round trip before a request goes on, half on every
//! frame of the answer, all frames on the way at the same time, so that throughput does not suffer; a new
//! connection waits a round trip, as its handshake would.

mod body;
mod guard;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use content::RangeSet;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::net::Host;

use body::{Entry, measured, range_start, shorten};

pub use guard::Guard;

/// How the meter treats everybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct MeterOptions {
    /// The round trip that it pretends.
    pub round_trip: Duration,
}

/// How it misbehaves, from now on, with new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    /// Not at all.
    #[default]
    Honest,
    /// Every request, of whatever kind, is answered with this status.
    Status(u16),
    /// The connection breaks after so many bytes of a blob.
    CutAfter(u64),
    /// The header of a blob comes, its bytes never.
    Stall,
    /// The same, for ranges alone: lazy readers wait for ever, whoever wants a blob as a whole is served.
    StallRanges,
    /// One bit is wrong in every part of a blob that is sent: no range of it arrives right, however it is cut.
    Flip,
    /// A whole blob is sent as if it ended after so many bytes: its length says so too, and no range begins after them.
    Short(u64),
}

/// One answered request.
#[derive(Debug, Clone)]
pub struct Access {
    /// When it came, from the start of the meter.
    pub at: Duration,
    /// The method.
    pub method: Method,
    /// The path without the query.
    pub path: String,
    /// The `Range` field as it came.
    pub range: Option<String>,
    /// The `User-Agent` field.
    pub agent: Option<String>,
    /// The status that was answered.
    pub status: u16,
    /// Bytes of the body that were handed over.
    pub bytes: u64,
}

impl Access {
    /// The digest in the path of a blob.
    pub fn blob(&self) -> Option<&str> {
        self.path.rsplit_once("/blobs/").map(|(_, digest)| digest).filter(|digest| digest.contains(':'))
    }
}

/// What was asked and answered since the last reset.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Every request in the order of arrival.
    pub accesses: Vec<Access>,
    /// Bytes of each blob that were handed over at least once.
    pub unique: BTreeMap<String, RangeSet>,
}

impl Counts {
    /// GET requests for blobs.
    pub fn blob_requests(&self) -> u64 {
        self.blobs().count() as u64
    }

    /// Bytes of blobs that were handed over, however often.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs().map(|access| access.bytes).sum()
    }

    /// Bytes of blobs that were handed over at least once.
    pub fn unique_bytes(&self) -> u64 {
        self.unique.values().map(RangeSet::len).sum()
    }

    /// Bytes that were handed over, however often, of those blobs whose digest is `wanted`.
    pub fn bytes_of(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.blobs().filter(|access| access.blob().is_some_and(&wanted)).map(|access| access.bytes).sum()
    }

    /// The requests for blobs.
    pub fn blobs(&self) -> impl Iterator<Item = &Access> {
        self.accesses.iter().filter(|access| access.method == Method::GET && access.blob().is_some())
    }
}

/// The running meter. Ends when dropped.
#[derive(Debug)]
pub struct Meter {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    ledger: Mutex<Ledger>,
    behaviour: Mutex<Behaviour>,
    guard: Mutex<Option<Guard>>,
    started: Instant,
    round_trip: Duration,
    behind: SocketAddr,
    end: CancellationToken,
}

/// The counts, and how often they were reset: an answer that is on its way through a reset goes on as a new entry.
#[derive(Debug, Default)]
struct Ledger {
    resets: u64,
    counts: Counts,
}

impl Meter {
    /// Listens at `front` on `host` and passes on to `behind`.
    pub fn start(host: &Host, front: SocketAddr, behind: SocketAddr, options: MeterOptions) -> Result<Self> {
        let state = Arc::new(State {
            ledger: Mutex::default(),
            behaviour: Mutex::default(),
            guard: Mutex::default(),
            started: Instant::now(),
            round_trip: options.round_trip,
            behind,
            end: CancellationToken::new(),
        });
        let (ready, listening) = std::sync::mpsc::channel();
        let (host, shared) = (host.clone(), Arc::clone(&state));
        let thread = std::thread::Builder::new().name("meter".into()).spawn(move || {
            // One thread for all of it: only this one has entered the host.
            let setup = || -> Result<_> {
                host.enter()?;
                let listener =
                    TcpListener::bind(front).with_context(|| format!("cannot listen at {front}"))?;
                listener.set_nonblocking(true)?;
                Ok((listener, tokio::runtime::Builder::new_current_thread().enable_all().build()?))
            };
            match setup() {
                Ok((listener, runtime)) => {
                    let _ = ready.send(Ok(()));
                    runtime.block_on(accept(listener, shared));
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        listening.recv().context("the meter's thread ended")??;
        Ok(Self { state, thread: Some(thread) })
    }

    /// What was counted since the last reset.
    pub fn counts(&self) -> Counts {
        self.state.ledger.lock().unwrap().counts.clone()
    }

    /// Counts anew from here; answers what there was.
    pub fn reset(&self) -> Counts {
        let mut ledger = self.state.ledger.lock().unwrap();
        ledger.resets += 1;
        std::mem::take(&mut ledger.counts)
    }

    /// From now on only who has a token of this guard gets through.
    pub fn guard(&self, guard: Guard) {
        *self.state.guard.lock().unwrap() = Some(guard);
    }

    /// How many tokens the guard has given out.
    pub fn tokens(&self) -> u64 {
        self.state.guard.lock().unwrap().as_ref().map_or(0, Guard::tokens)
    }

    /// Changes how it behaves.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.state.end.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;
type Upstream = Client<HttpConnector, Incoming>;

async fn accept(listener: TcpListener, state: Arc<State>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("inside a runtime");
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let upstream: Upstream = Client::builder(TokioExecutor::new()).build(connector);
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, _)| stream),
            () = state.end.cancelled() => break,
        };
        // An accept fails when the client has gone again: the next one counts.
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let (state, upstream) = (Arc::clone(&state), upstream.clone());
        connections.spawn(async move {
            tokio::time::sleep(state.round_trip).await;
            let service = hyper::service::service_fn(|request| {
                let (state, upstream) = (Arc::clone(&state), upstream.clone());
                async move { Ok::<_, Infallible>(answer(request, &state, &upstream).await) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::select! {
                // A client that hangs up is no error of the meter's.
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
                () = state.end.cancelled() => {}
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn answer(request: Request<Incoming>, state: &Arc<State>, upstream: &Upstream) -> Answer {
    tokio::time::sleep(state.round_trip / 2).await;
    let behaviour = *state.behaviour.lock().unwrap();
    let mut access = Access {
        at: state.started.elapsed(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        range: text(request.headers(), header::RANGE),
        agent: text(request.headers(), header::USER_AGENT),
        status: 0,
        bytes: 0,
    };
    let refusal = state.guard.lock().unwrap().as_mut().and_then(|guard| guard.judge(&request));
    let answered = match (refusal, behaviour) {
        (Some(refusal), _) => Ok(refusal),
        (None, Behaviour::Status(code)) => Err(StatusCode::from_u16(code).expect("a status")),
        (None, _) => match pass_on(request, state, upstream).await {
            Ok(response) => Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync())),
            Err(_) => Err(StatusCode::BAD_GATEWAY),
        },
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(status) => {
            let reason = Full::new(Bytes::from_static(b"the meter has no answer\n"));
            let mut response = Response::new(reason.map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = status;
            response
        }
    };
    access.status = response.status().as_u16();
    let offset = if access.status == 206 { range_start(response.headers()) } else { 0 };
    // Only blobs are spoilt: everything else must arrive for a blob to be asked for at all.
    let is_blob = access.method == Method::GET && access.blob().is_some();
    let behaviour = match behaviour {
        _ if !is_blob => Behaviour::Honest,
        Behaviour::StallRanges if access.range.is_some() => Behaviour::Stall,
        Behaviour::Short(len) => {
            let left = shorten(&mut response, offset, len);
            access.status = response.status().as_u16();
            Behaviour::Short(left)
        }
        _ => behaviour,
    };
    let entry = Entry::new(Arc::clone(state), access, offset);
    let response = response.map(|body| measured(body, entry, behaviour));
    tokio::time::sleep(state.round_trip / 2).await;
    response
}

async fn pass_on(
    mut request: Request<Incoming>,
    state: &State,
    upstream: &Upstream,
) -> Result<Response<Incoming>> {
    // `Host` stays what the client said: the registry builds its locations from it.
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(state.behind.to_string().parse()?);
    *request.uri_mut() = Uri::from_parts(uri)?;
    Ok(upstream.request(request).await?)
}

fn text(headers: &HeaderMap, name: http::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cage::{self, Cage, Needs};
    use crate::http;
    use crate::image::{Entry as File, Image, layer};
    use crate::net::Network;
    use crate::registry::Registry;

    const ACCEPT: (&str, &str) = ("accept", "application/vnd.oci.image.manifest.v1+json");

    /// A registry with one image of one layer; the layer's path and length.
    fn lab(cage: &Cage, options: MeterOptions) -> Result<(Registry, String, u64)> {
        let registry =
            Registry::start(&Network::new(cage)?.host("registry")?, &cage.dir().join("registry"), options)?;
        let image = Image::new(&[layer(&[File::file("data", vec![b'x'; 3_000_000])])?]);
        image.push(registry.back(), "lab/one", "latest")?;
        let blob = &image.layers[0];
        Ok((registry, format!("/v2/lab/one/blobs/{}", blob.digest), blob.bytes.len() as u64))
    }

    #[test]
    fn ranges_are_counted_once_and_twice() {
        cage::test(Needs::Registry, |cage| {
            let (registry, path, len) = lab(cage, MeterOptions::default())?;
            for range in ["bytes=0-999", "bytes=500-1499", "bytes=0-999"] {
                let response = http::get(registry.front(), &path, &[("range", range)])?;
                assert_eq!((response.status, response.body.len()), (206, 1000));
            }
            let counts = registry.meter.reset();
            assert_eq!((counts.blob_requests(), counts.blob_bytes(), counts.unique_bytes()), (3, 3000, 1500));
            let whole = http::get(registry.front(), &path, &[])?;
            assert_eq!(whole.body.len() as u64, len);
            http::get(registry.front(), "/v2/lab/one/manifests/latest", &[ACCEPT])?.success()?;
            let counts = registry.meter.counts();
            assert_eq!((counts.blob_requests(), counts.unique_bytes(), counts.accesses.len()), (1, len, 2));
            Ok(())
        });
    }

    #[test]
    fn distance_costs_time_and_no_bandwidth() {
        cage::test(Needs::Registry, |cage| {
            let (registry, path, len) = lab(cage, MeterOptions { round_trip: Duration::from_millis(20) })?;
            let start = std::time::Instant::now();
            assert_eq!(http::get(registry.front(), &path, &[])?.body.len() as u64, len);
            // One round trip for the connection, one for the answer, however many frames it has.
            assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
            println!("{len} bytes over 20 ms took {:?}", start.elapsed());
            Ok(())
        });
    }

    #[test]
    fn it_misbehaves_with_blobs_as_it_is_told() {
        cage::test(Needs::Registry, |cage| {
            let (registry, path, len) = lab(cage, MeterOptions::default())?;
            let honest = http::get(registry.front(), &path, &[])?.body;
            registry.meter.behave(Behaviour::CutAfter(1000));
            let cut = http::get(registry.front(), &path, &[])?;
            assert_eq!((cut.status, cut.body.len(), cut.complete), (200, 1000, false));
            registry.meter.behave(Behaviour::Flip);
            let flipped = http::get(registry.front(), &path, &[])?.body;
            assert_eq!((flipped.len(), flipped[0] ^ 1), (honest.len(), honest[0]));
            registry.meter.behave(Behaviour::Short(1000));
            let short = http::get(registry.front(), &path, &[])?;
            assert_eq!((short.status, short.body.len(), short.complete), (200, 1000, true));
            let short = http::get(registry.front(), &path, &[("range", "bytes=400-")])?;
            assert_eq!((short.status, short.body.len()), (206, 600));
            assert_eq!(short.header("content-range"), Some("bytes 400-999/1000"));
            assert_eq!(http::get(registry.front(), &path, &[("range", "bytes=1000-")])?.status, 416);
            registry.meter.behave(Behaviour::Status(503));
            assert_eq!(http::get(registry.front(), &path, &[])?.status, 503);
            registry.meter.behave(Behaviour::Honest);
            assert_eq!(registry.meter.counts().blob_bytes(), 2 * len + 2600 + 24);
            Ok(())
        });
    }
}
