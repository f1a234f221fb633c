//! Names of images, and what they stand for.

use std::collections::HashMap;

use proto::containerd::images as wire;

use crate::{Client, Error, is_not_found};

/// An image's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// What it stands for: a manifest or an index.
    pub media_type: String,
    /// The digest of that, in whichever algorithm.
    pub digest: String,
    /// Bytes of that.
    pub size: u64,
    /// Annotations of its descriptor.
    pub annotations: HashMap<String, String>,
    /// Labels of the record.
    pub labels: HashMap<String, String>,
    /// When the record was last written: seconds since 1970 (UTC), and nanoseconds.
    pub updated: (i64, i32),
}

impl Client {
    /// The image `name`, if this namespace has one.
    ///
    /// # Errors
    /// That containerd does not answer, or that the record names nothing.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let request = self.request(wire::GetImageRequest { name: name.to_owned() })?;
        match self.images().get(request).await {
            Ok(answer) => answer.into_inner().image.map(|image| self.read_image(image)).transpose(),
            Err(status) if is_not_found(&status) => Ok(None),
            Err(status) => Err(self.error(format!("looking for the image {name}"), &status)),
        }
    }

    /// All images of this namespace that match one of `filters`, or simply all.
    ///
    /// # Errors
    /// That containerd does not answer, or that a record names nothing.
    pub async fn list_images(&self, filters: &[String]) -> Result<Vec<Image>, Error> {
        let request = self.request(wire::ListImagesRequest { filters: filters.to_vec() })?;
        let answer = self.images().list(request).await;
        let answer = answer.map_err(|status| self.error("listing images", &status))?;
        answer.into_inner().images.into_iter().map(|image| self.read_image(image)).collect()
    }

    fn read_image(&self, image: wire::Image) -> Result<Image, Error> {
        let wire::Image { name, labels, target, updated_at, .. } = image;
        let Some(target) = target else {
            return Err(self.malformed(format!("the image {name}"), "it stands for nothing"));
        };
        let size = u64::try_from(target.size).map_err(|_| {
            self.malformed(format!("the image {name}"), format!("it has {} bytes", target.size))
        })?;
        let (media_type, digest, annotations) = (target.media_type, target.digest, target.annotations);
        let updated = updated_at.map_or((0, 0), |at| (at.seconds, at.nanos));
        Ok(Image { name, media_type, digest, size, annotations, labels, updated })
    }
}
