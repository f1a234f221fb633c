//! What stands behind an inode, taken apart: chunk indexes, extended attributes, entries of a directory.

use super::Fault;
use super::inode::{Bytes, Found, slice};
use crate::directory::{self, Entry};
use crate::disk::{BLOCK, BLOCK_LEN, Chunks, DATA_DEVICE, INDEX, Layout, RawInode};
use crate::xattr::{ENTRY, HEADER, UNIT, Xattr};

/// Where a file's content begins in the data file, and which bytes of the image say so.
pub(super) fn chunks(
    image: &[u8],
    raw: &RawInode,
    behind: u64,
    data_blocks: u32,
) -> Result<(u64, Bytes), Fault> {
    if raw.size == 0 {
        let is_empty = raw.layout == Layout::Plain && raw.union == 0;
        return if is_empty { Ok((0, (0, 0))) } else { Err(Fault::ChunkFormat) };
    }
    let chunks = Chunks::of(raw.size);
    if raw.layout != Layout::Chunks || raw.union != chunks.format() {
        return Err(Fault::ChunkFormat);
    }
    let data_blocks = u64::from(data_blocks);
    let blocks = raw.size.div_ceil(BLOCK);
    if blocks > data_blocks {
        return Err(Fault::BeyondData);
    }
    let place = (behind.next_multiple_of(INDEX), chunks.count * INDEX);
    let (indexes, _) = slice(image, place.0, place.1)?.as_chunks::<8>();
    let mut first = None;
    for (index, n) in indexes.iter().zip(0..) {
        let (device, block) = Chunks::decode_index(*index).ok_or(Fault::ChunkIndex)?;
        let first = *first.get_or_insert(u64::from(block));
        if device != DATA_DEVICE || u64::from(block) != chunks.block(first, n) {
            return Err(Fault::ChunkIndex);
        }
    }
    let first = first.ok_or(Fault::ChunkIndex)?;
    if blocks > data_blocks.saturating_sub(first) {
        Err(Fault::BeyondData)
    } else {
        Ok((first * BLOCK, place))
    }
}

/// The extended attributes whose header and own entries are `body`. Shared ones come with the bytes of their entry.
pub(super) fn xattrs<'a>(
    image: &'a [u8],
    body: &'a [u8],
    shared_block: u32,
) -> Result<Vec<(Xattr<'a>, Option<Bytes>)>, Fault> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let (header, rest) = body.split_first_chunk::<HEADER>().ok_or(Fault::Xattr)?;
    let [0, 0, 0, 0, shared, 0, 0, 0, 0, 0, 0, 0] = header else { return Err(Fault::Xattr) };
    let (places, mut own) = rest.split_at_checked(usize::from(*shared) * UNIT).ok_or(Fault::Xattr)?;
    let mut found = Vec::new();
    for place in places.as_chunks::<UNIT>().0 {
        let at = u64::from(shared_block) * BLOCK + u64::from(u32::from_le_bytes(*place)) * UNIT as u64;
        let bytes = slice(image, at, image.len() as u64 - at.min(image.len() as u64))?;
        let (xattr, len) = entry(bytes)?;
        if shared_block == 0 {
            return Err(Fault::Xattr);
        }
        found.push((xattr, Some((at, len as u64))));
    }
    while !own.is_empty() {
        let (xattr, len) = entry(own)?;
        let (_, after) = own.split_at_checked(len).ok_or(Fault::Xattr)?;
        own = after;
        found.push((xattr, None));
    }
    if found.is_empty() {
        return Err(Fault::Xattr); // the kernel refuses a header alone
    }
    let mut names: Vec<_> = found.iter().map(|(xattr, _)| (xattr.prefix, xattr.suffix)).collect();
    names.sort_unstable();
    if names.array_windows().any(|[one, next]| one == next) { Err(Fault::XattrTwice) } else { Ok(found) }
}

/// The entry at the beginning of `bytes`, and its length with padding.
fn entry(bytes: &[u8]) -> Result<(Xattr<'_>, usize), Fault> {
    let (&[name_len, prefix, v0, v1], rest) = bytes.split_first_chunk::<ENTRY>().ok_or(Fault::Xattr)?;
    let (suffix, rest) = rest.split_at_checked(usize::from(name_len)).ok_or(Fault::Xattr)?;
    let value_len = usize::from(u16::from_le_bytes([v0, v1]));
    let (value, rest) = rest.split_at_checked(value_len).ok_or(Fault::Xattr)?;
    let xattr = Xattr { prefix, suffix, value }.check().map_err(|_| Fault::Xattr)?;
    let len = xattr.encoded_len();
    let padding = rest.get(..len - ENTRY - suffix.len() - value.len()).ok_or(Fault::Xattr)?;
    if padding.iter().any(|byte| *byte != 0) { Err(Fault::Xattr) } else { Ok((xattr, len)) }
}

/// All entries of a directory, `.` and `..` among them, in order.
pub(super) fn entries<'a>(directory: &Found<'a>) -> Result<Vec<Entry<'a>>, Fault> {
    let (full, tail) = directory.content;
    let mut blocks: Vec<_> = full.chunks(BLOCK_LEN).collect();
    blocks.extend((!tail.is_empty()).then_some(tail));
    let count = blocks.len();
    let mut entries: Vec<Entry<'a>> = Vec::new();
    for (block, n) in blocks.into_iter().zip(1..) {
        entries.extend(directory::decode(block, n == count).ok_or(Fault::Directory)?);
    }
    let in_order = entries.array_windows().all(|[one, next]| one.name < next.name);
    if !in_order {
        return Err(Fault::Order);
    }
    // The kernel would find them in other places too, but the writer fills each block.
    let size = directory::size(entries.iter().map(|entry| entry.name));
    if size == directory.raw.size { Ok(entries) } else { Err(Fault::Directory) }
}

/// What stands at the end of a content's last block: zeros, if it is right.
pub(super) fn padding<'a>(image: &'a [u8], found: &Found<'_>) -> &'a [u8] {
    let used = found.content.0.len() as u64;
    let (start, _) = found.claims[1];
    slice(image, start + used, used.next_multiple_of(BLOCK) - used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_attributes_are_taken_apart_strictly() {
        let good = b"\x03\x01\x02\x00abcde\0\0\0";
        let (xattr, len) = entry(good).unwrap();
        assert_eq!((xattr.name(), xattr.value, len), (b"user.abc".to_vec(), &b"de"[..], 12));
        for (at, byte) in [(0, 0), (0, 200), (1, 0), (1, 5), (2, 200), (3, 1), (4, 0), (9, 1), (11, 1)] {
            let mut bytes = *good;
            bytes[at] = byte;
            assert_eq!(entry(&bytes).err(), Some(Fault::Xattr), "byte {at}");
        }
        assert_eq!(entry(&good[..11]).err(), Some(Fault::Xattr));
        assert_eq!(entry(&good[..3]).err(), Some(Fault::Xattr));
    }
}
