//! `pantala image optimize`: what a start reads comes first, in the order in which it was read, and nothing else changes.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::conversions::{Lab, answer, assert_same_files, names_in};
use e2e::{base_layer, noise};
use serde_json::Value;
use testkit::cage::{self, Needs};
use testkit::containerd::Snapshotter;
use testkit::http;
use testkit::image::{Entry, Image, layer};
use testkit::node::mounts_below;
use testkit::process::{run, wait_until};

/// Nothing here takes longer, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Waits until it is told to end, and ends then: a shell that is process 1 would not.
const SLEEP: &str = "trap 'exit 0' TERM; sleep 100 & wait";

/// A shell; files of which some are read, with users; and a layer that nobody touches.
fn image() -> Result<Image> {
    let files = [
        Entry::dir("d"),
        Entry::file("d/a", noise(1, 5000)),
        Entry::file("d/b", noise(2, 9_000_000)),
        Entry::file("d/c", noise(3, 5000)),
        Entry::file("d/d", "read first\n"),
        Entry::hardlink("d/e", "d/a"),
        Entry::file("d/secret", "for root\n").mode(0o600),
        Entry::dir("etc"),
        Entry::file("etc/passwd", "root:x:0:0::/:/bin/sh\nme:x:7:8::/:/bin/sh\n"),
    ];
    let untouched = [Entry::dir("u"), Entry::file("u/a", noise(4, 5000))];
    Ok(Image::new(&[base_layer()?, layer(&files)?, layer(&untouched)?]))
}

/// `pantala image optimize`, as JSON.
fn optimize(lab: &Lab, flags: &[&str], from: &str, to: &str) -> Result<Value> {
    let mut line = lab.command("optimize");
    let text = run(line.args(["--output", "json"]).args(flags).args([from, to]))?;
    serde_json::from_str(&text).with_context(|| text)
}

/// What the tar of layer `at` of `lab:<tag>` holds, in its order.
fn listing(lab: &Lab, tag: &str, at: usize) -> Result<Vec<String>> {
    let digest = lab.cluster.layers("lab", tag)?[at].digest.clone();
    let path = format!("/v2/lab/blobs/{digest}");
    let blob = http::get(lab.cluster.registry.back(), &path, &[])?.success()?.body;
    let file = lab.file(&format!("{tag}-{at}.tar.gz"));
    fs::write(&file, blob)?;
    let text = run(std::process::Command::new("tar").args(["-tzf", &file]))?;
    Ok(text.lines().map(|name| name.trim_start_matches("./").to_owned()).collect())
}

/// Nothing of a run is left: no mount, no file.
fn assert_clean(lab: &Lab) -> Result<()> {
    let left: Vec<String> =
        names_in(&lab.dir)?.into_iter().filter(|name| name.starts_with("pantala-")).collect();
    ensure!(left.is_empty(), "files are left: {left:?}");
    let mounts: Vec<String> =
        mounts_below(&lab.dir)?.into_iter().filter(|path| path.contains("pantala-")).collect();
    ensure!(mounts.is_empty(), "mounts are left: {mounts:?}");
    Ok(())
}

#[test]
fn what_is_read_comes_first_in_the_order_of_reading() {
    cage::test(Needs::Containers, |cage| {
        let lab = Lab::start(cage)?;
        lab.push(&image()?, "plain")?;
        let (plain, fast) = (lab.reference("plain"), lab.reference("fast"));
        let program = format!(
            r#"["-c", "cat /d/d; head -c 10 /d/b > /dev/null; cat /d/e > /out; cat /out > /dev/null; echo done; {SLEEP}"]"#
        );
        let record = lab.file("record.jsonl");
        let flags = [
            "--entrypoint",
            r#"["/bin/sh"]"#,
            "--args",
            &program,
            "--wait-on-line",
            "done",
            "--record-out",
            &record,
        ];
        let report = optimize(&lab, &flags, &plain, &fast)?;
        assert_eq!(report["rehearsal"]["ended_by"], "line");

        // Programs and libraries in the lowest layer, what was asked for in the middle, nothing on top.
        let lowest = listing(&lab, "fast", 0)?;
        let place = |list: &[String], name: &str| list.iter().position(|it| it == name);
        let landmark = place(&lowest, ".prefetch.landmark").context("no landmark")?;
        for (name, before) in [("bin/sh", true), ("bin/cat", true), ("bin/sha256sum", false)] {
            let found = place(&lowest, name).with_context(|| format!("no {name} in {lowest:?}"))?;
            assert_eq!(found < landmark, before, "{name} in {lowest:?}");
        }
        let middle = listing(&lab, "fast", 1)?;
        assert_eq!(
            middle,
            [
                "etc",
                "etc/passwd",
                "d",
                "d/d",
                "d/b",
                "d/a",
                ".prefetch.landmark",
                "d/c",
                "d/e",
                "d/secret",
                "stargz.index.json"
            ]
        );
        assert_eq!(listing(&lab, "fast", 2)?[0], ".no.prefetch.landmark");

        // The record is upstream's, and gives the same image again.
        let text = fs::read_to_string(&record)?;
        let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let digest = image()?.digest().to_string();
        ensure!(lines.iter().all(|line| line["manifestDigest"] == digest.as_str()), "{text}");
        let of_middle: Vec<&str> = lines
            .iter()
            .filter(|line| line["layerIndex"] == 1)
            .filter_map(|line| line["path"].as_str())
            .collect();
        assert_eq!(of_middle, ["etc/passwd", "d/d", "d/b", "d/a"]);
        let again =
            lab.convert(&["--estargz-record-in", &record, "--force"], &plain, &lab.reference("again"))?;
        assert_eq!(again["images"][0]["digest"], report["conversion"]["images"][0]["digest"]);

        // It is an image like any other.
        let expected = lab.pulled(&plain)?;
        assert_same_files(&expected, &lab.pulled(&fast)?, "optimised");
        lab.assert_toc_digests(&fast)?;
        let greeting = lab.containerd().run(&fast, Snapshotter::Overlayfs, &["/bin/cat", "/d/d"])?;
        assert_eq!(greeting.stdout, "read first\n");
        assert_clean(&lab)
    });
}

/// The exit code after a SIGINT while the container runs.
fn interrupted(lab: &Lab, flags: &[&str], from: &str, to: &str) -> Result<Option<i32>> {
    let out = lab.file("out");
    let program = format!(r#"["/bin/sh", "-c", "echo begun; {SLEEP}"]"#);
    let mut line = lab.command("optimize");
    line.args(["--entrypoint", &program]).args(flags).args([from, to]);
    line.stdin(Stdio::null()).stdout(Stdio::from(fs::File::create(&out)?)).stderr(Stdio::null());
    let mut child = line.spawn()?;
    let begun = || fs::read_to_string(&out).ok().filter(|text| text.contains("begun"));
    wait_until("the container to run", LIMIT, begun)?;
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)?;
    Ok(child.wait()?.code())
}

#[test]
fn a_lazy_image_is_run_where_it_is_and_failures_leave_nothing() {
    cage::test(Needs::Containers, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&image()?, "plain")?;
        let (plain, esgz) = (lab.reference("plain"), lab.reference("esgz"));
        lab.convert(&[], &plain, &esgz)?;

        // Only what is read travels for the run: the large file does not. It is not converted after all, since there is
        // no place for the result.
        let entry = ["--entrypoint", r#"["/bin/sh", "-c"]"#, "--period", "60"];
        lab.cluster.registry.meter.reset();
        let nowhere = ["--args", r#"["cat /d/c"]"#, &esgz, "oci:/dev/null/x"];
        answer(lab.command("optimize").args(entry).args(nowhere))?.assert_failed(&["/dev/null/x"]);
        let sent = lab.cluster.registry.meter.counts().blob_bytes();
        ensure!(sent < 6_000_000, "{sent} bytes travelled for a small file");

        // As another user, in another directory, with a variable, and with an exit code that is no failure.
        let flags = [
            "--user",
            "me",
            "--cwd",
            "/d",
            "--env",
            "NAME=secret",
            "--args",
            r#"["cat $NAME && exit 4; exit 3"]"#,
        ];
        let layout = format!("oci:{}", lab.file("layout"));
        let ran = optimize(&lab, &[&entry[..], &flags].concat(), &esgz, &layout)?;
        assert_eq!(
            (&ran["rehearsal"]["ended_by"], &ran["rehearsal"]["exit_code"]),
            (&"exit".into(), &3.into())
        );
        ensure!(ran["warnings"][0].as_str().is_some_and(|text| text.contains("exit code 3")), "{ran}");

        // What cannot run says why.
        let target = lab.reference("none");
        for (flags, words) in [
            (&["--entrypoint", r#"["/no/such"]"#][..], &["could not be started", "/no/such"][..]),
            (&["--user", "nobody-here"], &["nobody-here", "--user"]),
            (&["--cni"], &["--net-host"]),
            (&["--runc", "/no/runc"], &["/no/runc", "--runc"]),
            (&["--keep-diff-id"], &["--external-toc"]),
        ] {
            answer(lab.command("optimize").args(flags).args([&esgz, &target]))?.assert_failed(words);
        }

        // Ctrl-C ends all of it, or the run alone.
        assert_eq!(interrupted(&lab, &["--wait-on-line", "never"], &esgz, &target)?, Some(130));
        assert_eq!(http::get(lab.cluster.registry.back(), "/v2/lab/manifests/none", &[])?.status, 404);
        assert_eq!(interrupted(&lab, &["--wait-on-signal"], &esgz, &target)?, Some(0));
        assert_eq!(listing(&lab, "none", 2)?[0], ".no.prefetch.landmark");
        assert_clean(&lab)
    });
}
