//! Whose name a registry is asked in.
//!
//! There may be several sources, and in each of them several credentials that fit: a cluster's secrets, an image that
//! was pulled by two users. They are *candidates*, and tried in order until the registry takes one
//! ([`CredentialSource::candidate`]); a source is asked only when those before it have no more. Secrets are never
//! printed: their `Debug` says so.

mod docker;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

pub use docker::DockerAuths;

use crate::reference::canonical_registry;

/// Of all sources together, no more are tried for one request: a registry locks out whoever guesses.
pub(crate) const MOST_CANDIDATES: usize = 8;

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub enum CredentialSource {
    /// There are none.
    #[default]
    Anonymous,
    /// Docker's `config.json` with its `auths`, `credHelpers` and `credsStore`: the given file, else
    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. A missing file holds none. It is read anew each
    /// time credentials are needed, because tools rewrite it while daemons run (ECR's tokens live twelve hours).
    DockerConfig(Option<PathBuf>),
    /// By registry host.
    Static(HashMap<String, Credential>),
    /// Somebody else who knows some.
    Keychain(Arc<dyn Keychain>),
    /// Several, in this order.
    Chain(Vec<CredentialSource>),
}

/// Somebody who knows credentials.
#[async_trait]
pub trait Keychain: Send + Sync + fmt::Debug {
    /// Those that fit, the best first. Answers from memory, or within a few seconds.
    ///
    /// # Errors
    /// That those which are configured cannot be used.
    async fn find(&self, asked: &Asked<'_>) -> Result<Vec<Credential>, CredentialError>;
}

/// What credentials are wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `host[:port]` that is going to be shown them.
    pub registry: &'a str,
    /// The repository there; `None` if it is about all of them.
    pub repository: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// As the scope of a token says it: `repository:team/app:pull`.
    pub(crate) fn of_scope(registry: &'a str, scope: &'a str) -> Self {
        let first = scope.split(' ').next().unwrap_or_default();
        let repository = first.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'));
        Self { registry, repository: repository.map(|(name, _)| name) }
    }
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password (or access token in its place).
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token of OAuth2.
    IdentityToken(String),
    /// A bearer token that is sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

/// Why configured credentials cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The file is there and cannot be read.
    #[error("reading {0}: {1}")]
    Read(PathBuf, String),
    /// The file is not what it should be.
    #[error("{0} is no Docker configuration: {1}")]
    Parse(PathBuf, String),
    /// The helper does not do its work.
    #[error("the credential helper docker-credential-{0} failed: {1}")]
    Helper(String, String),
}

impl CredentialSource {
    /// The candidate number `nth`, from 0.
    ///
    /// # Errors
    /// That a source cannot be used, if no other one knows more.
    pub(crate) async fn candidate(
        &self,
        asked: &Asked<'_>,
        nth: usize,
    ) -> Result<Option<Credential>, CredentialError> {
        if nth >= MOST_CANDIDATES {
            return Ok(None);
        }
        let mut found = Vec::new();
        let failed = self.collect(asked, nth, &mut found).await;
        match (found.into_iter().nth(nth), failed) {
            (Some(credential), _) => Ok(Some(credential)),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }

    /// The first candidate.
    ///
    /// # Errors
    /// As [`CredentialSource::candidate`].
    pub(crate) async fn lookup(&self, asked: &Asked<'_>) -> Result<Option<Credential>, CredentialError> {
        self.candidate(asked, 0).await
    }

    /// Adds candidates until there are more than `enough`. What keeps one source from answering keeps no other.
    fn collect<'a>(
        &'a self,
        asked: &'a Asked<'a>,
        enough: usize,
        found: &'a mut Vec<Credential>,
    ) -> BoxFuture<'a, Option<CredentialError>> {
        Box::pin(async move {
            let more = match self {
                Self::Anonymous => Ok(Vec::new()),
                Self::Static(map) => {
                    let host = canonical_registry(asked.registry);
                    Ok(docker::entries_of(map, &host, asked.repository).into_iter().cloned().collect())
                }
                Self::DockerConfig(path) => docker::from_file(path.clone(), asked).await,
                Self::Keychain(keychain) => keychain.find(asked).await,
                Self::Chain(sources) => {
                    let mut failed = None;
                    for source in sources {
                        if let Some(error) = source.collect(asked, enough, found).await {
                            tracing::warn!(%error, "a source of credentials cannot be used");
                            failed = Some(error);
                        }
                        if found.len() > enough {
                            break;
                        }
                    }
                    return failed;
                }
            };
            match more {
                Ok(more) => {
                    for credential in more {
                        if !found.contains(&credential) {
                            found.push(credential);
                        }
                    }
                    None
                }
                Err(error) => Some(error),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.to_owned(), password: password.to_owned() }
    }

    async fn lookup(config: &str, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let source = CredentialSource::DockerConfig(Some(path));
        source.lookup(&Asked { registry, repository: None }).await
    }

    #[tokio::test]
    async fn entries_are_found_under_all_spellings_of_a_registry() {
        let config = format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{}"}},
                            "r.example:5000": {{"username": "u", "password": "p:w"}},
                            "https://old.example/v1/": {{"identitytoken": "t"}}}}}}"#,
            STANDARD.encode("hub:se:cret")
        );
        assert_eq!(lookup(&config, "docker.io").await.unwrap(), Some(password("hub", "se:cret")));
        assert_eq!(lookup(&config, "r.example:5000").await.unwrap(), Some(password("u", "p:w")));
        assert_eq!(lookup(&config, "r.example").await.unwrap(), None);
        assert_eq!(
            lookup(&config, "old.example").await.unwrap(),
            Some(Credential::IdentityToken("t".to_owned()))
        );
    }

    /// A login by browser leaves three entries that are all of one host, and podman keeps some for parts of one.
    #[tokio::test]
    async fn of_several_entries_the_one_for_the_whole_host_is_taken() {
        let entry = |key: &str| format!(r#""{key}": {{"auth": "{}"}}"#, STANDARD.encode(format!("u:{key}")));
        let config = format!(
            r#"{{"auths": {{{}, {}, {}, {}, {}, "empty.example": {{}}, {}}}}}"#,
            entry("https://index.docker.io/v1/access-token"),
            entry("https://index.docker.io/v1/"),
            entry("https://index.docker.io/v1/refresh-token"),
            entry("r.example/team"),
            entry("r.example"),
            entry("https://empty.example/v2/"),
        );
        // The order of a map is another one each time.
        for _ in 0..20 {
            for (registry, key) in [
                ("docker.io", "https://index.docker.io/v1/"),
                ("r.example", "r.example"),
                ("empty.example", "https://empty.example/v2/"),
            ] {
                assert_eq!(lookup(&config, registry).await.unwrap(), Some(password("u", key)), "{registry}");
            }
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_nobody_and_a_broken_one_is_an_error() {
        let missing = CredentialSource::DockerConfig(Some("/nonexistent/config.json".into()));
        assert_eq!(missing.lookup(&Asked { registry: "docker.io", repository: None }).await.unwrap(), None);
        assert!(matches!(lookup("{", "docker.io").await, Err(CredentialError::Parse(..))));
        let bad = r#"{"auths": {"r.example": {"auth": "!!"}}}"#;
        assert!(matches!(lookup(bad, "r.example").await, Err(CredentialError::Parse(..))));
    }

    #[tokio::test]
    async fn a_helper_is_a_plain_word_and_its_absence_is_told() {
        let error = lookup(r#"{"credsStore": "../../bin/sh"}"#, "r.example").await.unwrap_err();
        assert!(error.to_string().contains("plain word"), "{error}");
        let error =
            lookup(r#"{"credHelpers": {"r.example": "pantala-none"}}"#, "r.example").await.unwrap_err();
        assert!(error.to_string().contains("installed"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", password("user", "canary"));
        assert!(!text.contains("canary") && !text.contains("user"), "{text}");
    }

    #[tokio::test]
    async fn the_entry_for_the_longest_part_of_a_name_is_taken() {
        let entry = |key: &str| format!(r#""{key}": {{"auth": "{}"}}"#, STANDARD.encode(format!("u:{key}")));
        let json = format!(
            r#"{{"auths": {{{}, {}, {}, {}}}}}"#,
            entry("r.example"),
            entry("r.example/team"),
            entry("r.example/team/app"),
            entry("*.clouds.example"),
        );
        let auths = DockerAuths::parse(json.as_bytes(), "a secret").unwrap();
        let find = |registry, repository| auths.find(&Asked { registry, repository: Some(repository) });
        let keys = ["r.example/team/app", "r.example/team", "r.example"].map(|key| password("u", key));
        assert_eq!(find("r.example", "team/app"), keys);
        assert_eq!(find("r.example", "team/apple"), keys[1..]);
        assert_eq!(find("r.example", "teams"), keys[2..]);
        assert_eq!(find("eu.clouds.example", "a"), [password("u", "*.clouds.example")]);
        assert_eq!(find("clouds.example", "a"), []);
        assert_eq!(find("a.b.clouds.example", "a"), []);
        assert!(!format!("{auths:?}").contains("team"));
        let error = DockerAuths::parse(br#"{"auths": "canary"}"#, "a secret").unwrap_err().to_string();
        assert!(!error.contains("canary"), "{error}");
    }

    #[derive(Debug)]
    struct Known(&'static [&'static str], std::sync::atomic::AtomicUsize);

    #[async_trait]
    impl Keychain for Known {
        async fn find(&self, _: &Asked<'_>) -> Result<Vec<Credential>, CredentialError> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(self.0.iter().map(|name| password(name, "p")).collect())
        }
    }

    #[tokio::test]
    async fn a_source_is_asked_when_those_before_it_have_no_more() {
        let known = |names| Arc::new(Known(names, std::sync::atomic::AtomicUsize::new(0)));
        let (first, second) = (known(&["a", "b"]), known(&["b", "c"]));
        let broken = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(broken.path(), "{").unwrap();
        let chain = CredentialSource::Chain(vec![
            CredentialSource::DockerConfig(Some(broken.path().to_owned())),
            CredentialSource::Keychain(first.clone()),
            CredentialSource::Keychain(second.clone()),
        ]);
        let asked = Asked { registry: "r.example", repository: None };
        let candidate = async |nth| chain.candidate(&asked, nth).await;
        assert_eq!(candidate(0).await.unwrap(), Some(password("a", "p")), "a broken file keeps nobody out");
        assert_eq!(candidate(1).await.unwrap(), Some(password("b", "p")));
        assert_eq!(second.1.load(std::sync::atomic::Ordering::SeqCst), 0);
        assert_eq!(candidate(2).await.unwrap(), Some(password("c", "p")));
        assert!(candidate(3).await.is_err(), "what is broken is told in the end");
        assert_eq!(candidate(MOST_CANDIDATES).await.unwrap(), None);
    }

    #[test]
    fn a_scope_tells_the_repository() {
        for (scope, repository) in [
            ("repository:team/app:pull", Some("team/app")),
            ("repository:a:pull,push repository:b:pull", Some("a")),
            ("registry:catalog:*", None),
            ("", None),
        ] {
            assert_eq!(Asked::of_scope("r", scope).repository, repository, "{scope}");
        }
    }
}
