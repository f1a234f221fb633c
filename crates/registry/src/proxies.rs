//! Which requests go through an HTTP proxy: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`.
//!
//! The environment is read in one place ([`Proxies::from_env`]) and by Go's rules, because containerd and
//! Docker on the same machine follow them: upper case before lower case, `HTTP_PROXY` not in CGI programs,
//! this machine never by proxy, and in `NO_PROXY` a name stands for its subdomains too. `ALL_PROXY` is
//! curl's, for what the others do not name.
//!
//! A proxy resolves the names that it is given, so the check of addresses ([`crate::Zone`]) cannot hold for
//! what goes through one. Therefore only hosts that the user or the configuration named go there, and what
//! they redirect to, as something that lies outside; a host that merely the network named never does.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

use crate::error::RegistryError;

/// The proxies of a client.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Exceptions,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy's URL may hold a password.
        let host = |url: &Option<Url>| url.as_ref().map(crate::upstreams::name_of);
        f.debug_struct("Proxies")
            .field("http", &host(&self.http))
            .field("https", &host(&self.https))
            .field("exceptions", &self.exceptions)
            .finish()
    }
}

impl Proxies {
    /// Every request goes straight to its host.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of the environment.
    ///
    /// # Errors
    /// That a variable does not hold the URL of an HTTP proxy.
    pub fn from_env() -> Result<Self, RegistryError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Those that the variables of `get` name.
    ///
    /// # Errors
    /// That a variable does not hold the URL of an HTTP proxy.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, RegistryError> {
        let read = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()].into_iter().find_map(|name| {
                // In a CGI program, a request's header `Proxy:` becomes this variable.
                let forged = name == "HTTP_PROXY" && get("REQUEST_METHOD").is_some();
                let value = get(&name).filter(|value| !forged && !value.trim().is_empty())?;
                Some((name, value.trim().to_owned()))
            })
        };
        let url = |name: &str| read(name).map(|(name, text)| proxy_url(&name, &text)).transpose();
        let all = url("ALL_PROXY")?;
        Ok(Self {
            http: url("HTTP_PROXY")?.or_else(|| all.clone()),
            https: url("HTTPS_PROXY")?.or(all),
            exceptions: read("NO_PROXY").map(|(_, text)| Exceptions::read(&text)).unwrap_or_default(),
        })
    }

    /// The proxy for a request to `url`.
    pub(crate) fn of(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref(),
            "https" => self.https.as_ref(),
            _ => None,
        }?;
        (!self.exceptions.name(url)).then_some(proxy)
    }
}

/// `http://proxy:3128`, `proxy:3128`, with `user:password@` if need be.
fn proxy_url(variable: &str, text: &str) -> Result<Url, RegistryError> {
    let wrong = |reason: &str| {
        RegistryError::Setup(format!("{variable} {reason}: set it to a URL like http://proxy.example:3128"))
    };
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&whole).map_err(|_| wrong("holds no URL"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        scheme => Err(wrong(&format!("names a {scheme} proxy, and only http and https proxies are known"))),
    }
}

/// `NO_PROXY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Exceptions {
    everything: bool,
    entries: Vec<Exception>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    /// Addresses whose first bits are those of this one.
    Network(IpAddr, u8),
    /// A name (or address) in lower case, whether its subdomains are meant only, and its port.
    Name { name: String, below: bool, port: Option<u16> },
}

impl Exceptions {
    fn read(text: &str) -> Self {
        let mut read = Self::default();
        for entry in text.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                read.everything = true;
                continue;
            }
            if let Some(network) = network(entry) {
                read.entries.push(network);
                continue;
            }
            let (name, port) = match entry.rsplit_once(':') {
                Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().ok()),
                _ => (entry, None),
            };
            let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
            let bare = name.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
            let below = name.starts_with('.') || name.starts_with("*.");
            read.entries.push(Exception::Name { name: bare.to_owned(), below, port });
        }
        read
    }

    fn name(&self, url: &Url) -> bool {
        let (text, address) = match url.host() {
            Some(Host::Domain(name)) => (name.trim_end_matches('.').to_ascii_lowercase(), None),
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
            None => return true,
        };
        if self.everything || text == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let port_of_url = url.port_or_known_default();
        self.entries.iter().any(|entry| match entry {
            Exception::Network(network, bits) => {
                address.is_some_and(|address| is_inside(address, *network, *bits))
            }
            Exception::Name { name, below, port } => {
                let is_below = text.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (port.is_none() || *port == port_of_url) && (is_below || (!below && text == *name))
            }
        })
    }
}

/// `10.0.0.0/8`, `fd00::/8`.
fn network(entry: &str) -> Option<Exception> {
    let (address, bits) = entry.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some(Exception::Network(address, bits))
}

fn is_inside(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let differ = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => u128::from(address.to_bits() ^ network.to_bits()) << 96,
        (IpAddr::V6(address), IpAddr::V6(network)) => address.to_bits() ^ network.to_bits(),
        _ => return false,
    };
    differ.leading_zeros() >= u32::from(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, RegistryError> {
        Proxies::from_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn of(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.of(&Url::parse(url).unwrap()).map(Url::to_string)
    }

    #[test]
    fn variables_are_read_as_go_reads_them() {
        let some = |text: &str| Some(text.to_owned());
        let both =
            proxies(&[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1"), ("http_proxy", "c:2")]);
        let both = both.unwrap();
        assert_eq!(of(&both, "https://r.example/"), some("http://a:1/"));
        assert_eq!(of(&both, "http://r.example/"), some("http://c:2/"));
        let all = proxies(&[("ALL_PROXY", "a:1"), ("HTTP_PROXY", "b:1"), ("HTTPS_PROXY", " ")]).unwrap();
        assert_eq!(of(&all, "https://r.example/"), some("http://a:1/"));
        assert_eq!(of(&all, "http://r.example/"), some("http://b:1/"));
        let cgi = proxies(&[("HTTP_PROXY", "evil:1"), ("REQUEST_METHOD", "GET")]).unwrap();
        assert_eq!(of(&cgi, "http://r.example/"), None);
        assert_eq!(proxies(&[]).unwrap(), Proxies::none());
        for wrong in ["socks5://a:1", "http://", "ftp://a"] {
            let error = proxies(&[("HTTPS_PROXY", wrong)]).unwrap_err().to_string();
            assert!(error.contains("HTTPS_PROXY"), "{error}");
        }
    }

    #[test]
    fn exceptions_go_straight() {
        let list =
            "a.example, .b.example,*.c.example d.example:5000,10.0.0.0/8,192.168.1.1,[fd00::1]:1,fd01::/16";
        let proxies = proxies(&[("ALL_PROXY", "p:1"), ("NO_PROXY", list)]).unwrap();
        for (url, straight) in [
            ("https://a.example/", true),
            ("https://A.EXAMPLE./", true),
            ("https://x.a.example/", true),
            ("https://xa.example/", false),
            ("https://b.example/", false),
            ("https://x.b.example/", true),
            ("https://c.example/", false),
            ("https://x.c.example/", true),
            ("http://d.example:5000/", true),
            ("http://d.example/", false),
            ("https://10.1.2.3/", true),
            ("https://11.1.2.3/", false),
            ("https://192.168.1.1/", true),
            ("https://192.168.1.2/", false),
            ("http://[fd00::1]:1/", true),
            ("http://[fd00::1]:2/", false),
            ("http://[fd01::2]/", true),
            ("http://[fd02::2]/", false),
            // This machine never goes by proxy, listed or not.
            ("http://localhost:5000/", true),
            ("http://127.0.0.9:5000/", true),
            ("http://[::1]:5000/", true),
        ] {
            assert_eq!(of(&proxies, url).is_none(), straight, "{url}");
        }
        let everything = super::Proxies { exceptions: Exceptions::read("*"), ..proxies };
        assert_eq!(of(&everything, "https://r.example/"), None);
    }

    #[test]
    fn a_proxys_password_is_not_printed() {
        let proxies = proxies(&[("ALL_PROXY", "http://user:canary@p:1")]).unwrap();
        assert!(!format!("{proxies:?}").contains("canary"));
    }
}
