//! What an image costs: time to write and to check it, its bytes, and the peak of memory, for a layer of many files.
//!
//! `cargo run --release -p erofs --example cost -- 50000`

use std::time::Instant;

use erofs::{Kind, Node, Options, Tree, check, write};

#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// Directories of 20 files each, computed, so that the tree itself takes no memory but for its names.
struct Layer {
    files: u32,
    names: Vec<String>,
}

const PER_DIRECTORY: u32 = 20;

impl Layer {
    fn directories(&self) -> u32 {
        self.files.div_ceil(PER_DIRECTORY)
    }

    fn name(&self, number: u32) -> &[u8] {
        self.names.get(number as usize).map_or(b"", |name| name.as_bytes())
    }
}

impl Tree for Layer {
    fn bound(&self) -> u32 {
        1 + self.directories() + self.files
    }

    fn root(&self) -> u32 {
        0
    }

    fn node(&self, number: u32) -> Option<Node<'_>> {
        let kind = match number.checked_sub(1 + self.directories()) {
            None => Kind::Directory,
            Some(file) => Kind::Regular { size: 12_000, address: u64::from(file) * 12_288 },
        };
        Some(Node { kind, mode: 0o755, uid: 0, gid: 0, mtime: 1_700_000_000, mtime_nanos: 0 })
    }

    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let first = 1 + self.directories();
        let children = match number.checked_sub(1) {
            None => 1..first,
            Some(n) => first + n * PER_DIRECTORY..self.bound().min(first + (n + 1) * PER_DIRECTORY),
        };
        children.map(|child| (self.name(child), child))
    }

    fn xattrs(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        let label = (&b"security.selinux"[..], &b"system_u:object_r:lib_t:s0"[..]);
        number.is_multiple_of(50).then_some(label).into_iter()
    }
}

fn main() {
    let files = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(50_000);
    let mut layer = Layer { files, names: Vec::new() };
    layer.names = (0..layer.bound()).map(|n| format!("a name of usual length {n}")).collect();
    let options = Options { data_len: u64::from(files) * 12_288, ..Options::default() };
    for _ in 0..3 {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let start = Instant::now();
        let image = match write(&layer, &options) {
            Ok(image) => image,
            Err(error) => return eprintln!("{error}"),
        };
        let (written, peak) = (start.elapsed(), MEMORY.peak_usage() - before);
        let start = Instant::now();
        let result = check(&image, options.data_len).map(|image| image.inodes());
        println!(
            "{files} files: image {} KiB, written in {written:.1?} with {} KiB at the peak, checked in {:.1?}: {result:?}",
            image.len() / 1024,
            peak / 1024,
            start.elapsed(),
        );
    }
}
