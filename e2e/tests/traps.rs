//! What a snapshotter must not assume of containerd, row by row, on every containerd that is here.
//!
//! All rows of one version share a node. A row is a function whose name says what must not be assumed; a failure tells row and
//! version, and the rows after it run all the same.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing)]

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use content::Digest;
use e2e::{noise, push_mixed, sum_line};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions, Machine};
use testkit::containerd::{Containerd, ContainerdOptions, Snapshotter, Version};
use testkit::image::{Entry, Image, Layer, layer, programs};
use testkit::meter::Behaviour;
use testkit::node::Pantala;
use testkit::plugin::{Code, Kind, Plugin, SNAPSHOT_REF};
use testkit::process::{READY_LIMIT, run, wait_until};

/// Bytes of the file that is read whole.
const BIG: usize = 6_000_000;
/// Seed of the noise in the first image that is asked for late.
const LATE: u64 = 80;
/// Longest answer of a `Prepare`, whatever the registry does: two seconds, and some for a busy machine.
const LONGEST_PREPARE: Duration = Duration::from_millis(2700);

/// One containerd with its node.
struct Lab<'a> {
    cluster: &'a mut Cluster,
    node: usize,
    plugin: Plugin,
    /// What sums `/big` prints.
    sum: String,
}

type Row = (&'static str, fn(&mut Lab<'_>) -> Result<()>);

/// In the order in which they are run, with the numbers of the list of traps.
const ROWS: &[Row] = &[
    ("2: the filtered list shows what was just prepared", the_filtered_list_shows_what_was_just_prepared),
    ("12: the snapshotter alone serves its files", the_image_is_also_read_by_containerd_itself),
    ("6: prepare of a container tells its image", the_prepare_of_a_container_tells_nothing),
    ("5: every pull is seen", not_every_pull_is_seen),
    ("13: a layer digest names its bytes", a_layer_digest_is_not_enough_to_share),
    ("10: stat and usage may be slow", stat_and_usage_are_quick_while_the_registry_is_silent),
    ("1: a chain ID is the name of one snapshot", a_chain_id_has_a_snapshot_per_parent),
    ("7: mounts are asked for again after a restart", running_containers_mend_without_being_asked),
    ("8: prepare may take its time", prepare_answers_soon_whatever_the_registry_does),
    ("9: the caller cleans up after a cancel", a_cancelled_prepare_leaves_nothing_active),
    ("4: remove comes from the owner, after use", removed_while_in_use_it_is_served_to_the_end),
    ("3: a snapshotter may keep snapshots of its own", nothing_is_listed_that_containerd_does_not_know),
    ("11: a missing parent is an error", with_rebase_no_layer_is_lost),
];

#[test]
fn no_trap_snaps_on_1_6() {
    cage::test(Needs::Containers, |cage| all_rows(cage, Version::Debian));
}

#[test]
fn no_trap_snaps_on_2_2() {
    cage::test(Needs::Containers, |cage| all_rows(cage, Version::V2_2));
}

#[test]
fn no_trap_snaps_on_2_4() {
    cage::test(Needs::Containers, |cage| all_rows(cage, Version::V2_4));
}

fn all_rows(cage: &Cage, version: Version) -> Result<()> {
    if let Some(reason) = version.missing() {
        println!("skipped: containerd {}: {reason}", version.name());
        return Ok(());
    }
    let big = noise(77, BIG);
    let sum = sum_line(&Digest::of(&big).hex());
    let mut cluster = cluster(cage, version, big)?;
    let plugin = Plugin::connect(&cluster.machines[0].node.snapshotter_socket())?;
    let mut lab = Lab { cluster: &mut cluster, node: 0, plugin, sum };
    let only = std::env::var("PANTALA_TRAPS").unwrap_or_default();
    let chosen =
        |name: &str| only.is_empty() || only.split(',').any(|row| name.starts_with(&format!("{row}:")));
    let mut failed = Vec::new();
    for (name, row) in ROWS.iter().filter(|(name, _)| chosen(name)) {
        let begun = Instant::now();
        let result = row(&mut lab).with_context(|| format!("trap {name} (containerd {})", version.name()));
        println!("trap {name}: {} in {:.2?}", if result.is_ok() { "ok" } else { "FAILED" }, begun.elapsed());
        failed.extend(result.err().map(|error| format!("{error:#}")));
        lab.cluster.registry.meter.behave(Behaviour::Honest);
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// `lab:esgz` has three layers: programs, a passwd, and `/big`; it runs as somebody whose name only its passwd knows.
/// `lab:late0` to `lab:late2` have another third layer each, which is asked for late.
fn cluster(cage: &Cage, version: Version, big: Vec<u8>) -> Result<Cluster> {
    let options = ClusterOptions {
        seed: false,
        containerd: ContainerdOptions::of(version),
        // This test is no containerd, and asks all the same: whose word counts must be told.
        snapshotter_extra: format!(
            "no_background_fetch = true\ncontainerd_address = {:?}",
            cage.dir().join("node1/containerd/sock").display().to_string()
        ),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
    let base = layer(&programs(&["sh", "cat", "head", "sleep", "sha256sum", "id"])?)?;
    let users = "root:x:0:0::/:/bin/sh\nbob:x:1234:1234::/:/bin/sh\n";
    let passwd = layer(&[
        Entry::dir("etc/"),
        Entry::file("etc/passwd", users),
        Entry::file("etc/group", "bob:x:1234:\n"),
    ])?;
    let lower = [Layer::gzip(&base)?, Layer::gzip(&passwd)?];
    let late = |number| noise(LATE + number, 400_000);
    for (tag, file, bytes) in [
        ("esgz", "big", big),
        ("late0", "late", late(0)),
        ("late1", "late", late(1)),
        ("late2", "late", late(2)),
    ] {
        let mut layers = lower.to_vec();
        layers.push(Layer::gzip(&layer(&[Entry::file(file, bytes)])?)?);
        let image = Image::from_layers(layers, &json!({"Cmd": ["/bin/sh"], "User": "bob"}));
        image.push(cluster.registry.back(), "lab", &format!("plain-{tag}"))?;
        cluster.convert(&format!("lab:plain-{tag}"), &format!("lab:{tag}"))?;
    }
    push_mixed(&cluster)?;
    cluster.start_nodes()?;
    Ok(cluster)
}

/// A layer, as a client that knows of lazy layers asks for it.
struct Asked {
    chain: String,
    /// The chain ID below: the name of its snapshot, where all layers are lazy.
    parent: String,
    digest: String,
    labels: HashMap<String, String>,
}

impl Lab<'_> {
    fn machine(&mut self) -> &mut Machine {
        &mut self.cluster.machines[self.node]
    }

    fn containerd(&self) -> &Containerd {
        &self.cluster.machines[self.node].containerd
    }

    fn reference(&self, tag: &str) -> String {
        self.cluster.reference(&format!("lab:{tag}"))
    }

    /// The layers of an image, from the bottom up.
    fn asked(&self, tag: &str) -> Result<Vec<Asked>> {
        let manifest = self.cluster.manifest("lab", tag)?;
        let digest = manifest["config"]["digest"].as_str().context("a manifest without a config")?;
        let path = format!("/v2/lab/blobs/{digest}");
        let config = testkit::http::get(self.cluster.registry.back(), &path, &[])?.success()?.body;
        let config: Value = serde_json::from_slice(&config)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("a config without layers")?;
        let mut all: Vec<Asked> = Vec::new();
        for (layer, diff_id) in self.cluster.layers("lab", tag)?.iter().zip(diff_ids) {
            let diff_id = diff_id.as_str().context("a diffID")?;
            let parent = all.last().map(|below| below.chain.clone()).unwrap_or_default();
            let chain = match parent.as_str() {
                "" => diff_id.to_owned(),
                parent => Digest::of(format!("{parent} {diff_id}").as_bytes()).to_string(),
            };
            let mut labels = HashMap::from([
                (SNAPSHOT_REF.to_owned(), chain.clone()),
                ("containerd.io/snapshot/cri.image-ref".to_owned(), self.reference(tag)),
                ("containerd.io/snapshot/cri.layer-digest".to_owned(), layer.digest.clone()),
            ]);
            if let Some(toc) = layer.annotations.get(e2e::TOC_DIGEST) {
                labels.insert(e2e::TOC_DIGEST.to_owned(), toc.clone());
            }
            all.push(Asked { chain, parent, digest: layer.digest.clone(), labels });
        }
        Ok(all)
    }

    /// Asks for a layer under a key that containerd never heard of; answers whether it was prepared lazily.
    fn prepares_lazily(&self, key: &str, layer: &Asked) -> Result<bool> {
        match self.plugin.prepare(key, &layer.parent, &layer.labels) {
            Ok(_) => {
                self.plugin.remove(key)?;
                Ok(false)
            }
            Err(status) if status.code() == Code::AlreadyExists => Ok(true),
            Err(status) => Err(status.into()),
        }
    }

    /// Lazily prepared layers, by the log, since it had so many lines.
    fn prepared_since(&mut self, lines: usize) -> usize {
        let log = self.machine().node.daemon().log();
        log.iter().skip(lines).filter(|line| line.contains(r#""remote-snapshot-prepared":"true""#)).count()
    }

    /// Waits until somebody asks the registry for a layer.
    fn wait_until_asked(&self, layer: &Asked) -> Result<()> {
        wait_until("the layer to be asked for", READY_LIMIT, || {
            let counts = self.cluster.registry.meter.counts();
            counts.accesses.iter().any(|access| access.blob() == Some(&layer.digest)).then_some(())
        })
    }

    /// Asks for a layer until it is lazy: after a silence, that has to be found out.
    fn wait_until_known(&self, layer: &Asked) -> Result<()> {
        let begun = Instant::now();
        let mut tries = 0;
        wait_until("the layer to be known", READY_LIMIT, || {
            tries += 1;
            self.prepares_lazily(&format!("elsewhere/8/again{tries}"), layer).ok().filter(|lazily| *lazily)
        })?;
        println!("lazy {:?} after the registry is back, at try {tries}", begun.elapsed());
        Ok(())
    }

    /// Whether a layer is mounted lazily.
    fn is_lazy(&mut self, layer: &Asked) -> Result<bool> {
        let status = self.machine().node.status()?;
        let layers = status["layers"].as_array().context("no layers")?;
        Ok(layers.iter().any(|mounted| mounted["digest"] == layer.digest.as_str()))
    }

    fn sums_big(&self, containerd: &Containerd, reference: &str) -> Result<()> {
        let printed = containerd.run(reference, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        ensure!(printed.stdout == self.sum, "/big of {reference} is {}", printed.stdout);
        Ok(())
    }
}

/// What a thread came to.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the test panicked"))
}

/// Trap 2. "Already exists" is worth nothing unless the filtered list shows it in the same moment: containerd takes the first
/// committed answer.
fn the_filtered_list_shows_what_was_just_prepared(lab: &mut Lab<'_>) -> Result<()> {
    for (number, layer) in lab.asked("esgz")?.iter().enumerate() {
        ensure!(lab.prepares_lazily(&format!("elsewhere/{number}/k"), layer)?, "layer {number} is not lazy");
        let found = lab.plugin.adopted(&layer.chain, &layer.parent)?;
        let first = found.first().context("nothing is listed")?;
        ensure!(found.len() == 1 && first.kind() == Kind::Committed, "{found:?}");
        lab.plugin.stat(&first.name)?;
    }
    // And a pull finds what somebody else prepared.
    let reference = lab.reference("esgz");
    lab.containerd().rpull(&reference)?;
    lab.sums_big(lab.containerd(), &reference)
}

/// Trap 12. containerd mounts the image by itself to look up a user's number.
fn the_image_is_also_read_by_containerd_itself(lab: &mut Lab<'_>) -> Result<()> {
    let reference = lab.reference("esgz");
    let printed = lab.containerd().run(&reference, Snapshotter::Stargz, &["/bin/id", "-u"])?;
    ensure!(printed.stdout == "1234\n", "bob is {}", printed.stdout);
    Ok(())
}

/// Trap 6. There is no label, and the key is opaque.
fn the_prepare_of_a_container_tells_nothing(lab: &mut Lab<'_>) -> Result<()> {
    let layers = lab.asked("esgz")?;
    let top = layers.last().context("no layers")?;
    let key = format!("{}/99/some words", lab.containerd().namespace());
    let mounts = lab.plugin.prepare(&key, &top.chain, &HashMap::new())?;
    ensure!(mounts.len() == 1 && mounts[0].r#type == "overlay", "{mounts:?}");
    let lower =
        mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).context("no lower")?;
    let lower: Vec<_> = lower.split(':').collect();
    ensure!(lower.len() == layers.len(), "{lower:?}");
    let table = testkit::node::mounts_below(Path::new("/"))?;
    ensure!(lower.iter().all(|dir| table.iter().any(|point| point == dir)), "not all mounted: {lower:?}");
    lab.plugin.remove(&key)?;
    Ok(())
}

/// Trap 5. An image whose layers are all here comes without a single `Prepare`; and a client may come without labels.
fn not_every_pull_is_seen(lab: &mut Lab<'_>) -> Result<()> {
    let manifest = lab.cluster.manifest("lab", "esgz")?;
    let digest = manifest["config"]["digest"].as_str().context("a manifest without a config")?;
    let back = lab.cluster.registry.back();
    let config = testkit::http::get(back, &format!("/v2/lab/blobs/{digest}"), &[])?.success()?.body;
    let again = Image { layers: Vec::new(), config, manifest: manifest.to_string().into_bytes() };
    again.push(back, "lab", "again")?;
    let reference = lab.reference("again");
    let lines = lab.machine().node.daemon().log().len();
    lab.containerd().rpull(&reference)?;
    lab.sums_big(lab.containerd(), &reference)?;
    ensure!(lab.prepared_since(lines) == 0, "it was prepared again");
    lab.containerd().remove_image(&reference)?;

    let other = lab.containerd().seen_from(&format!("{}-plain", lab.containerd().namespace()));
    let reference = lab.reference("esgz");
    other.pull_by_client(&reference, Snapshotter::Stargz)?;
    lab.sums_big(&other, &reference)?;
    other.remove_image(&reference)
}

/// Trap 13. The same layer digest with another table of contents is another layer, until the whole blob was hashed.
fn a_layer_digest_is_not_enough_to_share(lab: &mut Lab<'_>) -> Result<()> {
    let mut layers = lab.asked("esgz")?;
    let top = layers.last_mut().context("no layers")?;
    ensure!(lab.prepares_lazily("elsewhere/20/k", top)?, "the layer itself is there");
    top.labels.insert(e2e::TOC_DIGEST.into(), Digest::of(b"another table").to_string());
    ensure!(!lab.prepares_lazily("elsewhere/21/k", top)?, "it was taken for the same");
    Ok(())
}

/// Trap 10. The whole list and every active snapshot are asked for every ten seconds.
fn stat_and_usage_are_quick_while_the_registry_is_silent(lab: &mut Lab<'_>) -> Result<()> {
    let top = lab.asked("esgz")?.last().context("no layers")?.chain.clone();
    let keys: Vec<_> = (0..30).map(|number| format!("elsewhere/{number}/many")).collect();
    for key in &keys {
        lab.plugin.prepare(key, &top, &HashMap::new())?;
    }
    lab.cluster.registry.meter.behave(Behaviour::StallRanges);
    let late = lab.asked("late0")?.pop().context("no layers")?;
    let plugin = lab.plugin.clone();
    let slowest = std::thread::scope(|scope| -> Result<Duration> {
        // Held meanwhile.
        let held = scope.spawn(move || plugin.prepare("elsewhere/10/held", &late.parent, &late.labels));
        let begun = Instant::now();
        let mut slowest = Duration::ZERO;
        let mut count = 0;
        while begun.elapsed() < Duration::from_millis(500) {
            for info in lab.plugin.list(&[])? {
                let asked = Instant::now();
                lab.plugin.stat(&info.name)?;
                lab.plugin.usage(&info.name)?;
                slowest = slowest.max(asked.elapsed());
                count += 1;
            }
        }
        println!("{count} snapshots asked for, the slowest in {slowest:?}");
        if joined(held)?.is_ok() {
            lab.plugin.remove("elsewhere/10/held")?;
        }
        Ok(slowest)
    })?;
    for key in &keys {
        lab.plugin.remove(key)?;
    }
    ensure!(slowest < Duration::from_millis(250), "one took {slowest:?}");
    Ok(())
}

/// Trap 1. Ordinary layers have a name in each namespace, so a lazy layer above one has a parent in each.
fn a_chain_id_has_a_snapshot_per_parent(lab: &mut Lab<'_>) -> Result<()> {
    let reference = lab.reference("mixed");
    let top = lab.asked("mixed")?.pop().context("no layers")?;
    let other = lab.containerd().seen_from(&format!("{}-b", lab.containerd().namespace()));
    for containerd in [lab.containerd(), &other] {
        containerd.rpull(&reference)?;
        let program = ["/bin/sh", "-c", "/bin/cat /between; /bin/sha256sum /big"];
        let printed = containerd.run(&reference, Snapshotter::Stargz, &program)?;
        ensure!(printed.stdout == format!("ordinary\n{}", lab.sum), "{}", printed.stdout);
    }
    let slots = lab.plugin.list(&[&format!("labels.\"{SNAPSHOT_REF}\"=={}", top.chain)])?;
    ensure!(slots.len() == 2 && slots[0].parent != slots[1].parent, "{slots:?}");
    ensure!(slots.iter().all(|slot| slot.labels.contains_key("containerd.io/snapshot/remote")), "{slots:?}");
    lab.containerd().remove_image(&reference)?;
    other.remove_image(&reference)
}

/// Trap 7. Nobody asks for the mounts of what runs: neither after our end, nor after containerd's.
fn running_containers_mend_without_being_asked(lab: &mut Lab<'_>) -> Result<()> {
    let reference = lab.reference("esgz");
    let sleeping = ["/bin/sh", "-c", "exec 3</big; /bin/sleep 1000"];
    let container = lab.containerd().run_detached(&reference, Snapshotter::Stargz, &sleeping)?;
    let worker = i32::try_from(lab.machine().node.daemon().worker())?;
    kill_process(Pid::from_raw(worker).context("no worker")?, Signal::KILL)?;
    lab.machine().containerd.restart()?;
    let printed = lab.containerd().exec(&container, &["/bin/sha256sum", "/big"])?;
    ensure!(printed.stdout == lab.sum, "{}", printed.stdout);
    lab.containerd().wait_for_plugin()?;
    lab.containerd().remove(&container)
}

/// Trap 8. While one is held, containerd's collection waits, and with it every other change on the node.
fn prepare_answers_soon_whatever_the_registry_does(lab: &mut Lab<'_>) -> Result<()> {
    let late = lab.asked("late1")?.pop().context("no layers")?;
    let (reference, other) = (lab.reference("late1"), lab.reference("esgz"));
    lab.containerd().rpull(&other)?;
    lab.cluster.registry.meter.reset();
    lab.cluster.registry.meter.behave(Behaviour::StallRanges);
    let (pull, others) = std::thread::scope(|scope| -> Result<_> {
        let containerd = lab.containerd();
        let pulling = scope.spawn(|| -> Result<Duration> {
            let begun = Instant::now();
            containerd.rpull(&reference)?;
            Ok(begun.elapsed())
        });
        lab.wait_until_asked(&late)?;
        let begun = Instant::now();
        // The removal of each container asks for a collection.
        containerd.run(&other, Snapshotter::Stargz, &["/bin/id"])?;
        containerd.run(&other, Snapshotter::Stargz, &["/bin/id"])?;
        let others = begun.elapsed();
        Ok((joined(pulling)??, others))
    })?;
    println!("the pull took {pull:?}, two runs of another image meanwhile {others:?}");
    ensure!(pull < LONGEST_PREPARE + Duration::from_secs(2), "the pull took {pull:?}");
    ensure!(others < LONGEST_PREPARE + Duration::from_secs(2), "others waited {others:?}");
    let printed = lab.containerd().run(&reference, Snapshotter::Stargz, &["/bin/sha256sum", "/late"])?;
    ensure!(printed.stdout.starts_with(&Digest::of(&noise(LATE + 1, 400_000)).hex()), "{}", printed.stdout);
    lab.containerd().remove_image(&reference)?;

    // It went on in the background, and the next pull finds it.
    lab.cluster.registry.meter.behave(Behaviour::Honest);
    lab.wait_until_known(&late)?;
    lab.containerd().rpull(&reference)?;
    ensure!(lab.is_lazy(&late)?, "it was unpacked again");
    lab.containerd().remove_image(&reference)
}

/// Trap 9. Nothing else ever comes from a client that was killed.
fn a_cancelled_prepare_leaves_nothing_active(lab: &mut Lab<'_>) -> Result<()> {
    let late = lab.asked("late2")?.pop().context("no layers")?;
    let reference = lab.reference("late2");
    lab.cluster.registry.meter.reset();
    lab.cluster.registry.meter.behave(Behaviour::StallRanges);
    let before = lab.plugin.list(&["kind==active"])?.len();
    let mut client = lab.containerd().ctr_remote();
    client.args(["images", "rpull", "--plain-http", "--snapshotter", "stargz", &reference]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    lab.wait_until_asked(&late)?;
    client.kill()?;
    client.wait()?;
    // What it had prepared before that is held for it for a day.
    for lease in run(lab.containerd().ctr().args(["leases", "ls", "-q"]))?.split_whitespace() {
        run(lab.containerd().ctr().args(["leases", "rm", lease]))?;
    }
    std::thread::sleep(LONGEST_PREPARE);
    let active = lab.plugin.list(&["kind==active"])?;
    ensure!(active.len() == before, "left active: {active:?}");
    lab.cluster.registry.meter.behave(Behaviour::Honest);
    lab.wait_until_known(&late)?;
    lab.containerd().rpull(&reference)?;
    ensure!(lab.is_lazy(&late)?, "it is not lazy after that");
    let printed = lab.containerd().run(&reference, Snapshotter::Stargz, &["/bin/sha256sum", "/late"])?;
    let sum = Digest::of(&noise(LATE + 2, 400_000)).hex();
    ensure!(printed.stdout.starts_with(&sum), "{}", printed.stdout);
    lab.containerd().remove_image(&reference)
}

/// Trap 4. It comes from the collector, without a namespace, in any order, and while files are open.
fn removed_while_in_use_it_is_served_to_the_end(lab: &mut Lab<'_>) -> Result<()> {
    let reference = lab.reference("esgz");
    lab.containerd().rpull(&reference)?;
    let layers = lab.asked("esgz")?;
    for layer in &layers[..layers.len() - 1] {
        let refused = lab.plugin.remove(&layer.chain).err().context("it has a child, and was removed")?;
        ensure!(
            refused.code() == Code::FailedPrecondition && refused.message().contains("remove"),
            "{refused}"
        );
    }
    let gone = lab.plugin.remove("elsewhere/1/none").err().context("it is not there, and was removed")?;
    ensure!(gone.code() == Code::NotFound, "{gone}");

    let sleeping = ["/bin/sleep", "1000"];
    let container = lab.containerd().run_detached(&reference, Snapshotter::Stargz, &sleeping)?;
    let view = lab.containerd().view(&reference, Snapshotter::Stargz)?;
    lab.containerd().remove_image(&reference)?;
    let printed = lab.containerd().exec(&container, &["/bin/sha256sum", "/big"])?;
    ensure!(printed.stdout == lab.sum, "the image is gone, its container not: {}", printed.stdout);
    // Gone for containerd, mounted still.
    let name = view.path().file_name().context("a view has a name")?.to_string_lossy().into_owned();
    run(lab.containerd().ctr().args(["snapshots", "--snapshotter", "stargz", "rm", &name]))?;
    lab.containerd().remove(&container)?;
    wait_until("the collector", READY_LIMIT, || lab.plugin.list(&[]).ok().filter(Vec::is_empty))
        .with_context(|| format!("{:?}", lab.plugin.list(&[])))?;
    let read = Digest::of(&std::fs::read(view.path().join("big"))?).hex();
    run(Command::new("umount").arg(view.path()))?;
    ensure!(lab.sum.starts_with(&read), "/big is {read}");
    Ok(())
}

/// Trap 3. What is listed and unknown to containerd, its collector removes.
fn nothing_is_listed_that_containerd_does_not_know(lab: &mut Lab<'_>) -> Result<()> {
    for tag in ["esgz", "mixed"] {
        lab.containerd().rpull(&lab.reference(tag))?;
    }
    lab.plugin.prepare("elsewhere/1/stray", "", &HashMap::new())?;
    lab.containerd().remove_image(&lab.reference("mixed"))?;
    wait_until("the collector to take what it does not know", READY_LIMIT, || {
        lab.plugin.stat("elsewhere/1/stray").is_err().then_some(())
    })?;
    let known = lab.containerd().snapshots(Snapshotter::Stargz)?;
    let listed = lab.plugin.list(&[])?;
    ensure!(listed.len() == known.len(), "listed: {listed:?}\nknown: {known:?}");
    lab.containerd().remove_image(&lab.reference("esgz"))?;
    wait_until("an empty list", READY_LIMIT, || lab.plugin.list(&[]).ok().filter(Vec::is_empty)).map(drop)
}

/// Trap 11. Where an administrator promised `rebase`, the parent comes with the commit. Either the pull fails and says so, or
/// the image has all its layers, also after a collection; and what works without, works.
fn with_rebase_no_layer_is_lost(lab: &mut Lab<'_>) -> Result<()> {
    let version = lab.containerd().version();
    if !version.is_2() {
        println!("containerd {} does not know it", version.name());
        return Ok(());
    }
    let cage = Cage::current().context("a cage")?;
    let registry = lab.cluster.registry.name();
    let machine = lab.machine();
    machine.containerd.daemon().stop()?;
    let options = ContainerdOptions {
        capabilities: vec!["rebase".into()],
        plain_http: vec![registry],
        ..ContainerdOptions::of(version)
    };
    // The same folder: an administrator edits the file and starts it again.
    let (dir, plugin) = (cage.dir().join("node1/containerd"), machine.node.snapshotter_socket());
    machine.containerd = Containerd::start_with(&machine.host, &dir, &cage.tag(), &plugin, &options)?;
    let containerd = lab.containerd();
    let reference = lab.reference("esgz");
    match containerd.pull(&reference, Snapshotter::Stargz) {
        Ok(()) => {
            println!("the pull works");
            lab.sums_big(containerd, &reference)?;
            // Another collection.
            lab.sums_big(containerd, &reference)?;
            ensure!(containerd.snapshots(Snapshotter::Stargz)?.len() == 3, "layers are lost");
        }
        Err(error) => {
            println!("the pull fails: {error:#}");
            ensure!(format!("{error:#}").contains("rebase"), "nobody could know why: {error:#}");
        }
    }
    // A client that unpacks layer by layer is lazy all the same.
    let other = containerd.seen_from(&format!("{}-sequential", containerd.namespace()));
    other.rpull(&reference)?;
    lab.sums_big(&other, &reference)
}
