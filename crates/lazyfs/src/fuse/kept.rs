//! Devices of mounts, kept for the process that comes after this one.
//!
//! A mount lives as long as somebody holds its device. Another process that has the descriptor answers the
//! same mount: the kernel does not begin anew, and sends again what was not answered when it is told to. So
//! each device is [kept](crate::keeper) before its mount can be seen, under a name that says what it shows:
//! `fuse-<minor of its device number>-<TOC digest>-<layer digest>-<t or u>`. It is given up when the kernel says
//! that nothing needs the file system any more.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use content::Digest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::keeper::Keep;
use crate::keeper::names::FUSE;
use crate::tree::OpaqueXattr;

/// What a device shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label {
    /// Minor part of the device number of its file system.
    pub(super) minor: u32,
    /// The layer.
    pub(super) toc: Digest,
    /// The digest under which it is shown.
    pub(super) layer: Digest,
    /// How opaque directories are marked.
    pub(super) opaque: OpaqueXattr,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opaque = match self.opaque {
            OpaqueXattr::Trusted => 't',
            OpaqueXattr::User => 'u',
        };
        write!(f, "{FUSE}{}-{}-{}-{opaque}", self.minor, self.toc.hex(), self.layer.hex())
    }
}

impl Label {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(FUSE)?.split('-');
        let minor = parts.next()?.parse().ok()?;
        let mut digest = || format!("sha256:{}", parts.next()?).parse().ok();
        let (toc, layer) = (digest()?, digest()?);
        let opaque = match parts.next()? {
            "t" => OpaqueXattr::Trusted,
            "u" => OpaqueXattr::User,
            _ => return None,
        };
        parts.next().is_none().then_some(Self { minor, toc, layer, opaque })
    }
}

/// The devices that somebody keeps for us.
pub(super) struct Kept {
    keep: Arc<dyn Keep>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the process before left, and nobody took over yet.
    left: Vec<(Label, OwnedFd)>,
    /// Which of our sessions a name stands for. Numbers of devices are used again, at once.
    owners: HashMap<String, u64>,
    last: u64,
}

/// Says whose a name is.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    name: String,
    number: u64,
}

impl Kept {
    /// Looks for what the process before left. What nobody needs any more is given up.
    pub(super) fn look(keep: Arc<dyn Keep>) -> io::Result<Self> {
        let mut left = Vec::new();
        for name in keep.names()? {
            let Some(label) = Label::parse(&name) else { continue };
            let Some(device) = keep.get(&name)? else { continue };
            if is_dead(device.as_fd()) {
                keep.forget(&name)?;
            } else {
                left.push((label, device));
            }
        }
        Ok(Self { keep, state: Mutex::new(State { left, ..State::default() }) })
    }

    fn state<T>(&self, use_state: impl FnOnce(&mut State) -> T) -> T {
        use_state(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a device.
    pub(super) fn keep(&self, label: &Label, device: BorrowedFd<'_>) -> io::Result<Owner> {
        let name = label.to_string();
        // Under the lock, so that no session which ended can give up what is kept now.
        self.state(|state| {
            self.keep.keep(&name, device)?;
            Ok(state.own(name))
        })
    }

    /// Gives up what a session kept.
    pub(super) fn forget(&self, owner: &Owner) {
        let forgotten = self.state(|state| {
            if state.owners.get(&owner.name) != Some(&owner.number) {
                return Ok(());
            }
            state.owners.remove(&owner.name);
            self.keep.forget(&owner.name)
        });
        if let Err(error) = forgotten {
            tracing::warn!(name = owner.name, %error, "a device that nobody needs any more is still kept");
        }
    }

    /// Takes a device that the process before left, and that is as `wanted`.
    pub(super) fn take(&self, wanted: impl Fn(&Label) -> bool) -> Option<(Label, OwnedFd, Owner)> {
        self.state(|state| {
            let at = state.left.iter().position(|(label, _)| wanted(label))?;
            let (label, device) = state.left.swap_remove(at);
            let owner = state.own(label.to_string());
            Some((label, device, owner))
        })
    }

    /// What the process before left, and nobody took over yet.
    pub(super) fn left(&self) -> Vec<Label> {
        self.state(|state| state.left.iter().map(|(label, _)| *label).collect())
    }
}

impl State {
    fn own(&mut self, name: String) -> Owner {
        self.last += 1;
        self.owners.insert(name.clone(), self.last);
        Owner { name, number: self.last }
    }
}

/// Whether the file system of a device is gone.
fn is_dead(device: BorrowedFd<'_>) -> bool {
    let mut events = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    let asked = poll(&mut events, Some(&Timespec::default()));
    asked.is_ok() && events.iter().any(|event| event.revents().contains(PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::KeepHere;

    fn label(minor: u32) -> Label {
        Label { minor, toc: Digest::of(b"t"), layer: Digest::of(b"l"), opaque: OpaqueXattr::User }
    }

    #[test]
    fn a_name_says_what_a_device_shows() {
        let label = label(12345);
        assert_eq!(Label::parse(&label.to_string()), Some(label));
        assert!(label.to_string().len() <= 200);
        for wrong in ["", "group", "fuse-1", "fuse-x-y-z-t", &format!("{label}-t"), &format!("data-{label}")]
        {
            assert_eq!(Label::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_session_that_ended_does_not_give_up_what_another_keeps_under_its_name() {
        let keep = Arc::new(KeepHere::default());
        let kept = Kept::look(Arc::clone(&keep) as Arc<dyn Keep>).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let first = kept.keep(&label(1), null.as_fd()).unwrap();
        let second = kept.keep(&label(1), null.as_fd()).unwrap();
        kept.forget(&first);
        assert_eq!(keep.names().unwrap().len(), 1);
        kept.forget(&second);
        assert!(keep.names().unwrap().is_empty());
    }
}
