//! `pantala image convert` as a user meets it: what it prints, how it ends, what it leaves.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail where it stands")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use content::Digest;
use serde_json::{Value, json};

fn command(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pantala"));
    command.args(["image", "convert"]).env("DOCKER_CONFIG", "/nonexistent").env("PANTALA_CACHE", cache);
    command.stdin(Stdio::null());
    command
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// A directory with an image in it: one layer with the files `a` and `b`.
struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let case = Self { dir };
        let (files, blobs) = (case.at("files"), case.at("in/blobs/sha256"));
        std::fs::create_dir_all(&files).unwrap();
        std::fs::create_dir_all(&blobs).unwrap();
        for name in ["a", "b"] {
            std::fs::write(files.join(name), name).unwrap();
        }
        let tar =
            Command::new("tar").arg("-C").arg(&files).args(["-cf", "-", "a", "b"]).output().unwrap().stdout;
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]},
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": registry::media_type::OCI_MANIFEST,
            "config": blob(registry::media_type::OCI_CONFIG, config.to_string().as_bytes()),
            "layers": [blob(registry::media_type::OCI_LAYER, &tar)],
        });
        let mut root = blob(registry::media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
        root["annotations"] = json!({"org.opencontainers.image.ref.name": "app"});
        let index = json!({"schemaVersion": 2, "manifests": [root]});
        std::fs::write(case.at("in/index.json"), index.to_string()).unwrap();
        std::fs::write(case.at("in/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        case
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self, name: &str) -> String {
        format!("oci:{}:app", self.at(name).display())
    }

    fn convert(&self, flags: &[&str], to: &str) -> Ran {
        ran(command(&self.at("cache")).args(flags).args([self.image("in"), self.image(to)]))
    }
}

#[test]
fn a_program_gets_json_and_silence_and_a_log_gets_lines() {
    let case = Case::new();
    let json = case.convert(&["--output", "json"], "one");
    assert_eq!((json.code, json.stderr.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["images"][0]["layers"][0]["outcome"], "converted");
    assert_eq!(report["warnings"], json!([]));
    assert_eq!(std::fs::read_dir(case.at("cache/layers")).unwrap().count(), 1);

    let lines = case.convert(&["--force"], "two");
    assert_eq!(lines.code, Some(0));
    let said: Vec<&str> = lines.stderr.lines().collect();
    assert!(said.len() == 2 && said[0].contains("begins") && said[1].contains("converted,"), "{said:?}");
    assert!(lines.stdout.contains(report["digest"].as_str().unwrap()), "{}", lines.stdout);
    let again = case.convert(&["--output", "json"], "two");
    let report: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(report["images"][0]["layers"][0]["outcome"], "reused");
}

#[test]
fn a_list_comes_from_a_file_or_from_standard_input() {
    let case = Case::new();
    let mut child = command(&case.at("cache"))
        .args(["--prefetch-list", "-", "--output", "json"])
        .args([case.image("in"), case.image("one")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"# first\nb\n").unwrap();
    let listed: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    let record = case.at("record");
    std::fs::write(&record, "{\"path\":\"b\",\"manifestDigest\":\"\",\"layerIndex\":0}\n").unwrap();
    let record = record.display().to_string();
    let recorded = case.convert(&["--estargz-record-in", &record, "--output", "json"], "two");
    let recorded: Value = serde_json::from_str(&recorded.stdout).unwrap();
    assert_eq!(listed["digest"], recorded["digest"]);

    let list = case.at("list");
    std::fs::write(&list, "a\n[b\n").unwrap();
    let wrong = case.convert(&["--prefetch-list", &list.display().to_string()], "three");
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.contains("--prefetch-list") && wrong.stderr.contains("line 2"), "{}", wrong.stderr);
    let missing = case.convert(&["--estargz-record-in", "/nonexistent"], "three");
    assert!(missing.stderr.contains("--estargz-record-in /nonexistent cannot be read"), "{}", missing.stderr);
    assert!(!case.at("three").exists());
}

#[test]
fn what_does_not_fit_together_is_told_before_anything_runs() {
    let case = Case::new();
    for (flags, code, words) in [
        (&["--external-toc", "--zstdchunked"][..], 1, "--external-toc"),
        (&["--keep-diff-id"], 1, "add --external-toc"),
        (&["--min-chunk-size", "1Mi", "--zstdchunked=podman"], 1, "--min-chunk-size"),
        (&["--level", "13"], 1, "1 to 12"),
        (&["--estargz", "--zstdchunked"], 2, "cannot be used with"),
        (&["--zstdchunked=docker"], 2, "[possible values: stargz, podman]"),
        (&["--platform", "linux"], 2, "linux/arm64"),
        (&["--chunk-size", "1"], 2, "64Ki"),
    ] {
        let told = case.convert(flags, "out");
        assert_eq!(told.code, Some(code), "{flags:?}: {}", told.stderr);
        assert!(told.stderr.contains(words), "{flags:?}: {}", told.stderr);
        assert!(!case.at("out").exists());
    }
}

/// The registry takes the question and never answers.
#[test]
fn a_signal_ends_it_with_the_code_that_shells_expect() {
    let case = Case::new();
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let source = format!("127.0.0.1:{}/app:1", listener.local_addr().unwrap().port());
        let child = command(&case.at("cache"))
            .args([&source, &case.image("out")])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It listens for signals before it asks.
        let (mut asked, _) = listener.accept().unwrap();
        let _ = asked.read(&mut [0; 16]).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains("is what it was before"), "{stderr}");
        assert!(!case.at("out").exists());
    }
}

#[test]
fn a_target_that_cannot_be_written_says_what_to_do() {
    let case = Case::new();
    let mut convert = command(&case.at("cache"));
    convert.env("CONTAINERD_ADDRESS", "/nonexistent.sock");
    let told = ran(convert.args([&case.image("in"), "containerd:r.example/app:1"]));
    assert_eq!(told.code, Some(1));
    assert!(
        told.stderr.contains("/nonexistent.sock") && told.stderr.contains("--address"),
        "{}",
        told.stderr
    );
    let told = ran(command(&case.at("cache")).args([&case.image("in"), "docker-archive:x.tar"]));
    assert!(told.stderr.contains("oci-archive:"), "{}", told.stderr);
}
