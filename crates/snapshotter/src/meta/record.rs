//! One snapshot's row.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::filter::Filter;
use crate::labels::{Labels, LayerSource};

/// What can be done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Can be mounted and not written.
    View,
    /// Can be mounted and written.
    Active,
    /// Can only be a parent.
    Committed,
}

impl Kind {
    /// The word that filters use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What a snapshot takes on disk, without what lies below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of disk blocks.
    pub size: u64,
    /// Files, directories and everything else that has an inode.
    pub inodes: u64,
}

/// A snapshot, but for its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its directory's number. Never used twice.
    pub id: u64,
    /// What can be done with it.
    pub kind: Kind,
    /// Name of the snapshot below it; empty if there is none.
    pub parent: String,
    /// Its labels.
    pub labels: Labels,
    /// Nanoseconds since 1970 (UTC).
    pub created: u64,
    /// Nanoseconds since 1970 (UTC), equal to `created` until the first change.
    pub updated: u64,
    /// What it takes on disk; measured when it was committed.
    pub usage: Usage,
    /// Where its bytes come from, if it is a lazy layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LayerSource>,
}

impl Record {
    /// A new snapshot, made now.
    pub fn new(id: u64, kind: Kind, parent: &str, labels: Labels) -> Self {
        let now = now();
        Self {
            id,
            kind,
            parent: parent.to_owned(),
            labels,
            created: now,
            updated: now,
            usage: Usage::default(),
            source: None,
        }
    }

    /// Notes a change. The time moves on even if the clock does not.
    pub fn touch(&mut self) {
        self.updated = now().max(self.updated + 1);
    }

    /// Whether `filter` matches this snapshot under the name `name`.
    pub fn matches(&self, name: &str, filter: &Filter) -> bool {
        filter.matches(|path| {
            let (first, rest) = path.split_first()?;
            match first.as_str() {
                "kind" => Some(self.kind.as_str()),
                "name" => Some(name),
                "parent" => Some(self.parent.as_str()),
                "labels" => self.labels.get(&rest.join(".")).map(String::as_str),
                _ => None,
            }
        })
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
