//! Private images run lazily: by Docker's configuration, by what came with a pull over CRI, and after a restart still.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::private::{Alone, Private};
use e2e::{big_file_image, sum_line};
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::Snapshotter;
use testkit::image::pause;
use testkit::node::Pantala;

/// Long enough that it does not come along with anything else.
const LEN: usize = 9_000_000;

/// A registry for the lab with a converted image and a pause image, and the private one before the same files.
fn registries(cage: &Cage) -> Result<(Cluster, Private, String)> {
    let options = ClusterOptions { nodes: 0, seed: false, ..ClusterOptions::default() };
    let cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
    let (image, sum) = big_file_image(21, LEN)?;
    image.push(cluster.registry.back(), "lab", "plain")?;
    cluster.convert("lab:plain", "lab:esgz")?;
    pause()?.push(cluster.registry.back(), "lab", "pause")?;
    let host = cluster.network.host("private")?;
    let private = Private::start(&host, &cage.dir().join("private"), &cage.dir().join("registry"))?;
    Ok((cluster, private, sum))
}

/// Nothing is fetched behind a reader's back: what is read late is fetched late.
const QUIET: &str = "no_background_fetch = true\nnoprefetch = true\n";

fn config(alone: &Path, more: &str) -> String {
    format!("{QUIET}{more}\n[resolver]\nconfig_path = \"{}\"\n", alone.join("containerd/certs.d").display())
}

fn machine(cage: &Cage) -> PathBuf {
    cage.dir().join("machine")
}

#[test]
fn a_private_image_is_lazy_by_dockers_configuration() {
    cage::test(Needs::Containers, |cage| {
        let (cluster, private, sum) = registries(cage)?;
        let pause = cluster.reference("lab:pause");
        private.write_hosts(&machine(cage).join("containerd/certs.d"))?;
        let alone = Alone::start(cage, &cluster.network, &config(&machine(cage), ""), &pause)?;
        let image = format!("{}/lab:esgz", private.name());

        // The password is wrong: containerd, which knows the right one, downloads the layers.
        private.docker_config(&alone.docker_config(), "wrong")?;
        alone.rpull_as(&image, Private::USER, Private::PASSWORD)?;
        let (lazy, not) = alone.prepared()?;
        ensure!(lazy == 0 && not > 0, "{lazy} lazy layers without credentials");
        alone.containerd.remove_image(&image)?;

        // The file is read again each time: no restart.
        private.docker_config(&alone.docker_config(), Private::PASSWORD)?;
        alone.rpull_as(&image, Private::USER, Private::PASSWORD)?;
        ensure!(alone.prepared()? == (2, not), "{:?}", alone.prepared()?);
        let printed = alone.containerd.run(&image, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));
        Ok(())
    });
}

/// Every file below `dir` in which the password is. What goes while it is looked at is passed over.
fn where_the_password_is(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            where_the_password_is(&path, found);
        } else if kind.is_ok_and(|kind| kind.is_file()) {
            let text = fs::read(&path).unwrap_or_default();
            if text.windows(Private::PASSWORD.len()).any(|window| window == Private::PASSWORD.as_bytes()) {
                found.push(path);
            }
        }
    }
}

#[test]
fn what_came_with_a_pull_over_cri_is_enough_after_a_restart_too() {
    cage::test(Needs::Containers, |cage| {
        let (cluster, private, sum) = registries(cage)?;
        let pause = cluster.reference("lab:pause");
        private.write_hosts(&machine(cage).join("containerd/certs.d"))?;
        let config = config(&machine(cage), "[cri_keychain]\nenable_keychain = true\n");
        let mut alone = Alone::start(cage, &cluster.network, &config, &pause)?;
        let image = format!("{}/lab:esgz", private.name());

        let images = alone.images()?;
        ensure!(
            images.pull_as(&image, Some((Private::USER, "wrong"))).is_err(),
            "pulled by a wrong password"
        );
        let named = images.pull_as(&image, Some((Private::USER, Private::PASSWORD)))?;
        ensure!(alone.prepared()? == (2, 0), "{:?}", alone.prepared()?);
        ensure!(images.list()?.contains(&image), "the list of images is containerd's");
        let cri = alone.containerd.cri()?;
        let pod = cri.run_pod("pod")?;
        let container = cri.start(&pod, "container", &named, &["/bin/sleep", "1000"])?;

        // Nobody shows the password again; what is read was not here before.
        alone.restart()?;
        let read = cri.exec(&container, &["/bin/sha256sum", "/big"])?;
        assert_eq!((read.code, read.stdout), (0, sum_line(&sum)), "{}", read.stderr);
        cri.remove_pod(&pod)?;

        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(alone.root().join("credentials.json")).context("nothing was kept")?.permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        let mut found = Vec::new();
        where_the_password_is(&machine(cage), &mut found);
        assert_eq!(found, [alone.root().join("credentials.json")]);
        Ok(())
    });
}
