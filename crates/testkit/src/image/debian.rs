//! Debian's packages as folders and layers.
//!
//! `debootstrap` makes a base. More packages are installed by `apt` inside of it, or in an overlay on top of it, whose
//! upper folder is then a layer: what `docker build` does. A folder is packed into a gzipped layer with the digest of
//! its tar beside it.
//!
//! Packages come from where this machine's own `apt` gets them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use content::{Digest, Hasher};

use super::{Layer, tar_of_tree};
use crate::cage::find_program;
use crate::process::run;

/// Debian 12.
pub(super) const SUITE: &str = "bookworm";
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

/// Where images are kept from one run to the next: `$PANTALA_LAB_CACHE`, or `pantala-lab` in the user's cache folder.
pub fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("PANTALA_LAB_CACHE").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| "/var/cache".into())
            .join("pantala-lab")
    })
}

/// Makes `dir`, named `<what>-<recipe>`, by `build`, unless an earlier run has made it. Of several processes one builds and
/// the others wait.
pub(super) fn once(dir: &Path, build: impl FnOnce() -> Result<()>) -> Result<()> {
    let parent = dir.parent().context("a cached folder has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let lock = File::create(parent.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let done = dir.join("done");
    if done.is_file() {
        return Ok(());
    }
    // What is there is of an older recipe, or an attempt that did not come to its end.
    let name = dir.file_name().context("a cached folder has a name")?.to_string_lossy().into_owned();
    let family = name.rsplit_once('-').map_or(name.as_str(), |(family, _)| family);
    for entry in fs::read_dir(parent)?.flatten().filter(|entry| entry.path().is_dir()) {
        let other = entry.file_name().to_string_lossy().into_owned();
        if other.rsplit_once('-').map_or(other.as_str(), |(other, _)| other) == family {
            remove_tree(&entry.path())?;
        }
    }
    fs::create_dir(dir)?;
    build()?;
    fs::write(done, "")?;
    Ok(())
}

/// Makes a minimal system in `root`.
pub(super) fn debootstrap(root: &Path, log: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    find_program("debootstrap")
        .context("debootstrap is not installed (scripts/setup.sh test installs it)")?;
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", SUITE]).arg(root).arg(mirror()?);
    run_logged(apt_environment(&mut command)?, log)
}

/// Installs packages in the system at `root`.
pub(super) fn install(root: &Path, packages: &[&str], log: &Path) -> Result<()> {
    let mut command = installer("", packages);
    run_logged(apt_environment(command.env("ROOT", root))?, log)
}

/// Installs packages in an overlay over the system at `base`; answers the upper folder, which is below `work`.
pub(super) fn install_over(base: &Path, packages: &[&str], work: &Path) -> Result<PathBuf> {
    let [upper, inner, root] = ["upper", "inner", "root"].map(|name| work.join(name));
    for folder in [&upper, &inner, &root] {
        fs::create_dir_all(folder)?;
    }
    let mount = r#"mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$INNER" "$ROOT""#;
    let mut command = installer(mount, packages);
    command.env("BASE", base).env("UPPER", &upper).env("INNER", &inner).env("ROOT", &root);
    run_logged(apt_environment(&mut command)?, &work.join("apt.log"))?;
    Ok(upper)
}

/// In a mount namespace of its own: nothing stays mounted, however this ends.
fn installer(mount: &str, packages: &[&str]) -> Command {
    let script = format!(
        r#"
        set -e
        {mount}
        mount -t proc proc "$ROOT/proc"
        cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
        # No daemon is to start because its package was installed.
        printf '#!/bin/sh\nexit 101\n' > "$ROOT/usr/sbin/policy-rc.d"
        chmod 755 "$ROOT/usr/sbin/policy-rc.d"
        export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
        chroot "$ROOT" apt-get -qq update
        chroot "$ROOT" apt-get -qq -o Dpkg::Options::=--force-unsafe-io install --no-install-recommends -y $PACKAGES
    "#
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).env("PACKAGES", packages.join(" "));
    command
}

/// Writes a folder as a gzipped layer, and the digest of the tar inside beside it.
pub(super) fn pack(tree: &Path, file: &Path) -> Result<()> {
    let gzip =
        flate2::write::GzEncoder::new(BufWriter::new(File::create(file)?), flate2::Compression::new(6));
    let written = tar_of_tree(tree, LITTER, HashedWrite::new(gzip))?;
    let (gzip, diff_id) = written.finish();
    gzip.finish()?.flush()?;
    fs::write(file.with_extension("diffid"), diff_id.to_string())?;
    Ok(())
}

/// What [`pack`] wrote.
pub(super) fn unpack(file: &Path) -> Result<Layer> {
    let diff_id: Digest = fs::read_to_string(file.with_extension("diffid"))?.parse()?;
    Ok(Layer::from_parts(fs::read(file)?, diff_id))
}

/// Passes bytes on and computes their digest.
pub(super) struct HashedWrite<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> HashedWrite<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new() }
    }

    pub(super) fn finish(self) -> (W, Digest) {
        (self.inner, self.hasher.finish())
    }
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

pub(super) fn remove_tree(dir: &Path) -> Result<()> {
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
    fn a_folder_is_made_once_an_attempt_is_made_again_and_an_older_recipe_goes() {
        let cache = tempfile::tempdir().unwrap();
        for left in ["thing-1", "thing-2", "other-1"] {
            fs::create_dir(cache.path().join(left)).unwrap();
        }
        let dir = cache.path().join("thing-2");
        fs::write(dir.join("half"), "").unwrap();
        let times = std::cell::Cell::new(0);
        let make = || {
            times.set(times.get() + 1);
            anyhow::ensure!(times.get() > 1, "meant to fail");
            Ok(fs::write(dir.join("whole"), "")?)
        };
        assert!(once(&dir, make).is_err());
        once(&dir, make).unwrap();
        once(&dir, make).unwrap();
        assert_eq!(times.get(), 2);
        assert!(dir.join("whole").exists() && !dir.join("half").exists());
        assert!(cache.path().join("other-1").exists() && !cache.path().join("thing-1").exists());
    }
}
