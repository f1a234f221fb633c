//! How many layers are made at once, and with how many threads each, so that all of them together stay in
//! bounded memory.
//!
//! A layer under way holds batches: two per compressing thread and two more, as `estargz` builds. A batch is at
//! most one chunk and what was gathered before it, inflated, and as much again compressed; with the slack of
//! buffers that grow, three and a half times its bytes were measured. All else is small beside that.

use std::num::NonZeroUsize;

use estargz::{DEFAULT_CHUNK_SIZE, Format};

/// Bytes for batches on a small machine. Together with buffers, TOCs and code this stays below 256 MiB.
const LEAST: u64 = 190 << 20;

/// Bytes for batches per core on a larger machine, if an eighth of its free memory is that much.
const PER_CORE: u64 = 48 << 20;

/// What a batch gathers before another one is begun: if small files share members, and if not.
const SHARED_BATCH: u64 = 4 << 20;
const BATCH: u64 = 256 << 10;

/// Beyond this level each of zstd's compressors takes some 50 MiB for itself.
const HEAVY_LEVEL: u8 = 12;

/// More threads than this per layer wait for the one that reads the tar.
const MOST_WORKERS: u64 = 16;

/// How a conversion uses the machine. Has no influence on any byte of the result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Budget {
    /// Layers that are made at once.
    pub(crate) jobs: usize,
    /// Threads that compress each of them.
    pub(crate) workers: NonZeroUsize,
}

impl Budget {
    /// For this machine. What the caller fixed is kept, even if it takes more memory.
    pub(crate) fn new(layer: &estargz::Options, jobs: Option<NonZeroUsize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let chunk_size = if layer.chunk_size == 0 { DEFAULT_CHUNK_SIZE } else { layer.chunk_size };
        // Small chunks do not make small batches of everything between files.
        let chunk_size = u64::from(chunk_size.max(DEFAULT_CHUNK_SIZE));
        let gathered = if layer.min_chunk_size > 0 { SHARED_BATCH } else { BATCH };
        let batch = 7 * (chunk_size + gathered) / 2;
        let heavy = layer.format != Format::Estargz && layer.level.is_some_and(|level| level > HEAVY_LEVEL);
        let jobs = jobs.or_else(|| heavy.then_some(NonZeroUsize::MIN));
        Self::of(cores, available_memory().unwrap_or(0), batch, jobs, layer.workers)
    }

    fn of(
        cores: usize,
        memory: u64,
        batch: u64,
        jobs: Option<NonZeroUsize>,
        workers: Option<NonZeroUsize>,
    ) -> Self {
        let bytes = LEAST.max((PER_CORE * cores as u64).min(memory / 8));
        let batches = bytes / batch;
        let per_layer = |workers: u64| 2 * workers + 2;
        let jobs = jobs.map_or_else(
            || {
                let wanted = if cores >= 8 { 3 } else { 2 };
                (batches / per_layer(1)).clamp(1, wanted)
            },
            |jobs| jobs.get() as u64,
        );
        let most = (cores as u64).min(MOST_WORKERS);
        let fits = (batches / jobs).saturating_sub(2) / 2;
        let fits = usize::try_from(fits.clamp(1, most)).unwrap_or(1);
        Self {
            jobs: usize::try_from(jobs).unwrap_or(1),
            workers: workers.or_else(|| NonZeroUsize::new(fits)).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// What Linux says could be used without swapping, in bytes.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// As with the default chunk size.
    const USUAL: u64 = 7 * ((4 << 20) + BATCH) / 2;

    fn of(cores: usize, memory: u64, batch: u64, jobs: usize) -> (usize, usize) {
        let budget = Budget::of(cores, memory, batch, NonZeroUsize::new(jobs), None);
        (budget.jobs, budget.workers.get())
    }

    #[test]
    fn every_choice_stays_within_its_bytes() {
        for cores in [1, 2, 4, 16, 128] {
            for memory in [0, 1024 * MIB, 1 << 40] {
                for batch in [USUAL, 16 * MIB, 32 * MIB] {
                    let (jobs, workers) = of(cores, memory, batch, 0);
                    let used = (jobs * (2 * workers + 2)) as u64 * batch;
                    let limit = LEAST.max((PER_CORE * cores as u64).min(memory / 8));
                    assert!(used <= limit, "{cores} cores, {memory} bytes, {batch}: {used} > {limit}");
                }
            }
        }
    }

    #[test]
    fn two_cores_convert_two_layers_with_both_cores_each() {
        assert_eq!(of(2, 4096 * MIB, USUAL, 0), (2, 2));
        assert_eq!(of(16, 65536 * MIB, USUAL, 0), (3, 7));
    }

    #[test]
    fn what_was_asked_for_is_kept() {
        assert_eq!(of(2, 0, USUAL, 9), (9, 1));
        assert_eq!(of(2, 0, 512 * MIB, 0), (1, 1));
        assert_eq!(Budget::of(2, 0, USUAL, None, NonZeroUsize::new(5)).workers.get(), 5);
    }
}
