//! Places as they are written on a command line.
//!
//! The prefixes are those of skopeo and podman. Without one it is the name of an image in a registry; an
//! image that has a prefix for its name is written with its host (`docker.io/library/oci:1`). As with
//! skopeo, the first colon after a path ends it, so that tags may be whole references.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use registry::{Reference, ReferenceError};

/// The name of one image at one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `python:3`, by Docker's rules.
    Registry(Reference),
    /// `oci:dir[:tag]`: a directory in OCI's image layout.
    OciLayout {
        /// The directory with `index.json` in it.
        dir: PathBuf,
        /// The image in it; without, the only one.
        tag: Option<String>,
    },
    /// `oci-archive:file[:tag]`: a tar of an image layout.
    OciArchive {
        /// The tar.
        file: PathBuf,
        /// The image in it; without, the only one.
        tag: Option<String>,
    },
    /// `docker-archive:file[:reference]`: what `docker save` writes.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// The image in it; without, the only one.
        reference: Option<String>,
    },
    /// `containerd:reference` or `containerd://namespace/reference`: an image of the local containerd.
    Containerd {
        /// containerd's namespace; without, the one that was configured.
        namespace: Option<String>,
        /// containerd's name of the image.
        reference: String,
    },
}

/// Why a text names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceParseError {
    /// The name of an image in a registry, and a wrong one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A prefix without what it needs.
    #[error("{text:?} is incomplete: write it like {form}")]
    Incomplete {
        /// What was given.
        text: String,
        /// An example.
        form: &'static str,
    },
    /// A character that no name has.
    #[error("{0:?} has a control character in it")]
    Control(String),
    /// A name that containerd does not take for a namespace.
    #[error(
        "{0:?} is not a namespace of containerd: write it in letters and digits, with single . _ - between them, at most 76"
    )]
    Namespace(String),
}

/// Longest namespace, as in containerd's rule for identifiers.
const MAX_NAMESPACE: usize = 76;

impl FromStr for Place {
    type Err = PlaceParseError;

    fn from_str(text: &str) -> Result<Self, PlaceParseError> {
        if text.chars().any(char::is_control) {
            return Err(PlaceParseError::Control(shorten(text)));
        }
        let incomplete = |form| PlaceParseError::Incomplete { text: shorten(text), form };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path_and_name(rest).ok_or_else(|| incomplete("oci:directory:tag"))?;
            Ok(Self::OciLayout { dir, tag })
        } else if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = path_and_name(rest).ok_or_else(|| incomplete("oci-archive:file.tar:tag"))?;
            Ok(Self::OciArchive { file, tag })
        } else if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, reference) =
                path_and_name(rest).ok_or_else(|| incomplete("docker-archive:file.tar:name:tag"))?;
            Ok(Self::DockerArchive { file, reference })
        } else if let Some(rest) = text.strip_prefix("containerd://") {
            let split =
                rest.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
            let (namespace, reference) =
                split.ok_or_else(|| incomplete("containerd://namespace/docker.io/library/python:3"))?;
            if !is_namespace(namespace) {
                return Err(PlaceParseError::Namespace(shorten(namespace)));
            }
            Ok(Self::Containerd { namespace: Some(namespace.to_owned()), reference: reference.to_owned() })
        } else if let Some(reference) = text.strip_prefix("containerd:") {
            if reference.is_empty() {
                return Err(incomplete("containerd:docker.io/library/python:3"));
            }
            Ok(Self::Containerd { namespace: None, reference: reference.to_owned() })
        } else {
            Ok(Self::Registry(text.parse()?))
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, path, name) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Containerd { namespace: Some(namespace), reference } => {
                return write!(f, "containerd://{namespace}/{reference}");
            }
            Self::Containerd { namespace: None, reference } => return write!(f, "containerd:{reference}"),
            Self::OciLayout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, reference } => ("docker-archive", file, reference),
        };
        write!(f, "{prefix}:{}", path.display())?;
        name.iter().try_for_each(|name| write!(f, ":{name}"))
    }
}

impl From<Reference> for Place {
    fn from(reference: Reference) -> Self {
        Self::Registry(reference)
    }
}

/// `path[:name]`; `None` if either is named and empty.
fn path_and_name(text: &str) -> Option<(PathBuf, Option<String>)> {
    let (path, name) = match text.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (text, None),
    };
    if path.is_empty() || name.is_some_and(str::is_empty) {
        return None;
    }
    Some((PathBuf::from(path), name.map(str::to_owned)))
}

/// containerd's rule for identifiers: words of letters and digits, with one of `. _ -` between two.
fn is_namespace(text: &str) -> bool {
    text.len() <= MAX_NAMESPACE
        && text
            .split(['.', '_', '-'])
            .all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Keeps hostile input out of logs: an error quotes at most 80 characters.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &str, tag: Option<&str>) -> Place {
        Place::OciLayout { dir: dir.into(), tag: tag.map(str::to_owned) }
    }

    #[test]
    fn prefixes_tell_places_apart() {
        for (text, place) in [
            ("oci:/a/b", layout("/a/b", None)),
            ("oci:b:1.0", layout("b", Some("1.0"))),
            ("oci:b:r.example:5000/x:1", layout("b", Some("r.example:5000/x:1"))),
            ("oci-archive:x.tar:1", Place::OciArchive { file: "x.tar".into(), tag: Some("1".into()) }),
            (
                "docker-archive:x.tar:python:3",
                Place::DockerArchive { file: "x.tar".into(), reference: Some("python:3".into()) },
            ),
            ("containerd:python:3", Place::Containerd { namespace: None, reference: "python:3".into() }),
            (
                "containerd://k8s.io/docker.io/library/python:3",
                Place::Containerd {
                    namespace: Some("k8s.io".into()),
                    reference: "docker.io/library/python:3".into(),
                },
            ),
            ("docker.io/library/oci:1", Place::Registry("docker.io/library/oci:1".parse().unwrap())),
        ] {
            assert_eq!(text.parse::<Place>().unwrap(), place, "{text}");
            assert_eq!(place.to_string(), text);
        }
        assert_eq!("python".parse::<Place>().unwrap().to_string(), "docker.io/library/python:latest");
    }

    #[test]
    fn other_texts_are_no_places() {
        for bad in [
            "",
            "oci:",
            "oci::tag",
            "oci:dir:",
            "oci-archive:",
            "docker-archive::x",
            "containerd:",
            "containerd://",
            "containerd://ns",
            "containerd:///ref",
            "containerd://ns/",
            "containerd://../ref",
            "containerd://a..b/ref",
            "oci:a\nb",
            "docker://python",
            "UPPER",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad:?} was taken for a place");
        }
    }
}
