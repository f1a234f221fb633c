//! Builds a layer from a tar, as a stream or by a list of files that a start needs, and says what it took.
//!
//! `cargo run --release -p estargz --example build -- [OPTION=VALUE]... IN.tar OUT`, the options being
//! `format`, `level`, `chunk`, `min`, `workers`, `external`, `keep` and `list` (a file with a path a line).

use std::collections::HashMap;
use std::error::Error;
use std::fs::{File, read_to_string};
use std::io::{BufReader, BufWriter, Read};
use std::time::Instant;

use estargz::{BuiltToc, Options, TocPlace};

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = Options::default();
    let mut list = None;
    let mut files = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("format", value)) => options.format = value.parse()?,
            Some(("level", value)) => options.level = Some(value.parse()?),
            Some(("chunk", value)) => options.chunk_size = value.parse()?,
            Some(("min", value)) => options.min_chunk_size = value.parse()?,
            Some(("workers", value)) => options.workers = Some(value.parse()?),
            Some(("external", _)) => options.toc = TocPlace::External,
            Some(("keep", _)) => options.keep_diff_id = true,
            Some(("list", value)) => list = Some(read_to_string(value)?),
            _ => files.push(argument),
        }
    }
    let [input, output] = files.as_slice() else { return Err("give a tar and a file for the layer".into()) };
    let out = BufWriter::with_capacity(1 << 20, File::create(output)?);
    let started = Instant::now();
    let built = if let Some(list) = &list {
        let ranks: HashMap<&[u8], u32> = list.lines().map(str::as_bytes).zip(0..).collect();
        estargz::build_ordered(File::open(input)?, out, &options, &mut |path| ranks.get(path).copied())?
    } else if input == "-" {
        estargz::build(std::io::stdin().lock(), out, &options)?
    } else {
        let tar: Box<dyn Read> = Box::new(BufReader::with_capacity(1 << 18, File::open(input)?));
        estargz::build(estargz::decompress(tar)?, out, &options)?
    };
    let seconds = started.elapsed().as_secs_f64();
    let status = read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("{seconds:.2} s, {} of {} bytes, {peak}", built.size, built.uncompressed_size);
    println!("blob {}\ndiff {}\ntoc  {}", built.digest, built.diff_id, built.toc_digest);
    println!("{} entries, {} chunks, payload up to {}", built.entries, built.chunks, built.payload_end);
    for (key, value) in built.annotations() {
        println!("{key}={value}");
    }
    if let BuiltToc::External { json } = &built.toc {
        let layer = estargz::toc_layer(json, options.level.unwrap_or(estargz::DEFAULT_LEVEL))?;
        std::fs::write(format!("{output}.toc"), layer.bytes)?;
    }
    Ok(())
}
