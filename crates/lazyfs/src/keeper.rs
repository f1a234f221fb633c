//! Descriptors that outlive the process that uses them.
//!
//! Two kinds of descriptor must never be closed while a container reads: the fanotify group that stands before the
//! holes of natively mounted layers (without it the kernel reads them as zeros), and the FUSE device of a mounted
//! layer (without it every access fails). So they are *kept*: given, by name, to a process that does nothing
//! else and cannot fail for the reasons for which a worker fails. The next worker asks for them by name.
//!
//! [`Keep`] is what everything else in this crate knows of it.
//!
//! Three processes, each of which may die:
//!
//! * the **supervisor** ([`supervise`]) is what a service manager sees. It starts the worker, and starts it again when
//!   it dies. It has a copy of everything.
//! * the **worker** does the work. It is connected to the keeper by a [`Keeper`], and has a copy of everything.
//! * the **keeper** ([`serve`]) stands apart from both. When no worker comes for a while, it answers the kernel with
//!   errors, so that no reader waits for ever. It ends when nothing is kept any more.
//!
//! All three at once die by what they have in common, so the keeper leaves it where it may; and the service manager's
//! descriptor store is the second belt. Where there is neither, [`Keep::outlives_all`] says so.
//!
//! * `keeper/names.rs`: what is kept. `keeper/wire.rs`: messages. `keeper/socket.rs`: how they travel. `keeper/talk.rs`: one connection.
//! * `keeper/serve.rs`, `keeper/refuse.rs`: the keeper. `keeper/client.rs`: the worker's side.
//! * `keeper/listen.rs`: sockets of the service manager. `keeper/supervise.rs`: the supervisor. `keeper/store.rs`: the service manager.
//! * `keeper/apart.rs`: what ends everything at once. `keeper/sys.rs`: system calls.

mod apart;
mod client;
mod listen;
pub(crate) mod names;
mod refuse;
mod serve;
mod socket;
mod store;
mod supervise;
mod sys;
mod talk;
pub(crate) mod wire;

pub use apart::leave;
pub use client::Keeper;
pub use listen::sockets;
pub use serve::{GRACE, MOST_KEPT, ServeOptions, serve};
pub use store::tell_manager;
pub use supervise::{SuperviseOptions, called_as, supervise};
pub use sys::detach;
pub use talk::Launch;
pub use wire::Status;

/// The environment variable by which worker and keeper know the supervisor: its process number.
pub const WORKER: &str = "PANTALA_WORKER";

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Keeps descriptors for the process that comes after this one.
///
/// Names have at most 200 bytes, of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.` alone (systemd's store takes them as they are).
/// Every call is quick and may block for a moment: a message on a local socket.
pub trait Keep: Send + Sync + std::fmt::Debug {
    /// The names of all that is kept, ascending.
    ///
    /// # Errors
    /// That the keeper does not answer.
    fn names(&self) -> io::Result<Vec<String>>;

    /// A duplicate of a kept descriptor.
    ///
    /// # Errors
    /// That the keeper does not answer; that it has no such name is no error.
    fn get(&self, name: &str) -> io::Result<Option<OwnedFd>>;

    /// Keeps a duplicate of `descriptor`; one of the same name is given up. When this returns the keeper has it.
    ///
    /// # Errors
    /// That the keeper does not answer, or has no room.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Gives up what is kept under `name`, if anything is.
    ///
    /// # Errors
    /// That the keeper does not answer.
    fn forget(&self, name: &str) -> io::Result<()>;

    /// Whether what is kept outlives whatever may end this process and all that belong to it *at once*. Where it does not,
    /// nothing may be shown that needs somebody to guard it. May block for some seconds.
    ///
    /// # Errors
    /// What would end everything, in words.
    fn outlives_all(&self) -> Result<(), String> {
        Err("what is kept dies with this process".into())
    }
}

/// Keeps descriptors in this process: they live as long as it. For tests, and for whoever runs without a keeper.
#[derive(Debug, Default)]
pub struct KeepHere(Mutex<BTreeMap<String, OwnedFd>>);

impl Keep for KeepHere {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }

    fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(OwnedFd::try_clone).transpose()
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let copy = descriptor.try_clone_to_owned()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), copy);
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }
}
