//! `pantala image convert` between all kinds of places: stock containerd takes each result the ordinary way and unpacks
//! what the original unpacks to, and upstream's own reader finds the digests that we wrote.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::path::Path;

use anyhow::{Context, Result};
use e2e::conversions::{Lab, assert_same_files, everything, layers, names_in, ordinary, skopeo_copy};
use e2e::noise;
use testkit::cage::{self, Needs};
use testkit::containerd::Snapshotter;
use testkit::image::{Entry, Image, cache, layer, python, tar_of_layout};
use testkit::process::run;
use testkit::tree;

#[test]
fn a_real_python_image_from_registry_to_registry() {
    cage::test(Needs::Python, |cage| {
        let lab = Lab::start(cage)?;
        lab.push(&python::image(&cache(), &|_| {})?, "plain")?;
        let (plain, lazy) = (lab.reference("plain"), lab.reference("esgz"));
        lab.convert(&[], &plain, &lazy)?;
        assert_same_files(&lab.pulled(&plain)?, &lab.pulled(&lazy)?, "python");
        lab.assert_toc_digests(&lazy)?;
        let printed = lab.containerd().run(&lazy, Snapshotter::Overlayfs, &["python3", python::PROGRAM])?;
        assert!(printed.stdout.starts_with(python::PROGRAM_SAYS), "{}", printed.stdout);
        Ok(())
    });
}

/// Digests of the layers, as the report of a conversion has them.
fn converted(report: &serde_json::Value) -> Result<Vec<String>> {
    let layers = report["images"][0]["layers"].as_array().with_context(|| format!("a report: {report}"))?;
    layers.iter().map(|layer| Ok(layer["digest"].as_str().context("a layer")?.to_owned())).collect()
}

#[test]
fn from_every_kind_of_source_come_the_same_layers() {
    cage::test(Needs::Tools, |cage| {
        let lab = Lab::start(cage)?;
        lab.push(&everything()?, "plain")?;
        let plain = lab.reference("plain");
        let remote = format!("docker://{}/lab:plain", lab.cluster.registry.back());
        let file = |name: &str| lab.file(name);
        for to in ["oci:layout:plain", "oci-archive:a.tar:plain", "docker-archive:d.tar:lab/image:plain"] {
            let (kind, rest) = to.split_once(':').context("a kind")?;
            skopeo_copy(&lab.host, &remote, &format!("{kind}:{}", file(rest)))?;
        }
        lab.containerd().pull(&plain, Snapshotter::Overlayfs)?;
        let sources = [
            plain.clone(),
            format!("oci:{}:plain", file("layout")),
            // Without a tag: the only image there is.
            format!("oci-archive:{}", file("a.tar")),
            format!("docker-archive:{}:lab/image:plain", file("d.tar")),
            format!("containerd:{plain}"),
            format!("containerd://{}/{plain}", lab.containerd().namespace()),
        ];
        let mut first = None;
        for (number, source) in sources.iter().enumerate() {
            let target = lab.reference(&format!("from-{number}"));
            // What an earlier one made is not taken again: each is to make the same.
            let digests = converted(&lab.convert(&["--force"], source, &target)?)?;
            assert_eq!(digests.len(), 5, "{source}");
            assert_eq!(*first.get_or_insert_with(|| digests.clone()), digests, "{source}");
        }
        let seen = lab.pulled(&lab.reference("from-3"))?;
        assert_same_files(&lab.unpacked(&plain)?, &seen, "from docker-archive");
        Ok(())
    });
}

#[test]
fn at_every_kind_of_target_is_an_image_that_containerd_unpacks() {
    cage::test(Needs::Tools, |cage| {
        let lab = Lab::start(cage)?;
        lab.push(&everything()?, "plain")?;
        let plain = lab.reference("plain");
        let original = lab.pulled(&plain)?;
        let registry = lab.cluster.registry.back();

        let remote = lab.reference("esgz");
        lab.convert(&[], &plain, &remote)?;
        assert_same_files(&original, &lab.pulled(&remote)?, "registry");
        lab.assert_toc_digests(&remote)?;

        // containerd unpacks what is in it when somebody wants to run it.
        let name = "lab.example/in/containerd:esgz";
        lab.convert(&[], &plain, &format!("containerd:{name}"))?;
        lab.containerd().run(name, Snapshotter::Overlayfs, &["/bin/sh", "-c", "exit 0"]).or_else(|_| {
            run(lab.containerd().ctr().args(["images", "export", &lab.file("c.tar"), name]))?;
            lab.containerd().import(Path::new(&lab.file("c.tar")), true)?;
            lab.containerd().run(name, Snapshotter::Overlayfs, &["/bin/sh", "-c", "exit 0"])
        })?;
        assert_same_files(&original, &lab.unpacked(name)?, "containerd");
        lab.assert_toc_digests(name)?;

        let (layout, archive) = (lab.file("layout"), lab.file("a.tar"));
        lab.convert(&[], &plain, &format!("oci:{layout}:esgz"))?;
        lab.convert(&[], &plain, &format!("oci-archive:{archive}:esgz"))?;
        // As an archive, into containerd.
        tar_of_layout(Path::new(&layout), Path::new(&lab.file("l.tar")))?;
        for (file, name) in [("l.tar", "from/layout"), ("a.tar", "from/archive")] {
            let mut import = lab.containerd().ctr();
            run(import.args(["images", "import", "--base-name", name, &lab.file(file)]))?;
            let name = format!("{name}:esgz");
            assert_same_files(&original, &lab.unpacked(&name)?, &name);
            lab.assert_toc_digests(&name)?;
        }
        // By skopeo, to the registry, with what the manifest says of each layer.
        for (from, tag) in
            [(format!("oci:{layout}:esgz"), "layout"), (format!("oci-archive:{archive}:esgz"), "archive")]
        {
            skopeo_copy(&lab.host, &from, &format!("docker://{registry}/lab:{tag}"))?;
            assert_same_files(&original, &lab.pulled(&lab.reference(tag))?, tag);
            assert_eq!(lab.cluster.manifest("lab", tag)?, lab.cluster.manifest("lab", "esgz")?, "{tag}");
        }
        // By umoci, which reads layouts alone, compared with what it makes of the original.
        skopeo_copy(&lab.host, &format!("docker://{registry}/lab:plain"), &format!("oci:{layout}:plain"))?;
        let unpack = |tag: &str| -> Result<tree::Tree> {
            let bundle = lab.file(&format!("bundle-{tag}"));
            run(lab.host.command("umoci").args(["unpack", "--image", &format!("{layout}:{tag}"), &bundle]))?;
            tree::read(&Path::new(&bundle).join("rootfs"))
        };
        assert_same_files(&unpack("plain")?, &unpack("esgz")?, "umoci");

        let answer = lab.ask("convert", &[&plain, &format!("docker-archive:{}", lab.file("no.tar"))])?;
        answer.assert_failed(&["docker-archive"]);
        assert!(!Path::new(&lab.file("no.tar")).exists());
        Ok(())
    });
}

#[test]
fn every_format_unpacks_to_the_original() {
    cage::test(Needs::Containers, |cage| {
        let lab = Lab::start(cage)?;
        // A tar that keeps its bytes cannot hold sparse files, whose bytes are not in it.
        lab.push(&Image::new(&ordinary()?), "plain")?;
        let plain = lab.reference("plain");
        let original = lab.pulled(&plain)?;
        let diff_ids = lab.containerd().diff_ids(&plain)?;
        std::fs::write(lab.file("first"), "several-chunks\netc/s*\n")?;
        let list = lab.file("first");
        let cases: &[(&str, &[&str], bool, bool)] = &[
            // tag, flags, whether diffIDs stay, whether Debian's ctr-remote can read the TOC.
            ("chunks", &["--chunk-size", "64Ki"], false, true),
            ("order", &["--prefetch-list", &list], false, true),
            ("min", &["--min-chunk-size", "50000"], false, false),
            ("ext", &["--external-toc"], false, false),
            ("keep", &["--external-toc", "--keep-diff-id"], true, false),
            ("zstd", &["--zstdchunked"], false, true),
            ("podman", &["--zstdchunked=podman"], true, false),
        ];
        for (tag, flags, keeps, readable) in cases {
            let reference = lab.reference(tag);
            lab.convert(flags, &plain, &reference)?;
            assert_same_files(&original, &lab.pulled(&reference)?, tag);
            assert_eq!(lab.containerd().diff_ids(&reference)? == diff_ids, *keeps, "{tag}: diffIDs");
            if *readable {
                lab.assert_toc_digests(&reference)?;
            }
            for words in
                [&["inspect", &reference][..], &["verify", &reference], &["diff", &plain, &reference]]
            {
                let answer = lab.ask(words[0], &words[1..])?;
                assert!(answer.success, "{tag}: {words:?}: {answer:?}");
            }
        }
        // Each layer's TOC has its place in the image of TOCs.
        let tocs = layers(&lab.cluster.manifest("lab", "ext-esgztoc")?)?;
        let named: Vec<_> = tocs
            .iter()
            .filter_map(|toc| toc.annotations.get("containerd.io/snapshot/stargz/layer.digest"))
            .collect();
        for layer in layers(&lab.cluster.manifest("lab", "ext")?)? {
            assert!(named.contains(&&layer.digest), "{} has no TOC among {named:?}", layer.digest);
        }
        Ok(())
    });
}

#[test]
fn a_layer_that_the_format_cannot_hold_is_named_or_kept() {
    cage::test(Needs::Containers, |cage| {
        let lab = Lab::start(cage)?;
        // A name that is not UTF-8, which JSON cannot say, put where the tar has a placeholder of the same length.
        let mut tar =
            layer(&[Entry::dir("d/"), Entry::file("d/caf@", "x"), Entry::file("other", noise(3, 1000))])?;
        let at = tar.windows(6).position(|window| window == b"d/caf@").context("the name")?;
        tar[at + 5] = 0xe9;
        // The header's checksum: the sum of its bytes, with its own field as spaces.
        let header = at - at % 512;
        tar[header + 148..header + 156].fill(b' ');
        let sum: u32 = tar[header..header + 512].iter().map(|byte| u32::from(*byte)).sum();
        tar[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let image = Image::new(&[e2e::base_layer()?, tar]);
        lab.push(&image, "plain")?;
        let (plain, lazy) = (lab.reference("plain"), lab.reference("esgz"));
        lab.ask("convert", &[&plain, &lazy])?.assert_failed(&["d/caf"]);
        let answer = lab.ask("convert", &["--skip-unconvertible", &plain, &lazy])?;
        assert!(answer.success, "{answer:?}");
        assert!(answer.stderr.contains("d/caf"), "no warning: {}", answer.stderr);
        let manifest = layers(&lab.cluster.manifest("lab", "esgz")?)?;
        assert_eq!(manifest[1].digest, image.layers[1].digest.to_string());
        assert!(manifest[0].annotations.contains_key(e2e::TOC_DIGEST));
        assert_same_files(&lab.pulled(&plain)?, &lab.pulled(&lazy)?, "an image with a layer kept");
        Ok(())
    });
}

#[test]
fn nothing_temporary_is_left_where_conversions_work() {
    cage::test(Needs::Containers, |cage| {
        let lab = Lab::start(cage)?;
        lab.push(&everything()?, "plain")?;
        let temporary = lab.file("tmp");
        std::fs::create_dir(&temporary)?;
        let to = format!("oci-archive:{}:esgz", lab.file("out/a.tar"));
        std::fs::create_dir(lab.file("out"))?;
        run(lab.command("convert").args([&lab.reference("plain"), &to]).env("TMPDIR", &temporary))?;
        assert_eq!(names_in(Path::new(&temporary))?, Vec::<String>::new());
        assert_eq!(names_in(Path::new(&lab.file("out")))?, ["a.tar"]);
        Ok(())
    });
}
