//! Putting images into a registry with the plain requests of the distribution specification.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use content::Digest;

use super::Image;
use crate::http::{self, Response};

impl Image {
    /// Pushes everything under `repository:tag` to the registry at `address`.
    pub fn push(&self, address: SocketAddr, repository: &str, tag: &str) -> Result<()> {
        for layer in &self.layers {
            push_blob(address, repository, layer.digest, &layer.bytes)?;
        }
        push_blob(address, repository, Digest::of(&self.config), &self.config)?;
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
        http::request(address, "PUT", &path, &headers, &self.manifest)?
            .success()
            .with_context(|| format!("manifest of {repository}:{tag}"))?;
        Ok(())
    }
}

/// Pushes one blob, if it is not there.
pub fn push_blob(address: SocketAddr, repository: &str, digest: Digest, bytes: &[u8]) -> Result<()> {
    let blobs = format!("/v2/{repository}/blobs");
    if http::request(address, "HEAD", &format!("{blobs}/{digest}"), &[], &[])?.status == 200 {
        return Ok(());
    }
    let session = http::request(address, "POST", &format!("{blobs}/uploads/"), &[], &[])?.success()?;
    let location = upload_path(&session)?;
    let joint = if location.contains('?') { '&' } else { '?' };
    let headers = [("content-type", "application/octet-stream")];
    http::request(address, "PUT", &format!("{location}{joint}digest={digest}"), &headers, bytes)?
        .success()
        .with_context(|| format!("blob {digest} of {repository}"))?;
    Ok(())
}

/// Where the registry wants the bytes: the path of `Location`, which may be a whole URL.
fn upload_path(session: &Response) -> Result<String> {
    let location = session.header("location").context("no location for the upload")?;
    let path = location.split_once("://").map_or(location, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
    Ok(path.to_owned())
}
