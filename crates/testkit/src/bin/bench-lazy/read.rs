//! Reading, with a watch in hand. Everything happens in this process, which is no contender's.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// As `cat` and `cp` read.
const BUFFER: usize = 128 << 10;

/// Reads a file from its beginning to its end. Answers when the first 4 KiB were there, and when all.
pub fn whole(file: &Path, expected: u64) -> Result<(Duration, Duration)> {
    let mut buffer = vec![0; BUFFER];
    let start = Instant::now();
    let mut opened = File::open(file)?;
    opened.read_exact(&mut buffer[..4096]).with_context(|| format!("cannot read {}", file.display()))?;
    let first = start.elapsed();
    let mut seen = 4096;
    loop {
        let len = opened.read(&mut buffer).with_context(|| format!("{} at {seen}", file.display()))?;
        if len == 0 {
            break;
        }
        seen += len as u64;
    }
    let all = start.elapsed();
    black_box(&buffer);
    ensure!(seen == expected, "{} has {seen} bytes, not {expected}", file.display());
    Ok((first, all))
}

/// Reads 4 KiB at each place of a file. Answers the time of each.
pub fn here_and_there(file: &Path, places: &[u64]) -> Result<Vec<Duration>> {
    let opened = File::open(file)?;
    let mut buffer = [0; 4096];
    let one = |place: &u64| -> Result<Duration> {
        let start = Instant::now();
        opened.read_exact_at(&mut buffer, *place)?;
        Ok(start.elapsed())
    };
    places.iter().map(one).collect()
}

/// Opens, reads and closes each file. Answers the time of each.
pub fn small(root: &Path, files: &[PathBuf]) -> Result<Vec<Duration>> {
    let mut buffer = vec![0; BUFFER];
    let mut times = Vec::with_capacity(files.len());
    let paths: Vec<_> = files.iter().map(|file| root.join(file)).collect();
    for path in &paths {
        let start = Instant::now();
        let mut opened = File::open(path)?;
        while opened.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))? > 0 {}
        drop(opened);
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Asks for the attributes of each file. Answers the time of each.
pub fn stat(root: &Path, files: &[PathBuf]) -> Result<Vec<Duration>> {
    let paths: Vec<_> = files.iter().map(|file| root.join(file)).collect();
    let one = |path: &PathBuf| -> Result<Duration> {
        let start = Instant::now();
        let metadata = fs::symlink_metadata(path)?;
        let time = start.elapsed();
        black_box(metadata.ino());
        Ok(time)
    };
    paths.iter().map(one).collect()
}

/// Lists every folder and asks for the attributes of everything in it, as `ls -lR` and `du` do. Answers the time, and how
/// much there was.
pub fn walk(root: &Path) -> Result<(Duration, usize)> {
    let start = Instant::now();
    let mut folders = vec![root.to_path_buf()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            black_box(entry.ino());
            seen += 1;
            if entry.metadata()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok((start.elapsed(), seen))
}

/// What an eStargz layer has for its readers: they hide it, an ordinary tool unpacks it.
const FOR_READERS: [&str; 3] = ["stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"];

/// Every regular file below a root, relative to it, with its length; ascending.
pub fn files(root: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let (path, metadata) = {
                let entry = entry?;
                (entry.path(), entry.metadata()?)
            };
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && !FOR_READERS.iter().any(|name| path.as_path() == root.join(name))
            {
                found.push((path.strip_prefix(root)?.to_path_buf(), metadata.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A digest of every byte and name: what all contenders must agree on. Also completes what is lazy.
pub fn digest(root: &Path, files: &[(PathBuf, u64)]) -> Result<String> {
    let mut hasher = content::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    for (file, len) in files {
        let mut opened = File::open(root.join(file))?;
        hasher.update(file.as_os_str().as_encoded_bytes());
        let mut seen = 0;
        loop {
            let len = opened.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            seen += len as u64;
        }
        ensure!(seen == *len, "{} has {seen} bytes, not {len}", file.display());
    }
    Ok(hasher.finish().to_string())
}

/// Makes the kernel forget every page, name and inode that is not dirty or in use.
pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches")
}

/// The middle one.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The same order for everybody and every time, and no order that a readahead could guess.
pub fn shuffle<T>(list: &mut [T], seed: u64) {
    let mut state = seed | 1;
    for at in (1..list.len()).rev() {
        list.swap(at, usize::try_from(random(&mut state) % (at as u64 + 1)).unwrap_or(0));
    }
}

/// Xorshift.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
