//! Real Python images, made from Debian's packages: one as people build them (a base, the language, a small
//! application), and one of a single large layer, for measuring what one layer costs.
//!
//! Layers are kept in a cache folder as they will be pushed, so that all of this happens once per version of a recipe.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use content::Hasher;
use serde_json::json;

use super::debian::{self, SUITE};
use super::{Entry, Image, Layer, architecture, layer};

/// Changes whenever the recipe makes other layers: older ones in the cache are then of no use.
const RECIPE: &str = "4";
/// What a Python image for developers has: the interpreter with its whole library, pip, venv, headers.
const PACKAGES: &[&str] = &["python3", "python3-pip", "python3-venv", "python3-dev"];
/// The same for the large layer.
const LARGE_RECIPE: &str = "1";
/// What a Python image for data and science has besides: compilers, libraries, tools.
const LARGE_PACKAGES: &[&str] = &["build-essential", "git", "ipython3", "python3-django", "python3-pandas"];

/// What the containers run beside `python3 -V`.
pub const PROGRAM: &str = "/app/main.py";
/// The first words that [`PROGRAM`] prints.
pub const PROGRAM_SAYS: &str = "pantala demo:";

/// Makes the image of three layers, or takes it from `cache`. `say` is told what is being done, a line at a time.
pub fn image(cache: &Path, say: &dyn Fn(&str)) -> Result<Image> {
    let dir = cache.join(format!("python-{SUITE}-{}-{RECIPE}", architecture()));
    let build = || {
        let work = dir.join("work");
        let base = work.join("base");
        fs::create_dir_all(&work)?;
        say(&format!("base layer: debootstrap {SUITE} (about a minute)"));
        debian::debootstrap(&base, &work.join("debootstrap.log"))?;
        debian::pack(&base, &dir.join("base"))?;
        say(&format!("language layer: apt-get install {} (about a minute)", PACKAGES.join(" ")));
        let upper = debian::install_over(&base, PACKAGES, &work)?;
        debian::pack(&upper, &dir.join("language"))?;
        debian::remove_tree(&work)
    };
    debian::once(&dir, build).context("cannot make the Python image")?;
    let layers = vec![
        debian::unpack(&dir.join("base"))?.created_by(&format!("debootstrap --variant=minbase {SUITE}")),
        debian::unpack(&dir.join("language"))?.created_by(&format!("apt-get install {}", PACKAGES.join(" "))),
        Layer::gzip(&application()?)?.created_by("COPY app /app"),
    ];
    Ok(Image::from_layers(layers, &run_config()))
}

/// Makes both images of this module, so that they lie in the cache; says what it does.
pub fn prepare() -> Result<()> {
    let say = |line: &str| eprintln!("{line}");
    image(&super::cache(), &say)?;
    large(&super::cache(), &say).map(drop)
}

/// Makes the image of one large layer, a whole Debian with Python and its tools, or takes it from `cache`.
pub fn large(cache: &Path, say: &dyn Fn(&str)) -> Result<Image> {
    let dir = cache.join(format!("large-{SUITE}-{}-{LARGE_RECIPE}", architecture()));
    let packages = || PACKAGES.iter().chain(LARGE_PACKAGES).copied().collect::<Vec<_>>();
    let build = || {
        let work = dir.join("work");
        let root = work.join("root");
        fs::create_dir_all(&work)?;
        say(&format!("large layer: debootstrap {SUITE}, apt-get install {} (minutes)", packages().join(" ")));
        debian::debootstrap(&root, &work.join("debootstrap.log"))?;
        debian::install(&root, &packages(), &work.join("apt.log"))?;
        debian::pack(&root, &dir.join("root"))?;
        debian::remove_tree(&work)
    };
    debian::once(&dir, build).context("cannot make the large Python image")?;
    let made_by = format!("debootstrap {SUITE}; apt-get install {}", packages().join(" "));
    Ok(Image::from_layers(vec![debian::unpack(&dir.join("root"))?.created_by(&made_by)], &run_config()))
}

/// The same image as someone else's: each layer has one more file, so that no blob is the same.
pub fn another(image: &Image, word: &str) -> Result<Image> {
    let mut layers = Vec::new();
    for (index, old) in image.layers.iter().enumerate() {
        let name = format!("etc/build-{index}");
        let mut extra = layer(&[Entry::file(&name, format!("{word}\n"))])?;
        // Without the two empty blocks at its end a tar can be continued by another, and so can a gzip member.
        extra.truncate(extra.len() - 1024);
        let mut hasher = Hasher::new();
        hasher.update(&extra);
        let mut rest = flate2::read::MultiGzDecoder::new(old.bytes.as_slice());
        std::io::copy(&mut rest, &mut hasher)?;
        let mut bytes = Layer::gzip(&extra)?.bytes;
        bytes.extend_from_slice(&old.bytes);
        layers.push(Layer::from_parts(bytes, hasher.finish()).created_by(&old.created_by));
    }
    Ok(Image::from_layers(layers, &run_config()))
}

/// A layer with everything of another so many times over, in folders of their own.
pub fn several(layer: &Layer, times: usize) -> Result<Layer> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = ::tar::Builder::new(debian::HashedWrite::new(gzip));
    for number in 0..times {
        let folder = format!("{number}/");
        let mut archive = ::tar::Archive::new(flate2::read::MultiGzDecoder::new(layer.bytes.as_slice()));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let mut header = entry.header().clone();
            let path = format!("{folder}{}", String::from_utf8_lossy(&entry.path_bytes()));
            match entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()) {
                Some(link) if header.entry_type().is_hard_link() => {
                    builder.append_link(&mut header, path, format!("{folder}{link}"))?;
                }
                Some(link) => builder.append_link(&mut header, path, link)?,
                None => builder.append_data(&mut header, path, &mut entry)?,
            }
        }
    }
    let (gzip, diff_id) = builder.into_inner()?.finish();
    Ok(Layer::from_parts(gzip.finish()?, diff_id))
}

fn run_config() -> serde_json::Value {
    json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
        "Cmd": ["python3"],
        "WorkingDir": "/app",
    })
}

fn application() -> Result<Vec<u8>> {
    layer(&[
        Entry::dir("app/"),
        Entry::file("app/main.py", include_str!("main.py")),
        Entry::file("app/words.json", r#"{"lazy": "bytes arrive when they are touched"}"#),
    ])
}

#[cfg(test)]
mod tests {
    use content::Digest;

    use super::*;

    #[test]
    fn another_image_has_the_same_files_and_one_more_in_other_blobs() {
        let image = Image::new(&[layer(&[Entry::file("a", "1")]).unwrap()]);
        let other = another(&image, "fresh").unwrap();
        assert_ne!(image.layers[0].digest, other.layers[0].digest);
        let mut tar = Vec::new();
        let mut gunzip = flate2::read::MultiGzDecoder::new(other.layers[0].bytes.as_slice());
        std::io::copy(&mut gunzip, &mut tar).unwrap();
        assert_eq!(Digest::of(&tar), other.layers[0].diff_id);
        let mut archive = ::tar::Archive::new(tar.as_slice());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["etc/build-0", "a"]);
    }
}
