//! Hostile inputs, one function per trick. Each is made by code, refused with one line that names what is
//! wrong (or harmless, where it says so), and costs no more memory than the ceiling.
//!
//! * `tails`: the end of a blob, and what it points to
//! * `tables`: the table of contents: names, links, attributes, the document itself
//! * `extents`: where the table says that bytes lie
//! * `chunks`: compressed bytes of one chunk
//! * `streams`: layers to be converted: tar, and what it is wrapped in

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

/// `name: input => error;` for each trick, all for one judge.
macro_rules! refused {
    ($judge:path; $($(#[$doc:meta])* $name:ident: $input:expr => $text:expr;)*) => {
        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                crate::must_refuse(|| $input, |input| $judge(input), $text);
            }
        )*
    };
}
mod chunks;
mod extents;
mod make;
mod streams;
mod tables;
mod tails;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Tricks take turns: the allocator counts for the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// What any trick may cost beyond its input, in bytes.
const CEILING: usize = 64 << 20;

/// Makes an input, and has `judge` look at it. Panics if that takes more than `ceiling` bytes, of the heap or
/// of the process (libzstd has memory of its own).
fn measured<I, T>(ceiling: usize, make: impl FnOnce() -> I, judge: impl FnOnce(&I) -> T) -> T {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let input = make();
    HEAP.reset_peak_usage();
    let heap_before = HEAP.peak_usage();
    let process_before = forget_process_peak();
    let verdict = judge(&input);
    let heap = HEAP.peak_usage().saturating_sub(heap_before);
    let process = process_kib("VmHWM").saturating_sub(process_before) << 10;
    assert!(heap <= ceiling, "{heap} bytes of heap, the ceiling is {ceiling}");
    assert!(process <= ceiling, "{process} bytes of the process, the ceiling is {ceiling}");
    verdict
}

/// Makes the kernel count the process's peak anew, and answers its size in KiB.
fn forget_process_peak() -> usize {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    process_kib("VmHWM")
}

fn process_kib(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// `judge` must refuse the input with the error `text`; a text that ends in "…" is the beginning of it.
fn must_refuse<I, E: Display>(make: impl FnOnce() -> I, judge: impl FnOnce(&I) -> Result<(), E>, text: &str) {
    let error = match measured(CEILING, make, judge) {
        Ok(()) => panic!("it was taken"),
        Err(error) => error.to_string(),
    };
    assert!(!error.contains('\n') && error.chars().count() < 600, "not one line: {error}");
    match text.strip_suffix('…') {
        Some(beginning) => assert!(error.starts_with(beginning), "{error}\nis not {text}"),
        None => assert_eq!(error, text),
    }
}

#[test]
fn the_ceiling_is_noticed() {
    let heap = std::panic::catch_unwind(|| measured(1 << 20, || (), |()| vec![1_u8; 2 << 20].len()));
    assert!(heap.is_err(), "the heap is not watched");
    // libzstd's own memory: a window of 64 MiB that is filled.
    let window = std::panic::catch_unwind(|| {
        measured(
            16 << 20,
            || make::zstd_with_window(26, 64 << 20),
            |frame| {
                let reader = estargz::decompress(frame.as_slice()).unwrap();
                std::io::copy(&mut { reader }, &mut std::io::sink()).unwrap()
            },
        )
    });
    assert!(window.is_err(), "the process is not watched");
}
