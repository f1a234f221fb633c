//! What differs between two images, as whoever runs them sees it: two file systems and two configs.
//!
//! The layers of each image are laid over each other as overlayfs does it (`diff/tree.rs`), and the two trees
//! are compared name by name. How an image is cut into layers, compressed or converted does not matter.
//!
//! What a layer holds is taken from its table of contents where the image pins that, without fetching any
//! file; an ordinary layer is streamed and hashed once, and a layer that both images have is read once. A
//! pinned table of contents is what a lazy mount enforces; whether the layer's tar agrees is `verify`'s
//! question, and [`DiffOptions::read_all`] does not ask the table at all.

use std::collections::{BTreeSet, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use content::Digest;
use estargz::audit::Listed;
use futures::stream::{self, StreamExt, TryStreamExt};
use registry::Descriptor;
use serde::Serialize;

use crate::inspect::LookError;
use crate::inspect::find::ExternalTocs;
use crate::inspect::image::{self, Image, one_image};
use crate::place::ImageSource;
use crate::platform::PlatformSpec;

mod compare;
mod config;
mod layer;
mod show;
mod tree;

pub use compare::{Change, ChangeKind, FieldChange};
pub use config::ConfigChange;

use tree::Tree;

/// Layers that are read at once.
const AT_ONCE: usize = 4;

/// Something in which two entries can differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Aspect {
    /// Permission bits, setuid, setgid and sticky.
    Mode,
    /// Owner and group.
    Owner,
    /// Modification time, in seconds.
    Mtime,
    /// Size and bytes of a file.
    Content,
    /// Target of a symbolic link.
    Link,
    /// Extended attributes.
    Xattrs,
    /// Major and minor number.
    Device,
    /// Number of names of a file, and which.
    Nlink,
    /// The image's config.
    Config,
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Mode,
        Self::Owner,
        Self::Mtime,
        Self::Content,
        Self::Link,
        Self::Xattrs,
        Self::Device,
        Self::Nlink,
        Self::Config,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Mtime => "mtime",
            Self::Content => "content",
            Self::Link => "link",
            Self::Xattrs => "xattrs",
            Self::Device => "device",
            Self::Nlink => "nlink",
            Self::Config => "config",
        }
    }
}

/// A text that names no aspect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be ignored: there are mode, owner, mtime, content, link, xattrs, device, nlink and config"
)]
pub struct AspectError(String);

impl FromStr for Aspect {
    type Err = AspectError;

    fn from_str(text: &str) -> Result<Self, AspectError> {
        let found = Self::ALL.into_iter().find(|aspect| aspect.as_str() == text);
        found.ok_or_else(|| AspectError(text.chars().take(80).collect()))
    }
}

/// How images are compared.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// The platform; `None` for the only one, or this machine's.
    pub platform: Option<PlatformSpec>,
    /// What does not count.
    pub ignore: BTreeSet<Aspect>,
    /// Read every layer whole and believe no table of contents.
    pub read_all: bool,
}

/// One of the two images.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// The name.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// `linux/amd64`.
    pub platform: String,
    /// Names in the file system; `None` if it did not have to be looked at.
    pub entries: Option<usize>,
}

/// What differs.
#[derive(Clone, Debug, Serialize)]
pub struct DiffReport {
    /// The first image.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// Whether nothing differs.
    pub equal: bool,
    /// Entries that differ, by name.
    pub changes: Vec<Change>,
    /// What differs in the configs.
    pub config: Vec<ConfigChange>,
}

/// Compares the images `a` and `b`.
///
/// # Errors
/// [`LookError`], if one of them cannot be read or is damaged.
pub async fn diff(
    a: &dyn ImageSource,
    b: &dyn ImageSource,
    options: &DiffOptions,
) -> Result<DiffReport, LookError> {
    let platform = options.platform.as_ref();
    let (first, second) = (one_image(a, platform).await?, one_image(b, platform).await?);
    let config = if options.ignore.contains(&Aspect::Config) {
        Vec::new()
    } else {
        let configs = (image::config(a, &first.manifest).await?, image::config(b, &second.manifest).await?);
        config::compare(&configs.0, &configs.1)
    };
    let side = |source: &dyn ImageSource, image: &Image, tree: Option<&Tree>| Side {
        reference: source.place().to_string(),
        digest: image.descriptor.digest,
        platform: image.platform.clone(),
        entries: tree.map(Tree::len),
    };
    let digests =
        |image: &Image| -> Vec<Digest> { image.manifest.layers.iter().map(|layer| layer.digest).collect() };
    let same_layers = !options.read_all && digests(&first) == digests(&second);
    let (changes, trees) = if same_layers {
        (Vec::new(), None)
    } else {
        let mut known = Known::new();
        read(a, &first, options, &mut known).await?;
        read(b, &second, options, &mut known).await?;
        let trees = (merge(&first, &known)?, merge(&second, &known)?);
        (compare::compare(&trees.0, &trees.1, &options.ignore), Some(trees))
    };
    Ok(DiffReport {
        a: side(a, &first, trees.as_ref().map(|(tree, _)| tree)),
        b: side(b, &second, trees.as_ref().map(|(_, tree)| tree)),
        equal: changes.is_empty() && config.is_empty(),
        changes,
        config,
    })
}

/// What layers list, by their digest.
type Known = HashMap<Digest, Arc<Vec<Listed>>>;

/// Reads the layers of `image` that are not known yet.
async fn read(
    source: &dyn ImageSource,
    image: &Image,
    options: &DiffOptions,
    known: &mut Known,
) -> Result<(), LookError> {
    let external = ExternalTocs::new(source);
    let mut seen = BTreeSet::new();
    // Made by a loop: a closure over references would keep this from being spawned as a task.
    let mut work = Vec::new();
    for layer in &image.manifest.layers {
        if !known.contains_key(&layer.digest) && seen.insert(layer.digest) {
            work.push(list(source, layer, &external, options.read_all));
        }
    }
    let listed: Vec<(Digest, Arc<Vec<Listed>>)> =
        stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
    known.extend(listed);
    Ok(())
}

async fn list(
    source: &dyn ImageSource,
    layer: &Descriptor,
    external: &ExternalTocs<'_>,
    read_all: bool,
) -> Result<(Digest, Arc<Vec<Listed>>), LookError> {
    Ok((layer.digest, Arc::new(layer::list(source, layer, external, read_all).await?)))
}

fn merge(image: &Image, known: &Known) -> Result<Tree, LookError> {
    let mut tree = Tree::new();
    for layer in &image.manifest.layers {
        let Some(listed) = known.get(&layer.digest) else { continue };
        tree.apply(listed)
            .map_err(|error| LookError::Layer { digest: layer.digest, reason: error.to_string() })?;
    }
    Ok(tree)
}
