//! Where in the blob the chunks lie.
//!
//! A TOC says where the member of a chunk begins and not where it ends: it ends where the next one begins.

use super::{RawChunk, Tree, node_mut};
use crate::toc::{EntryProblem, Node, Span, StoredChunk, TocError};

/// A deflate stream is hardly ever larger than its content; twice the size and this much more is beyond
/// every encoder. What lies behind belongs to tar headers that follow, and is not fetched.
const EXTENT_SLACK: u64 = 64 * 1024;

impl Tree {
    /// The chunks of files that are still there, each with the extent of its member.
    pub(super) fn place_chunks(&mut self, inode_of_raw: &[u32], nodes: &mut [Node]) -> Vec<StoredChunk> {
        // Members of landmarks and of files that were replaced are boundaries as well.
        let mut members: Vec<u64> = self.chunks.iter().map(|chunk| chunk.blob_start).collect();
        members.sort_unstable();
        members.dedup();
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for chunk in &self.chunks {
            let Some(inode) =
                chunk.raw.and_then(|raw| inode_of_raw.get(raw as usize)).copied().filter(|inode| *inode != 0)
            else {
                continue;
            };
            let next = members.partition_point(|member| *member <= chunk.blob_start);
            let end = members.get(next).map_or(chunk.blob_end, |next| chunk.blob_end.min(*next));
            let inflated = u64::from(chunk.len) + u64::from(chunk.inner_offset);
            let extent = match end.saturating_sub(chunk.blob_start) {
                _ if chunk.is_zeros => 0,
                extent => extent.min(inflated * 2 + EXTENT_SLACK),
            };
            let number = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
            if let Some(node) = node_mut(nodes, inode) {
                if node.count == 0 {
                    node.first = number;
                }
                node.count += 1;
            }
            chunks.push(StoredChunk {
                file_offset: chunk.file_offset,
                blob_start: chunk.blob_start,
                blob_len: u32::try_from(extent).unwrap_or(u32::MAX),
                len: chunk.len,
                inner_offset: chunk.inner_offset,
                inode,
                digest: chunk.digest,
            });
        }
        chunks.shrink_to_fit();
        chunks
    }

    /// No byte of a member may belong to two chunks.
    pub(super) fn refuse_overlap(&self) -> Result<(), TocError> {
        let mut order: Vec<&RawChunk> = self.chunks.iter().filter(|chunk| !chunk.is_zeros).collect();
        order.sort_by_key(|chunk| (chunk.blob_start, chunk.inner_offset));
        for pair in order.windows(2) {
            let [first, second] = pair else { continue };
            let first_end = u64::from(first.inner_offset) + u64::from(first.len);
            if first.blob_start == second.blob_start && first_end > u64::from(second.inner_offset) {
                let path = self.raw(second.raw).map_or(Span { at: 0, len: 0 }, |raw| raw.path);
                return Err(self.problem(path, EntryProblem::Overlap));
            }
        }
        Ok(())
    }
}
