//! Images that others made: `inspect` and `verify` read them, and find nothing wrong.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use anyhow::Result;
use e2e::conversions::{Lab, assert_same_files, ordinary};
use serde_json::json;
use testkit::cage::{self, Needs};
use testkit::containerd::Snapshotter;
use testkit::image::Image;
use testkit::peers;
use testkit::process::run;

/// Looks at an image at a place, and verifies it; answers what `inspect` printed as JSON.
fn look(lab: &Lab, place: &str, kind: &str) -> Result<()> {
    let verified = lab.ask("verify", &[place])?;
    assert!(verified.success, "verify {place}: {verified:?}");
    let inspected = lab.ask("inspect", &["--output", "json", "--files", place])?;
    assert!(inspected.success, "inspect {place}: {inspected:?}");
    assert!(inspected.stdout.contains(&format!("\"{kind}\"")), "{place} is no {kind}: {}", inspected.stdout);
    assert!(inspected.stdout.contains("several-chunks"), "{place}: no file names in {}", inspected.stdout);
    Ok(())
}

#[test]
fn images_of_ctr_remote_and_of_upstreams_newest_converter_are_read_and_verified() {
    cage::test(Needs::Containers, |cage| {
        let lab = Lab::start(cage)?;
        lab.push(&Image::new(&ordinary()?), "plain")?;
        let plain = lab.reference("plain");
        lab.containerd().pull(&plain, Snapshotter::Overlayfs)?;
        let name = |tag: &str| lab.reference(tag);
        let mut made = Vec::new();
        for (tag, flags, kind) in [
            ("d-estargz", &["--estargz"][..], "estargz"),
            ("d-chunks", &["--estargz", "--estargz-chunk-size", "65536"], "estargz"),
            ("d-zstd", &["--zstdchunked"], "zstd:chunked"),
        ] {
            let mut convert = lab.containerd().ctr_remote();
            run(convert.args(["images", "convert", "--oci"]).args(flags).args([&plain, &name(tag)]))?;
            made.push((tag, kind, None));
        }
        for (tag, flags, kind) in [
            ("n-estargz", &[][..], "estargz"),
            ("n-min", &["-min-chunk-size", "50000"], "estargz"),
            ("n-zstd", &["-zstdchunked"], "zstd:chunked"),
            ("n-ext", &["-external-toc"], "estargz (external TOC)"),
            ("n-keep", &["-external-toc", "-keep-diff-id"], "estargz (external TOC)"),
        ] {
            if peers::esgz_convert(lab.containerd(), flags, &plain, &name(tag))? {
                made.push((tag, kind, kind.contains("external").then(|| format!("{}-esgztoc", name(tag)))));
            }
        }
        let original = lab.unpacked(&plain)?;
        println!("{} images by others", made.len());
        for (tag, kind, tocs) in made {
            // As it is in containerd, and once it was pushed.
            look(&lab, &format!("containerd:{}", name(tag)), kind)?;
            for image in [Some(name(tag)), tocs].into_iter().flatten() {
                run(lab.containerd().ctr().args(["images", "push", "--plain-http", &image]))?;
            }
            look(&lab, &name(tag), kind)?;
            // And what they made, made again by us from theirs, is still the original.
            if tag == "d-estargz" {
                let ours = name("ours");
                lab.convert(&["--force", "--zstdchunked"], &name(tag), &ours)?;
                assert_same_files(&original, &lab.pulled(&ours)?, "theirs converted by us");
            }
        }
        Ok(())
    });
}

#[test]
fn layers_in_podmans_dialect_are_read_and_verified() {
    cage::test(Needs::Registry, |cage| {
        let lab = Lab::registry(cage)?;
        let mut layers = Vec::new();
        for tar in ordinary()? {
            let Some(layer) = peers::podman_chunked(&tar)? else { return Ok(()) };
            layers.push(layer);
        }
        let image = Image::from_layers(layers, &json!({"Cmd": ["/bin/sh"]}));
        lab.push(&image, "podman")?;
        look(&lab, &lab.reference("podman"), "zstd:chunked (podman)")
    });
}
