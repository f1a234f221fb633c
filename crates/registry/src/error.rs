//! What can go wrong between here and a registry, in words that a person can act on.

use std::time::Duration;

use content::{Digest, ReadError, ReadErrorKind};

use crate::credentials::CredentialError;
use crate::reference::ReferenceError;
use crate::upstreams::UpstreamError;

/// A failed conversation with a registry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No connection came about, or it broke.
    #[error("{doing}: cannot talk to {host}: {reason}{}", hint_connect(.reason, .host))]
    Connect {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// The host answers, and cannot be spoken with safely. Waiting does not mend that.
    #[error("{doing}: no TLS with {host}: {reason}{}", hint_connect(.reason, .host))]
    Tls {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// What is wrong with its certificate or its protocol.
        reason: String,
    },
    /// The registry did not answer in time.
    #[error(
        "{doing}: {host} did not answer within {:.1} s; check that the registry is well and that no firewall \
         swallows what it is sent, then try again",
        .after.as_secs_f32()
    )]
    Timeout {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The registry answered that it will not.
    #[error(
        "{doing}: {host} answers {status}{}{}",
        in_brackets(.detail),
        hint_status(*.status, .login.as_ref().unwrap_or(.host), *.known)
    )]
    Status {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// Code and message of the registry's error body; may be empty.
        detail: String,
        /// Whether there were credentials for the host; `None` if nobody looked.
        known: Option<bool>,
        /// The registry whose credentials were asked for, if it is not the host.
        login: Option<String>,
        /// How long the registry asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The answer is not what its name or its head says.
    #[error("{doing}: {host} sent something else than it should: {reason}")]
    Corrupt {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes do not have the digest that names them.
    #[error("{doing}: the bytes from {host} have the digest {found} instead of {expected}")]
    Digest {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The registry has it in a form that nobody writes any more.
    #[error(
        "{doing}: {host} has it as {media_type}, Docker's schema 1 of before 2016, which names its layers without \
         sizes and its files by nothing that could be checked: pull and push it again with a current tool"
    )]
    Schema1 {
        /// What was being done.
        doing: String,
        /// Scheme and host.
        host: String,
        /// What it is.
        media_type: String,
    },
    /// Policy of this node refuses to ask there.
    #[error("{doing}: {reason}")]
    Refused {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        reason: UpstreamError,
    },
    /// Credentials are configured and cannot be used.
    #[error("{doing}: {reason}")]
    Credentials {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        reason: CredentialError,
    },
    /// The caller's own stream of bytes to push failed.
    #[error("{doing}: reading what was to be pushed: {reason}")]
    Source {
        /// What was being done.
        doing: String,
        /// Why.
        reason: ReadError,
    },
    /// The caller named no image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The client cannot be set up on this machine.
    #[error("setting up the registry client: {0}")]
    Setup(String),
}

impl RegistryError {
    /// Whether the same request, or the same at another host, may succeed later.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Corrupt { .. } => true,
            Self::Status { status, .. } => is_transient_status(*status),
            _ => false,
        }
    }

    /// Says that the credentials of `registry` were asked for.
    pub(crate) fn with_login(mut self, registry: &str) -> Self {
        if let Self::Status { login, .. } = &mut self {
            *login = Some(registry.to_owned());
        }
        self
    }

    /// The HTTP status that the registry answered, if it answered.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long the registry asked to be left alone.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn kind(&self) -> ReadErrorKind {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } => ReadErrorKind::Unavailable,
            Self::Corrupt { .. } | Self::Digest { .. } => ReadErrorKind::Corrupt,
            Self::Refused { .. } => ReadErrorKind::Refused,
            Self::Credentials { .. } => ReadErrorKind::Unauthorized,
            Self::Status { status, .. } => match status {
                401 => ReadErrorKind::Unauthorized,
                403 => ReadErrorKind::Forbidden,
                404 | 410 => ReadErrorKind::NotFound,
                status if is_transient_status(*status) => ReadErrorKind::Unavailable,
                _ => ReadErrorKind::Other,
            },
            Self::Source { reason, .. } => reason.kind(),
            Self::Reference(_) | Self::Setup(_) | Self::Tls { .. } | Self::Schema1 { .. } => {
                ReadErrorKind::Other
            }
        }
    }
}

/// The statuses that stargz-snapshotter and containerd retry as well: 501 means "never".
pub(crate) const fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429) || (status >= 500 && status != 501)
}

impl From<RegistryError> for ReadError {
    fn from(error: RegistryError) -> Self {
        let read = match &error {
            RegistryError::Refused { .. } | RegistryError::Setup(_) => {
                ReadError::local(error.kind(), error.to_string())
            }
            _ => ReadError::origin(error.kind(), error.to_string()),
        };
        match error.status() {
            Some(status) => read.with_status(status),
            None => read,
        }
    }
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

fn hint_connect(reason: &str, host: &str) -> String {
    let host = bare(host);
    let hint = if reason.starts_with("through the proxy") {
        "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and that the proxy is well"
    } else if reason.contains("refused") {
        "is the registry running, and is the port right?"
    } else if reason.contains("InvalidContentType") || reason.contains("corrupt message") {
        return format!(
            "; it seems to speak plain HTTP: say so with --plain-http {host} (a node: an http:// address of its \
             registry; the snapshotter's file: insecure = true)"
        );
    } else if reason.contains("certificate expired") || reason.contains("certificate not valid yet") {
        "its certificate has to be renewed, or this machine's clock is wrong"
    } else if reason.contains("not valid for name") {
        "write the registry by a name that its certificate is for"
    } else if reason.contains("CaUsedAsEndEntity") {
        "its certificate says that it is a CA's and none for a server (`openssl req -x509` makes such): make one with \
         basicConstraints=CA:FALSE, or have it signed by a CA of its own"
    } else if reason.contains("certificate") {
        "add the CA that signed its certificate to this machine's (on Debian: a .crt in \
         /usr/local/share/ca-certificates, then `update-ca-certificates`), or name it as ca in the registry's \
         hosts.toml"
    } else if reason.contains("lookup") || reason.contains("dns") {
        "check the registry's name, and this machine's DNS"
    } else if reason.contains("unreachable") || reason.contains("No route") {
        "check the registry's address, and the network on the way to it"
    } else {
        return String::new();
    };
    format!("; {hint}")
}

fn hint_status(status: u16, host: &str, known: Option<bool>) -> String {
    let host = bare(host);
    // Docker keeps the Hub's credentials under no host that it is asked at.
    let login =
        if host.ends_with("docker.io") { "docker login".into() } else { format!("docker login {host}") };
    let login = format!("log in with `{login}`, or name a file with credentials by --docker-config");
    match (status, known) {
        (401, Some(true)) => {
            format!("; it refuses the credentials at hand, user or password is wrong: {login}")
        }
        (401, _) => format!("; there are no credentials for it: {login}"),
        (403, Some(true)) => {
            "; the account at hand may not do this there: ask for access, or log in as another".into()
        }
        (403, _) => format!("; nobody may do this there without an account: {login}"),
        (404, _) => "; check the repository and the tag or digest".to_owned(),
        (413, _) => "; something before the registry limits the length of requests: raise its limit (nginx: \
                     client_max_body_size)"
            .to_owned(),
        (429, _) => "; the registry limits requests: wait, or log in for a higher limit".to_owned(),
        (507, _) => "; the registry's disk is full".to_owned(),
        (500.., _) => "; something is wrong at the registry: its log says more".to_owned(),
        _ => String::new(),
    }
}

fn bare(host: &str) -> &str {
    host.split_once("://").map_or(host, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use content::Fault;

    use super::*;

    #[test]
    fn a_status_reaches_the_reader_with_its_meaning() {
        let error = RegistryError::Status {
            doing: "reading r.example/app".to_owned(),
            host: "https://r.example".to_owned(),
            status: 401,
            detail: "UNAUTHORIZED: authentication required".to_owned(),
            known: Some(false),
            login: None,
            retry_after: None,
        };
        assert_eq!(
            error.to_string(),
            "reading r.example/app: https://r.example answers 401 (UNAUTHORIZED: authentication required); \
             there are no credentials for it: log in with `docker login r.example`, or name a file with \
             credentials by --docker-config"
        );
        let read = ReadError::from(error);
        assert_eq!((read.fault(), read.kind()), (Fault::Origin, ReadErrorKind::Unauthorized));
        assert_eq!(read.status(), Some(401));
    }

    /// What an operator can do depends on what was tried.
    #[test]
    fn hints_say_what_to_do() {
        assert!(hint_status(401, "https://r.example", Some(true)).contains("password is wrong"));
        assert!(hint_status(403, "https://r.example", Some(false)).contains("docker login r.example"));
        assert!(hint_status(401, "https://registry-1.docker.io", None).contains("`docker login`"));
        let plain =
            hint_connect("received corrupt message of type InvalidContentType", "https://10.0.0.2:5000");
        assert!(plain.contains("--plain-http 10.0.0.2:5000"), "{plain}");
        assert!(
            hint_connect("invalid peer certificate: UnknownIssuer", "x").contains("update-ca-certificates")
        );
        let own = hint_connect("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "x");
        assert!(own.contains("CA:FALSE"), "{own}");
    }

    #[test]
    fn only_what_can_change_is_retried() {
        for (status, again) in
            [(401, false), (404, false), (429, true), (500, true), (501, false), (503, true)]
        {
            assert_eq!(is_transient_status(status), again, "{status}");
        }
    }
}
