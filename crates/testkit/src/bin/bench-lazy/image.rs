//! The image that is read: a small system of thousands of files, and over it two large files of real programs' bytes.
//!
//! And what is known of it without asking anybody who is measured: which chunks a read touches and what they weigh, from the
//! layer's own table of contents.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use testkit::cage::Cage;
use testkit::image::{self, Image, Layer, python};
use testkit::net::Host;
use testkit::node::Pantala;
use testkit::shelf::Shelf;

/// Bytes of the file that is read from one end to the other.
pub const BIG_BYTES: usize = 300_000_000;
/// Bytes of the file that is read here and there.
const RANDOM_BYTES: usize = 220_000_000;
/// Where they stand.
pub const BIG: &str = "data/big";
/// The same.
pub const RANDOM: &str = "data/random";
/// Layers of the image of many files, and files in each.
pub const CROWD: (usize, usize) = (20, 10_000);
/// The length of the footer of an eStargz layer.
const FOOTER: usize = 51;

/// A regular file's chunk, as the table of contents has it.
#[derive(Debug, Clone)]
struct Chunk {
    name: String,
    /// Where it begins in its file.
    at: u64,
    /// Bytes of the file in it.
    inflated: u64,
    /// Where it begins in the blob.
    offset: u64,
}

/// The chunks of one layer.
#[derive(Debug)]
pub struct Chunks {
    chunks: Vec<Chunk>,
    /// Where each compressed member begins, ascending; the last is the table's own.
    offsets: Vec<u64>,
}

/// What a set of chunks weighs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weight {
    /// Bytes in the blob.
    pub compressed: u64,
    /// Bytes of files.
    pub inflated: u64,
}

/// Puts the image into the registry as eStargz, by our own converter. Answers its reference.
pub fn push(shelf: &Shelf, pantala: &Pantala, host: &Host) -> Result<String> {
    let base = python::image(&image::cache(), &|_| {})?.layers.swap_remove(0);
    let source = python::large(&image::cache(), &|_| {})?.layers.swap_remove(0);
    let (big, random) = programs(&source)?;
    let data = {
        let mut builder = tar::Builder::new(Vec::with_capacity(BIG_BYTES + RANDOM_BYTES + (1 << 20)));
        for (name, bytes) in [(BIG, &big), (RANDOM, &random)] {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_mtime(1_767_225_600);
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, bytes.as_slice())?;
        }
        Layer::zstd(&builder.into_inner()?)?
    };
    let image = Image::from_layers(vec![base, data], &serde_json::json!({"Cmd": ["/bin/sh"]}));
    lazily(&image, "lab/large", shelf, pantala, host)
}

/// Puts the image of many layers with many files into the registry. Answers its reference.
pub fn push_crowd(shelf: &Shelf, pantala: &Pantala, host: &Host) -> Result<String> {
    let (layers, files) = CROWD;
    let tar_of = |layer: usize| -> Result<Layer> {
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..files {
            let text = format!("file {number} of layer {layer}\n").repeat(1 + number % 40);
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_mtime(1_767_225_600);
            header.set_size(text.len() as u64);
            let path =
                format!("usr/lib/module-{layer:02}/package-{:03}/source-file-{number}.py", number / 50);
            builder.append_data(&mut header, path, text.as_bytes())?;
        }
        Layer::zstd(&builder.into_inner()?)
    };
    let layers = (0..layers).map(tar_of).collect::<Result<Vec<_>>>()?;
    let image = Image::from_layers(layers, &serde_json::json!({"Cmd": ["/bin/sh"]}));
    lazily(&image, "lab/crowd", shelf, pantala, host)
}

fn lazily(image: &Image, name: &str, shelf: &Shelf, pantala: &Pantala, host: &Host) -> Result<String> {
    let folder = Cage::current().context("in no cage")?.dir().join(name);
    let (plain, lazy) = (folder.join("plain"), folder.join("lazy"));
    image.write_layout(&plain, &format!("{name}:1"))?;
    let place = |folder: &Path| format!("oci:{}:1", folder.display());
    pantala.run(host, &["image", "convert", &place(&plain), &place(&lazy)])?;
    let reference = shelf.stock(&lazy, name, "1")?;
    fs::remove_dir_all(folder)?;
    Ok(reference)
}

/// The bytes of a layer's regular files, one after another, as two files. Real bytes: how fast they inflate, and to how
/// much, is what it is for an image.
fn programs(layer: &Layer) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::with_capacity(BIG_BYTES + RANDOM_BYTES);
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(layer.bytes.as_slice()));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            entry.read_to_end(&mut all)?;
        }
        if all.len() >= BIG_BYTES + RANDOM_BYTES {
            break;
        }
    }
    all.truncate(BIG_BYTES + RANDOM_BYTES);
    anyhow::ensure!(all.len() == BIG_BYTES + RANDOM_BYTES, "the large image has too few bytes");
    let random = all.split_off(BIG_BYTES);
    Ok((all, random))
}

#[derive(Deserialize)]
struct Toc {
    entries: Vec<TocEntry>,
}

#[derive(Deserialize)]
struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    offset: u64,
    #[serde(default, rename = "chunkOffset")]
    chunk_offset: u64,
    #[serde(default, rename = "chunkSize")]
    chunk_size: u64,
}

impl Chunks {
    /// Of the last layer of the image at `reference`.
    pub fn of(shelf: &Shelf, reference: &str) -> Result<Self> {
        let (_, name) = reference.split_once('/').context("a reference")?;
        let manifest = shelf.manifest(name)?;
        let layer = manifest["layers"].as_array().and_then(|layers| layers.last()).context("no layers")?;
        let blob = shelf.blob(layer["digest"].as_str().context("no digest")?).context("no blob")?;
        let (rest, footer) = blob.split_at(blob.len() - FOOTER);
        // An empty gzip member; its extra field is "SG", 22 bytes: 16 hexadecimal digits and "STARGZ".
        let toc_at = u64::from_str_radix(std::str::from_utf8(&footer[16..32])?, 16)?;
        let mut archive =
            tar::Archive::new(flate2::read::MultiGzDecoder::new(&rest[usize::try_from(toc_at)?..]));
        let entry = archive.entries()?.next().context("no table of contents")??;
        let toc: Toc = serde_json::from_reader(entry)?;
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut size = 0;
        for entry in toc.entries {
            if entry.kind == "reg" {
                size = entry.size;
            }
            if matches!(entry.kind.as_str(), "reg" | "chunk") && size > 0 {
                let rest = size - entry.chunk_offset;
                let inflated = if entry.chunk_size == 0 { rest } else { entry.chunk_size };
                chunks.push(Chunk {
                    name: entry.name,
                    at: entry.chunk_offset,
                    inflated,
                    offset: entry.offset,
                });
            }
        }
        let mut offsets: Vec<_> = chunks.iter().map(|chunk| chunk.offset).chain([toc_at]).collect();
        offsets.sort_unstable();
        offsets.dedup();
        Ok(Self { chunks, offsets })
    }

    /// What those chunks of a file weigh that have a byte at one of `places`.
    pub fn touched(&self, file: &str, places: &[u64]) -> Weight {
        let mut weight = Weight::default();
        for chunk in self.chunks.iter().filter(|chunk| chunk.name == file) {
            let range = chunk.at..chunk.at + chunk.inflated;
            if places.iter().any(|place| range.contains(place)) {
                let next = self.offsets.partition_point(|offset| *offset <= chunk.offset);
                weight.compressed += self.offsets[next] - chunk.offset;
                weight.inflated += chunk.inflated;
            }
        }
        weight
    }
}
