//! Platforms as users write them: `linux/amd64`, `linux/arm64/v8`.

use std::fmt;
use std::str::FromStr;

use registry::Platform;

/// A platform to look for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlatformSpec {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform: write os/architecture or os/architecture/variant, as in linux/arm64")]
pub struct PlatformError(String);

impl FromStr for PlatformSpec {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(*variant)),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(PlatformError(text.to_owned()));
        }
        // The names that `uname` has, as Docker accepts them.
        let architecture = match *architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: (*os).to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl PlatformSpec {
    /// That of this machine.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for this one runs where images for `other` do.
    pub fn covers(&self, other: &Self) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }

    /// Whether an image for `platform` is what is looked for.
    pub fn matches(&self, platform: &Platform) -> bool {
        let same = self.os == platform.os && self.architecture == platform.architecture;
        same && match &self.variant {
            None => true,
            Some(wanted) => Some(wanted.as_str()) == variant(platform),
        }
    }
}

/// The variant, made explicit where images leave it out.
fn variant(platform: &Platform) -> Option<&str> {
    match (platform.variant.as_deref(), platform.architecture.as_str()) {
        (None, "arm64") => Some("v8"),
        (None, "arm") => Some("v7"),
        (variant, _) => variant,
    }
}

impl fmt::Display for PlatformSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A platform as text.
pub(crate) fn display(platform: &Platform) -> String {
    let variant = platform.variant.iter().map(|variant| format!("/{variant}"));
    format!("{}/{}{}", platform.os, platform.architecture, variant.collect::<String>())
}

/// Whether a manifest of an index is no image but something said about one, such as a provenance.
pub(crate) fn is_unknown(platform: &Platform) -> bool {
    platform.os == "unknown" && platform.architecture == "unknown"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let spec: PlatformSpec = text.parse().unwrap();
        Platform {
            os: spec.os,
            architecture: spec.architecture,
            variant: spec.variant,
            rest: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_platform_is_found_with_and_without_its_variant() {
        for (wanted, have, is) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "linux/amd64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/amd64", "windows/amd64", false),
            ("linux/arm64", "linux/amd64", false),
        ] {
            assert_eq!(
                wanted.parse::<PlatformSpec>().unwrap().matches(&platform(have)),
                is,
                "{wanted} {have}"
            );
        }
        assert_eq!(display(&platform("linux/arm/v7")), "linux/arm/v7");
    }

    #[test]
    fn other_texts_are_no_platforms() {
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/arm/"] {
            assert!(bad.parse::<PlatformSpec>().is_err(), "{bad}");
        }
    }
}
