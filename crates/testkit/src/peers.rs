//! Other people's converters, built from Go modules by `bench/peers/build` into the cache folder: upstream's newest one,
//! and the compressor of podman. Optional: who needs one that is not there says so and goes on without.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use content::Digest;

use crate::containerd::Containerd;
use crate::image::{self, Layer};
use crate::process::run;

/// A peer's program, if it was built.
pub fn find(name: &str) -> Option<PathBuf> {
    let program = image::cache().join("peers").join(name);
    let found = program.is_file();
    if !found {
        println!("without {name}: it is not built (make peers)");
    }
    found.then_some(program)
}

/// Upstream's newest converter, on a containerd: from one name to another with `flags`.
pub fn esgz_convert(containerd: &Containerd, flags: &[&str], from: &str, to: &str) -> Result<bool> {
    let Some(program) = find("esgz-convert") else { return Ok(false) };
    let mut command = containerd.host().command(program);
    command.arg("convert").arg("-address").arg(containerd.socket());
    run(command.args(["-namespace", containerd.namespace()]).args(flags).args([from, to]))?;
    Ok(true)
}

/// A layer in the dialect of podman, made of a tar by podman's own compressor.
pub fn podman_chunked(tar: &[u8]) -> Result<Option<Layer>> {
    let Some(program) = find("podman-chunked") else { return Ok(None) };
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start podman-chunked")?;
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(tar));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("podman-chunked: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let mut layer = Layer::from_parts(output.stdout, Digest::of(tar));
    layer.annotations = serde_json::from_slice(&output.stderr).context("annotations of podman-chunked")?;
    Ok(Some(layer))
}
