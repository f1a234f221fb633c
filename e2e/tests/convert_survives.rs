//! Conversions in a bad world: what breaks is resumed, or fails with one clear line, and no name ever stands for something
//! half written.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::conversions::{Answer, Lab, answer, names_in};
use e2e::noise;
use serde_json::Value;
use testkit::cage::{self, Needs};
use testkit::http;
use testkit::image::{Entry, Image, layer};
use testkit::meter::{Behaviour, Guard};
use testkit::net::Shape;
use testkit::process::{run, wait_until};

/// Nothing here takes longer, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Two layers of noise: nothing to compress, so as many bytes go out as come in.
fn image(seed: u64, len: usize) -> Result<Image> {
    Ok(Image::new(&[
        layer(&[Entry::file("small", noise(seed, 300_000))])?,
        layer(&[Entry::file("large", noise(seed + 1, len))])?,
    ]))
}

/// The status of a manifest that is asked for by its tag.
fn status_of(lab: &Lab, tag: &str) -> Result<u16> {
    let path = format!("/v2/lab/manifests/{tag}");
    let accept = ("accept", "application/vnd.oci.image.manifest.v1+json");
    Ok(http::get(lab.cluster.registry.back(), &path, &[accept])?.status)
}

/// The image of a tag is whole, and is what a conversion in peace makes.
fn assert_as_in_peace(lab: &Lab, tag: &str) -> Result<()> {
    lab.convert(&["--force"], &lab.reference("plain"), &lab.reference("peace"))?;
    assert_eq!(lab.cluster.manifest("lab", tag)?, lab.cluster.manifest("lab", "peace")?);
    let verified = lab.ask("verify", &[&lab.reference(tag)])?;
    assert!(verified.success, "{verified:?}");
    Ok(())
}

/// A conversion that goes on while something happens to it.
fn begin(command: &mut Command) -> Result<std::process::Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("cannot start pantala")
}

fn finish(child: std::process::Child) -> Result<Answer> {
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Answer {
        success: output.status.success(),
        status: output.status.to_string(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

#[test]
fn a_registry_killed_in_the_middle_of_a_push_and_started_again() {
    cage::test(Needs::Registry, |cage| {
        let mut lab = Lab::registry(cage)?;
        lab.push(&image(10, 40_000_000)?, "plain")?;
        let (plain, target) = (lab.reference("plain"), lab.reference("esgz"));
        lab.host.shape(Shape::mbit(200))?;
        let child = begin(lab.command("convert").args([&plain, &target]))?;
        let registry = &mut lab.cluster.registry;
        wait_until("an upload to be on its way", LIMIT, || {
            (registry.unfinished_uploads("lab") > 2_000_000).then_some(())
        })?;
        registry.restart()?;
        let answer = finish(child)?;
        lab.host.unshape()?;
        assert!(answer.success, "it did not go on: {answer:?}");
        assert_as_in_peace(&lab, "esgz")
    });
}

#[test]
#[ignore = "takes the two minutes that an upload waits for its registry"]
fn a_registry_killed_for_good_is_named_and_the_name_stands_for_nothing() {
    cage::test(Needs::Registry, |cage| {
        let mut lab = Lab::registry(cage)?;
        lab.push(&image(20, 20_000_000)?, "plain")?;
        // The target is another registry, which goes away.
        let other = lab.cluster.network.host("other")?;
        let dir = lab.dir.join("other");
        let mut second =
            testkit::registry::Registry::start(&other, &dir, testkit::meter::MeterOptions::default())?;
        other.shape(Shape::mbit(100))?;
        let target = format!("{}/lab:esgz", second.back());
        let child = begin(
            lab.command("convert")
                .args(["--plain-http", &second.back().to_string()])
                .args([&lab.reference("plain"), &target]),
        )?;
        wait_until("an upload to be on its way", LIMIT, || {
            (second.unfinished_uploads("lab") > 1_000_000).then_some(())
        })?;
        second.daemon().kill()?;
        finish(child)?.assert_failed(&[&second.back().to_string()]);
        lab.cluster.registry.daemon().stop()?;
        Ok(())
    });
}

#[test]
fn a_connection_that_breaks_again_and_again_is_resumed_where_it_broke() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&image(30, 3_000_000)?, "plain")?;
        let meter = &lab.cluster.registry.meter;
        meter.reset();
        meter.behave(Behaviour::CutAfter(1_000_000));
        lab.convert(&[], &lab.reference("plain"), &lab.reference("esgz"))?;
        meter.behave(Behaviour::Honest);
        let counts = meter.counts();
        let wanted = lab.cluster.layers("lab", "plain")?;
        let bytes = counts.bytes_of(|digest| wanted.iter().any(|layer| layer.digest == digest));
        let size: u64 = wanted.iter().map(|layer| layer.size).sum();
        // What was on its way when a connection broke is lost; from the beginning it would be twice as much.
        assert!(bytes < size + size / 4, "{bytes} bytes were sent of layers of {size}");
        assert!(counts.blob_requests() > 4, "nothing broke: {} requests", counts.blob_requests());
        assert_as_in_peace(&lab, "esgz")
    });
}

#[test]
fn a_source_that_lies_or_ends_early_is_told_and_gets_no_name() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        let image = image(40, 3_000_000)?;
        lab.push(&image, "plain")?;
        let large = image.layers[1].digest.to_string();
        // Docker's registry checks what it is given, so only the way lies, or a layout.
        for (number, behaviour) in [Behaviour::Flip, Behaviour::Short(1_000_000)].into_iter().enumerate() {
            lab.cluster.registry.meter.behave(behaviour);
            let tag = format!("lie-{number}");
            let answer = lab.ask("convert", &[&lab.reference("plain"), &lab.reference(&tag)])?;
            lab.cluster.registry.meter.behave(Behaviour::Honest);
            answer.assert_failed(&["sha256:"]);
            assert_eq!(status_of(&lab, &tag)?, 404, "{behaviour:?}");
        }
        // A layout whose blob is not what its name says.
        let layout = lab.file("layout");
        image.write_layout(Path::new(&layout), "lab/image:plain")?;
        let blob = Path::new(&layout).join("blobs/sha256").join(large.trim_start_matches("sha256:"));
        let mut bytes = fs::read(&blob)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, &bytes)?;
        let answer = lab.ask("convert", &[&format!("oci:{layout}"), &lab.reference("lie-2")])?;
        answer.assert_failed(&[&large[..20]]);
        fs::write(&blob, &bytes[..middle])?;
        let answer = lab.ask("convert", &[&format!("oci:{layout}"), &lab.reference("lie-2")])?;
        answer.assert_failed(&[&large[..20]]);
        assert_eq!(status_of(&lab, "lie-2")?, 404);
        Ok(())
    });
}

/// Docker's configuration with a user for the registry.
fn log_in(lab: &Lab, user: &str, password: &str) -> Result<()> {
    use std::fmt::Write as _;
    // Docker wants base64, and testing must not depend on what is tested.
    let mut encoded = String::new();
    for chunk in format!("{user}:{password}").as_bytes().chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for index in 0..4 {
            let letter = alphabet[(group >> (18 - 6 * index)) as usize & 63];
            let _ = write!(encoded, "{}", if index > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    let config = serde_json::json!({"auths": {lab.cluster.registry.name(): {"auth": encoded}}});
    fs::create_dir_all(lab.file("docker"))?;
    fs::write(lab.file("docker/config.json"), config.to_string())?;
    Ok(())
}

#[test]
fn wrong_credentials_are_told_and_a_token_that_expires_on_the_way_is_renewed() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&image(50, 10_000_000)?, "plain")?;
        let (plain, target) = (lab.reference("plain"), lab.reference("esgz"));
        lab.cluster.registry.meter.guard(Guard::new("anna", "secret-word", 3));
        log_in(&lab, "anna", "a-wrong-word")?;
        let answer = lab.ask("convert", &[&plain, &target])?;
        answer.assert_failed(&[&lab.cluster.registry.name()]);
        assert!(!answer.stderr.contains("a-wrong-word"), "a password is shown: {}", answer.stderr);
        assert_eq!(status_of(&lab, "esgz")?, 404);

        log_in(&lab, "anna", "secret-word")?;
        let answer = lab.ask("convert", &[&plain, &target])?;
        assert!(answer.success, "{answer:?}");
        let tokens = lab.cluster.registry.meter.tokens();
        assert!(tokens > 2, "only {tokens} tokens: none has expired");
        assert_as_in_peace(&lab, "esgz")
    });
}

/// Mounts a small file system in memory at `dir`.
fn small_disk(dir: &str, size: &str) -> Result<()> {
    fs::create_dir_all(dir)?;
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "small", dir])).map(drop)
}

#[test]
fn a_full_disk_is_told_and_leaves_no_image() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&image(60, 10_000_000)?, "plain")?;
        let plain = lab.reference("plain");
        let disk = lab.file("disk");
        small_disk(&disk, "4m")?;

        // The layout's own.
        let answer = lab.ask("convert", &[&plain, &format!("oci:{disk}/layout:esgz")])?;
        answer.assert_failed(&["no room left"]);
        let index = fs::read_to_string(format!("{disk}/layout/index.json")).unwrap_or_default();
        assert!(!index.contains("esgz"), "{index}");

        // The archive's.
        run(Command::new("sh").args(["-c", &format!("rm -rf {disk}/*")]))?;
        let answer = lab.ask("convert", &[&plain, &format!("oci-archive:{disk}/a.tar:esgz")])?;
        answer.assert_failed(&["no room left"]);
        assert_eq!(names_in(Path::new(&disk))?, Vec::<String>::new());

        // Where uploads wait until the registry has them: it ends clearly, or it does not need the room.
        let answer = answer_with_tmpdir(&lab, &disk, &[&plain, &lab.reference("esgz")])?;
        if answer.success {
            assert_as_in_peace(&lab, "esgz")?;
        } else {
            answer.assert_failed(&["no room left"]);
            assert_eq!(status_of(&lab, "esgz")?, 404);
        }
        assert_eq!(names_in(Path::new(&disk))?, Vec::<String>::new());
        Ok(())
    });
}

fn answer_with_tmpdir(lab: &Lab, dir: &str, arguments: &[&str]) -> Result<Answer> {
    answer(lab.command("convert").args(arguments).env("TMPDIR", dir))
}

#[test]
fn two_converters_to_the_same_name_both_succeed_and_the_image_is_whole() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&image(70, 8_000_000)?, "plain")?;
        let plain = lab.reference("plain");
        let layout = format!("oci:{}:esgz", lab.file("layout"));
        for target in [lab.reference("esgz"), layout.clone()] {
            let start = |name: &str| {
                begin(lab.command("convert").args([&plain, &target]).env("PANTALA_CACHE", lab.file(name)))
            };
            let (first, second) = (start("one")?, start("two")?);
            for answer in [finish(first)?, finish(second)?] {
                assert!(answer.success, "{target}: {answer:?}");
            }
        }
        let verified = lab.ask("verify", &[&layout])?;
        assert!(verified.success, "{verified:?}");
        assert_as_in_peace(&lab, "esgz")
    });
}

#[test]
fn an_interrupt_leaves_the_name_as_it_was_and_nothing_half_written() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        let (old, new) = (image(80, 1_000_000)?, image(90, 40_000_000)?);
        lab.push(&old, "old")?;
        lab.push(&new, "plain")?;
        let layout = lab.file("layout");
        let target = format!("oci:{layout}:esgz");
        lab.convert(&[], &lab.reference("old"), &target)?;
        let index = fs::read_to_string(format!("{layout}/index.json"))?;
        let blobs = names_in(&Path::new(&layout).join("blobs/sha256"))?;
        lab.host.shape(Shape::mbit(100))?;
        lab.cluster.registry.meter.reset();
        let child = begin(lab.command("convert").args([&lab.reference("plain"), &target]))?;
        wait_until("the layer to be on its way", LIMIT, || {
            (lab.cluster.registry.meter.counts().blob_bytes() > 2_000_000).then_some(())
        })?;
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::INT,
        )?;
        let answer = finish(child)?;
        assert!(answer.status.contains("130"), "{answer:?}");
        assert_eq!(fs::read_to_string(format!("{layout}/index.json"))?, index);
        let left: Vec<_> = names_in(&Path::new(&layout).join("blobs/sha256"))?;
        let half: Vec<_> = left.iter().filter(|name| !blobs.contains(name)).collect();
        for name in half {
            // A small layer may have been finished before: then it is whole.
            let bytes = fs::read(Path::new(&layout).join("blobs/sha256").join(name))?;
            assert_eq!(content::Digest::of(&bytes).hex(), *name);
        }
        let report: Value = lab.convert(&[], &lab.reference("old"), &target)?;
        assert!(report["digest"].is_string());
        Ok(())
    });
}
