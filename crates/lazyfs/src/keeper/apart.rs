//! Whether the keeper outlives what ends everything else at once.
//!
//! Processes are killed one by one, and then another has a copy of what they held; or they are killed together, by
//! what they have in common. Those are the control group (a service that is stopped or restarted, a pod's end, memory that
//! is short in a group that is killed as one) and the PID namespace (a container's end). So the keeper leaves its control
//! groups for one at the top, where it may; and whoever must know whether that was enough asks [`stands_apart`].
//!
//! With systemd's descriptor store it does not matter: see [`Manager::stores`](super::store::Manager::stores).

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// The keeper's control group, at the top of a hierarchy.
const GROUP: &str = "pantala-keeper";
/// Inode numbers of the first namespaces of a machine, the same on each (`linux/proc_ns.h`).
const FIRST_PID: &str = "pid:[4026531836]";
const FIRST_CGROUP: &str = "cgroup:[4026531835]";

/// Where a process is in one hierarchy of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// What tells the hierarchy from others: empty for version 2, else its controllers or its name.
    hierarchy: String,
    /// The group, as seen from here: begins with `/..` if it lies outside of what is seen.
    group: String,
}

/// Reads `/proc/<pid>/cgroup`: hierarchy, controllers, path. Only those that somebody kills by: version 2, systemd's own,
/// and whatever Kubernetes uses.
fn places(text: &str) -> Vec<Place> {
    let parts = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (hierarchy, group) = rest.split_once(':')?;
        Some(Place { hierarchy: hierarchy.into(), group: group.into() })
    });
    let counts = |place: &Place| {
        matches!(place.hierarchy.as_str(), "" | "name=systemd") || place.group.contains("kubepods")
    };
    parts.filter(counts).collect()
}

/// Where the top of a hierarchy can be reached, and whether that lies above what `/proc/self/cgroup` shows. Of several
/// mounts the highest: a pod that was given the machine's own has its own, too.
fn top(mountinfo: &str, hierarchy: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        // id parent major:minor root mountpoint options tags… - type source super-options
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        let is_it = match hierarchy {
            "" => kind == "cgroup2",
            wanted => {
                let has = |word: &str| options.split(',').any(|option| option == word);
                kind == "cgroup" && wanted.split(',').all(has)
            }
        };
        let is_top = root == "/" || root.split('/').skip(1).all(|part| part == "..");
        (is_it && is_top).then(|| (root.len(), PathBuf::from(point)))
    });
    mounts.max_by_key(|(height, _)| *height).map(|(_, point)| point)
}

/// Leaves every control group that could be killed as one, as far as that can be done. Says why where it cannot.
pub fn leave() {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let mountinfo = read("/proc/self/mountinfo");
    for place in places(&read("/proc/self/cgroup")) {
        if place.group == "/" && is_first("cgroup", FIRST_CGROUP) {
            continue;
        }
        let left = top(&mountinfo, &place.hierarchy).map(|top| join(&top.join(GROUP)));
        match left {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::info!(group = place.group, %error, "the keeper stays in its control group");
            }
            None => {
                tracing::info!(
                    group = place.group,
                    "the keeper sees no control groups, and stays in its own"
                );
            }
        }
    }
}

fn join(group: &Path) -> std::io::Result<()> {
    fs::create_dir_all(group)?;
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

fn is_first(namespace: &str, first: &str) -> bool {
    fs::read_link(format!("/proc/self/ns/{namespace}")).is_ok_and(|link| link.as_os_str() == first)
}

/// Whether the keeper outlives a blow at everything that has to do with `supervisor`.
///
/// # Errors
/// What would end both, in words.
pub fn stands_apart(keeper: u32, supervisor: Pid) -> Result<(), String> {
    let groups = |pid: &str| {
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .map_err(|error| format!("the control groups of process {pid} cannot be read: {error}"))
    };
    let supervisor_number = supervisor.as_raw_pid().to_string();
    let ours = places(&groups(&supervisor_number)?);
    let mut is_machine = is_first("cgroup", FIRST_CGROUP);
    if !is_first("pid", FIRST_PID) {
        let first = places(&groups("1")?);
        if is_entry(&supervisor_number) && first == ours {
            return Err("this container's end would end the keeper, too".into());
        }
        // Something with an init of its own: whoever reads a layer ends with it.
        is_machine = true;
    }
    apart(&places(&groups(&keeper.to_string())?), &ours, is_machine)
}

/// Whether a container's runtime started the process, directly or through a shell or an init that only does that.
fn is_entry(pid: &str) -> bool {
    pid == "1" || parent(pid).is_none_or(|parent| parent <= 1)
}

fn parent(pid: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Compares the groups of both. `is_machine` says that the group `/` is everything, which nobody kills as one.
fn apart(keeper: &[Place], ours: &[Place], is_machine: bool) -> Result<(), String> {
    for ours in ours {
        let keeper = keeper.iter().find(|place| place.hierarchy == ours.hierarchy);
        let keeper = keeper.map_or("", |place| place.group.as_str());
        let shares = if ours.group == "/" {
            !is_machine && !keeper.starts_with("/..")
        } else {
            // Any group above both may be killed.
            let first = |group: &str| group.split('/').nth(1).unwrap_or_default().to_owned();
            keeper.is_empty() || keeper != "/" && first(keeper) == first(&ours.group)
        };
        if shares {
            return Err(format!("the keeper is in the control group {keeper} and dies with {}", ours.group));
        }
    }
    if ours.is_empty() && !is_machine {
        return Err("the control groups cannot be seen".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(group: &str) -> Vec<Place> {
        vec![Place { hierarchy: String::new(), group: group.into() }]
    }

    #[test]
    fn only_hierarchies_that_kill_count() {
        let text = "9:name=systemd:/system.slice/p.service\n4:memory:/a\n3:pids:/kubepods/x\n0::/system.slice/p.service\n";
        let places = places(text);
        let found: Vec<_> = places.iter().map(|place| place.hierarchy.as_str()).collect();
        assert_eq!(found, ["name=systemd", "pids", ""]);
    }

    #[test]
    fn a_group_that_is_shared_with_the_service_is_not_apart() {
        let service = at("/system.slice/p.service");
        assert!(apart(&at("/pantala-keeper"), &service, true).is_ok());
        assert!(apart(&at("/"), &service, true).is_ok());
        assert!(apart(&service, &service, true).is_err());
        assert!(
            apart(&at("/system.slice/other.service"), &service, true).is_err(),
            "the slice may be killed"
        );
        assert!(apart(&[], &service, true).is_err(), "what is not seen may be anywhere");
        // The machine's own root is killed by nobody, a container's is.
        assert!(apart(&at("/"), &at("/"), true).is_ok());
        assert!(apart(&at("/"), &at("/"), false).is_err());
        assert!(apart(&at("/pantala-keeper"), &at("/"), false).is_err(), "below the container");
        assert!(apart(&at("/../../../pantala-keeper"), &at("/"), false).is_ok());
        assert!(apart(&[], &[], false).is_err());
    }

    #[test]
    fn the_highest_mount_of_a_hierarchy_is_its_top() {
        let own = "31 23 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        let machine = "99 23 0:27 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n";
        let part = "98 23 0:27 /kubepods /part rw - cgroup2 cgroup rw\n";
        let old = "40 23 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        assert_eq!(top(&[own, part, machine].concat(), ""), Some("/host/cgroup".into()));
        assert_eq!(top(&[own, part].concat(), ""), Some("/sys/fs/cgroup".into()));
        assert_eq!(top(part, ""), None);
        assert_eq!(top(&[own, old].concat(), "name=systemd"), Some("/sys/fs/cgroup/systemd".into()));
        assert_eq!(top(own, "name=systemd"), None);
    }

    #[test]
    fn this_process_can_be_judged() {
        // Whatever the answer: it is one.
        let judged = stands_apart(std::process::id(), rustix::process::getpid());
        assert!(judged.is_ok() || judged.is_err_and(|reason| !reason.is_empty()));
    }
}
