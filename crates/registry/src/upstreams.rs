//! Which upstreams may be asked because the *network* named them.
//!
//! A proxy header, `?ns=`, an absolute URL, a redirect and a locator from another node are all words of
//! somebody else. What such words may name is decided here, before any request:
//!
//! * hosts that the configuration lists, private ones too;
//! * with `dynamic`, every other host as long as its addresses are public, which is checked on the address
//!   that the connection goes to ([`crate::Zone`]);
//! * nothing else. Only `http` and `https`, no user names in URLs.

use regex::Regex;
use url::{Host, Url};

use crate::zone::{BeyondCeiling, Zone};

/// One entry of the allow-list. Every part that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamRule {
    /// The host's exact name or address.
    pub host: Option<String>,
    /// A regular expression for the host's name. One that matches the whole name allows private addresses;
    /// one that matches a part of it (`mirror` in `mirror.evil.example`) allows public ones only.
    pub regx: Option<String>,
    /// Ports; any if empty.
    pub ports: Vec<u16>,
}

/// How far a named upstream may be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// The configuration names it: its addresses may lie anywhere.
    Listed,
    /// Nobody named it but the network: its addresses must not lie further inside than this.
    UpTo(Zone),
}

/// The allow-list.
#[derive(Clone, Debug, Default)]
pub struct Upstreams {
    rules: Vec<CompiledRule>,
    dynamic: bool,
}

#[derive(Clone, Debug)]
struct CompiledRule {
    host: Option<String>,
    regex: Option<Regex>,
    ports: Vec<u16>,
}

/// Why an upstream is not asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Neither listed nor allowed by `dynamic`.
    #[error(
        "upstream {0} is not on the allow-list: add it to proxy.whiteList, or set registryMirror.dynamic"
    )]
    NotListed(String),
    /// It lies inside and is not listed.
    #[error("{0}: add the host and its port to proxy.whiteList if that is meant")]
    Beyond(#[from] BeyondCeiling),
    /// Not a URL that can be asked.
    #[error("upstream {0:?} cannot be asked: {1}")]
    Url(String, &'static str),
    /// The configuration has a regular expression that is none.
    #[error("the expression {0:?} of the allow-list is wrong: {1}")]
    Regex(String, String),
}

impl Upstreams {
    /// An allow-list of `rules`; with `dynamic`, public hosts that no rule names are allowed too.
    ///
    /// # Errors
    /// That an expression cannot be compiled.
    pub fn new(rules: &[UpstreamRule], dynamic: bool) -> Result<Self, UpstreamError> {
        let rules = rules.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { rules, dynamic })
    }

    /// Adds a host that the configuration names elsewhere, such as a registry mirror's URL.
    #[must_use]
    pub fn with_listed(mut self, url: &Url) -> Self {
        if let Some(host) = host_text(url) {
            let ports = url.port_or_known_default().into_iter().collect();
            self.rules.push(CompiledRule { host: Some(host), regex: None, ports });
        }
        self
    }

    /// Decides about `url`, which the network named.
    ///
    /// # Errors
    /// Why it must not be asked.
    pub fn decide(&self, url: &Url) -> Result<Allowed, UpstreamError> {
        check_form(url)?;
        let host = host_text(url).ok_or_else(|| UpstreamError::Url(name_of(url), "it has no host"))?;
        let port = url.port_or_known_default().unwrap_or(0);
        let mut public = self.dynamic;
        for rule in &self.rules {
            match rule.matches(&host, port) {
                Some(Allowed::Listed) => return Ok(Allowed::Listed),
                Some(Allowed::UpTo(_)) => public = true,
                None => {}
            }
        }
        if !public {
            return Err(UpstreamError::NotListed(name_of(url)));
        }
        check_literal(url, Zone::Public)?;
        Ok(Allowed::UpTo(Zone::Public))
    }

    /// Whether the configuration lists the host and port of `url`, so that it may lie anywhere.
    pub fn lists(&self, url: &Url) -> bool {
        matches!(self.decide(url), Ok(Allowed::Listed))
    }
}

impl CompiledRule {
    fn matches(&self, host: &str, port: u16) -> Option<Allowed> {
        if !self.ports.is_empty() && !self.ports.contains(&port) {
            return None;
        }
        if self.host.as_ref().is_some_and(|named| named != host) {
            return None;
        }
        match &self.regex {
            None => Some(Allowed::Listed),
            Some(regex) => {
                let found = regex.find(host)?;
                let whole = found.start() == 0 && found.end() == host.len();
                Some(if whole || self.host.is_some() { Allowed::Listed } else { Allowed::UpTo(Zone::Public) })
            }
        }
    }
}

fn compile(rule: &UpstreamRule) -> Result<CompiledRule, UpstreamError> {
    let wrong = |regx: &str, reason: String| UpstreamError::Regex(regx.to_owned(), reason);
    let regex = match rule.regx.as_deref().filter(|regx| !regx.is_empty()) {
        Some(regx) => Some(Regex::new(regx).map_err(|error| wrong(regx, error.to_string()))?),
        None => None,
    };
    let host = rule.host.as_deref().filter(|host| !host.is_empty()).map(normal_host);
    if host.is_none() && regex.is_none() {
        return Err(wrong("", "the entry has neither host nor regx".to_owned()));
    }
    Ok(CompiledRule { host, regex, ports: rule.ports.clone() })
}

/// The configuration's spelling of a host, as `url` spells it.
fn normal_host(host: &str) -> String {
    let bare = host.trim_end_matches('.');
    match bare.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => bare.to_ascii_lowercase(),
    }
}

/// The host without a trailing dot, which would name the same machine in other letters.
fn host_text(url: &Url) -> Option<String> {
    url.host_str().map(|host| host.trim_end_matches('.').to_owned()).filter(|host| !host.is_empty())
}

/// Scheme and host of a URL: all of it that is fit for a message.
pub(crate) fn name_of(url: &Url) -> String {
    let mut name = format!("{}://{}", url.scheme(), url.host_str().unwrap_or(""));
    if let Some(port) = url.port() {
        name = format!("{name}:{port}");
    }
    name
}

/// Refuses what no upstream looks like.
pub(crate) fn check_form(url: &Url) -> Result<(), UpstreamError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UpstreamError::Url(name_of(url), "only http and https are"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UpstreamError::Url(name_of(url), "it carries a user name"));
    }
    Ok(())
}

/// Refuses an IP address in a URL that lies beyond `ceiling`: such a host is never resolved.
pub(crate) fn check_literal(url: &Url, ceiling: Zone) -> Result<(), BeyondCeiling> {
    let address = match url.host() {
        Some(Host::Ipv4(v4)) => v4.into(),
        Some(Host::Ipv6(v6)) => v6.into(),
        _ => return Ok(()),
    };
    let zone = Zone::of(address);
    if zone <= ceiling { Ok(()) } else { Err(BeyondCeiling { host: address.to_string(), zone, ceiling }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(rules: &[UpstreamRule], dynamic: bool) -> Upstreams {
        Upstreams::new(rules, dynamic).unwrap()
    }

    fn rule(host: &str, ports: &[u16]) -> UpstreamRule {
        UpstreamRule { host: Some(host.to_owned()), regx: None, ports: ports.to_vec() }
    }

    /// Spellings of places that a dynamic proxy must never be talked into asking.
    #[test]
    fn tricks() {
        let dynamic = list(&[], true);
        for trick in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://017700000001/",
            "http://0/",
            "http://0.0.0.0:8080/",
            "http://[::]/",
            "http://[::1]:5000/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://10.0.0.1/",
            "http://172.16.0.1/",
            "http://192.168.0.1:65001/",
            "http://100.64.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://2852039166/",
            "http://169.254.43518/",
            "http://１２７.0.0.1/",
            "http://127。0。0。1/",
            "http://user@8.8.8.8/",
            "http://user:pass@8.8.8.8/",
            "http://8.8.8.8@127.0.0.1/",
            "file:///etc/passwd",
            "ftp://8.8.8.8/",
            "gopher://8.8.8.8/",
            "unix:/run/containerd.sock",
            "data:text/plain,x",
        ] {
            let url = Url::parse(trick).unwrap();
            assert!(dynamic.decide(&url).is_err(), "{trick} would be asked as {url}");
        }
        for public in ["https://registry-1.docker.io/", "http://8.8.8.8/", "https://ghcr.io:443/"] {
            let url = Url::parse(public).unwrap();
            assert_eq!(dynamic.decide(&url).unwrap(), Allowed::UpTo(Zone::Public), "{public}");
        }
        // Line breaks never survive parsing.
        assert!(!Url::parse("http://a.example/\r\nX: y").unwrap().as_str().contains(['\r', '\n']));
    }

    #[test]
    fn a_listed_host_may_be_private_at_its_port_alone() {
        let upstreams = list(&[rule("10.0.0.2", &[5000]), rule("Harbor.internal", &[])], false);
        let decide = |text: &str| upstreams.decide(&Url::parse(text).unwrap());
        assert_eq!(decide("http://10.0.0.2:5000/"), Ok(Allowed::Listed));
        assert_eq!(decide("https://harbor.internal/"), Ok(Allowed::Listed));
        assert_eq!(decide("https://HARBOR.internal.:8443/"), Ok(Allowed::Listed));
        for refused in ["http://10.0.0.2/", "http://10.0.0.3:5000/", "https://a.harbor.internal/"] {
            assert!(decide(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn an_expression_that_matches_a_part_of_a_name_opens_nothing_private() {
        let regx = UpstreamRule { regx: Some("harbor\\.internal".to_owned()), ..UpstreamRule::default() };
        let upstreams = list(&[regx], false);
        let decide = |text: &str| upstreams.decide(&Url::parse(text).unwrap());
        assert_eq!(decide("https://harbor.internal/"), Ok(Allowed::Listed));
        assert_eq!(decide("https://harbor.internal.evil.example/"), Ok(Allowed::UpTo(Zone::Public)));
        assert!(decide("https://other.example/").is_err());
    }

    #[test]
    fn an_entry_that_would_allow_everything_is_refused() {
        assert!(Upstreams::new(&[UpstreamRule::default()], false).is_err());
        let wrong = UpstreamRule { regx: Some("(".to_owned()), ..UpstreamRule::default() };
        assert!(Upstreams::new(&[wrong], false).is_err());
    }
}
