//! Takes requests from the kernel and answers them.

use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use content::Urgency;
use estargz::Kind;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::MountOptions;
use super::abi::{
    self, Attr, MAJOR, MINOR, OLDEST_MINOR, Payload, Validity, init, notification, notify, out_header,
};
use super::request::{Malformed, Operation, Request};
use super::state::{self, State};
use crate::error::LayerError;
use crate::layer::Layer;
use crate::tree::{OpaqueXattr, Tree};

/// Room for one request. The kernel wants 8 KiB at least, and sends nothing longer: no write is allowed.
const REQUEST: usize = 16 * 1024;
/// Longest name of a file, as on disk file systems. The kernel lets 1024 bytes through to FUSE.
const LONGEST_NAME: usize = 255;
/// Reads that the kernel may have under way on its own account (readahead).
const MAX_BACKGROUND: u16 = 64;
/// Reply buffers that are kept for reuse by all mounts together.
const SPARE_BUFFERS: usize = 4;

/// What is asked of the kernel for every layer, if it offers it.
const WANTED: u64 = init::ASYNC_READ
    | init::EXPORT_SUPPORT
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::NO_OPEN_SUPPORT
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::INIT_EXT
    | init::ALLOW_IDMAP;

/// One mount.
pub(super) struct Session {
    device: OwnedFd,
    layer: Arc<Layer>,
    opaque: OpaqueXattr,
    /// What is asked of the kernel, if it offers it.
    wanted: u64,
    state: State,
    runtime: Handle,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    /// Reads that wait for absent bytes, by the name of their request.
    waiting: Mutex<HashMap<u64, CancellationToken>>,
    /// `Some(true)` when the kernel and we agreed on a protocol, `Some(false)` when that is impossible.
    started: watch::Sender<Option<bool>>,
    /// Whether the kernel can send again what was not answered.
    resends: AtomicBool,
    /// Another process goes on: what is not answered yet is its business.
    left: AtomicBool,
}

/// How the service of a mount ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// Nothing needs the file system any more.
    Gone,
    /// Somebody may need it still.
    Left,
}

/// A request that must be answered. If it is dropped unanswered, the answer is an I/O error: whatever
/// happens to a task, no process hangs.
struct Reply {
    session: Arc<Session>,
    unique: u64,
    answered: bool,
}

impl Reply {
    fn send(mut self, errno: i32, payload: &[u8]) {
        self.answered = true;
        self.session.write(self.unique, errno, payload);
    }

    fn data(self, payload: &[u8]) {
        self.send(0, payload);
    }

    fn error(self, errno: Errno) {
        self.send(errno.raw_os_error(), &[]);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.session.write(self.unique, Errno::IO.raw_os_error(), &[]);
        }
    }
}

impl Session {
    /// A session with a kernel that will introduce itself.
    pub(super) fn new(
        device: OwnedFd,
        layer: Arc<Layer>,
        options: &MountOptions,
    ) -> Result<Arc<Self>, LayerError> {
        Self::with(device, layer, options, None)
    }

    /// A session that another process began. Whatever that left unanswered is asked again; on a kernel that
    /// cannot, it is lost, and the second value says so.
    pub(super) fn go_on(
        device: OwnedFd,
        layer: Arc<Layer>,
        options: &MountOptions,
    ) -> Result<(Arc<Self>, Result<(), Errno>), LayerError> {
        let session = Self::with(device, layer, options, Some(true))?;
        let asked = rustix::io::write(&session.device, &notification(notify::RESEND)).map(|_| ());
        session.resends.store(asked.is_ok(), Ordering::Release);
        Ok((session, asked))
    }

    fn with(
        device: OwnedFd,
        layer: Arc<Layer>,
        options: &MountOptions,
        started: Option<bool>,
    ) -> Result<Arc<Self>, LayerError> {
        let toc = layer.core().tree_for_now()?;
        let tree = Tree::new(&toc, options.opaque_xattr);
        // Only where there are some: the kernel would ask for those of every file.
        let wanted = if tree.has_acls() { WANTED | init::POSIX_ACL } else { WANTED };
        Ok(Arc::new(Self {
            device,
            opaque: options.opaque_xattr,
            wanted,
            state: State::new(options.layer_digest.unwrap_or(layer.layer_digest())),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            places: Arc::new(Semaphore::new(options.waiting_reads.max(1))),
            waiting: Mutex::default(),
            started: watch::Sender::new(started),
            resends: AtomicBool::new(false),
            left: AtomicBool::new(false),
            layer,
        }))
    }

    pub(super) fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// Waits for the kernel's first request, and says whether it could be agreed with.
    pub(super) async fn started(&self) -> bool {
        let mut started = self.started.subscribe();
        started.wait_for(Option::is_some).await.is_ok_and(|started| *started == Some(true))
    }

    /// Waits for the last task. No more are started: the threads have ended.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Answers nothing from now on but what is on its way already, so that another process finds every other
    /// request. On a kernel that cannot ask again, everything goes on being answered as long as this process
    /// lives.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire) && self.resends.load(Ordering::Acquire)
    }

    /// Takes requests until the file system is gone, or left to another process.
    pub(super) fn serve(self: &Arc<Self>) -> Ended {
        let _context = self.runtime.enter();
        let mut buffer = vec![0; REQUEST];
        let ended = loop {
            let len = match rustix::io::read(&self.device, buffer.as_mut_slice()) {
                Ok(len) => len,
                // A request that was withdrawn while it was being read, or a signal.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => break Ended::Gone,
                Err(error) => {
                    tracing::warn!(layer = %self.layer.layer_digest(), %error, "reading requests of a mount failed");
                    break Ended::Left;
                }
            };
            if self.has_left() {
                // Taken, but not answered: the next process is asked it again.
                return Ended::Left;
            }
            self.handle(buffer.get(..len).unwrap_or_default());
        };
        // Nobody will read what is still being fetched.
        for token in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).values() {
            token.cancel();
        }
        ended
    }

    /// Answers one request, or starts what will.
    fn handle(self: &Arc<Self>, bytes: &[u8]) {
        let request = match Request::parse(bytes) {
            Ok(request) => request,
            Err(Malformed { unique }) => {
                if let Some(unique) = unique {
                    self.reply(unique).error(Errno::IO);
                }
                return;
            }
        };
        let reply = || self.reply(request.unique);
        match request.operation {
            Operation::Init { major, minor, max_readahead, flags } => {
                self.resends.store(flags & init::HAS_RESEND != 0, Ordering::Release);
                self.init(reply(), major, minor, max_readahead, flags);
            }
            // Nodes are numbers of a table that lives as long as the mount.
            Operation::Forget | Operation::Destroy => {}
            Operation::Interrupt { unique } => self.interrupt(request.unique, unique),
            Operation::Modify => reply().error(Errno::ROFS),
            Operation::Release => reply().data(&[]),
            Operation::Unsupported => reply().error(Errno::NOSYS),
            asked => match self.layer.core().tree_for_now() {
                Ok(toc) => self.answer(reply(), Tree::new(&toc, self.opaque), request.node, &asked),
                Err(error) => {
                    tracing::error!(layer = %self.layer.layer_digest(), %error, "a mount cannot be answered");
                    reply().error(Errno::IO);
                }
            },
        }
    }

    /// Answers what is asked of the tree, or starts what will.
    fn answer(self: &Arc<Self>, reply: Reply, tree: Tree<'_>, node: u64, asked: &Operation<'_>) {
        match *asked {
            Operation::Lookup { name } => self.lookup(reply, tree, node, name),
            Operation::GetAttr => self.getattr(reply, tree, node),
            Operation::ReadLink => match tree.plain(node).and_then(|inode| inode.link_target()) {
                Some(target) => reply.data(target),
                None => reply.error(Errno::INVAL),
            },
            Operation::Read { offset, size } => self.read(reply, tree, node, offset, size),
            Operation::ReadDir { offset, size, plus } => {
                let began = Instant::now();
                match self.listing(tree, node, offset, size, plus) {
                    Some(listing) => reply.data(&listing),
                    None => reply.error(Errno::NOTDIR),
                }
                self.layer.numbers().readdir.observe(began.elapsed());
            }
            Operation::GetXattr { name, size } => match tree.xattrs(node).find(|(have, _)| *have == name) {
                Some((_, value)) => sized(reply, value, size),
                None => reply.error(Errno::NODATA),
            },
            Operation::ListXattr { size } => {
                let names = tree.xattrs(node).flat_map(|(name, _)| name.iter().copied().chain([0]));
                sized(reply, &names.collect::<Vec<u8>>(), size);
            }
            Operation::StatFs => {
                let mut payload = Payload::default();
                payload.statfs(tree.file_bytes(), u64::from(tree.inode_count()));
                reply.data(&payload.finish());
            }
            // Answered before.
            _ => reply.error(Errno::NOSYS),
        }
    }

    fn reply(self: &Arc<Self>, unique: u64) -> Reply {
        Reply { session: Arc::clone(self), unique, answered: false }
    }

    fn init(&self, reply: Reply, major: u32, minor: u32, max_readahead: u32, flags: u64) {
        if major > MAJOR {
            // The kernel will come again with our version.
            let mut payload = Payload::default();
            payload.init_out(MINOR, 0, 0, 0);
            return reply.data(&payload.finish());
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            tracing::error!(
                major,
                minor,
                "the kernel's FUSE protocol is too old: Linux 5.4 or newer is needed"
            );
            self.started.send_replace(Some(false));
            return reply.error(Errno::PROTO);
        }
        let mut payload = Payload::default();
        payload.init_out(minor.min(MINOR), max_readahead, flags & self.wanted, MAX_BACKGROUND);
        reply.data(&payload.finish());
        self.started.send_replace(Some(true));
    }

    /// Attributes of a node, and how long they hold.
    fn attr(&self, tree: Tree<'_>, node: u64) -> Option<(Attr, Validity)> {
        match node {
            state::DIRECTORY => Some((State::directory_attr(), Validity::FOREVER)),
            state::FILE => Some((self.state.file_attr(&self.layer.status()), Validity::NOT)),
            _ => Some((tree.attr(node)?, Validity::FOREVER)),
        }
    }

    fn find(&self, tree: Tree<'_>, parent: u64, name: &[u8]) -> Option<u64> {
        match parent {
            // Of any node, not of directories only: this is how a file handle is opened again.
            _ if name == b"." => self.attr(tree, parent).map(|_| parent),
            state::DIRECTORY if name == self.state.name() => Some(state::FILE),
            state::DIRECTORY if name == b".." => Some(abi::ROOT),
            _ => tree.lookup(parent, name).or_else(|| {
                (parent == abi::ROOT && name == state::DIRECTORY_NAME).then_some(state::DIRECTORY)
            }),
        }
    }

    fn lookup(&self, reply: Reply, tree: Tree<'_>, parent: u64, name: &[u8]) {
        if name.len() > LONGEST_NAME {
            return reply.error(Errno::NAMETOOLONG);
        }
        let mut payload = Payload::with_capacity(128);
        match self.find(tree, parent, name).and_then(|node| self.attr(tree, node)) {
            Some((attr, validity)) => payload.entry(&attr, validity, validity),
            None => payload.no_entry(),
        };
        reply.data(&payload.finish());
    }

    fn getattr(&self, reply: Reply, tree: Tree<'_>, node: u64) {
        let Some((attr, validity)) = self.attr(tree, node) else {
            return reply.error(Errno::NOENT);
        };
        let mut payload = Payload::with_capacity(104);
        payload.attr_out(&attr, validity);
        reply.data(&payload.finish());
    }

    /// As many entries of a directory as fit into `size` bytes.
    fn listing(&self, tree: Tree<'_>, node: u64, offset: u64, size: u32, plus: bool) -> Option<Vec<u8>> {
        let room = size as usize;
        let mut payload = Payload::with_capacity(room.min(64 * 1024));
        let mut add = |node: u64, next: u64, name: &[u8], known: bool| {
            if payload.len() + abi::dirent_len(name, plus) > room {
                return false;
            }
            let Some((attr, validity)) = self.attr(tree, node) else { return true };
            if plus && known {
                payload.entry(&attr, validity, validity);
            } else if plus {
                payload.bytes(&[0; 128]);
            }
            payload.dirent(node, next, attr.mode, name);
            true
        };
        // Places 1 and 2 are those after `.` and `..`; what follows is numbered by the tree from there.
        let parent = if node == state::DIRECTORY { abi::ROOT } else { tree.parent(node) };
        let dots = [(node, 1, &b"."[..]), (parent, 2, b"..")];
        let mut fits = true;
        if node == state::DIRECTORY {
            let own = (state::FILE, 3, self.state.name());
            for (node, next, name) in dots.into_iter().chain([own]) {
                fits = fits && (next <= offset || add(node, next, name, next > 2));
            }
            return Some(payload.finish());
        }
        let entries = tree.entries(node, offset.saturating_sub(2))?;
        for (node, next, name) in dots {
            fits = fits && (next <= offset || add(node, next, name, false));
        }
        if fits {
            for entry in entries {
                if !add(entry.node, entry.next + 2, entry.name, true) {
                    break;
                }
            }
        }
        Some(payload.finish())
    }

    fn read(self: &Arc<Self>, reply: Reply, tree: Tree<'_>, node: u64, offset: u64, size: u32) {
        if node == state::FILE {
            return reply.data(&self.state.read(offset, size));
        }
        let Some(file) = tree.plain(node).filter(|inode| inode.kind() == Kind::Regular) else {
            return reply.error(Errno::INVAL);
        };
        let Some(place) = self.layer.core().place(&file, offset, size) else {
            return reply.data(&[]);
        };
        let began = Instant::now();
        self.layer.core().touch(&place, Urgency::Blocking);
        let mut buffer = Buffer::take(place.len());
        if self.layer.core().read_present(&place, &mut buffer.0) {
            reply.data(&buffer.0);
            let numbers = self.layer.numbers();
            numbers.hit(began, buffer.0.len() as u64);
            return;
        }
        drop(buffer);
        let Some(permit) = self.permit() else { return };
        let interrupted = CancellationToken::new();
        let unique = reply.unique;
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(unique, interrupted.clone());
        let session = Arc::clone(self);
        self.tasks.spawn_on(
            async move {
                let outcome = tokio::select! {
                    outcome = session.layer.core().read_place(place, Urgency::Blocking) => Some(outcome),
                    () = interrupted.cancelled() => None,
                };
                session.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&unique);
                match outcome {
                    Some(Ok(bytes)) => {
                        reply.data(&bytes);
                        session.layer.numbers().served(began, bytes.len() as u64);
                    }
                    // The layer has said why.
                    Some(Err(_)) => reply.error(Errno::IO),
                    None => reply.error(Errno::INTR),
                }
                drop(permit);
            },
            &self.runtime,
        );
    }

    /// A place among the waiting reads. When all are taken this thread waits for one: the kernel's queue
    /// holds the rest.
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        Arc::clone(&places)
            .try_acquire_owned()
            .ok()
            .or_else(|| self.runtime.block_on(places.acquire_owned()).ok())
    }

    fn interrupt(self: &Arc<Self>, interrupt: u64, unique: u64) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&unique).cloned();
        match waiting {
            // The reply to the read is the answer.
            Some(read) => read.cancel(),
            // It overtook its request on another thread, or that is answered already: in the first case the
            // kernel sends it again, in the second it does not listen.
            None => self.reply(interrupt).error(Errno::AGAIN),
        }
    }

    fn write(&self, unique: u64, errno: i32, payload: &[u8]) {
        // What fails because this process ends would not fail in the next one.
        if errno != 0 && errno != Errno::INTR.raw_os_error() && self.has_left() {
            return;
        }
        let header = out_header(unique, errno, payload.len());
        match rustix::io::writev(&self.device, &[IoSlice::new(&header), IoSlice::new(payload)]) {
            // NOENT: the request was withdrawn. NODEV: the file system is gone.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => {
                tracing::debug!(layer = %self.layer.layer_digest(), %error, "answering a request of a mount failed");
                // A reply that the kernel refuses must not leave the process waiting.
                if errno == 0 {
                    let header = out_header(unique, Errno::IO.raw_os_error(), 0);
                    let _ = rustix::io::write(&self.device, &header);
                }
            }
        }
    }
}

/// Answers an extended attribute, or its length, or that there is not enough room.
fn sized(reply: Reply, value: &[u8], size: u32) {
    if size == 0 {
        let mut payload = Payload::default();
        payload.u32(u32::try_from(value.len()).unwrap_or(u32::MAX)).u32(0);
        reply.data(&payload.finish());
    } else if value.len() > size as usize {
        reply.error(Errno::RANGE);
    } else {
        reply.data(value);
    }
}

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer for a reply. Large ones are used again: fresh memory costs a page fault per page.
struct Buffer(Vec<u8>);

impl Buffer {
    fn take(len: usize) -> Self {
        let mut buffer = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.resize(len, 0);
        Self(buffer)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BUFFERS {
            spare.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests;
