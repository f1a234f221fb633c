//! Configuration files: read, checked, and explained when wrong.
//!
//! The keys are those of Dragonfly v2.0.7's dfdaemon and scheduler. A key that is not known is an error
//! that names the key, the line and the nearest known key: a misspelt limit that is silently ignored is
//! worse than no limit. A known key that does nothing here is accepted with one warning that says why.

pub mod node;
pub mod pointless;
pub mod scheduler;
pub mod units;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration file {path}: {source}; `pantala {command} --help` shows how one looks"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The command that wants it.
        command: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A key that no version knows.
    #[error("{path}:{line}: unknown key {key:?}{hint}")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line of the key, from 1.
        line: u64,
        /// The key.
        key: String,
        /// What was probably meant.
        hint: String,
    },
    /// Anything else that is wrong with the text.
    #[error("{path}{line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// `:<line>`, or nothing.
        line: String,
        /// What is wrong.
        message: String,
    },
    /// The values do not fit together.
    #[error("{0}")]
    Invalid(String),
}

/// Reads a YAML file of `command` into `T`. An empty file is a file in which everything has its default.
pub fn load<T: DeserializeOwned + Default>(path: &Path, command: &'static str) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        command,
        source,
    })?;
    parse(path, &text)
}

fn parse<T: DeserializeOwned + Default>(path: &Path, text: &str) -> Result<T, ConfigError> {
    let only_comments = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if only_comments {
        return Ok(T::default());
    }
    serde_saphyr::from_str(text).map_err(|error| explain(path, &error))
}

fn explain(path: &Path, error: &serde_saphyr::Error) -> ConfigError {
    let path = path.to_owned();
    match error.without_snippet() {
        serde_saphyr::Error::SerdeUnknownField { field, expected, location } => ConfigError::UnknownKey {
            path,
            line: location.line(),
            key: field.clone(),
            hint: nearest(field, expected).map_or_else(
                || format!("; known here: {}", expected.join(", ")),
                |near| format!("; did you mean {near:?}?"),
            ),
        },
        other => ConfigError::Syntax {
            path,
            line: other.location().map(|at| format!(":{}", at.line())).unwrap_or_default(),
            message: plainly(&other.to_string()),
        },
    }
}

/// The first line of what the parser says, without the place (which is told already) and its advice to
/// programmers.
fn plainly(message: &str) -> String {
    let line = message.lines().next().unwrap_or("not valid YAML");
    let line = line.rsplit_once(" at line ").map_or(line, |(line, _)| line);
    line.split_once(", set DuplicateKeyPolicy").map_or(line, |(line, _)| line).to_owned()
}

/// The known key that differs least from `key`, if it is near enough to be a slip of the finger.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, best) = known.iter().map(|k| (edit_distance(key, k), *k)).min()?;
    (distance <= key.len().max(3) / 3 + 1).then_some(best)
}

/// The distance without regard to case.
fn edit_distance(a: &str, b: &str) -> usize {
    telemetry::edit_distance(&a.to_lowercase(), &b.to_lowercase())
}

/// Stands for the value of a key that is accepted and does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted;

impl<'de> Deserialize<'de> for Accepted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Network address and port lists as Dragonfly writes them: `netAddrs: [{type: tcp, addr: host:port}]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAddr {
    /// `tcp`, the only kind.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// `host:port`.
    pub addr: String,
}

/// How nodes trust each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Security {
    /// Shared by all nodes of a cluster and its scheduler.
    pub join_token: Option<String>,
    /// No TLS between nodes. Must be chosen explicitly.
    pub insecure: bool,
}

impl Security {
    /// The token of the file, else of `PANTALA_JOIN_TOKEN`; `None` if `insecure` was chosen.
    pub fn token(&self) -> Result<Option<identity::JoinToken>, ConfigError> {
        if self.insecure {
            return Ok(None);
        }
        let text = self.join_token.clone().or_else(|| std::env::var("PANTALA_JOIN_TOKEN").ok()).ok_or_else(|| {
            ConfigError::Invalid(
                "nodes need a join token to trust each other: set security.joinToken (or PANTALA_JOIN_TOKEN) to the \
                 same secret on the scheduler and on every node, for example from `openssl rand -hex 32`; or choose \
                 security.insecure: true on a network where nobody else is"
                    .into(),
            )
        })?;
        text.trim().parse().map(Some).map_err(|error: identity::TokenError| {
            ConfigError::Invalid(format!("security.joinToken: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        #[allow(dead_code, reason = "only its name matters")]
        port: u16,
        #[allow(dead_code, reason = "only its name matters")]
        listen: String,
    }

    fn error_of(text: &str) -> String {
        parse::<Sample>(Path::new("node.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known() {
        let error = error_of("port: 1\nlisten: x\nprot: 2\n");
        assert_eq!(error, "node.yaml:3: unknown key \"prot\"; did you mean \"port\"?");
        assert!(error_of("completelyelse: 1\n").contains("known here: port, listen"));
    }

    #[test]
    fn a_wrong_type_is_told_with_its_line() {
        let error = error_of("listen: x\nport: many\n");
        assert!(error.starts_with("node.yaml:2:"), "{error}");
        assert!(!error.contains("at line"), "{error}");
        let error = error_of("port: 1\nport: 2\n");
        assert_eq!(error, "node.yaml:2: duplicate mapping key: port");
    }

    #[test]
    fn a_file_of_comments_has_all_defaults() {
        assert!(parse::<Sample>(Path::new("node.yaml"), "# nothing\n\n").is_ok());
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("port", "port"), 0);
        assert_eq!(edit_distance("prot", "port"), 2);
        assert_eq!(edit_distance("", "port"), 4);
        assert_eq!(edit_distance("Port", "port"), 0);
    }
}
