//! Pantala in place of stargz-snapshotter: its unit file, its configuration, its root and its socket stay as they are, and
//! the binary's path is exchanged.

// Helpers of tests may fail as tests do.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{big_file_image, sum_line};
use rustix::process::Signal;
use serde_json::Value;
use testkit::cage::{self, Cage, Needs};
use testkit::cluster::{Cluster, ClusterOptions};
use testkit::containerd::{Containerd, Snapshotter};
use testkit::http;
use testkit::net::Host;
use testkit::node::{Pantala, mounts_below};
use testkit::peers;
use testkit::process::{Daemon, READY_LIMIT, run, wait_until};
use testkit::service_manager::ServiceManager;

/// Where stargz-snapshotter has everything.
const SOCKET: &str = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock";
const ROOT: &str = "/var/lib/containerd-stargz-grpc";
const CONFIG: &str = "/etc/containerd-stargz-grpc/config.toml";

/// A unit as its users have it; BINARY is where its daemon is.
const UNIT: &str = "\
[Unit]
Description=stargz snapshotter
After=network.target
Before=containerd.service

[Service]
Type=notify
Environment=HOME=/root
ExecStart=BINARY --log-level=debug --config=/etc/containerd-stargz-grpc/config.toml
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
";

/// What a unit file tells a service manager to start: its command line and environment.
fn exec_start(unit: &str) -> Result<Command> {
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let mut words = value("ExecStart").context("no ExecStart")?.split_whitespace();
    let mut command = Command::new(words.next().context("an empty ExecStart")?);
    command.args(words);
    // A service has the environment of its unit and no other.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    for line in unit.lines().filter_map(|line| line.strip_prefix("Environment=")) {
        let (key, value) = line.split_once('=').context("an assignment")?;
        command.env(key, value);
    }
    ensure!(value("Type") == Some("notify"), "the test waits for a notification");
    Ok(command)
}

/// The same command, on a host of the lab.
fn on(host: &Host, command: &Command) -> Command {
    let mut there = host.command(command.get_program());
    there.args(command.get_args()).env_clear();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            there.env(key, value);
        }
    }
    there
}

/// Machine-wide places, private to the cage: what is written there is gone with it.
fn private_places(cage: &Cage) -> Result<()> {
    for place in ["/etc", "/var/lib"] {
        let own = cage.dir().join("places").join(place.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (own.join("upper"), own.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={place},upperdir={},workdir={}", upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, place]))?;
    }
    // No overlay keeps its files on another one.
    let disk = cage.dir().join("root");
    fs::create_dir_all(&disk)?;
    fs::create_dir_all(ROOT)?;
    run(Command::new("mount").arg("--bind").arg(&disk).arg(ROOT))?;
    Ok(())
}

/// A registry with `lab:esgz`, the sum of its `/big`, and a host for everything else.
fn lab(cage: &Cage) -> Result<(Cluster, String, Host)> {
    let options = ClusterOptions { seed: false, nodes: 0, ..ClusterOptions::default() };
    let cluster = Cluster::registry_only(cage, &Pantala::locate()?, options)?;
    let (image, sum) = big_file_image(31, 3_000_000)?;
    image.push(cluster.registry.back(), "lab", "plain")?;
    cluster.convert("lab:plain", "lab:esgz")?;
    let host = cluster.network.host("one")?;
    Ok((cluster, sum, host))
}

/// `pantala` under the name of stargz-snapshotter's daemon.
fn binary(cage: &Cage, host: &Host) -> Result<PathBuf> {
    let dir = cage.dir().join("bin");
    fs::create_dir_all(&dir)?;
    let link = dir.join("containerd-stargz-grpc");
    // nsenter --net=… -- <pantala>
    let pantala = Pantala::locate()?.on(host);
    let pantala = pantala.get_args().last().context("no binary")?;
    std::os::unix::fs::symlink(pantala, &link)?;
    Ok(link)
}

/// Keys of stargz-snapshotter as people have them. All but the mirrors and addresses are its defaults, or nothing here.
fn config(registry: &str, host: &Host) -> String {
    let address = host.address();
    format!(
        "metrics_address = \"{address}:8234\"\n\
         debug_address = \"/run/containerd-stargz-grpc/debug.sock\"\n\
         max_concurrency = 2\n\
         prefetch_timeout_sec = 10\n\
         log_file_access = true\n\
         no_background_fetch = true\n\
         \n\
         [blob]\n\
         check_always = false\n\
         chunk_size = 50000\n\
         \n\
         [directory_cache]\n\
         max_lru_cache_entry = 10\n\
         \n\
         [fuse]\n\
         attr_timeout = 1\n\
         \n\
         [[resolver.host.\"{registry}\".mirrors]]\n\
         host = \"{registry}\"\n\
         insecure = true\n"
    )
}

fn messages_of(log: &[String]) -> Vec<Value> {
    log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_unit_file_and_configuration_of_stargz_snapshotter_work() {
    cage::test(Needs::Containers, |cage| {
        private_places(cage)?;
        let (cluster, sum, host) = lab(cage)?;
        fs::create_dir_all(Path::new(CONFIG).parent().unwrap())?;
        fs::write(CONFIG, config(&cluster.registry.name(), &host))?;
        let link = binary(cage, &host)?;
        let unit = UNIT.replace("BINARY", &link.display().to_string());

        // What it prints when it is asked who it is.
        let version = run(Command::new(&link).arg("--version"))?;
        assert!(version.starts_with("containerd-stargz-grpc v"), "{version}");

        let manager = ServiceManager::start(cage.dir())?;
        let (mut command, given) = manager.service(&on(&host, &exec_start(&unit)?))?;
        let mut service = Daemon::start("containerd-stargz-grpc", &mut command, &cage.dir().join("log"))?;
        drop(given);
        let heard = manager.wait_for("READY=1", 0, READY_LIMIT)?;
        // A unit without NotifyAccess= listens to the main process alone.
        let sender = manager.messages()[heard - 1].sender;
        assert_eq!(sender, i32::try_from(service.pid()).ok(), "READY=1 is not the main process' word");
        assert_eq!(fs::metadata(SOCKET)?.mode() & 0o777, 0o600);

        let containerd = Containerd::start(&host, &cage.dir().join("c"), &cage.tag(), Path::new(SOCKET))?;
        let plugins = run(containerd.ctr().args(["plugins", "ls"]))?;
        let line = plugins.lines().find(|line| line.contains("stargz")).context("no plugin")?;
        assert!(line.trim_end().ends_with("ok"), "{line}");
        let lazy = cluster.reference("lab:esgz");
        containerd.rpull(&lazy)?;
        let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));

        let log = messages_of(&service.log());
        let prepared =
            |value: &str| log.iter().filter(|record| record["remote-snapshot-prepared"] == value).count();
        assert_eq!((prepared("true"), prepared("false")), (2, 0), "{}", service.log_tail());
        assert!(
            log.iter().any(|record| record["msg"] == "prepared remote snapshot" && record["key"].is_string())
        );
        let accessed =
            |record: &&Value| record["msg"].as_str().is_some_and(|msg| msg == "file accessed: /big");
        assert_eq!(log.iter().filter(accessed).count(), 1, "{}", service.log_tail());

        metrics_are_those_of_stargz_snapshotter(&cluster, &host)?;
        let debug = over_socket("/run/containerd-stargz-grpc/debug.sock", "/status")?;
        assert!(debug.contains("\"driver\":"), "{debug}");
        let status: Value =
            serde_json::from_str(&run(Pantala::locate()?.on(&host).args(["status", "--output", "json"]))?)?;
        let layers = status["layers"].as_array().context("no layers")?;
        assert_eq!(layers.len(), 2);
        for layer in layers {
            let digest = layer["digest"].as_str().context("no digest")?;
            assert_eq!(layer["state"]["digest"], digest);
            let file = Path::new(ROOT).join("state").join(format!("{digest}.json"));
            let text = wait_until("the state of a layer", READY_LIMIT, || fs::read_to_string(&file).ok())?;
            let state: Value = serde_json::from_str(&text)?;
            let keys: Vec<_> = state.as_object().context("no object")?.keys().cloned().collect();
            assert_eq!(keys, ["digest", "error", "fetchedPercent", "fetchedSize", "size"]);
        }

        service.signal(Signal::TERM)?;
        wait_until("the service to end", READY_LIMIT, || (!service.is_running()).then_some(()))?;
        assert!(service.stop()?.success(), "{}", service.log_tail());
        manager.wait_for("STOPPING=1", heard, Duration::from_secs(1))?;
        assert_eq!(mounts_below(&Path::new(ROOT).join("snapshots"))?, Vec::<String>::new());
        assert!(!Path::new(SOCKET).exists());
        Ok(())
    });
}

/// `GET` over a Unix socket: head and body.
fn over_socket(socket: &str, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn metrics_are_those_of_stargz_snapshotter(cluster: &Cluster, host: &Host) -> Result<()> {
    let page = http::get((host.address(), 8234).into(), "/metrics", &[])?.success()?.body;
    let page = String::from_utf8(page)?;
    for layer in cluster.layers("lab", "esgz")? {
        let (digest, size) = (layer.digest, layer.size);
        let has =
            |start: &str, end: &str| page.lines().any(|line| line.starts_with(start) && line.ends_with(end));
        let of = format!("{{digest=\"{digest}\",mountpoint=\"");
        assert!(has(&format!("stargz_fs_layer_size_bytes{of}"), &format!(" {size}")), "{page}");
        assert!(has(&format!("stargz_fs_layer_fetched_size_bytes{of}"), ""), "{page}");
        assert!(has(&format!("stargz_fs_layer_prefetch_size_bytes{of}"), ""), "{page}");
        for kind in ["mount", "remote_registry_get", "stargz_footer_get", "stargz_toc_json_deserialize"] {
            let labels = format!("{{operation_type=\"{kind}\",layer=\"{digest}\"");
            let bucket = format!("stargz_fs_operation_duration_milliseconds_bucket{labels},le=\"16384\"}}");
            assert!(has(&bucket, ""), "{bucket}\n{page}");
        }
        let labels = format!("{{operation_type=\"on_demand_read_access_count\",layer=\"{digest}\"}}");
        assert!(has(&format!("stargz_fs_operation_count{labels}"), ""), "{page}");
        let labels = format!("{{operation_type=\"on_demand_bytes_served\",layer=\"{digest}\"}}");
        assert!(has(&format!("stargz_fs_bytes_served{labels}"), ""), "{page}");
    }
    assert!(page.contains("\npantala_lazy_snapshots_prepared_total 2\n"), "{page}");
    assert!(page.contains("\npantala_fallbacks_total{reason=\"open\"} 0\n"), "{page}");
    Ok(())
}

/// Every file below `dir` with its length and time: what must not change.
fn listing(dir: &Path) -> Result<BTreeMap<PathBuf, (u64, i64)>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let stat = fs::symlink_metadata(&path)?;
        if stat.is_dir() {
            waiting.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
            found.insert(path, (0, 0));
        } else {
            found.insert(path, (stat.len(), stat.mtime()));
        }
    }
    Ok(found)
}

/// The real stargz-snapshotter, if it is here.
fn theirs(cage: &Cage, file: &Path, host: &Host, root: &Path, socket: &Path) -> Result<Option<Daemon>> {
    let Some(program) = peers::find("stargz-snapshotter") else { return Ok(None) };
    let mut command = host.command(program);
    command.arg("-address").arg(socket).arg("-root").arg(root).arg("-config").arg(file);
    let mut theirs = Daemon::start("stargz-snapshotter", &mut command, &cage.dir().join("theirs.log"))?;
    theirs.wait_for_socket(socket)?;
    Ok(Some(theirs))
}

/// Says that the registry speaks plain HTTP, as users of stargz-snapshotter say it.
fn plain_http(cage: &Cage, cluster: &Cluster) -> Result<PathBuf> {
    let (file, registry) = (cage.dir().join("plain.toml"), cluster.registry.name());
    let mirror =
        format!("[[resolver.host.\"{registry}\".mirrors]]\nhost = \"{registry}\"\ninsecure = true\n");
    fs::write(&file, mirror)?;
    Ok(file)
}

#[test]
fn what_stargz_snapshotter_left_is_ignored_with_one_line_and_is_there_for_who_goes_back() {
    cage::test(Needs::Containers, |cage| {
        let (cluster, sum, host) = lab(cage)?;
        let (root, socket) = (cage.dir().join("r"), cage.dir().join("s.sock"));
        let (file, lazy) = (plain_http(cage, &cluster)?, cluster.reference("lab:esgz"));
        let run_with = |containerd: &Containerd| -> Result<()> {
            containerd.rpull(&lazy)?;
            let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
            assert_eq!(printed.stdout, sum_line(&sum));
            Ok(())
        };
        let start_containerd = || Containerd::start(&host, &cage.dir().join("c"), &cage.tag(), &socket);
        fs::create_dir(&root)?;
        if let Some(mut theirs) = theirs(cage, &file, &host, &root, &socket)? {
            run_with(&start_containerd()?)?;
            // A crash leaves most. Mounts of a dead process answer nobody.
            theirs.kill()?;
            for mount in mounts_below(&root)? {
                run(Command::new("umount").args(["-l", &mount]))?;
            }
        } else {
            // Something alike.
            let page = [&[0; 16][..], &[0xED, 0xDA, 0x0C, 0xED], &[0; 4076]].concat();
            fs::create_dir_all(root.join("snapshotter/snapshots/1/fs"))?;
            fs::write(root.join("snapshotter/metadata.db"), page)?;
            fs::create_dir_all(root.join("stargz/httpcache/123"))?;
        }
        let before = listing(&root)?;
        assert!(before.contains_key(&root.join("snapshotter/metadata.db")));

        let mut command = host.command(binary(cage, &host)?);
        command.arg("-root").arg(&root).arg("-address").arg(&socket).arg("-config").arg(&file);
        let mut ours = Daemon::start("ours", &mut command, &cage.dir().join("ours.log"))?;
        ours.wait_for_socket(&socket)?;
        let told = ours.log().iter().filter(|line| line.contains("stargz-snapshotter left")).count();
        assert_eq!(told, 1, "{}", ours.log_tail());
        let containerd = start_containerd()?;
        // What the documentation says: images of before are removed and pulled again.
        containerd.remove_image(&lazy).ok();
        run_with(&containerd)?;
        containerd.remove_image(&lazy)?;
        drop(containerd);
        ours.stop()?;
        let after = listing(&root)?;
        let changed: Vec<_> = before.iter().filter(|(path, stat)| after.get(*path) != Some(stat)).collect();
        assert!(changed.is_empty(), "{changed:?}");

        if theirs(cage, &file, &host, &root, &socket)?.is_some_and(|mut theirs| theirs.is_running()) {
            println!("stargz-snapshotter goes on with what it had");
        }
        Ok(())
    });
}

#[test]
fn a_socket_of_the_service_manager_is_there_before_and_after_and_while_the_service_is_started_again() {
    cage::test(Needs::Containers, |cage| {
        let (cluster, sum, host) = lab(cage)?;
        let (root, socket) = (cage.dir().join("r"), cage.dir().join("s.sock"));
        let link = binary(cage, &host)?;
        let listener = UnixListener::bind(&socket)?;
        let file = plain_http(cage, &cluster)?;

        // containerd is first, as after a boot: its connection waits in the socket.
        let containerd = Containerd::start(&host, &cage.dir().join("c"), &cage.tag(), &socket)?;
        let number = listener.as_raw_fd();
        let passed = rustix::io::fcntl_dupfd_cloexec(&listener, 500)?;
        rustix::io::fcntl_setfd(&passed, rustix::io::FdFlags::empty())?;
        let high = passed.as_raw_fd();
        assert_ne!(number, high);
        let script = format!(
            "exec 3<&{high} {high}<&-\nexport LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=pantala-snapshotter.socket\n\
             exec \"$@\""
        );
        let mut command = Command::new("bash");
        let program = on(&host, Command::new(&link).arg("-root").arg(&root).arg("-address").arg(&socket));
        command.args(["-c", &script, "bash"]).arg(program.get_program()).args(program.get_args());
        command.arg("-config").arg(&file);
        let mut service = Daemon::start("service", &mut command, &cage.dir().join("ours.log"))?;
        drop(passed);
        service.wait_for_line("the snapshotter is ready", READY_LIMIT)?;
        let lazy = cluster.reference("lab:esgz");
        containerd.rpull(&lazy)?;

        // A dead worker is followed by one on the same socket: who asks meanwhile waits and is answered.
        let worker = rustix::process::Pid::from_raw(i32::try_from(service.worker())?).context("no worker")?;
        rustix::process::kill_process(worker, Signal::KILL)?;
        let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));

        // So is one that is replaced.
        let first = service.worker();
        service.signal(Signal::HUP)?;
        wait_until("another worker", READY_LIMIT, || {
            (![first, service.pid()].contains(&service.worker())).then_some(())
        })?;
        let printed = containerd.run(&lazy, Snapshotter::Stargz, &["/bin/sha256sum", "/big"])?;
        assert_eq!(printed.stdout, sum_line(&sum));

        drop(containerd);
        service.stop()?;
        assert!(socket.exists(), "the service manager's socket was taken away");
        UnixStream::connect(&socket)?;
        Ok(())
    });
}

#[test]
fn the_default_configuration_may_be_missing_and_any_other_may_not() {
    cage::test(Needs::Containers, |cage| {
        private_places(cage)?;
        let (_cluster, _, host) = lab(cage)?;
        let _ = fs::remove_file(CONFIG);
        let link = binary(cage, &host)?;
        let socket = cage.dir().join("s.sock");
        let start = |config: &str| {
            let mut command = host.command(&link);
            command.arg("-address").arg(&socket).args(["-config", config]);
            Daemon::start("service", &mut command, &cage.dir().join("log"))
        };
        let mut missing = start("/etc/containerd-stargz-grpc/mine.toml")?;
        let error = missing.wait_for_socket(&socket).unwrap_err().to_string();
        assert!(error.contains("mine.toml"), "{error}");
        let mut default = start(CONFIG)?;
        default.wait_for_socket(&socket)?;
        assert!(default.stop()?.success());
        Ok(())
    });
}
