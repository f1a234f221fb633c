//! From a table to its index.

use std::io;
use std::ops::Range;

use estargz::{Chunk, Toc, toc::pack};

use super::head::{Head, Line, short};
use super::{About, group::GROUP, malformed};
use crate::layout::{ALIGNMENT, next_start};

/// The index of `toc`.
///
/// # Errors
/// That the layer is too large: 4 GiB of chunks, a hundred times what a table may have.
pub(crate) fn build(toc: &Toc, about: &About) -> io::Result<Vec<u8>> {
    let chunks: Vec<Chunk> = toc.chunks().collect();
    let groups: Vec<&[Chunk]> = chunks.chunks(GROUP as usize).collect();
    let zeros = runs_of_zeros(&chunks);
    let mut packed = Vec::new();
    let mut digests = Vec::with_capacity(chunks.len() * 32);
    let mut lines: Vec<Line> = Vec::with_capacity(groups.len());
    let head_len = Head::len(zeros.len(), groups.len());
    let (mut bytes, mut end) = (0_u64, 0_u64);
    for group in groups {
        let at = u32::try_from(head_len + packed.len()).map_err(|_| malformed("the layer is too large"))?;
        let data_start = group.first().map_or(end, |first| next_start(first, end));
        let before = bytes;
        for chunk in group {
            if chunk.file_offset == 0 {
                // The file before ends here: of the groups that it ended, or was the last of, that is known now.
                close(&mut lines, end);
            }
            end = next_start(chunk, end).saturating_add(u64::from(chunk.len));
            bytes = bytes.saturating_add(u64::from(chunk.len));
        }
        let chunks = pack::pack_chunks(group);
        let first = digests.len();
        digests.extend(group.iter().flat_map(|chunk| *chunk.digest.as_bytes()));
        lines.push(Line {
            data_start,
            file_end: OPEN,
            bytes: before,
            at,
            chunks: short(&chunks),
            digests: short(digests.get(first..).unwrap_or_default()),
        });
        packed.extend_from_slice(&chunks);
    }
    close(&mut lines, end);
    let tree = toc.pack_tree();
    let tree_at = (head_len + packed.len() + digests.len()) as u64;
    let head = Head {
        about: About { toc_offset: toc.payload_end(), ..*about },
        facts: toc.facts(),
        data_len: end
            .checked_next_multiple_of(ALIGNMENT)
            .ok_or_else(|| malformed("the layer is too large"))?,
        tree: tree_at..tree_at + tree.len() as u64,
        tree_hash: *blake3::hash(&tree).as_bytes(),
        zeros: zeros.into(),
        lines: lines.into(),
    };
    let mut all = head.to_bytes()?;
    all.reserve_exact(packed.len() + digests.len() + tree.len());
    all.extend_from_slice(&packed);
    all.extend_from_slice(&digests);
    all.extend_from_slice(&tree);
    Ok(all)
}

/// The file of the last chunk of a group goes on.
const OPEN: u64 = u64::MAX;

/// Notes where the file ends that the last groups end in the midst of.
fn close(lines: &mut [Line], end: u64) {
    for line in lines.iter_mut().rev().take_while(|line| line.file_end == OPEN) {
        line.file_end = end;
    }
}

fn runs_of_zeros(chunks: &[Chunk]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for (number, _) in (0..).zip(chunks).filter(|(_, chunk)| chunk.is_zeros()) {
        match runs.last_mut().filter(|run| run.end == number) {
            Some(run) => run.end = number + 1,
            None => runs.push(number..number + 1),
        }
    }
    runs
}
