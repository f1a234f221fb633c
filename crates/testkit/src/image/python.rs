//! A real Python image, made from Debian's packages: a base, the language, a small application.
//!
//! `debootstrap` makes the base. The language is installed with `apt` in an overlay on top of it, and the overlay's
//! upper folder is the layer: what `docker build` does. Layers are kept in a cache folder as they will be pushed,
//! so that all of this happens once per version of the recipe.
//!
//! Packages come from where this machine's own `apt` gets them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use content::{Digest, Hasher};
use serde_json::json;

use super::{Entry, Image, Layer, layer, tar_of_tree};
use crate::cage::find_program;
use crate::process::run;

/// Changes whenever the recipe makes other layers: older ones in the cache are then of no use.
const RECIPE: &str = "4";
/// Debian 12.
const SUITE: &str = "bookworm";
/// What a Python image for developers has: the interpreter with its whole library, pip, venv, headers.
const PACKAGES: &[&str] = &["python3", "python3-pip", "python3-venv", "python3-dev"];
/// What nobody needs in an image, relative to its root.
const LITTER: &[&str] = &[
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "etc/resolv.conf",
    "usr/sbin/policy-rc.d",
    "tmp",
    "root",
];

/// What the containers run beside `python3 -V`.
pub const PROGRAM: &str = "/app/main.py";
/// The first words that [`PROGRAM`] prints.
pub const PROGRAM_SAYS: &str = "pantala demo:";

/// Makes the image, or takes it from `cache`. `say` is told what is being done, a line at a time.
pub fn image(cache: &Path, say: &dyn Fn(&str)) -> Result<Image> {
    let dir = cache.join(format!("python-{SUITE}-{}-{RECIPE}", super::architecture()));
    let mut layers = Vec::new();
    if !dir.join("done").is_file() {
        // What is there is of an older recipe, or an attempt that did not come to its end.
        for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("python-") {
                remove_tree(&entry.path())?;
            }
        }
        build(&dir, say).context("cannot make the Python image")?;
        fs::write(dir.join("done"), "")?;
    }
    for (name, made_by) in [
        ("base", format!("debootstrap --variant=minbase {SUITE}")),
        ("language", format!("apt-get install {}", PACKAGES.join(" "))),
    ] {
        let bytes = fs::read(dir.join(name))?;
        let diff_id: Digest = fs::read_to_string(dir.join(name).with_extension("diffid"))?.parse()?;
        layers.push(Layer::from_parts(bytes, diff_id).created_by(&made_by));
    }
    layers.push(Layer::gzip(&application()?)?.created_by("COPY app /app"));
    Ok(Image::from_layers(layers, &run_config()))
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

fn build(dir: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let work = dir.join("work");
    let base = work.join("base");
    fs::create_dir_all(&base)?;
    find_program("debootstrap")
        .context("debootstrap is not installed (scripts/setup.sh demo installs it)")?;
    let mirror = mirror()?;

    say(&format!("base layer: debootstrap {SUITE} (about a minute)"));
    apt_environment(Command::new("debootstrap").args(["--variant=minbase", SUITE]).arg(&base).arg(&mirror))
        .and_then(|command| run_logged(command, &work.join("debootstrap.log")))?;
    pack(&base, &dir.join("base"), say)?;

    say(&format!("language layer: apt-get install {} (about a minute)", PACKAGES.join(" ")));
    let upper = install(&work, &base)?;
    pack(&upper, &dir.join("language"), say)?;
    remove_tree(&work)
}

/// Installs the packages in an overlay over `base`; answers the upper folder.
fn install(work: &Path, base: &Path) -> Result<PathBuf> {
    let [upper, inner, root] = ["upper", "inner", "root"].map(|name| work.join(name));
    for folder in [&upper, &inner, &root] {
        fs::create_dir_all(folder)?;
    }
    let script = r#"
        set -e
        mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$INNER" "$ROOT"
        mount -t proc proc "$ROOT/proc"
        cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
        # No daemon is to start because its package was installed.
        printf '#!/bin/sh\nexit 101\n' > "$ROOT/usr/sbin/policy-rc.d"
        chmod 755 "$ROOT/usr/sbin/policy-rc.d"
        export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
        chroot "$ROOT" apt-get -qq update
        chroot "$ROOT" apt-get -qq -o Dpkg::Options::=--force-unsafe-io install --no-install-recommends -y $PACKAGES
    "#;
    // In a mount namespace of its own: nothing stays mounted, however this ends.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .env("BASE", base)
        .env("UPPER", &upper)
        .env("INNER", &inner)
        .env("ROOT", &root)
        .env("PACKAGES", PACKAGES.join(" "));
    run_logged(apt_environment(&mut command)?, &work.join("apt.log"))?;
    Ok(upper)
}

/// Writes a folder as a gzipped layer, and the digest of the tar inside beside it.
fn pack(tree: &Path, file: &Path, say: &dyn Fn(&str)) -> Result<()> {
    say(&format!("compressing the {} layer", file.file_name().unwrap_or_default().display()));
    let gzip =
        flate2::write::GzEncoder::new(BufWriter::new(File::create(file)?), flate2::Compression::new(6));
    let written = tar_of_tree(tree, LITTER, HashedWrite { inner: gzip, hasher: Hasher::new() })?;
    written.inner.finish()?.flush()?;
    fs::write(file.with_extension("diffid"), written.hasher.finish().to_string())?;
    Ok(())
}

struct HashedWrite<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for HashedWrite<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Where this machine's apt gets Debian from.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more =
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    files.extend(more);
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let found = texts.into_iter().find_map(|text| mirror_in(&text)).with_context(|| {
        format!("no source of Debian {SUITE} in /etc/apt/sources.list or /etc/apt/sources.list.d: add one")
    })?;
    // Cloud images name a file with a list of mirrors.
    match found.strip_prefix("mirror+file:") {
        Some(file) => fs::read_to_string(file)?
            .split_whitespace()
            .find(|word| word.starts_with("http"))
            .map(str::to_owned)
            .with_context(|| format!("no mirror in {file}")),
        None => Ok(found),
    }
}

/// The first URI whose suite is [`SUITE`] itself, in either of apt's two formats.
fn mirror_in(text: &str) -> Option<String> {
    for line in text.lines().filter(|line| line.starts_with("deb ")) {
        // deb [options] URI suite component…
        let line = line.split_once(']').map_or(&line[4..], |(_, rest)| rest);
        let mut words = line.split_whitespace();
        if let (Some(uri), Some(SUITE)) = (words.next(), words.next()) {
            return Some(uri.to_owned());
        }
    }
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
        let suites = field("Suites:")?;
        let uri = field("URIs:")?.split_whitespace().next()?;
        suites.split_whitespace().any(|suite| suite == SUITE).then(|| uri.to_owned())
    })
}

/// Gives a command the proxy that apt is configured with, if any.
fn apt_environment(command: &mut Command) -> Result<&mut Command> {
    let shell = run(Command::new("apt-config").args(["shell", "PROXY", "Acquire::http::Proxy"]))?;
    // PROXY='http://…'
    if let Some(proxy) = shell.trim().strip_prefix("PROXY='").and_then(|rest| rest.strip_suffix('\'')) {
        command.env("http_proxy", proxy);
    }
    Ok(command)
}

/// Runs a long command with its output in a file; the end of that is the error.
fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log)?;
    let status =
        command.stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file).status()?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        bail!("{}: {status}; its output ends with:\n{end}", command.get_program().display());
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_read_from_both_formats() {
        let stanzas = "Types: deb\nURIs: http://one/security\nSuites: bookworm-security\n\n\
                       Types: deb\nURIs: http://two/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(mirror_in(stanzas).as_deref(), Some("http://two/debian"));
        let lines = "# deb http://no/ bookworm main\ndeb [signed-by=/x arch=amd64] http://three/debian bookworm main\n";
        assert_eq!(mirror_in(lines).as_deref(), Some("http://three/debian"));
        assert_eq!(mirror_in("deb http://four/debian trixie main"), None);
    }

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
