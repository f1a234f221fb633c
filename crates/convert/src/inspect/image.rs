//! The images behind a name: one, or one for each platform.

use bytes::Bytes;
use content::Digest;
use registry::{Descriptor, Index, Manifest, Platform, media_type};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::LookError;
use crate::place::ImageSource;
use crate::plan::MAX_CONFIG;
use crate::platform::{self, PlatformSpec};

/// One image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// `linux/amd64`.
    pub(crate) platform: String,
    /// The manifest's descriptor.
    pub(crate) descriptor: Descriptor,
    /// Bytes of the manifest.
    pub(crate) manifest_len: u64,
    pub(crate) manifest: Manifest,
    /// Whether it is an image to run, and not something said about one, such as a provenance.
    pub(crate) runs: bool,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// The manifest or the index.
    pub(crate) root: Descriptor,
    pub(crate) images: Vec<Image>,
}

/// The images of `source`: all, or those for `wanted`.
pub(crate) async fn images(
    source: &dyn ImageSource,
    wanted: Option<&PlatformSpec>,
) -> Result<Images, LookError> {
    let (root, bytes) = source.root().await?;
    if !media_type::is_index(&root.media_type) {
        let image = image(source, &root, bytes).await?;
        if let Some(wanted) = wanted
            && !is_wanted(&image, wanted)
        {
            return Err(missing(source, wanted, vec![image.platform]));
        }
        return Ok(Images { root, images: vec![image] });
    }
    let index: Index = document("index", root.digest, &bytes)?;
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let is_for =
            |wanted: &PlatformSpec| descriptor.platform.as_ref().is_some_and(|it| wanted.matches(it));
        if wanted.is_none_or(is_for) {
            let bytes = source.manifest(descriptor).await?;
            images.push(image(source, descriptor, bytes).await?);
        }
        if wanted.is_some() && !images.is_empty() {
            break;
        }
    }
    match wanted {
        Some(wanted) if images.is_empty() => {
            let platforms = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
            let available = platforms.filter(|it| !platform::is_unknown(it)).map(platform::display).collect();
            Err(missing(source, wanted, available))
        }
        _ => Ok(Images { root, images }),
    }
}

/// The one image of `source` for `wanted`. Without that: the only one, or the one for this machine.
pub(crate) async fn one_image(
    source: &dyn ImageSource,
    wanted: Option<&PlatformSpec>,
) -> Result<Image, LookError> {
    let mut images: Vec<Image> = images(source, wanted).await?.images;
    if images.len() > 1 {
        images.retain(|image| image.runs);
    }
    if images.len() > 1 {
        let available = images.iter().map(|image| image.platform.clone()).collect();
        let here: Option<PlatformSpec> = here().parse().ok();
        images.retain(|image| here.as_ref().is_some_and(|here| is_wanted(image, here)));
        images.truncate(1);
        if images.is_empty() {
            return Err(LookError::Ambiguous { reference: source.place().to_string(), available });
        }
    }
    images.pop().ok_or_else(|| LookError::NotAnImage {
        reference: source.place().to_string(),
        media_type: media_type::OCI_INDEX.to_owned(),
    })
}

/// The platform of this machine.
fn here() -> String {
    format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)
}

fn is_wanted(image: &Image, wanted: &PlatformSpec) -> bool {
    let mut parts = image.platform.splitn(3, '/');
    let platform = Platform {
        os: parts.next().unwrap_or_default().to_owned(),
        architecture: parts.next().unwrap_or_default().to_owned(),
        variant: parts.next().map(str::to_owned),
        rest: serde_json::Map::new(),
    };
    wanted.matches(&platform)
}

fn missing(source: &dyn ImageSource, wanted: &PlatformSpec, available: Vec<String>) -> LookError {
    let reference = source.place().to_string();
    LookError::Platform { reference, wanted: wanted.to_string(), available }
}

async fn image(source: &dyn ImageSource, descriptor: &Descriptor, bytes: Bytes) -> Result<Image, LookError> {
    if !media_type::is_manifest(&descriptor.media_type) {
        return Err(LookError::NotAnImage {
            reference: source.place().to_string(),
            media_type: descriptor.media_type.clone(),
        });
    }
    let manifest: Manifest = document("manifest", descriptor.digest, &bytes)?;
    let platform = match &descriptor.platform {
        Some(platform) => platform.clone(),
        // A manifest that stands alone says nothing of its platform; its config does.
        None => platform_of(&config(source, &manifest).await?),
    };
    Ok(Image {
        runs: !platform::is_unknown(&platform),
        platform: platform::display(&platform),
        descriptor: descriptor.clone(),
        manifest_len: bytes.len() as u64,
        manifest,
    })
}

/// The config of an image.
pub(crate) async fn config(source: &dyn ImageSource, manifest: &Manifest) -> Result<Value, LookError> {
    let bytes = source.document(&manifest.config, MAX_CONFIG).await?;
    document("config", manifest.config.digest, &bytes)
}

/// The platform that a config names; what it does not name is unknown.
pub(crate) fn platform_of(config: &Value) -> Platform {
    let text = |key: &str| {
        config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    Platform {
        os: text("os").unwrap_or_else(|| "unknown".to_owned()),
        architecture: text("architecture").unwrap_or_else(|| "unknown".to_owned()),
        variant: text("variant"),
        rest: serde_json::Map::new(),
    }
}

pub(crate) fn document<T: DeserializeOwned>(
    what: &'static str,
    digest: Digest,
    bytes: &[u8],
) -> Result<T, LookError> {
    serde_json::from_slice(bytes).map_err(|reason| LookError::Document { what, digest, reason })
}
