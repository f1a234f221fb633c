//! The same input and options give the same image, whoever is in a hurry; and an image that was converted stays what it is.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use anyhow::{Context, Result};
use e2e::conversions::{Lab, everything, ordinary};
use serde_json::Value;
use testkit::cage::{self, Needs};
use testkit::image::Image;
use testkit::net::Shape;
use testkit::process::run;

fn digest(report: &Value) -> Result<String> {
    Ok(report["digest"].as_str().context("a report without a digest")?.to_owned())
}

fn outcomes(report: &Value) -> Vec<&str> {
    let layers = report["images"][0]["layers"].as_array();
    layers.into_iter().flatten().filter_map(|layer| layer["outcome"].as_str()).collect()
}

/// Every way to make layers.
const FORMATS: &[&[&str]] = &[
    &[],
    &["--min-chunk-size", "50000"],
    &["--external-toc"],
    &["--external-toc", "--keep-diff-id"],
    &["--zstdchunked"],
    &["--zstdchunked=podman"],
];

#[test]
fn one_core_and_two_a_slow_source_and_a_fast_one_give_the_same_image() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&Image::new(&ordinary()?), "plain")?;
        let plain = lab.reference("plain");
        for (number, flags) in FORMATS.iter().enumerate() {
            let mut seen = Vec::new();
            for (way, cores) in [("slow", "0,1"), ("one", "0"), ("two", "0,1")] {
                if way == "slow" {
                    lab.host.shape(Shape::mbit(100))?;
                }
                let mut line = lab.command("convert");
                line.args(["--force", "--output", "json"]).args(*flags);
                line.args([&plain, &lab.reference(&format!("{way}-{number}"))]);
                // Each remembers nothing of the others.
                line.env("PANTALA_CACHE", lab.file(&format!("index-{way}-{number}")));
                let report = run(&mut pinned(&line, cores))?;
                seen.push(digest(&serde_json::from_str(&report)?)?);
                if way == "slow" {
                    lab.host.unshape()?;
                }
            }
            assert!(seen[0] == seen[1] && seen[1] == seen[2], "{flags:?}: {seen:?}");
        }
        Ok(())
    });
}

/// The same command on some cores only; where there are none of these numbers, on all that there are.
fn pinned(command: &std::process::Command, cores: &str) -> std::process::Command {
    let mut line = std::process::Command::new("taskset");
    let enough = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    line.args(["-c", if enough { cores } else { "0" }]);
    line.arg(command.get_program()).args(command.get_args());
    line.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    line
}

#[test]
fn what_was_converted_is_found_again_and_stays_the_same() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        lab.push(&everything()?, "plain")?;
        let (plain, lazy) = (lab.reference("plain"), lab.reference("esgz"));
        let first = lab.convert(&[], &plain, &lazy)?;
        assert_eq!(outcomes(&first), ["converted"; 5]);

        // A converted image converted again is the same image.
        let again = lab.convert(&[], &lazy, &lab.reference("again"))?;
        assert_eq!(digest(&again)?, digest(&first)?);
        assert_eq!(outcomes(&again), ["kept"; 5]);

        // From the original, once more: no layer is read and none is made, whether the target tells or the index.
        for (what, target) in [("target", lazy.clone()), ("index", lab.reference("other"))] {
            lab.cluster.registry.meter.reset();
            let mut line = lab.command("convert");
            line.args(["--output", "json", &plain, &target]);
            if what == "target" {
                line.env("PANTALA_CACHE", lab.file("no-index"));
            }
            let report: Value = serde_json::from_str(&run(&mut line)?)?;
            assert_eq!(digest(&report)?, digest(&first)?, "{what}");
            assert_eq!(outcomes(&report), ["reused"; 5], "{what}");
            let layers = lab.cluster.layers("lab", "plain")?;
            let counts = lab.cluster.registry.meter.counts();
            let read = counts.bytes_of(|digest| layers.iter().any(|layer| layer.digest == digest));
            assert_eq!(read, 0, "{what}: bytes of layers were read again");
        }

        // Other options are not taken for the same.
        let other = lab.convert(&["--chunk-size", "64Ki"], &plain, &lazy)?;
        assert_ne!(digest(&other)?, digest(&first)?);
        assert_eq!(outcomes(&other), ["converted"; 5]);
        Ok(())
    });
}
