//! `make demo`: the main job on real parts, measured and told.
//!
//! A real Python image is converted; three hosts, each with a real containerd and a Pantala node, start it lazily,
//! one after another and then all at once a fresh one; an ordinary pull stands beside it. Everything runs in a
//! [`testkit::cage`], so the demo leaves nothing behind, however it ends. `flow` is what happens, `report` what is
//! told of it and which promises are checked.

// A test program: what cannot go on is told and ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod flow;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use testkit::cage::{self, Cage, Needs};
use testkit::image::python;
use testkit::node::Pantala;

/// Starts a real Python image lazily on three hosts, and measures it.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// The binary to show [default: `pantala` beside this program]
    #[arg(long, value_name = "FILE")]
    pantala: Option<PathBuf>,
    /// Where the image is kept for the next time [default: pantala-lab in the user's cache folder]
    #[arg(long, value_name = "DIR", env = "PANTALA_LAB_CACHE")]
    cache: Option<PathBuf>,
    /// Where the figures are written
    #[arg(long, value_name = "FILE", default_value = "target/demo/report.json")]
    report: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match Cage::current() {
        None => outside(&arguments),
        Some(cage) => inside(&cage, &arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What needs the machine's own network, then the same program in the cage.
fn outside(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    if let Some(reason) = Needs::Containers.missing() {
        bail!("{reason}");
    }
    locate(arguments)?;
    survive_interrupt()?;
    python::image(&cache(arguments)?, &|line| flow::say(start, line))?;
    let again: Vec<_> = std::env::args_os().skip(1).collect();
    let status = cage::run_self(&again)?;
    if status.code() == Some(130) {
        eprintln!("demo: interrupted; nothing is left behind");
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

fn inside(cage: &Cage, arguments: &Arguments) -> Result<ExitCode> {
    let image = python::image(&cache(arguments)?, &|_| {})?;
    let report = flow::run(cage, &locate(arguments)?, &image)?;
    print!("{}", report.table());
    write(&arguments.report, &report.json())?;
    println!("\nThe same figures: {}", arguments.report.display());
    let broken = report.broken_promises();
    if broken.is_empty() {
        print!("{}", report::HOW_TO_GO_ON);
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not kept:\n  {}", broken.join("\n  "))
}

fn cache(arguments: &Arguments) -> Result<PathBuf> {
    Ok(std::path::absolute(arguments.cache.clone().unwrap_or_else(testkit::image::cache))?)
}

fn locate(arguments: &Arguments) -> Result<Pantala> {
    match &arguments.pantala {
        Some(binary) => Pantala::at(binary),
        None => Pantala::locate(),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Ctrl-C ends the caged process, which has its default way with it; this one must live to clean up after it.
fn survive_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::spawn(move || {
        // Listening for it once takes its default action away for good.
        runtime.block_on(async { while tokio::signal::ctrl_c().await.is_ok() {} });
    });
    Ok(())
}
