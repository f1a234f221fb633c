//! A table in few bytes, to be kept on disk and read again without JSON.
//!
//! Two parts, because they are needed at different times: the tree ([`Toc::pack_tree`]) when somebody walks it, and
//! chunks ([`pack_chunks`]), in groups of any size, when somebody reads. Numbers are LEB128; those of a chunk are
//! differences to the chunk before, so that most take a byte or two, 8 bytes a chunk, beside its digest of 32.
//!
//! Packed bytes come from our own disk and have a checksum: whoever unpacks them has checked it. Even so nothing
//! here believes a number: what does not fit is [`Malformed`].

use content::{ByteRange, Digest};

use super::{Child, Chunk, Kind, Landmark, NO_DIGEST, Node, ROOT, Span, Toc};

/// Packed bytes are not what was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packed table of contents is malformed")]
pub struct Malformed;

/// What of a table is neither in its tree nor in its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// [`Toc::digest`].
    pub digest: Digest,
    /// [`Toc::payload_end`].
    pub payload_end: u64,
    /// [`Toc::landmark`].
    pub landmark: Landmark,
    /// [`Toc::file_bytes`].
    pub file_bytes: u64,
    /// [`Toc::chunk_count`].
    pub chunk_count: u32,
}

/// Entries for which there is room before any is read: a number that lies costs no more than that.
const MOST_AHEAD: usize = 1 << 18;

const KINDS: [Kind; 6] =
    [Kind::Directory, Kind::Regular, Kind::Symlink, Kind::CharDevice, Kind::BlockDevice, Kind::Fifo];

impl Toc {
    /// What is neither in the tree nor in the chunks.
    pub fn facts(&self) -> Facts {
        Facts {
            digest: self.digest,
            payload_end: self.payload_end,
            landmark: self.landmark,
            file_bytes: self.file_bytes,
            chunk_count: self.chunk_count(),
        }
    }

    /// The inodes with names, links and extended attributes, some 40 bytes each. Names of owners and digests of whole
    /// files, which count for nothing in a mounted layer, are left out.
    pub fn pack_tree(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(self.nodes.len() * 24 + self.children.len() * 8 + self.strings.len());
        for count in [self.nodes.len(), self.children.len(), self.xattrs.len(), self.nanos.len()] {
            put(&mut out, count as u64);
        }
        for node in &self.nodes {
            let kind = KINDS.iter().position(|kind| *kind == node.kind).unwrap_or(0);
            put(&mut out, kind as u64 | u64::from(node.mode) << 3);
            put(&mut out, u64::from(node.uid));
            put(&mut out, u64::from(node.gid));
            put(&mut out, zigzag(node.mtime));
            put(&mut out, node.size);
            put(&mut out, u64::from(node.first));
            put(&mut out, u64::from(node.count));
            put(&mut out, u64::from(node.nlink));
            put(&mut out, u64::from(node.parent));
            put(&mut out, u64::from(node.xattr_count));
            if node.xattr_count > 0 {
                put(&mut out, u64::from(node.xattr_first));
            }
        }
        let mut last = (0_u32, ROOT);
        for child in &self.children {
            // Names mostly stand in the order of the walk, and so do inodes.
            put(&mut out, zigzag(i64::from(child.name_at) - i64::from(last.0)));
            put(&mut out, zigzag(i64::from(child.inode) - i64::from(last.1)));
            put(&mut out, u64::from(child.name_len));
            last = (child.name_at.saturating_add(u32::from(child.name_len)), child.inode);
        }
        for span in self.xattrs.iter().flat_map(|(name, value)| [name, value]) {
            put(&mut out, u64::from(span.at));
            put(&mut out, u64::from(span.len));
        }
        for (inode, nanos) in &self.nanos {
            put(&mut out, u64::from(*inode));
            put(&mut out, u64::from(*nanos));
        }
        out.extend_from_slice(&self.strings);
        out
    }

    /// What [`Toc::pack_tree`] packed, as a table without chunks: its inodes know the numbers of theirs, and whoever
    /// asks for the chunks themselves finds none.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn unpack_tree(packed: &[u8], facts: &Facts) -> Result<Self, Malformed> {
        let mut input = Input(packed);
        let (nodes, children) = (input.count()?, input.count()?);
        let (xattrs, nanos) = (input.count()?, input.count()?);
        // As long as they are: what collects results grows by doubling.
        let mut all = Vec::with_capacity(nodes.min(MOST_AHEAD));
        for _ in 0..nodes {
            all.push(node(&mut input)?);
        }
        let nodes = all;
        let mut last = (0_u32, ROOT);
        let mut child = || {
            let (name_at, inode) = (input.after(last.0)?, input.after(last.1)?);
            let name_len: u8 = input.number()?;
            last = (name_at.saturating_add(u32::from(name_len)), inode);
            Ok(Child { name_at, inode, name_len })
        };
        let mut all = Vec::with_capacity(children.min(MOST_AHEAD));
        for _ in 0..children {
            all.push(child()?);
        }
        let children = all;
        let mut span = || Ok(Span { at: input.number()?, len: input.number()? });
        let xattrs = (0..xattrs).map(|_| Ok((span()?, span()?))).collect::<Result<Vec<_>, _>>()?;
        let mut nano = || Ok((input.number()?, input.number()?));
        let nanos = (0..nanos).map(|_| nano()).collect::<Result<Vec<_>, _>>()?;
        let toc = Self {
            digest: facts.digest,
            payload_end: facts.payload_end,
            landmark: facts.landmark,
            nodes,
            children,
            chunks: Vec::new(),
            xattrs,
            strings: input.0.to_vec(),
            owners: Vec::new(),
            digests: Vec::new(),
            nanos,
            file_bytes: facts.file_bytes,
        };
        if toc.is_closed(facts.chunk_count) { Ok(toc) } else { Err(Malformed) }
    }

    /// Whether everything that is pointed at is there.
    fn is_closed(&self, chunks: u32) -> bool {
        let inodes = self.inode_count();
        let is_inode = |number: u32| (ROOT..=inodes).contains(&number);
        let within = |first: u32, count: u32, len: usize| {
            first.checked_add(count).is_some_and(|end| end as usize <= len)
        };
        let in_strings = |span: &Span| within(span.at, span.len, self.strings.len());
        let node = |node: &Node| {
            let run = match node.kind {
                Kind::Directory => within(node.first, node.count, self.children.len()),
                Kind::Regular => within(node.first, node.count, chunks as usize),
                Kind::Symlink => within(node.first, node.count, self.strings.len()),
                Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => true,
            };
            run && is_inode(node.parent)
                && within(node.xattr_first, u32::from(node.xattr_count), self.xattrs.len())
        };
        let child = |child: &Child| {
            is_inode(child.inode) && in_strings(&Span { at: child.name_at, len: u32::from(child.name_len) })
        };
        self.nodes.first().is_some_and(|root| root.kind == Kind::Directory)
            && self.nodes.iter().all(node)
            && self.children.iter().all(child)
            && self.xattrs.iter().all(|(name, value)| in_strings(name) && in_strings(value))
            && self.nanos.iter().all(|(_, nanos)| *nanos < 1_000_000_000)
    }
}

fn node(input: &mut Input<'_>) -> Result<Node, Malformed> {
    let kind_and_mode: u32 = input.number()?;
    let mut node = Node {
        kind: KINDS.get(kind_and_mode as usize & 7).copied().ok_or(Malformed)?,
        mode: u16::try_from(kind_and_mode >> 3).map_err(|_| Malformed)?,
        uid: input.number()?,
        gid: input.number()?,
        mtime: unzigzag(input.raw()?),
        size: input.raw()?,
        first: input.number()?,
        count: input.number()?,
        nlink: input.number()?,
        parent: input.number()?,
        xattr_count: input.number()?,
        xattr_first: 0,
        user: 0,
        group: 0,
    };
    if node.xattr_count > 0 {
        node.xattr_first = input.number()?;
    }
    Ok(node)
}

/// What a chunk begins with, in the two lowest bits: the beginning of its file, the byte after the chunk before it,
/// or a place that is named.
const BEGINS: u64 = 0;
const GOES_ON: u64 = 1;
const ELSEWHERE: u64 = 2;

/// Packs neighbouring chunks, without their digests.
pub fn pack_chunks(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunks.len() * 10);
    let mut last = Last::default();
    for chunk in chunks {
        let begins = match chunk.file_offset {
            0 => BEGINS,
            offset if last.file_offset == Some(offset) => GOES_ON,
            _ => ELSEWHERE,
        };
        put(&mut out, u64::from(chunk.len) << 2 | begins);
        if begins == ELSEWHERE {
            put(&mut out, chunk.file_offset);
        }
        put(&mut out, zigzag(chunk.blob.start.wrapping_sub(last.blob_end).cast_signed()));
        put(&mut out, chunk.blob.len());
        put(&mut out, u64::from(chunk.inner_offset));
        put(&mut out, zigzag(i64::from(chunk.inode) - i64::from(last.inode)));
        last = Last::of(chunk);
    }
    out
}

/// Unpacks `count` chunks, which [`pack_chunks`] packed together. Their digests are [`NO_DIGEST`].
///
/// # Errors
/// [`Malformed`].
pub fn unpack_chunks(packed: &[u8], count: usize) -> Result<Vec<Chunk>, Malformed> {
    let mut input = Input(packed);
    let mut last = Last::default();
    if count > packed.len() {
        return Err(Malformed);
    }
    let mut chunk = || {
        let len_and_begins = input.raw()?;
        let file_offset = match len_and_begins & 3 {
            BEGINS => 0,
            GOES_ON => last.file_offset.ok_or(Malformed)?,
            ELSEWHERE => input.raw()?,
            _ => return Err(Malformed),
        };
        let start = last.blob_end.wrapping_add_signed(unzigzag(input.raw()?));
        let end = start.checked_add(u64::from(input.number::<u32>()?)).ok_or(Malformed)?;
        let chunk = Chunk {
            len: u32::try_from(len_and_begins >> 2).map_err(|_| Malformed)?,
            file_offset,
            blob: ByteRange::new(start, end),
            inner_offset: input.number()?,
            inode: input.after(last.inode)?,
            digest: NO_DIGEST,
        };
        last = Last::of(&chunk);
        Ok(chunk)
    };
    let chunks = (0..count).map(|_| chunk()).collect::<Result<Vec<_>, _>>()?;
    if input.0.is_empty() { Ok(chunks) } else { Err(Malformed) }
}

/// What the next chunk is told apart from.
#[derive(Default)]
struct Last {
    file_offset: Option<u64>,
    blob_end: u64,
    inode: u32,
}

impl Last {
    fn of(chunk: &Chunk) -> Self {
        let file_offset = chunk.file_offset.checked_add(u64::from(chunk.len));
        Self { file_offset, blob_end: chunk.blob.end, inode: chunk.inode }
    }
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Packed bytes that are not read yet.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn raw(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.raw()?).map_err(|_| Malformed)
    }

    /// The number that differs so much from `last`.
    fn after(&mut self, last: u32) -> Result<u32, Malformed> {
        let number = i64::from(last).checked_add(unzigzag(self.raw()?)).ok_or(Malformed)?;
        u32::try_from(number).map_err(|_| Malformed)
    }

    /// A number of things that take a byte each at least.
    fn count(&mut self) -> Result<usize, Malformed> {
        let count: usize = self.number()?;
        if count <= self.0.len() { Ok(count) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests;
