//! Images as files: OCI layouts and tars of them.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::Result;
use content::Digest;
use serde_json::json;

use super::Image;

impl Image {
    /// Writes an OCI layout into the new folder `dir`, with the image under a name that containerd takes, as in
    /// `lab/image:tag`.
    pub fn write_layout(&self, dir: &Path, name: &str) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layers = self.layers.iter().map(|layer| layer.bytes.as_slice());
        for bytes in layers.chain([self.config.as_slice(), self.manifest.as_slice()]) {
            fs::write(blobs.join(Digest::of(bytes).hex()), bytes)?;
        }
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
        let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": self.digest().to_string(),
                "size": self.manifest.len(),
                "annotations": {
                    "org.opencontainers.image.ref.name": tag,
                    "io.containerd.image.name": name,
                },
            }],
        });
        fs::write(dir.join("index.json"), index.to_string())?;
        Ok(())
    }

    /// The same as a tar; the layout stays beside it, at `<file>.layout`.
    pub fn write_archive(&self, file: &Path, name: &str) -> Result<()> {
        let mut layout = file.as_os_str().to_owned();
        layout.push(".layout");
        self.write_layout(Path::new(&layout), name)?;
        tar_of_layout(Path::new(&layout), file)
    }
}

/// Writes a layout as an archive.
pub fn tar_of_layout(layout: &Path, file: &Path) -> Result<()> {
    let mut builder = ::tar::Builder::new(BufWriter::new(File::create(file)?));
    builder.append_dir_all(".", layout)?;
    builder.into_inner()?.into_inner()?.sync_all()?;
    Ok(())
}
