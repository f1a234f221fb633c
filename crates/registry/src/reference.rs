//! Names of images, by Docker's rules.
//!
//! `python` means `docker.io/library/python:latest`; the part before the first slash is a host only if it
//! has a dot, a colon or a capital letter in it, or is `localhost`. Docker Hub has several host names; they
//! are one registry here, called `docker.io`, so that content fetched under one name is found under another.

use std::fmt;
use std::str::FromStr;

use content::{Digest, DigestError};

/// The canonical name of Docker Hub.
pub const DOCKER_HUB: &str = "docker.io";

/// Longest repository name with its host, as in Docker's reference grammar.
const MAX_NAME: usize = 255;
/// Longest tag, as in the OCI distribution specification.
const MAX_TAG: usize = 128;

/// The name of an image in a registry: host, repository, and a tag, a digest or both.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image reference is empty: write it like registry.example/team/app:1.0")]
    Empty,
    /// A URL was given.
    #[error("{0:?} is a URL: write the image reference without {1}")]
    Scheme(String, String),
    /// An image's ID was given.
    #[error("{0}… is the ID of an image, and no registry knows those: write its name, or name@sha256:…")]
    Identifier(String),
    /// The part before the first slash is not a host.
    #[error("{0:?} is not a registry host, expected host[:port]")]
    Host(String),
    /// The repository does not follow the grammar.
    #[error(
        "{0:?} is not a repository name: write it in lower-case letters and digits, with single . _ - between \
         them, in parts divided by slashes, like team/app"
    )]
    Repository(String),
    /// Too many characters.
    #[error("the image reference is longer than {MAX_NAME} characters")]
    TooLong,
    /// The tag does not follow the grammar.
    #[error(
        "{0:?} is not a tag: write it with at most {MAX_TAG} letters, digits, . _ -, not starting with . or -"
    )]
    Tag(String),
    /// The digest is none.
    #[error("the part after @ of the image reference is wrong: {0}")]
    Digest(#[from] DigestError),
}

impl Reference {
    /// A reference from its parts. `registry` may be any name of Docker Hub.
    ///
    /// # Errors
    /// That the host or the repository does not follow the grammar.
    pub fn new(registry: &str, repository: &str) -> Result<Self, ReferenceError> {
        let registry = canonical_registry(registry);
        if !is_host(&registry) {
            return Err(ReferenceError::Host(shorten(&registry)));
        }
        if !is_repository(repository) {
            // Not what was added for Docker's sake, but what the user wrote.
            let written = repository.strip_prefix("library/").unwrap_or(repository);
            return Err(ReferenceError::Repository(shorten(written)));
        }
        if registry.len() + repository.len() >= MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { registry, repository: repository.to_owned(), tag: None, digest: None })
    }

    /// The same repository under `digest`; a tag is kept for people to read.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// The same repository under `tag`, without a digest.
    ///
    /// # Errors
    /// That `tag` does not follow the grammar.
    pub fn with_tag(mut self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Tag(shorten(tag)));
        }
        // `latest` is what no tag means: one name, one value.
        self.tag = (tag != "latest").then(|| tag.to_owned());
        self.digest = None;
        Ok(self)
    }

    /// The canonical registry host, with its port if one was named: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was named; `latest` if neither tag nor digest was.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, Some(_)) => None,
            (None, None) => Some("latest"),
        }
    }

    /// The digest, if one was named.
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    pub(crate) fn manifest_name(&self) -> String {
        match self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or("latest").to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some(at) = text.find("://") {
            let scheme = text.get(..at + 3).unwrap_or_default().to_owned();
            return Err(ReferenceError::Scheme(shorten(text), scheme));
        }
        // Docker refuses it too: it is what people copy from a list of images, and no name.
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::Identifier(text.chars().take(12).collect()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if looks_like_host(host) => (host, path),
            _ => (DOCKER_HUB, rest),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        let registry = canonical_registry(host);
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        let mut reference = Self::new(&registry, &repository)?;
        if let Some(tag) = tag {
            reference = reference.with_tag(tag)?;
        }
        reference.digest = digest;
        Ok(reference)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if looks_like_host(&self.registry) {
            write!(f, "{}/{}", self.registry, self.repository)?;
        } else {
            // Only capitals told that this is a host: without them the text would name a user at Docker Hub.
            write!(f, "{}/{}", self.registry.to_ascii_uppercase(), self.repository)?;
        }
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The one name of a registry that goes by several: lower case, and `docker.io` for Docker Hub.
pub fn canonical_registry(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.strip_suffix(":443").unwrap_or(&host) {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            DOCKER_HUB.to_owned()
        }
        _ => host,
    }
}

/// Docker's rule for telling `host/name` from `user/name`.
fn looks_like_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

/// `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None if rest.is_empty() => ("v6", None),
                None => return false,
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Whether `name` is a repository name: `part(/part)*`, a part being `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
pub(crate) fn is_repository(name: &str) -> bool {
    name.split('/').all(is_component)
}

fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    let mut seen_word = false;
    for b in part.bytes() {
        if alphanumeric(b) {
            let good = match separator.as_str() {
                "" | "." | "_" | "__" => true,
                run => run.bytes().all(|b| b == b'-'),
            };
            if !good || (!separator.is_empty() && !seen_word) {
                return false;
            }
            separator.clear();
            seen_word = true;
        } else if matches!(b, b'.' | b'_' | b'-') {
            separator.push(char::from(b));
        } else {
            return false;
        }
    }
    seen_word && separator.is_empty()
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Keeps hostile input out of logs: an error quotes at most 80 characters.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_by_dockers_rules() {
        for (text, whole) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/library/python:3", "docker.io/library/python:3"),
            ("registry-1.docker.io/team/app", "docker.io/team/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:x", "localhost:5000/app:x"),
            ("127.0.0.1:5000/a/b__c/d--e", "127.0.0.1:5000/a/b__c/d--e:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("Registry.Example/app", "registry.example/app:latest"),
            // A colon without a slash behind it is a tag's, whatever stands before it.
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("r.example:5000/app", "r.example:5000/app:latest"),
            ("r.example:5000/app:5000", "r.example:5000/app:5000"),
            ("r.example/python", "r.example/python:latest"),
            ("docker.io/team/app", "docker.io/team/app:latest"),
            ("registry.hub.docker.com/library/python", "docker.io/library/python:latest"),
            ("HOST/app", "HOST/app:latest"),
            ("1.2.3.4/app", "1.2.3.4/app:latest"),
            ("a.b/c/d/e/f", "a.b/c/d/e/f:latest"),
            ("app:V1.0-rc_1", "docker.io/library/app:V1.0-rc_1"),
            ("xn--n3h.example/app", "xn--n3h.example/app:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), whole, "{text}");
        }
    }

    #[test]
    fn a_digest_replaces_the_default_tag_and_keeps_a_named_one() {
        let bare: Reference = format!("r.example/app@{DIGEST}").parse().unwrap();
        assert_eq!((bare.tag(), bare.manifest_name()), (None, DIGEST.to_owned()));
        let both: Reference = format!("r.example/app:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("r.example/app:1@{DIGEST}"));
        assert_eq!(both.manifest_name(), DIGEST);
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for text in ["python", "r.example:5000/a/b:c", "Registry/a", &format!("r.example/a@{DIGEST}")] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "https://r.example/app",
            "docker://python",
            "UPPER",
            "r.example/Upper",
            "r.example/",
            "r.example/../etc",
            "r.example/a//b",
            "r.example/a_-b",
            "r.example/.a",
            "r.example/a.",
            "r.example/a___b",
            "r.example:99999/a",
            "r.example:/a",
            "r..example/a",
            "-r.example/a",
            "[::1/a",
            "[zz]:1/a",
            "user@r.example/a",
            "r.example/a:",
            "r.example/a:-x",
            "r.example/a:x y",
            "r.example/a@sha256:12",
            "r.example/a\r\nb",
            "r.example/a?b",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "r.example/a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "r.example/a@@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "r_x.example/a",
            "r.example:0/a",
            "/a",
            "a/",
            ":tag",
            "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "a:b:c",
            " python",
            "python ",
            "py\u{e9}",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken for a reference");
        }
    }
}
