//! One content: which pieces are here, writing them, reading them back checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use content::{ByteRange, ContentId, Digest, Hasher, Locator, RangeSet};

use crate::StoreError;
use crate::budget::Inner;
use crate::folder::{self, Files, Head};
use crate::record::{Proof, RECORD};

/// Bytes per piece, the unit of having, asking and checking. `swarm-policy`: 64 KiB beats every larger
/// size by 4 to 40 % of a link, and less costs more messages than it saves.
pub const PIECE: u32 = 65_536;

/// Two writers of one piece take turns; writers of different pieces seldom meet.
const WRITE_STRIPES: usize = 16;

/// A content of the store. While anybody holds one, it is not evicted.
#[derive(Debug)]
pub struct Content {
    id: ContentId,
    len: u64,
    folder: PathBuf,
    store: Weak<Inner>,
    state: Mutex<State>,
    files: Mutex<Option<Arc<Files>>>,
    stripes: [Mutex<()>; WRITE_STRIPES],
    /// Milliseconds since 1970 of the last use: the order of eviction.
    used: AtomicU64,
}

#[derive(Debug)]
struct State {
    head: Head,
    have: RangeSet,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves its data whole at each step, so a poisoned lock is usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of pieces in `len` bytes; `None` if they cannot be numbered.
pub(crate) fn pieces_in(len: u64) -> Option<u32> {
    u32::try_from(len.div_ceil(u64::from(PIECE))).ok()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Content {
    /// Makes a content that is not there yet.
    pub(crate) fn create(folder: PathBuf, head: Head, store: Weak<Inner>) -> Result<Self, StoreError> {
        let pieces = pieces_in(head.len).ok_or(StoreError::TooLong { id: head.id, len: head.len })?;
        folder::create(&folder, &head, u64::from(pieces) * RECORD as u64)?;
        Ok(Self::with(folder, head, RangeSet::new(), now_ms(), store))
    }

    /// Takes up a content that an earlier process left; `None` if the folder is not one.
    pub(crate) fn load(folder: PathBuf, store: Weak<Inner>) -> Option<Self> {
        let head = folder::read_head(&folder, PIECE)?;
        let pieces = pieces_in(head.len)?;
        let map = folder.join("map");
        let records = fs::read(&map).ok()?;
        let data_len = fs::metadata(folder.join("data")).ok()?.len();
        if data_len != head.len || records.len() as u64 != u64::from(pieces) * RECORD as u64 {
            return None;
        }
        let have = records
            .chunks_exact(RECORD)
            .zip(0u64..)
            .filter(|(record, _)| Proof::decode(record).is_some())
            .map(|(_, piece)| ByteRange::at(piece, 1))
            .collect();
        let used = fs::metadata(&map).and_then(|meta| meta.modified()).ok();
        let used = used.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let used = u64::try_from(used.as_millis()).unwrap_or(0);
        Some(Self::with(folder, head, have, used, store))
    }

    fn with(folder: PathBuf, head: Head, have: RangeSet, used: u64, store: Weak<Inner>) -> Self {
        Self {
            id: head.id,
            len: head.len,
            folder,
            store,
            state: Mutex::new(State { head, have }),
            files: Mutex::new(None),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            used: AtomicU64::new(used),
        }
    }

    /// The content's name.
    pub const fn id(&self) -> &ContentId {
        &self.id
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "the length of a content, not of a collection")]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Number of pieces.
    pub fn pieces(&self) -> u32 {
        pieces_in(self.len).unwrap_or(u32::MAX)
    }

    /// The bytes of `piece`: [`PIECE`] of them, fewer for the last, none beyond the end.
    pub fn piece_range(&self, piece: u32) -> ByteRange {
        let start = u64::from(piece) * u64::from(PIECE);
        ByteRange::at(start, u64::from(PIECE)).intersect(&ByteRange::new(0, self.len))
    }

    /// The pieces that `range` touches, half-open.
    pub fn pieces_of(&self, range: ByteRange) -> ByteRange {
        let size = u64::from(PIECE);
        if range.is_empty() {
            return ByteRange::new(0, 0);
        }
        ByteRange::new(range.start / size, range.end.div_ceil(size))
    }

    /// Which pieces are here, as ranges of piece numbers.
    pub fn have(&self) -> RangeSet {
        lock(&self.state).have.clone()
    }

    /// How many bytes are here.
    pub fn have_bytes(&self) -> u64 {
        let have = self.have();
        let last = u64::from(self.pieces()).saturating_sub(1);
        let short = u64::from(PIECE) - self.piece_range(u32::try_from(last).unwrap_or(u32::MAX)).len();
        let cut = if have.contains(ByteRange::at(last, 1)) && self.len > 0 { short } else { 0 };
        (have.len() * u64::from(PIECE)).saturating_sub(cut)
    }

    /// Whether `piece` is here.
    pub fn has(&self, piece: u32) -> bool {
        lock(&self.state).have.contains(ByteRange::at(u64::from(piece), 1))
    }

    /// Whether all pieces of `pieces` (a range of piece numbers) are here.
    pub fn has_all(&self, pieces: ByteRange) -> bool {
        lock(&self.state).have.contains(pieces)
    }

    /// Whether every piece is here.
    pub fn is_complete(&self) -> bool {
        self.has_all(ByteRange::new(0, u64::from(self.pieces())))
    }

    /// The header.
    pub fn head(&self) -> Head {
        lock(&self.state).head.clone()
    }

    /// Notes where the content came from and which digest the whole must have, as far as known now.
    ///
    /// # Errors
    /// The header could not be written.
    pub fn describe(&self, locator: Option<Locator>, expected: Option<Digest>) -> Result<(), StoreError> {
        self.change_head(|head| {
            head.locator = locator.or(head.locator.take());
            head.expected = expected.or(head.expected);
        })
    }

    /// Notes that the whole was hashed and has the expected digest.
    ///
    /// # Errors
    /// The header could not be written.
    pub fn mark_whole_verified(&self) -> Result<(), StoreError> {
        self.change_head(|head| head.verified = true)
    }

    fn change_head(&self, change: impl FnOnce(&mut Head)) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        let mut head = state.head.clone();
        change(&mut head);
        if head != state.head {
            folder::write_head(&self.folder, &head)?;
            state.head = head;
        }
        Ok(())
    }

    /// Keeps a piece. `true` if it is new, `false` if it was here already.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if `bytes` are not the piece that `proof` names; a full disk, after
    /// everything that may be evicted was evicted; whatever else the system says. What was here
    /// before is still here.
    pub fn put(&self, piece: u32, bytes: &[u8], proof: &Proof) -> Result<bool, StoreError> {
        let range = self.piece_range(piece);
        let digest = *blake3::hash(bytes).as_bytes();
        if range.is_empty() || bytes.len() as u64 != range.len() || digest != proof.digest {
            return Err(StoreError::Mismatch { id: self.id, piece });
        }
        let stripe = self.stripes.get(piece as usize % WRITE_STRIPES);
        let _turn = stripe.map(lock);
        if self.has(piece) {
            return Ok(false);
        }
        let store = self.store.upgrade();
        if let Some(store) = &store {
            store.make_room(range.len());
        }
        if let Err(error) = self.write(piece, range.start, bytes, proof) {
            // The disk is smaller than the budget: give up what nobody uses, then try once more.
            let room = error.is_full() && store.as_ref().is_some_and(|store| store.evict_all());
            if !room {
                return Err(error);
            }
            self.write(piece, range.start, bytes, proof)?;
        }
        lock(&self.state).have.insert(ByteRange::at(u64::from(piece), 1));
        if let Some(store) = store {
            store.added(range.len());
        }
        self.touch();
        Ok(true)
    }

    fn write(&self, piece: u32, at: u64, bytes: &[u8], proof: &Proof) -> Result<(), StoreError> {
        let files = self.files()?;
        files.data.write_all_at(bytes, at).map_err(self.io("write", "data"))?;
        self.write_record(&files.map, piece, &proof.encode())
    }

    fn write_record(&self, map: &File, piece: u32, record: &[u8]) -> Result<(), StoreError> {
        map.write_all_at(record, u64::from(piece) * RECORD as u64).map_err(self.io("write", "map"))
    }

    /// Reads a whole piece and its proof.
    ///
    /// # Errors
    /// [`StoreError::Absent`] if it is not here; also if it was, and its bytes no longer match: then it
    /// is dropped.
    pub fn read_piece(&self, piece: u32) -> Result<(Bytes, Proof), StoreError> {
        let mut buffer = BytesMut::new();
        let proof = self.read_into(piece, &mut buffer)?;
        self.touch();
        Ok((buffer.freeze(), proof))
    }

    /// Appends a checked piece to `buffer`.
    fn read_into(&self, piece: u32, buffer: &mut BytesMut) -> Result<Proof, StoreError> {
        let absent = || StoreError::Absent { id: self.id, piece };
        if !self.has(piece) {
            return Err(absent());
        }
        let files = self.files()?;
        let range = self.piece_range(piece);
        let start = buffer.len();
        buffer.resize(start + usize::try_from(range.len()).unwrap_or(0), 0);
        let bytes = buffer.get_mut(start..).unwrap_or_default();
        let mut record = [0; RECORD];
        let read = files
            .data
            .read_exact_at(bytes, range.start)
            .and_then(|()| files.map.read_exact_at(&mut record, u64::from(piece) * RECORD as u64));
        let proof = Proof::decode(&record).filter(|proof| proof.digest == *blake3::hash(bytes).as_bytes());
        match (read, proof) {
            (Ok(()), Some(proof)) => Ok(proof),
            (read, _) => {
                let why =
                    read.err().map_or_else(|| "bytes do not match".to_owned(), |error| error.to_string());
                tracing::warn!(content = %self.id, piece, why, "a rotten piece is dropped");
                self.drop_piece(piece)?;
                Err(absent())
            }
        }
    }

    /// Reads `range`, every piece of it checked.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`]; [`StoreError::Absent`] for the first piece that is not here or rotten.
    pub fn read(&self, range: ByteRange) -> Result<Bytes, StoreError> {
        if range.end > self.len {
            return Err(StoreError::OutOfRange { id: self.id, end: range.end, len: self.len });
        }
        let pieces = self.pieces_of(range);
        let mut buffer = BytesMut::with_capacity(usize::try_from(pieces.len()).unwrap_or(0) * PIECE as usize);
        for piece in pieces.start..pieces.end {
            self.read_into(u32::try_from(piece).unwrap_or(u32::MAX), &mut buffer)?;
        }
        self.touch();
        let before = usize::try_from(range.start - pieces.start * u64::from(PIECE)).unwrap_or(0);
        let mut bytes = buffer.freeze();
        bytes = bytes.slice(before.min(bytes.len())..);
        bytes.truncate(usize::try_from(range.len()).unwrap_or(0));
        Ok(bytes)
    }

    /// Who vouches for a piece that is here, by its record alone.
    ///
    /// # Errors
    /// [`StoreError::Absent`], or what the system says.
    pub fn proof(&self, piece: u32) -> Result<Proof, StoreError> {
        let absent = StoreError::Absent { id: self.id, piece };
        if !self.has(piece) {
            return Err(absent);
        }
        let mut record = [0; RECORD];
        let at = u64::from(piece) * RECORD as u64;
        self.files()?.map.read_exact_at(&mut record, at).map_err(self.io("read", "map"))?;
        Proof::decode(&record).ok_or(absent)
    }

    /// The public keys of everybody who vouches for a piece that is here. Reads the whole map.
    ///
    /// # Errors
    /// What the system says.
    pub fn signers(&self) -> Result<BTreeSet<[u8; 32]>, StoreError> {
        let map = self.folder.join("map");
        let records = fs::read(&map).map_err(StoreError::io("read", &map))?;
        let have = self.have();
        Ok(records
            .chunks_exact(RECORD)
            .zip(0u64..)
            .filter(|(_, piece)| have.contains(ByteRange::at(*piece, 1)))
            .filter_map(|(record, _)| Proof::decode(record).map(|proof| proof.signer))
            .collect())
    }

    /// Forgets one piece.
    ///
    /// # Errors
    /// The record could not be cleared; in memory the piece is gone all the same.
    pub fn drop_piece(&self, piece: u32) -> Result<(), StoreError> {
        let one = ByteRange::at(u64::from(piece), 1);
        let stripe = self.stripes.get(piece as usize % WRITE_STRIPES);
        let _turn = stripe.map(lock);
        {
            let mut state = lock(&self.state);
            if !state.have.contains(one) {
                return Ok(());
            }
            state.have.remove(one);
        }
        if let Some(store) = self.store.upgrade() {
            store.removed(self.piece_range(piece).len());
        }
        self.write_record(&self.files()?.map, piece, &[0; RECORD])
    }

    /// Hashes the whole content, every piece checked on the way.
    ///
    /// # Errors
    /// As [`Content::read`].
    pub fn hash_whole(&self) -> Result<Digest, StoreError> {
        let mut hasher = Hasher::new();
        let mut buffer = BytesMut::new();
        for piece in 0..self.pieces() {
            buffer.clear();
            self.read_into(piece, &mut buffer)?;
            hasher.update(&buffer);
        }
        Ok(hasher.finish())
    }

    /// When it was last used, for the order of eviction.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn touch(&self) {
        self.used.store(now_ms(), Ordering::Relaxed);
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Closes the files until they are needed again: contents that nobody uses cost no descriptors.
    pub(crate) fn close(&self) {
        *lock(&self.files) = None;
    }

    fn files(&self) -> Result<Arc<Files>, StoreError> {
        let mut files = lock(&self.files);
        if let Some(files) = &*files {
            return Ok(Arc::clone(files));
        }
        let opened = Arc::new(folder::open(&self.folder)?);
        *files = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn io(&self, doing: &'static str, name: &str) -> impl FnOnce(std::io::Error) -> StoreError {
        StoreError::io(doing, &self.folder.join(name))
    }
}
