//! Who `user[:group]` is, by the image's own `/etc/passwd` and `/etc/group`.
//!
//! Both are read through the mounted image, so that they are noted: whoever starts a container reads them first.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Longest file of users that is read, in bytes.
const MOST: u64 = 4 << 20;

/// A user by numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Other groups, in ascending order.
    pub(crate) groups: Vec<u32>,
}

/// A user that the image does not have.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error("the image's /etc/passwd has no user {0:?}: name another with --user")]
    NoUser(String),
    /// There is no such group.
    #[error("the image's /etc/group has no group {0:?}: name another with --user")]
    NoGroup(String),
    /// The file cannot be read.
    #[error("reading {name} of the image: {source}")]
    Read {
        /// Which.
        name: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Finds `wanted` (`user[:group]`; empty for root) in the image below `root`.
pub(crate) fn find(root: &Path, wanted: &str) -> Result<User, UserError> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    lookup(wanted, &passwd, &group)
}

/// A file of the image, whose links must not lead out of it; empty if it is not there.
fn read(root: &Path, name: &'static str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::Read { name, source };
    let folder = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(error.into()))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat2(folder, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds `wanted` in the text of both files.
pub(crate) fn lookup(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let line = fields(passwd).find(|line| line.first() == Some(&name)).or_else(|| {
        let number = name.parse::<u32>().ok()?;
        fields(passwd).find(|line| number_at(line, 2) == Some(number))
    });
    let mut user = match (&line, name.parse::<u32>()) {
        (Some(line), number) => User {
            uid: number_at(line, 2).or(number.ok()).ok_or_else(|| UserError::NoUser(name.to_owned()))?,
            gid: number_at(line, 3).unwrap_or(0),
            groups: Vec::new(),
        },
        (None, Ok(uid)) => User { uid, ..User::default() },
        (None, Err(_)) => return Err(UserError::NoUser(name.chars().take(80).collect())),
    };
    if let Some(wanted) = group_name.filter(|group| !group.is_empty()) {
        let found =
            fields(group).find(|line| line.first() == Some(&wanted)).and_then(|line| number_at(&line, 2));
        user.gid = match found {
            Some(gid) => gid,
            None => wanted.parse().map_err(|_| UserError::NoGroup(wanted.chars().take(80).collect()))?,
        };
        return Ok(user);
    }
    // Other groups are a matter of names.
    if let Some(name) = line.and_then(|line| line.first().copied()) {
        let member =
            |line: &Vec<&str>| line.get(3).is_some_and(|all| all.split(',').any(|it| it.trim() == name));
        user.groups = fields(group).filter(member).filter_map(|line| number_at(&line, 2)).collect();
        user.groups.sort_unstable();
        user.groups.dedup();
    }
    Ok(user)
}

fn fields(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| line.trim().split(':').collect())
}

fn number_at(line: &[&str], at: usize) -> Option<u32> {
    line.get(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# no:x:9:9\nwww:x:33:34::/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:www,other\ntty:x:5:www\n";

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn names_and_numbers_find_the_same_user() {
        for (wanted, expected) in [
            ("", user(0, 0, &[])),
            ("root", user(0, 0, &[])),
            ("www", user(33, 34, &[5, 40])),
            ("33", user(33, 34, &[5, 40])),
            ("www:logs", user(33, 40, &[])),
            ("www:77", user(33, 77, &[])),
            ("1000", user(1000, 0, &[])),
            ("1000:1001", user(1000, 1001, &[])),
            (":34", user(0, 34, &[])),
        ] {
            assert_eq!(lookup(wanted, PASSWD, GROUP).unwrap(), expected, "{wanted:?}");
        }
        assert_eq!(lookup("", "", "").unwrap(), user(0, 0, &[]));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert!(matches!(lookup("nobody", PASSWD, GROUP), Err(UserError::NoUser(name)) if name == "nobody"));
        assert!(matches!(lookup("www:x", PASSWD, GROUP), Err(UserError::NoGroup(name)) if name == "x"));
        assert!(matches!(lookup("-1", PASSWD, GROUP), Err(UserError::NoUser(_))));
    }

    #[test]
    fn links_of_an_image_do_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "x:x:7:7::/:\n").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("etc/passwd")).unwrap();
        assert!(find(&root, "x").is_err());
        std::fs::write(root.join("real"), "y:x:8:9::/:\n").unwrap();
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("etc/passwd")).unwrap();
        assert_eq!(find(&root, "y").unwrap(), user(8, 9, &[]));
    }
}
