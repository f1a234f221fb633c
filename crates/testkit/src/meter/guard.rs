//! A door before the registry: bearer tokens as the distribution specification has them, and short-lived ones.
//!
//! Whoever comes without a token is told where tokens are, at `/token` of the same host; there a user's name and password
//! are asked for. A token is good for a number of requests and has then expired: a clock would make tests wait, and a
//! number says exactly in the middle of what it happens.

use std::collections::HashMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

/// Lets through who has a token.
#[derive(Debug)]
pub struct Guard {
    /// What `/token` asks for, as basic authentication spells it.
    basic: String,
    requests_per_token: u64,
    given: u64,
    left: HashMap<String, u64>,
}

impl Guard {
    /// A guard that gives tokens to this user, each for so many requests.
    pub fn new(user: &str, password: &str, requests_per_token: u64) -> Self {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        Self { basic, requests_per_token, given: 0, left: HashMap::new() }
    }

    /// How many tokens were given out.
    pub(super) fn tokens(&self) -> u64 {
        self.given
    }

    /// The answer that a request gets instead of the registry's, if it is not let through.
    pub(super) fn judge<B>(
        &mut self,
        request: &Request<B>,
    ) -> Option<Response<UnsyncBoxBody<Bytes, io::Error>>> {
        let authorization = field(request.headers(), &header::AUTHORIZATION);
        if request.uri().path() == "/token" {
            return Some(if authorization == self.basic {
                self.given += 1;
                let token = format!("token-{}", self.given);
                self.left.insert(token.clone(), self.requests_per_token);
                answer(StatusCode::OK, None, &format!(r#"{{"token": "{token}", "expires_in": 300}}"#))
            } else {
                answer(StatusCode::UNAUTHORIZED, None, r#"{"details": "wrong user name or password"}"#)
            });
        }
        match authorization.strip_prefix("Bearer ").and_then(|token| self.left.get_mut(token)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                None
            }
            known => {
                let error = if known.is_some() { r#",error="invalid_token""# } else { "" };
                let host = field(request.headers(), &header::HOST);
                let scope = scope(request.method(), request.uri().path());
                let challenge = format!(r#"Bearer realm="http://{host}/token",service="lab"{scope}{error}"#);
                let body = r#"{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}"#;
                Some(answer(StatusCode::UNAUTHORIZED, Some(&challenge), body))
            }
        }
    }
}

/// What must be allowed for a request, in the words of a challenge; nothing for `/v2/` itself.
fn scope(method: &Method, path: &str) -> String {
    let path = path.strip_prefix("/v2/").unwrap_or_default();
    let kinds = ["/blobs/", "/manifests/", "/tags/", "/referrers/"];
    let repository = kinds.iter().find_map(|kind| path.split_once(kind)).map(|(repository, _)| repository);
    let actions = if matches!(*method, Method::GET | Method::HEAD) { "pull" } else { "pull,push" };
    repository.map_or_else(String::new, |name| format!(r#",scope="repository:{name}:{actions}""#))
}

fn field(headers: &HeaderMap, name: &header::HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn answer(
    status: StatusCode,
    challenge: Option<&str>,
    body: &str,
) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
    let body = Full::new(Bytes::from(body.to_owned())).map_err(|never| match never {});
    let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    if let Some(challenge) = challenge {
        response = response.header(header::WWW_AUTHENTICATE, challenge);
    }
    response.body(body.boxed_unsync()).expect("a well-formed answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(guard: &mut Guard, path: &str, authorization: &str) -> Option<(u16, String)> {
        let request = Request::get(path)
            .header("host", "lab:5000")
            .header("authorization", authorization)
            .body(())
            .unwrap();
        guard.judge(&request).map(|answer| {
            let challenge = field(answer.headers(), &header::WWW_AUTHENTICATE);
            (answer.status().as_u16(), challenge)
        })
    }

    #[test]
    fn a_token_is_for_who_knows_the_password_and_for_so_many_requests() {
        let mut guard = Guard::new("anna", "secret", 2);
        let (status, challenge) = ask(&mut guard, "/v2/a/b/blobs/sha256:1", "").unwrap();
        assert_eq!(status, 401);
        assert_eq!(
            challenge,
            r#"Bearer realm="http://lab:5000/token",service="lab",scope="repository:a/b:pull""#
        );
        let basic = |password: &str| format!("Basic {}", STANDARD.encode(format!("anna:{password}")));
        assert_eq!(ask(&mut guard, "/token", &basic("wrong")).unwrap().0, 401);
        assert_eq!(ask(&mut guard, "/token", &basic("secret")).unwrap().0, 200);
        for _ in 0..2 {
            assert_eq!(ask(&mut guard, "/v2/", "Bearer token-1"), None);
        }
        let (status, challenge) = ask(&mut guard, "/v2/", "Bearer token-1").unwrap();
        assert!(status == 401 && challenge.ends_with(r#",error="invalid_token""#), "{challenge}");
        assert_eq!(guard.tokens(), 1);
    }
}
