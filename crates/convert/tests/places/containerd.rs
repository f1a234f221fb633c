//! Images of a real containerd.

use std::path::Path;
use std::process::Command;

use ::registry::media_type;
use anyhow::{Result, ensure};
use bytes::Bytes;
use content::Urgency;
use convert::{Containerd, Place};
use testkit::cage::{self, Cage, Needs};
use testkit::net::Network;

use crate::common::{Copied, Desk, collect, copy, descriptor, place, places, sample};

struct Lab {
    _network: Network,
    containerd: testkit::containerd::Containerd,
    desk: Desk,
}

impl Lab {
    fn new(cage: &Cage) -> Result<Self> {
        let network = Network::new(cage)?;
        let dir = cage.dir().join("c");
        let host = network.host("node1")?;
        let plugin = cage.dir().join("none.sock");
        let containerd = testkit::containerd::Containerd::start(&host, &dir, &cage.tag(), &plugin)?;
        let mut desk = Desk::new();
        let address =
            Containerd { address: containerd.socket(), namespace: containerd.namespace().to_owned() };
        desk.places = places(&desk.path("tmp"), address);
        Ok(Self { _network: network, containerd, desk })
    }

    fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.containerd.socket()).args(["-n", namespace]).args(arguments);
        let output = command.output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(printed)
    }

    fn mine(&self, arguments: &[&str]) -> Result<String> {
        self.ctr(self.containerd.namespace(), arguments)
    }

    /// Lines without their heading.
    fn count(&self, namespace: &str, arguments: &[&str]) -> Result<usize> {
        Ok(self.ctr(namespace, arguments)?.lines().skip(1).count())
    }
}

fn in_lab(body: impl AsyncFnOnce(&Lab) -> Result<()>) -> impl FnOnce(&Cage) -> Result<()> {
    |cage| {
        let lab = Lab::new(cage)?;
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(body(&lab))
    }
}

const NAME: &str = "r.example/team/app:1";

#[test]
fn an_image_goes_there_and_back() {
    cage::test(Needs::Containers, |cage| in_lab(there_and_back)(cage));
}

async fn there_and_back(lab: &Lab) -> Result<()> {
    let (desk, own) = (&lab.desk, lab.containerd.namespace());
    let image = sample(&[3_000_000, 10]);
    let at = place(&format!("containerd:{NAME}"));
    let target = desk.target(&at).await;
    assert!(target.current().await?.is_none());
    let sibling = target.sibling("-esgztoc").await?;
    sample(&[5]).put(&*sibling).await;
    assert_eq!(lab.count(own, &["images", "ls"])?, 0);
    image.put(&*target).await;
    assert_eq!(lab.count(own, &["images", "ls"])?, 2);
    assert_eq!(lab.count(own, &["leases", "ls"])?, 0);
    let source = desk.source(&at).await;
    image.is_at(&*source).await;
    sample(&[5]).is_at(&*source.sibling("-esgztoc").await?.unwrap()).await;
    assert_eq!(target.current().await?.unwrap().1, image.manifest.1);
    // Labels as containerd's own client sets them: nothing is collected, and it unpacks.
    let content = lab.mine(&["content", "ls"])?;
    for (layer, diff_id, _) in &image.layers {
        assert!(content.contains(&format!("containerd.io/uncompressed={diff_id}")), "{content}");
        assert!(content.contains(&format!("={}", layer.digest)), "{content}");
    }
    assert!(content.contains(&format!("gc.ref.content.config={}", image.config.0.digest)), "{content}");
    assert!(content.contains(&format!("gc.ref.content.l.0={}", image.layers[0].0.digest)), "{content}");
    // A removal with collection, of the sibling: what the image needs stays.
    lab.mine(&["images", "rm", "--sync", &format!("{NAME}-esgztoc")])?;
    assert_eq!(lab.count(own, &["content", "ls"])?, 4);
    let check = lab.mine(&["images", "check"])?;
    assert!(check.contains("complete (3/3)"), "{check}");
    let exported = desk.path("exported.tar");
    lab.mine(&["images", "export", exported.to_str().unwrap(), NAME])?;
    image.is_at(&*desk.source(&place(&format!("oci-archive:{}:{NAME}", exported.display()))).await).await;
    // What is written as an archive it takes.
    let archive = desk.path("ours.tar");
    image.put(&*desk.target(&place(&format!("oci-archive:{}:9", archive.display()))).await).await;
    lab.mine(&["images", "import", "--base-name", "r.example/team/imported", archive.to_str().unwrap()])?;
    image.is_at(&*desk.source(&place("containerd:r.example/team/imported:9")).await).await;
    // Again, under the same name and another: nothing moves.
    let other = sample(&[20]);
    other.put(&*desk.target(&at).await).await;
    other.is_at(&*desk.source(&at).await).await;
    let again = desk.target(&place("containerd:r.example/team/app:2")).await;
    let there = copy(&*desk.source(&at).await, &*again).await?;
    assert_eq!(there, Copied { there: 2, ..Copied::default() });
    // Into another namespace: containerd has the bytes.
    let elsewhere = place("containerd://other.ns/r.example/team/app:3");
    let shared = copy(&*desk.source(&at).await, &*desk.target(&elsewhere).await).await?;
    assert_eq!(shared, Copied { adopted: 2, ..Copied::default() });
    other.is_at(&*desk.source(&elsewhere).await).await;
    let labels = lab.ctr("other.ns", &["content", "ls"])?;
    assert!(labels.contains(&format!("containerd.io/uncompressed={}", other.layers[0].1)), "{labels}");
    let wrong = desk.places.source(&place(&format!("containerd://other.ns/{NAME}"))).await.unwrap_err();
    assert!(wrong.to_string().contains(&format!("containerd://{own}/{NAME}")), "{wrong}");
    Ok(())
}

#[test]
fn what_is_given_up_leaves_nothing() {
    cage::test(Needs::Containers, |cage| in_lab(given_up)(cage));
}

async fn given_up(lab: &Lab) -> Result<()> {
    let (desk, own) = (&lab.desk, lab.containerd.namespace());
    let image = sample(&[3_000_000, 10]);
    let target = desk.target(&place(&format!("containerd:{NAME}"))).await;
    target.check().await?;
    image.put_blobs(&*target).await;
    target.put_manifest(&image.manifest.0, image.manifest.1.clone()).await?;
    let mut half = target.begin().await?;
    half.write(image.layers[0].2.clone()).await?;
    let mut wrong = target.begin().await?;
    wrong.write(image.layers[0].2.slice(1..)).await?;
    let error = wrong.commit(&image.layers[0].0, None).await.unwrap_err();
    assert!(error.to_string().contains(&image.layers[0].0.digest.to_string()), "{error}");
    assert_eq!(lab.count(own, &["leases", "ls"])?, 1);
    assert_eq!(lab.count(own, &["content", "active"])?, 1);
    assert_eq!(lab.count(own, &["content", "ls"])?, 4);
    drop(half);
    target.abandon().await;
    assert_eq!(lab.count(own, &["leases", "ls"])?, 0);
    assert_eq!(lab.count(own, &["content", "active"])?, 0);
    // What a lease that is gone would keep, it does not keep.
    let target = desk.target(&place(&format!("containerd:{NAME}"))).await;
    target.check().await?;
    let leases = lab.mine(&["leases", "ls", "-q"])?;
    lab.mine(&["leases", "delete", leases.trim()])?;
    let error = target.has(&image.config.0).await.unwrap_err();
    assert!(error.to_string().contains("lease"), "{error}");
    target.abandon().await;
    // The collection that follows, made to come now.
    lab.mine(&["leases", "create", "--id", "x"])?;
    lab.mine(&["leases", "delete", "--sync", "x"])?;
    assert_eq!(lab.count(own, &["content", "ls"])?, 0);
    Ok(())
}

#[test]
fn blobs_of_other_platforms_need_not_be_there() {
    cage::test(Needs::Containers, |cage| in_lab(other_platforms)(cage));
}

async fn other_platforms(lab: &Lab) -> Result<()> {
    let desk = &lab.desk;
    let (here, missing) = (sample(&[100]), sample(&[200]));
    let at = place(&format!("containerd:{NAME}"));
    let target = desk.target(&at).await;
    target.check().await?;
    here.put_blobs(&*target).await;
    target.put_manifest(&here.manifest.0, here.manifest.1.clone()).await?;
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [here.manifest.0, missing.manifest.0],
    });
    let index = Bytes::from(index.to_string());
    target.name(&descriptor(media_type::OCI_INDEX, &index), index.clone()).await?;
    let source = desk.source(&at).await;
    assert_eq!(source.root().await?.1, index);
    source.manifest(&here.manifest.0).await?;
    for error in [
        source.manifest(&missing.manifest.0).await.unwrap_err(),
        source.ranges(&missing.layers[0].0).await.err().unwrap(),
    ] {
        assert!(error.is_not_found() && error.to_string().contains("--all-platforms"), "{error}");
    }
    let error = collect(source.stream(&missing.layers[0].0, Urgency::Prefetch)).await.unwrap_err();
    assert_eq!(error.kind(), content::ReadErrorKind::NotFound, "{error}");
    let copied = copy(&*source, &*desk.target(&desk.oci("part", "1")).await).await?;
    assert_eq!(copied, Copied { moved: 2, ..Copied::default() });
    // A descriptor that lies about the size.
    let mut long = here.layers[0].0.clone();
    long.size += 1;
    assert!(collect(source.stream(&long, Urgency::Prefetch)).await.is_err());
    assert!(source.ranges(&long).await.is_err());
    let mut short = here.manifest.0.clone();
    short.size -= 1;
    assert!(source.manifest(&short).await.unwrap_err().to_string().contains("more than"));
    Ok(())
}

#[tokio::test]
async fn without_containerd_the_error_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let address = dir.path().join("none.sock");
    let containerd = Containerd { address, namespace: "default".to_owned() };
    let places = places(Path::new("/tmp"), containerd);
    let at = Place::Containerd { namespace: None, reference: NAME.to_owned() };
    for error in [places.source(&at).await.unwrap_err(), places.target(&at).await.unwrap_err()] {
        assert!(error.to_string().contains("is it running"), "{error}");
    }
}
