//! `make bench`: one large layer converted by us and by others, from and to the same local containerd, in one run.
//!
//! The layer is a whole Debian with Python, compilers and tools (`testkit::image::python::large`). Contenders take turns,
//! so that whatever else the machine does meets all of them. What is measured stands in [`measure`], what is promised and
//! the table in [`table`].

// A measuring program: what cannot go on is told and ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod measure;
mod table;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use testkit::cage::{self, Cage};
use testkit::containerd::Containerd;
use testkit::image::{self, Image, python};
use testkit::net::{Host, Network};
use testkit::node::Pantala;
use testkit::peers;

use crate::measure::{Figures, TarSize, measure};
use crate::table::{Contender, Report};

/// Converts a large layer by several converters and compares them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary to measure [default: `pantala` beside this program]
    #[arg(long, value_name = "FILE")]
    pantala: Option<PathBuf>,
    /// How often each contender runs; the median counts
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: usize,
    /// Measure our own alone: no comparison, no promise but memory
    #[arg(long)]
    alone: bool,
    /// Where the figures are written as well, as Markdown
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// A name in containerd.
const SOURCE: &str = "lab.example/large:plain";
/// The same for layers of other sizes, for the curve of memory.
const SMALL: &str = "lab.example/small:plain";
const HUGE: &str = "lab.example/huge:plain";
/// The huge layer is so many times the large one.
const HUGE_TIMES: usize = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cage::main("bench-convert", python::prepare, |cage| inside(cage, &arguments))
}

fn inside(cage: &Cage, arguments: &Arguments) -> Result<ExitCode> {
    let pantala = match &arguments.pantala {
        Some(binary) => Pantala::at(binary)?,
        None => Pantala::locate()?,
    };
    let host = Network::new(cage)?.host("bench")?;
    let lab = Lab { containerd: containerd(cage, &host)?, pantala, host };
    let sizes = bring_images(cage, &lab)?;

    let mut report = Report::new(sizes);
    for round in 1..=arguments.rounds {
        for contender in contenders(&lab, arguments.alone) {
            eprintln!("round {round}: {}", contender.name);
            let figures = lab.run(&contender, SOURCE)?;
            report.add(contender, figures);
        }
    }
    for (name, size) in [(SMALL, report.sizes.small), (SOURCE, report.sizes.large), (HUGE, report.sizes.huge)]
    {
        eprintln!("memory: a layer of {} MB", size.bytes / 1_000_000);
        let contender = ours(&lab, "pantala image convert", &["--estargz"]);
        report.memory.push((size, lab.run(&contender, name)?.peak_memory));
    }
    print!("{}", report.text());
    if let Some(file) = &arguments.report {
        std::fs::write(file, report.markdown())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let broken = report.broken_promises(arguments.alone);
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not kept:\n  {}", broken.join("\n  "))
}

/// Where everything happens.
#[derive(Debug)]
struct Lab {
    containerd: Containerd,
    pantala: Pantala,
    host: Host,
}

/// The tars of the layers that are converted.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    small: TarSize,
    large: TarSize,
    huge: TarSize,
    /// The large layer as it is at the source.
    compressed: u64,
}

fn containerd(cage: &Cage, host: &Host) -> Result<Containerd> {
    let dir = cage.dir().join("containerd");
    Containerd::start(host, &dir, &cage.tag(), &dir.join("none"))
}

/// Puts three images of one layer each into containerd, as an ordinary pull would, without unpacking.
fn bring_images(cage: &Cage, lab: &Lab) -> Result<Sizes> {
    let bring = |image: &Image, name: &str| -> Result<TarSize> {
        let file = cage.dir().join("image.tar");
        image.write_archive(&file, name)?;
        lab.containerd.import(&file, false)?;
        std::fs::remove_file(&file)?;
        std::fs::remove_dir_all(cage.dir().join("image.tar.layout"))?;
        TarSize::of(&image.layers[0].bytes)
    };
    let config = serde_json::json!({"Cmd": ["python3"]});
    let base = python::image(&image::cache(), &|_| {})?.layers.swap_remove(0);
    let small = bring(&Image::from_layers(vec![base], &config), SMALL)?;
    let image = python::large(&image::cache(), &|_| {})?;
    let large = bring(&image, SOURCE)?;
    let compressed = image.layer_bytes();
    let several = python::several(&image.layers[0], HUGE_TIMES)?;
    let huge = bring(&Image::from_layers(vec![several], &config), HUGE)?;
    Ok(Sizes { small, large, huge, compressed })
}

fn contenders(lab: &Lab, alone: bool) -> Vec<Contender> {
    let mut list = Vec::new();
    if !alone {
        let debian = |name: &str, flags: &[&str]| {
            let mut program = lab.containerd.ctr_remote();
            program.args(["images", "convert", "--oci"]).args(flags);
            Contender::new(name, "ctr-remote image convert --oci", flags, program)
        };
        list.push(debian("ctr-remote 0.12, eStargz, level 9", &["--estargz"]));
        list.push(debian("ctr-remote 0.12, zstd:chunked", &["--zstdchunked"]));
        if let Some(program) = peers::find("esgz-convert") {
            for (name, flags) in [
                ("stargz-snapshotter 0.19.1, eStargz, level 9", &[][..]),
                ("stargz-snapshotter 0.19.1, zstd:chunked", &["-zstdchunked"][..]),
            ] {
                let mut command = lab.host.command(&program);
                command.arg("convert").arg("-address").arg(lab.containerd.socket());
                command.args(["-namespace", lab.containerd.namespace()]).args(flags);
                list.push(Contender::new(name, "esgz-convert convert", flags, command));
            }
        }
    }
    list.push(ours(lab, "pantala, eStargz, level 9", &["--estargz"]));
    list.push(ours(lab, "pantala, zstd:chunked", &["--zstdchunked"]));
    list
}

fn ours(lab: &Lab, name: &str, flags: &[&str]) -> Contender {
    let mut command = lab.pantala.on(&lab.host);
    command.args(["image", "convert", "--force", "-n", lab.containerd.namespace(), "-a"]);
    command.arg(lab.containerd.socket()).args(flags);
    Contender::new(name, "pantala image convert", flags, command).ours()
}

impl Lab {
    /// Converts `source` by a contender and takes the result away again.
    fn run(&self, contender: &Contender, source: &str) -> Result<Figures> {
        let target = source.replace("plain", "converted");
        let prefix = if contender.ours { "containerd:" } else { "" };
        let mut command = repeat(&contender.command);
        command.args([format!("{prefix}{source}"), format!("{prefix}{target}")]);
        let mut figures = measure(&mut command)?;
        let manifest = self.containerd.manifest(&target)?;
        figures.size = manifest["layers"][0]["size"].as_u64().context("a layer without a size")?;
        self.containerd.remove_image(&target)?;
        Ok(figures)
    }
}

/// A command that can be started again.
fn repeat(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => again.env(name, value),
            None => again.env_remove(name),
        };
    }
    again
}
