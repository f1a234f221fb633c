//! Finding containerd: it is who calls us.
//!
//! The process at the other end of our own socket listens, among others, on the socket of its API. So a containerd
//! that is not at the usual place needs no configuration; the configured address is asked when the caller tells
//! nothing (it may be in another network namespace, or be no containerd at all).

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd::{Client, Error};
use tokio::sync::watch;

/// How long a socket may take to tell that it is containerd's.
const TRIAL: Duration = Duration::from_secs(1);
/// Sockets of one process that are tried.
const SOCKETS: usize = 16;

/// Where containerd is.
pub struct Locator {
    configured: PathBuf,
    /// The last process that called; 0 if nobody did.
    caller: watch::Sender<i32>,
    /// The connection, and for whose calls it was made.
    found: Mutex<Option<(i32, Client)>>,
}

impl Locator {
    pub fn new(configured: PathBuf) -> Self {
        Self { configured, caller: watch::Sender::new(0), found: Mutex::default() }
    }

    /// Process `pid` calls.
    pub fn seen(&self, pid: i32) {
        self.caller.send_if_modified(|caller| std::mem::replace(caller, pid) != pid);
    }

    /// Who calls, now and from now on.
    pub fn caller(&self) -> watch::Receiver<i32> {
        self.caller.subscribe()
    }

    /// The configured address.
    pub fn configured(&self) -> &Path {
        &self.configured
    }

    /// A connection to containerd; its namespace means nothing.
    ///
    /// # Errors
    /// That nobody answers.
    pub async fn client(&self) -> Result<Client, Error> {
        let caller = *self.caller.borrow();
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((of, client)) = known
            && of == caller
        {
            return Ok(client);
        }
        let client = self.find(caller).await?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some((caller, client.clone()));
        Ok(client)
    }

    /// What was found does not answer any more.
    pub fn lost(&self) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn find(&self, caller: i32) -> Result<Client, Error> {
        let sockets = tokio::task::spawn_blocking(move || listening(caller)).await.unwrap_or_default();
        let sockets = in_order(sockets, &self.configured);
        for socket in sockets.iter().take(SOCKETS) {
            // It may be in another mount namespace.
            let beneath = PathBuf::from(format!("/proc/{caller}/root"))
                .join(socket.strip_prefix("/").unwrap_or(socket));
            for path in [socket, &beneath] {
                if let Ok(client) = try_it(path).await {
                    tracing::debug!(address = %path.display(), "found containerd's own socket");
                    return Ok(client);
                }
            }
        }
        try_it(&self.configured).await
    }
}

async fn try_it(path: &Path) -> Result<Client, Error> {
    let unreachable =
        || Error::Unreachable { address: path.to_owned(), reason: "it does not answer in time".to_owned() };
    let trial = async {
        let client = Client::connect(path, "default").await?;
        client.namespaces().await?;
        Ok(client)
    };
    tokio::time::timeout(TRIAL, trial).await.unwrap_or_else(|_| Err(unreachable()))
}

/// The sockets of the API first.
fn in_order(mut sockets: Vec<PathBuf>, configured: &Path) -> Vec<PathBuf> {
    sockets.sort_by_key(|path| {
        let name = path.to_string_lossy();
        // containerd's other doors speak other languages.
        (path != configured, name.ends_with(".ttrpc"), name.contains("debug"), path.clone())
    });
    sockets
}

/// Unix sockets that process `pid` listens on. Blocks.
fn listening(pid: i32) -> Vec<PathBuf> {
    if pid <= 0 {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let held: HashSet<String> = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    sockets_of(&table, &held)
}

/// Of the kernel's table of unix sockets the paths of those that listen and whose inodes are among `held`.
fn sockets_of(table: &str, held: &HashSet<String>) -> Vec<PathBuf> {
    // Num RefCount Protocol Flags Type St Inode Path; the flag 0x10000 says that it accepts connections.
    const ACCEPTS: u32 = 0x1_0000;
    let listens = |line: &str| {
        let mut words = line.split_whitespace();
        let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
        let inode = words.nth(2)?;
        let path = words.next()?;
        (flags & ACCEPTS != 0 && held.contains(inode) && path.starts_with('/')).then(|| PathBuf::from(path))
    };
    table.lines().filter_map(listens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found_by_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = listening(pid);
        assert!(found.contains(&path), "{found:?}");
        assert!(listening(0).is_empty());
    }

    #[test]
    fn only_sockets_that_listen_and_are_its_own_count() {
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            a: 00000002 00000000 00010000 0001 01 11 /run/containerd/containerd.sock\n\
            b: 00000002 00000000 00010000 0001 01 12 /run/other.sock\n\
            c: 00000003 00000000 00000000 0001 03 13 /run/containerd/containerd.sock\n\
            d: 00000002 00000000 00010000 0001 01 14 @abstract\n\
            odd\n";
        let held = ["11", "13", "14"].map(str::to_owned).into_iter().collect();
        assert_eq!(sockets_of(table, &held), [PathBuf::from("/run/containerd/containerd.sock")]);
    }

    #[test]
    fn the_configured_one_is_tried_first_and_other_languages_last() {
        let paths = ["/r/a.sock.ttrpc", "/r/debug.sock", "/r/a.sock", "/r/b.sock"].map(PathBuf::from);
        let ordered = in_order(paths.to_vec(), Path::new("/r/b.sock"));
        let names: Vec<_> = ordered.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["/r/b.sock", "/r/a.sock", "/r/debug.sock", "/r/a.sock.ttrpc"]);
    }
}
