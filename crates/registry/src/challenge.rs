//! `WWW-Authenticate`: what a registry wants to see before it answers.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// One way to prove who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// The token server's URL.
        realm: String,
        /// What the token is for.
        service: Option<String>,
        /// The scope that the registry asked for.
        scope: Option<String>,
    },
}

/// The challenge to answer: a bearer token if the registry takes one, else a password.
pub fn strongest(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<Challenge> = texts.flat_map(parse).collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(challenges.first()).cloned()
}

/// All challenges of one header line. Schemes that are not known are passed over.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let scheme_end = rest.find(' ').unwrap_or(rest.len());
        let (scheme, after) = rest.split_at(scheme_end);
        let (parameters, after) = parameters(after);
        let get = |name: &str| {
            let hit = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            hit.map(|(_, value)| value.clone())
        };
        if scheme.trim_end_matches(',').eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
        rest = after.trim_start_matches([' ', ',']);
    }
    found
}

/// `key="value", key=value, …` up to the next scheme, and what follows.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = text.trim_start_matches([' ', ',']);
        let key_end =
            start.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(start.len());
        let (key, after_key) = start.split_at(key_end);
        let Some(value) = after_key.trim_start().strip_prefix('=').filter(|_| !key.is_empty()) else {
            return (found, start);
        };
        let value = value.trim_start();
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            quoted_string(quoted)
        } else {
            let end = value.find([',', ' ']).unwrap_or(value.len());
            let (value, after) = value.split_at(end);
            (value.to_owned(), after)
        };
        found.push((key.to_owned(), value));
        text = after;
    }
}

/// The text up to the closing quote, and what follows it.
fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        for (text, expected) in [
            (r#"Basic realm="basic-realm""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/python:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/python:pull"),
                )],
            ),
            (
                r#"bearer realm="https://a/t?x=1,2" , error="invalid \"token\"""#,
                vec![bearer("https://a/t?x=1,2", None, None)],
            ),
            (
                r#"Negotiate, Basic realm="x", Bearer realm=https://a/t,scope="repository:a:pull,push""#,
                vec![Challenge::Basic, bearer("https://a/t", None, Some("repository:a:pull,push"))],
            ),
            ("", vec![]),
            ("Bearer", vec![]),
            (r#"Bearer realm="unfinished"#, vec![bearer("unfinished", None, None)]),
            ("=,=,=", vec![]),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
