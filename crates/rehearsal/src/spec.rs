//! The container as `runc` wants it described, by OCI's runtime specification.
//!
//! It is an ordinary container: namespaces of its own, containerd's default capabilities, the kernel's secrets masked.
//! What it writes is thrown away.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::Process;
use crate::options::{Network, Options};
use crate::user::User;

/// What containerd and Docker leave to a container's root.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What tells too much of this machine.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

/// What would change this machine.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files of the container that are made for it.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// Its `/etc/resolv.conf`.
    pub(crate) resolv: PathBuf,
    /// Its `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// Where its root is mounted.
    pub(crate) root: PathBuf,
}

/// The description of a container that runs `process` as `user`.
pub(crate) fn spec(process: &Process, user: &User, options: &Options, files: &Files) -> Value {
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
    ];
    if options.network == Network::Own {
        namespaces.push(json!({"type": "network"}));
    }
    // The shapes and names are those of the specification.
    let capabilities: Vec<&str> = CAPABILITIES.to_vec();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": process.args,
            "env": process.env,
            "cwd": process.cwd,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": text(&files.root), "readonly": false},
        "hostname": "rehearsal",
        "mounts": mounts(options, files),
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts(options: &Options, files: &Files) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    // A new view of sysfs belongs to a new network.
    mounts.push(match options.network {
        Network::Own => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        Network::Host => mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]),
    });
    for (destination, source) in [("/etc/resolv.conf", &files.resolv), ("/etc/hosts", &files.hosts)] {
        mounts.push(mount(destination, "bind", &text(source), &["rbind", "ro"]));
    }
    for binding in &options.mounts {
        let mut flags: Vec<&str> = binding.options.iter().map(String::as_str).collect();
        if binding.kind == "bind" && !flags.contains(&"bind") && !flags.contains(&"rbind") {
            flags.push("rbind");
        }
        mounts.push(mount(&binding.destination, &binding.kind, &binding.source, &flags));
    }
    mounts
}

/// A path of our own making, as text.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The container's `/etc/resolv.conf`.
pub(crate) fn resolv_conf(options: &Options) -> String {
    let dns = &options.dns;
    let mut lines: Vec<String> = dns.servers.iter().map(|server| format!("nameserver {server}")).collect();
    if !dns.search.is_empty() {
        lines.push(format!("search {}", dns.search.join(" ")));
    }
    if !dns.options.is_empty() {
        lines.push(format!("options {}", dns.options.join(" ")));
    }
    lines.join("\n") + "\n"
}

/// The container's `/etc/hosts`.
pub(crate) fn hosts(options: &Options) -> String {
    let mut lines = vec!["127.0.0.1 localhost rehearsal".to_owned(), "::1 localhost".to_owned()];
    lines.extend(options.hosts.iter().map(|(name, address)| format!("{address} {name}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Dns;

    fn made(options: &Options) -> Value {
        let process = Process {
            args: vec!["/bin/sh".to_owned()],
            env: vec!["A=1".to_owned()],
            cwd: "/w".to_owned(),
            user: String::new(),
        };
        let files = Files { resolv: "/t/resolv".into(), hosts: "/t/hosts".into(), root: "/t/root".into() };
        spec(&process, &User { uid: 7, gid: 8, groups: vec![9] }, options, &files)
    }

    #[test]
    fn the_process_is_what_was_asked_for() {
        let spec = made(&Options::default());
        assert_eq!(spec["process"]["args"], json!(["/bin/sh"]));
        assert_eq!(spec["process"]["user"], json!({"uid": 7, "gid": 8, "additionalGids": [9]}));
        assert_eq!((&spec["process"]["cwd"], &spec["process"]["env"]), (&json!("/w"), &json!(["A=1"])));
        assert_eq!(spec["root"]["path"], "/t/root");
    }

    #[test]
    fn it_is_kept_from_this_machine() {
        let spec = made(&Options::default());
        let capabilities = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
        assert!(!capabilities.contains(&json!("CAP_SYS_ADMIN")) && capabilities.len() == 14);
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        let kinds: Vec<&str> = spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "network"]);
        assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": false, "access": "rwm"}]));
    }

    #[test]
    fn the_hosts_network_is_shared_when_wished() {
        let spec = made(&Options { network: Network::Host, ..Options::default() });
        assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
        let mounts = spec["mounts"].as_array().unwrap();
        let sys = mounts.iter().find(|mount| mount["destination"] == "/sys").unwrap();
        assert_eq!(sys["type"], "bind");
    }

    #[test]
    fn a_bind_mount_is_one_though_its_options_do_not_say_so() {
        let options =
            Options { mounts: vec!["src=/a,dst=/b,options=ro".parse().unwrap()], ..Options::default() };
        let spec = made(&options);
        let last = spec["mounts"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            last,
            json!({"destination": "/b", "type": "bind", "source": "/a", "options": ["ro", "rbind"]})
        );
    }

    #[test]
    fn names_are_resolved_as_wished() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let options = Options {
            dns: Dns { servers: words("8.8.8.8 ::1"), search: words("a b"), options: words("ndots:1") },
            hosts: vec![("db".to_owned(), "10.0.0.2".parse().unwrap())],
            ..Options::default()
        };
        assert_eq!(
            resolv_conf(&options),
            "nameserver 8.8.8.8\nnameserver ::1\nsearch a b\noptions ndots:1\n"
        );
        assert_eq!(hosts(&options), "127.0.0.1 localhost rehearsal\n::1 localhost\n10.0.0.2 db\n");
    }
}
