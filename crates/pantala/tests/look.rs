//! The commands that look at images, as scripts meet them: output and exit codes. The images are OCI layouts
//! made by code.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail where it stands")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use content::Digest;
use estargz::{Options, TOC_DIGEST_ANNOTATION, build};
use serde_json::{Value, json};

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn pantala(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pantala"));
    let output = command.args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn image(args: &[&str]) -> Ran {
    pantala(&[&["image"], args].concat())
}

/// A ustar with one file.
fn tar(name: &str, content: &[u8], mode: u32) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let padding = content.len().next_multiple_of(512) - content.len();
    [header.as_slice(), content, &vec![0; padding + 1024]].concat()
}

struct Layout {
    dir: tempfile::TempDir,
    names: Vec<Value>,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, names: Vec::new() }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// An image of one layer.
    fn add(&mut self, tag: &str, mut layer: Value, diff_id: Digest, annotations: Value) -> String {
        let config = json!({"architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        layer["annotations"] = annotations;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let mut manifest = self.blob(kind, manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.names.push(manifest);
        let index = json!({"schemaVersion": 2, "manifests": self.names});
        std::fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
        format!("oci:{}:{tag}", self.dir.path().display())
    }

    fn plain(&mut self, tag: &str, tar: &[u8]) -> String {
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", tar);
        self.add(tag, layer, Digest::of(tar), json!({}))
    }

    /// The TOC digest as well.
    fn lazy(&mut self, tag: &str, tar: &[u8]) -> (String, Digest, Digest) {
        let mut blob = Vec::new();
        let built = build(tar, &mut blob, &Options::default()).unwrap();
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &blob);
        let name = self.add(tag, layer, built.diff_id, json!({TOC_DIGEST_ANNOTATION: built.toc_digest}));
        (name, built.digest, built.toc_digest)
    }
}

#[test]
fn verify_tells_the_truth_by_its_exit_code() {
    let mut layout = Layout::new();
    let (good, digest, _) = layout.lazy("good", &tar("su", b"root", 0o4755));
    let plain = layout.plain("plain", &tar("su", b"root", 0o4755));
    let ran = image(&["verify", &good]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("it tells the truth\n"), "{}", ran.stdout);
    assert_eq!(image(&["verify", "--require-lazy", &good]).code, Some(0));

    let ran = image(&["verify", &plain]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("ordinary layer, no table of contents"), "{}", ran.stdout);
    let ran = image(&["verify", "--require-lazy", "--output", "json", &plain]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["platforms"][0]["layers"][0]["lie"]["kind"], "not-lazy");

    let other = Digest::of(b"other");
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar("su", b"root", 0o755));
    let liar = layout.add("liar", layer, other, json!({}));
    let ran = image(&["verify", &liar]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""));
    assert!(ran.stdout.contains(&format!("the config's diffID is {other}")), "{}", ran.stdout);

    std::fs::remove_file(layout.path(&digest)).unwrap();
    let ran = image(&["verify", &good]);
    assert_eq!(ran.code, Some(2), "{}", ran.stdout);
    assert!(ran.stderr.contains(&digest.hex()), "{}", ran.stderr);
    assert_eq!(image(&["verify", "oci:/nonexistent"]).code, Some(2));
}

#[test]
fn diff_ends_as_diff_does() {
    let mut layout = Layout::new();
    let (a, ..) = layout.lazy("a", &tar("su", b"root", 0o4755));
    let same = layout.plain("same", &tar("su", b"root", 0o4755));
    let other = layout.plain("other", &tar("su", b"user", 0o755));
    let ran = image(&["diff", &a, &same]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    let ran = image(&["diff", &a, &other]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""));
    assert!(ran.stdout.ends_with("M su (mode 4755→0755, content)\n"), "{}", ran.stdout);
    let ran = image(&["diff", "--content-only", "--output", "json", &a, &other]);
    assert_eq!(ran.code, Some(1));
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["changes"][0]["fields"][0]["field"], "content");
    assert_eq!(image(&["diff", "--ignore", "mode,content", &a, &other]).code, Some(0));
    let ran = image(&["diff", &a, "oci:/nonexistent"]);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    let ran = image(&["diff", "--ignore", "smell", &a, &other]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("cannot be ignored"), "{}", ran.stderr);
}

#[test]
fn toc_digest_prints_digests_and_nothing_else() {
    let mut layout = Layout::new();
    let (lazy, digest, toc) = layout.lazy("lazy", &tar("x", b"x", 0o644));
    let plain = layout.plain("plain", &tar("x", b"x", 0o644));
    assert_eq!(image(&["toc-digest", &lazy]).stdout, format!("{digest} {toc}\n"));
    assert_eq!(image(&["toc-digest", "--layer", "1", &lazy]).stdout, format!("{toc}\n"));
    let ran = image(&["toc-digest", "--layer", "1", &plain]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("ordinary layer"), "{}", ran.stderr);
    let ran = image(&["toc-digest", "--layer", "2", &lazy]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("there is no layer 2"), "{}", ran.stderr);
}

#[test]
fn inspect_lists_files() {
    let mut layout = Layout::new();
    let (lazy, ..) = layout.lazy("lazy", &tar("su", b"root", 0o4755));
    let ran = image(&["inspect", "--files", &lazy]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("-rwsr-xr-x"), "{}", ran.stdout);
    assert!(ran.stdout.contains("mounts lazily"), "{}", ran.stdout);
    let ran = image(&["inspect", "--output", "json", &lazy]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["platforms"][0]["layers"][0]["kind"], "estargz");
    assert!(report["platforms"][0]["layers"][0].get("file_list").is_none());
    let plain = layout.plain("plain", &tar("x", b"x", 0o644));
    assert!(image(&["inspect", "--files", &plain]).stdout.contains("an ordinary layer"));
    assert!(Path::new(layout.dir.path()).is_dir());
}
