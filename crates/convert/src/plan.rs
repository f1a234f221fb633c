//! What there is to do: an image's documents, read and compared before anything is converted.

use bytes::Bytes;
use content::Digest;
use registry::{Descriptor, Index, Manifest, Platform, media_type};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::ConvertError;
use crate::options::Platforms;
use crate::place::{ImageSource, Place};
use crate::platform::{self, PlatformSpec};

/// Largest config that is read, in bytes. Registries take no larger manifests either.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;

/// Annotation of an attestation with the digest of the manifest that it speaks of.
const SUBJECT_ANNOTATION: &str = "vnd.docker.reference.digest";

/// What is to be converted, and what copied.
pub(crate) struct Plan {
    /// The index, if the result has one, and what becomes of each of its entries.
    pub(crate) index: Option<(Index, Vec<Entry>)>,
    /// The images.
    pub(crate) images: Vec<Image>,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// What becomes of an entry of an index.
pub(crate) enum Entry {
    /// It is this one of the images.
    Image(usize),
    /// It is no image, and is copied.
    Other(Bytes),
}

/// The image of one platform.
pub(crate) struct Image {
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) config: Value,
    pub(crate) config_bytes: Bytes,
    pub(crate) platform: Option<Platform>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Plan {
    /// Reads the documents of the images that are wanted.
    pub(crate) async fn read(source: &dyn ImageSource, platforms: &Platforms) -> Result<Self, ConvertError> {
        let (root, bytes) = source.root().await?;
        let mut plan = Self { index: None, images: Vec::new(), warnings: Vec::new() };
        if !media_type::is_index(&root.media_type) {
            let image = Image::read(source, &root, &bytes).await?;
            if let Platforms::Only(wanted) = platforms {
                let fits =
                    |wanted: &PlatformSpec| image.platform.as_ref().is_some_and(|it| wanted.matches(it));
                if let Some(missing) = wanted.iter().find(|wanted| !fits(wanted)) {
                    let available = image.platform.iter().map(platform::display).collect();
                    return Err(no_platform(source, missing, available));
                }
            }
            plan.images.push(image);
            return Ok(plan);
        }
        let mut index: Index = document("index", root.digest, &bytes)?;
        if let Platforms::Only(wanted) = platforms {
            index.manifests = chosen(source, &index, wanted)?;
            if let ([_], [only]) = (wanted.as_slice(), index.manifests.as_slice()) {
                let bytes = source.manifest(only).await?;
                plan.images.push(Image::read(source, only, &bytes).await?);
                return Ok(plan);
            }
        }
        plan.entries(source, index, platforms).await?;
        Ok(plan)
    }

    async fn entries(
        &mut self,
        source: &dyn ImageSource,
        mut index: Index,
        platforms: &Platforms,
    ) -> Result<(), ConvertError> {
        // A registry has an index only together with its images: there a missing one is damage.
        let may_lack = *platforms == Platforms::Present && !matches!(source.place(), Place::Registry(_));
        let (mut present, mut entries) = (Vec::new(), Vec::new());
        let mut lacking = None;
        for descriptor in std::mem::take(&mut index.manifests) {
            let bytes = match source.manifest(&descriptor).await {
                Ok(bytes) => bytes,
                Err(error) if may_lack && error.is_not_found() => {
                    if is_image(&descriptor) {
                        let name =
                            descriptor.platform.as_ref().map_or("an image".to_owned(), platform::display);
                        self.warnings
                            .push(format!("{name} is left out: {} does not have it", source.place()));
                        lacking = Some(error);
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            entries.push(if is_image(&descriptor) {
                self.images.push(Image::read(source, &descriptor, &bytes).await?);
                Entry::Image(self.images.len() - 1)
            } else {
                Entry::Other(bytes)
            });
            present.push(descriptor);
        }
        if let (true, Some(error)) = (self.images.is_empty(), lacking) {
            return Err(error.into());
        }
        index.manifests = present;
        self.index = Some((index, entries));
        Ok(())
    }
}

impl Image {
    /// Reads the config of an image, and compares it with the manifest.
    pub(crate) async fn read(
        source: &dyn ImageSource,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<Self, ConvertError> {
        if !media_type::is_manifest(&descriptor.media_type) {
            return Err(not_an_image(source.place(), &descriptor.media_type));
        }
        let manifest: Manifest = document("manifest", descriptor.digest, bytes)?;
        let at = &manifest.config;
        if at.media_type != media_type::OCI_CONFIG && at.media_type != media_type::DOCKER_CONFIG {
            return Err(not_an_image(source.place(), &at.media_type));
        }
        let config_bytes = source.document(at, MAX_CONFIG).await?;
        let config: Value = document("config", at.digest, &config_bytes)?;
        let diff_ids = diff_ids(&config, at.digest)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ConvertError::LayerCount {
                manifest: descriptor.digest,
                diff_ids: diff_ids.len(),
                layers: manifest.layers.len(),
            });
        }
        let (descriptor, platform) = (descriptor.clone(), platform_of(&config));
        Ok(Self { descriptor, manifest, config, config_bytes, platform, diff_ids })
    }
}

/// Whether an entry of an index is an image, and not something said about one.
fn is_image(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type)
        && !descriptor.platform.as_ref().is_some_and(platform::is_unknown)
}

/// The entries for `wanted`, in the order of the index, and what is said about them.
fn chosen(
    source: &dyn ImageSource,
    index: &Index,
    wanted: &[PlatformSpec],
) -> Result<Vec<Descriptor>, ConvertError> {
    let mut digests = Vec::new();
    for wanted in wanted {
        let picked = pick(index, wanted).ok_or_else(|| no_platform(source, wanted, platforms(index)))?;
        digests.push(picked.digest);
    }
    let subject = |it: &Descriptor| it.annotation(SUBJECT_ANNOTATION).and_then(|text| text.parse().ok());
    let about = |it: &&Descriptor| subject(it).is_some_and(|subject| digests.contains(&subject));
    let one = wanted.len() == 1;
    let mut seen = Vec::new();
    let manifests = index.manifests.iter().filter(|it| {
        let first = digests.contains(&it.digest) && !seen.contains(&it.digest);
        seen.push(it.digest);
        first || (!one && about(it))
    });
    Ok(manifests.cloned().collect())
}

pub(crate) fn no_platform(
    source: &dyn ImageSource,
    wanted: &PlatformSpec,
    available: Vec<String>,
) -> ConvertError {
    ConvertError::Platform { reference: source.place().to_string(), wanted: wanted.to_string(), available }
}

pub(crate) fn not_an_image(place: &Place, media_type: &str) -> ConvertError {
    ConvertError::NotAnImage { reference: place.to_string(), media_type: media_type.to_owned() }
}

/// The first image of an index for `wanted`.
pub(crate) fn pick<'a>(index: &'a Index, wanted: &PlatformSpec) -> Option<&'a Descriptor> {
    index.manifests.iter().find(|manifest| manifest.platform.as_ref().is_some_and(|it| wanted.matches(it)))
}

/// The platforms of an index, for a message.
pub(crate) fn platforms(index: &Index) -> Vec<String> {
    let platforms = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
    platforms.filter(|it| !platform::is_unknown(it)).map(platform::display).collect()
}

pub(crate) fn document<T: DeserializeOwned>(
    what: &'static str,
    digest: Digest,
    bytes: &[u8],
) -> Result<T, ConvertError> {
    serde_json::from_slice(bytes).map_err(|reason| ConvertError::Document { what, digest, reason })
}

pub(crate) fn to_bytes(what: &'static str, document: &impl serde::Serialize) -> Result<Bytes, ConvertError> {
    serde_json::to_vec(document).map(Bytes::from).map_err(|reason| ConvertError::Document {
        what,
        digest: Digest::of(b""),
        reason,
    })
}

/// The platform that a config names.
pub(crate) fn platform_of(config: &Value) -> Option<Platform> {
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(Platform {
        os: text("os")?.to_owned(),
        architecture: text("architecture")?.to_owned(),
        variant: text("variant").map(str::to_owned),
        rest: serde_json::Map::new(),
    })
}

pub(crate) fn diff_ids(config: &Value, digest: Digest) -> Result<Vec<Digest>, ConvertError> {
    let value = config.pointer("/rootfs/diff_ids").cloned().unwrap_or(Value::Array(Vec::new()));
    serde_json::from_value(value).map_err(|reason| ConvertError::Document { what: "config", digest, reason })
}

/// The config with other diffIDs; the very bytes that it had if they are the same.
pub(crate) fn set_diff_ids(
    config: &mut Value,
    diff_ids: &[Digest],
    before: Bytes,
) -> Result<Bytes, ConvertError> {
    let Some(slot) = config.pointer_mut("/rootfs/diff_ids") else { return Ok(before) };
    let texts: Vec<Value> = diff_ids.iter().map(|digest| Value::String(digest.to_string())).collect();
    let new = Value::Array(texts);
    if *slot == new {
        return Ok(before);
    }
    *slot = new;
    to_bytes("config", config)
}
