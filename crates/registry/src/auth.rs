//! Answering a registry's challenge: a token for a scope, or a password, kept until it expires.
//!
//! Requests that need the same token at the same time share one fetch of it: when an image's layers are
//! opened together, the token server is asked once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::answer::{read_limited, status_error};
use crate::challenge::{Challenge, strongest};
use crate::client::Inner;
use crate::credentials::{Asked, Credential};
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::retry::Patience;
use crate::tls::Tls;
use crate::transport::{Reach, Request, Response, Trust, reach_of};
use crate::upstreams::name_of;

/// What a token server that names no time means, by Docker's token specification.
const DEFAULT_LIFE: u64 = 60;
/// Passwords are looked up again after this time, in case they were changed.
const BASIC_LIFE: Duration = Duration::from_mins(5);
/// A token is not used in its last seconds: it must still be good when it arrives.
const SAFETY: Duration = Duration::from_secs(5);
/// Tokens kept. Each is some KiB; old ones go first.
const MAX_TOKENS: usize = 1024;
/// An answer of a token server longer than this is none.
const MAX_ANSWER: usize = 1 << 20;

/// Host and scope.
type Key = (String, String);
/// The header, and which candidate's it is.
type Fetched = (HeaderValue, usize);
type Fetch = BoxFuture<'static, Result<Fetched, RegistryError>>;

/// The tokens at hand, and those on their way.
#[derive(Default)]
pub(crate) struct Tokens {
    kept: Mutex<HashMap<Key, (HeaderValue, Instant)>>,
    /// They belong to those who wait for them: one that nobody waits for any more is none.
    /// Each begins with one candidate among the credentials.
    flights: Mutex<HashMap<(Key, usize), WeakShared<Fetch>>>,
}

impl Tokens {
    /// The header for `scope` at `endpoint`, if one is at hand.
    pub(crate) fn get(&self, endpoint: &Endpoint, scope: &str) -> Option<HeaderValue> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (header, expires) = kept.get(&(endpoint.authority(), scope.to_owned()))?;
        (*expires > Instant::now()).then(|| header.clone())
    }

    fn keep(&self, key: Key, header: HeaderValue, life: Duration) {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_TOKENS {
            kept.retain(|_, (_, expires)| *expires > now);
        }
        if kept.len() >= MAX_TOKENS
            && let Some(oldest) =
                kept.iter().min_by_key(|(_, (_, expires))| *expires).map(|(key, _)| key.clone())
        {
            kept.remove(&oldest);
        }
        kept.insert(key, (header, now + life.saturating_sub(SAFETY)));
    }

    /// The fetch that is under way for `key`, or the one that `start` makes.
    fn flight(&self, key: &(Key, usize), start: impl FnOnce() -> Fetch) -> Shared<Fetch> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key).and_then(WeakShared::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.upgrade().is_some());
        let flight = start().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key.clone(), weak);
        }
        flight
    }

    /// Forgets a token that was refused, unless another one has taken its place.
    fn forget(&self, key: &Key, refused: &HeaderValue) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(key).is_some_and(|(header, _)| header == refused) {
            kept.remove(key);
        }
    }
}

/// What one fetch of a token needs to know.
struct Errand {
    doing: String,
    host: String,
    challenge: Challenge,
    scope: String,
    nth: usize,
    reach: Reach,
    tls: Arc<Tls>,
    realm: Option<Url>,
}

/// What an answer is wanted for.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub doing: &'a str,
    pub endpoint: &'a Endpoint,
    pub scope: &'a str,
    /// The first of the candidates among the credentials that was not refused yet.
    pub nth: usize,
}

/// Answers the challenge of `response`; `tried` was refused. `None` if there is nothing to answer with. Also tells which
/// candidate it is.
///
/// # Errors
/// That the token server refused, or could not be asked.
pub(crate) async fn answer(
    client: &Arc<Inner>,
    question: Question<'_>,
    response: &Response,
    tried: Option<&HeaderValue>,
) -> Result<Option<Fetched>, RegistryError> {
    let Question { doing, endpoint, scope, nth } = question;
    let Some(challenge) = strongest(response.headers()) else { return Ok(None) };
    let key = (endpoint.authority(), scope.to_owned());
    if let Some(tried) = tried {
        client.tokens.forget(&key, tried);
        // Somebody else may have got a newer one meanwhile.
        if let Some(newer) = client.tokens.get(endpoint, scope) {
            return Ok(Some((newer, nth)));
        }
    }
    let (realm, reach) = match &challenge {
        Challenge::Basic => (None, response.reach()),
        Challenge::Bearer { realm, .. } => {
            let (realm, reach) = check_realm(client, doing, realm, response)?;
            (Some(realm), reach)
        }
    };
    let same_host = realm.as_ref().is_some_and(|realm| realm.origin() == endpoint.base.origin());
    let tls = if same_host { Arc::clone(&endpoint.tls) } else { Arc::new(endpoint.tls.for_neighbours()) };
    let errand = Errand {
        doing: doing.to_owned(),
        host: endpoint.authority(),
        challenge,
        scope: scope.to_owned(),
        nth,
        reach,
        tls,
        realm,
    };
    let flight_key = (key, nth);
    let flight = client.tokens.flight(&flight_key, || {
        let (client, flight_key) = (Arc::clone(client), flight_key.clone());
        let fetch = async move {
            let fetched = fetch_any(&client, errand).await;
            if let Ok((header, life, _)) = &fetched {
                client.tokens.keep(flight_key.0.clone(), header.clone(), *life);
            }
            client.tokens.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&flight_key);
            fetched.map(|(header, _, used)| (header, used))
        };
        fetch.boxed()
    });
    let fetched = flight.await?;
    Ok(Some(fetched).filter(|(header, _)| !header.is_empty()))
}

/// The realm is a URL that an answer named: it may lie no further inside than the registry.
fn check_realm(
    client: &Inner,
    doing: &str,
    realm: &str,
    response: &Response,
) -> Result<(Url, Reach), RegistryError> {
    let url = response.url().join(realm).map_err(|error| RegistryError::Corrupt {
        doing: doing.to_owned(),
        host: name_of(response.url()),
        reason: format!("its token server {realm:?} is no URL: {error}"),
    })?;
    if response.url().scheme() == "https" && url.scheme() != "https" {
        return Err(RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(response.url()),
            reason: format!("it is asked over https and names the token server {} without", name_of(&url)),
        });
    }
    let reach = reach_of(&url, response, client.upstreams.as_deref())
        .map_err(|reason| RegistryError::Refused { doing: doing.to_owned(), reason })?;
    Ok((url, reach))
}

/// The header that the first candidate leads to which the token server does not refuse, how long it is good, and which
/// one it is. An empty header means that there is nothing to answer with.
async fn fetch_any(
    client: &Arc<Inner>,
    mut errand: Errand,
) -> Result<(HeaderValue, Duration, usize), RegistryError> {
    let mut refused = None;
    loop {
        let asked = Asked::of_scope(&errand.host, &errand.scope);
        let credential = match (client.credentials.candidate(&asked, errand.nth).await, refused) {
            (Ok(None) | Err(_), Some(error)) => return Err(error),
            // The candidates before were refused by the registry itself.
            (Ok(None), None) if errand.nth > 0 => {
                return Ok((HeaderValue::from_static(""), Duration::ZERO, errand.nth));
            }
            (Ok(found), _) => found,
            (Err(reason), None) => {
                return Err(RegistryError::Credentials { doing: errand.doing.clone(), reason });
            }
        };
        let is_somebody = credential.is_some();
        match fetch(client, &errand, credential).await {
            Ok((header, life)) => return Ok((header, life, errand.nth)),
            Err(error @ RegistryError::Status { status: 401 | 403, .. }) if is_somebody => {
                refused = Some(error);
                errand.nth += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn fetch(
    client: &Arc<Inner>,
    errand: &Errand,
    credential: Option<Credential>,
) -> Result<(HeaderValue, Duration), RegistryError> {
    if let Some(Credential::RegistryToken(token)) = &credential {
        return Ok((secret_header(&format!("Bearer {token}"), errand)?, BASIC_LIFE));
    }
    match (&errand.challenge, errand.realm.clone()) {
        (Challenge::Bearer { service, scope, .. }, Some(realm)) => {
            let service = service.clone().unwrap_or_default();
            let scope = with_challenge(&errand.scope, scope.as_deref().unwrap_or_default());
            fetch_token(client, errand, realm, &service, &scope, credential).await
        }
        _ => match credential {
            Some(Credential::Password { username, password }) => {
                Ok((basic(&username, &password, errand)?, BASIC_LIFE))
            }
            _ => Ok((HeaderValue::from_static(""), Duration::ZERO)),
        },
    }
}

/// The scopes that are needed, and what else the registry asks for: a mirror may keep a repository under
/// another name. What it asks for of the same resource says no more than we know.
fn with_challenge(needed: &str, asked_for: &str) -> String {
    let resource = |scope: &str| scope.rsplit_once(':').map(|(resource, _)| resource.to_owned());
    let mut scopes: Vec<&str> = needed.split(' ').filter(|scope| !scope.is_empty()).collect();
    for scope in asked_for.split(' ').filter(|scope| !scope.is_empty()) {
        if scopes.iter().all(|known| resource(known) != resource(scope)) {
            scopes.push(scope);
        }
    }
    scopes.join(" ")
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

async fn fetch_token(
    client: &Arc<Inner>,
    errand: &Errand,
    mut realm: Url,
    service: &str,
    scope: &str,
    credential: Option<Credential>,
) -> Result<(HeaderValue, Duration), RegistryError> {
    let doing = format!("{}: fetching a token", errand.doing);
    let mut headers = HeaderMap::new();
    let mut body = None;
    let mut method = Method::GET;
    if let Some(Credential::IdentityToken(refresh)) = &credential {
        // OAuth2 form of Docker's token specification.
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service)
            .append_pair("client_id", "pantala")
            .append_pair("scope", scope)
            .append_pair("refresh_token", refresh)
            .finish();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        body = Some(reqwest::Body::from(form));
        method = Method::POST;
    } else {
        let mut query = realm.query_pairs_mut();
        if !service.is_empty() {
            query.append_pair("service", service);
        }
        for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
        drop(query);
        if let Some(Credential::Password { username, password }) = &credential {
            headers.insert(AUTHORIZATION, basic(username, password, errand)?);
        }
    }
    let request = Request {
        doing: &doing,
        follow: method == Method::GET,
        method,
        url: realm,
        headers,
        body,
        trust: Trust::UpTo(errand.reach),
        tls: Arc::clone(&errand.tls),
        anew: false,
        timeout: Patience::control().answer,
    };
    let response = client.transport.send(request, client.upstreams.as_deref()).await?;
    let mut response = response.with_known(credential.is_some());
    if !response.status().is_success() {
        return Err(status_error(&doing, response).await.with_login(&errand.host));
    }
    let bytes = read_limited(&doing, &mut response, MAX_ANSWER, Patience::control().answer).await?;
    let corrupt = |reason: &str| RegistryError::Corrupt {
        doing: doing.clone(),
        host: name_of(response.url()),
        reason: reason.to_owned(),
    };
    let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| corrupt("no JSON with a token"))?;
    let token = answer.token.or(answer.access_token).ok_or_else(|| corrupt("JSON without a token"))?;
    let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, 86_400));
    Ok((secret_header(&format!("Bearer {token}"), errand)?, life))
}

fn basic(username: &str, password: &str, errand: &Errand) -> Result<HeaderValue, RegistryError> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))), errand)
}

/// A header value that `Debug` does not print.
fn secret_header(text: &str, errand: &Errand) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| RegistryError::Corrupt {
        doing: errand.doing.clone(),
        host: errand.host.clone(),
        reason: "a token or password that no header can carry".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}
