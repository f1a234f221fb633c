//! `pantala image optimize`: runs the image on a lazy mount, then converts it with what it read in front.

use std::fmt;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use content::Digest;
use convert::{
    ConvertError, ConvertOptions, ConvertReport, Mountable, Place, Places, PlatformSpec, Platforms, Progress,
};
use rehearsal::{Dns, Ending, Network, Options, RehearsalError, Rehearsed, StageLayer, Until};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::convert::options;
use super::stop::{Stopped, stop_on_signal};
use super::{places, print, progress};
use crate::cli::{OptimizeArgs, Output, RunArgs};

/// Tells the process that has mounts of its own that it has.
const OWN_MOUNTS: &str = "PANTALA_OWN_MOUNTS";
/// Who answers a container's questions for names if nobody else is named; as in `ctr-remote`.
const NAMESERVER: &str = "8.8.8.8";
/// Compression of the copy that is only run.
const FAST: u8 = 1;
/// Longest file of variables that is read, in bytes.
const MOST_VARIABLES: u64 = 1 << 20;

/// Goes on in a process whose mounts nobody else sees, and which are gone when it is, however it ends. Comes back
/// where that cannot be: then mounts are made for all to see.
pub fn hide_mounts(args: &OptimizeArgs) {
    if args.run.no_optimize || std::env::var_os(OWN_MOUNTS).is_some() || !rustix::process::geteuid().is_root()
    {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "--"]).arg(program).args(std::env::args_os().skip(1));
    // Comes back only if there is no such program.
    let error = command.env(OWN_MOUNTS, "1").exec();
    tracing::debug!(%error, "unshare");
}

/// `pantala image optimize`.
pub async fn optimize(mut args: OptimizeArgs) -> anyhow::Result<()> {
    refuse(&args.run)?;
    if args.convert.platform.is_empty() && !args.convert.all_platforms {
        args.convert.platform = vec![PlatformSpec::here()];
    }
    let places = places(&args.convert.places)?;
    // Whatever else is wrong with the flags is told before anything runs.
    let unrecorded = options(&args.convert, Some(r#"{"path": "checked"}"#))?;
    unrecorded.check()?;
    let (enough, stop) = (CancellationToken::new(), CancellationToken::new());
    if !args.run.wait_on_signal {
        // Nobody but its own signal ends the run: each is for all of it.
        let signal = stop_on_signal(std::slice::from_ref(&stop))?;
        return report(
            &args,
            work(&args, &places, &CancellationToken::new(), &stop).await,
            signal.get().copied(),
        );
    }
    let signal = stop_on_signal(&[enough.clone(), stop.clone()])?;
    report(&args, work(&args, &places, &enough, &stop).await, signal.get().copied())
}

fn report(
    args: &OptimizeArgs,
    worked: anyhow::Result<OptimizeReport>,
    signal: Option<super::stop::Signal>,
) -> anyhow::Result<()> {
    match (worked, signal) {
        (Ok(report), _) => print(args.convert.output, &report),
        (Err(error), Some(signal)) if is_interrupted(&error) => {
            Err(Stopped::new(signal, &args.convert.destination).into())
        }
        (Err(error), _) => Err(error),
    }
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ConvertError::Interrupted))
        || matches!(error.downcast_ref(), Some(RehearsalError::Interrupted))
}

/// Flags of `ctr-remote` that ask for what there is not.
fn refuse(run: &RunArgs) -> anyhow::Result<()> {
    if run.cni || run.cni_plugin_conf_dir.is_some() || run.cni_plugin_dir.is_some() {
        bail!("--cni is not supported: use --net-host, the container then has this machine's network");
    }
    ensure!(run.gpus.is_empty(), "--gpus is not supported: bring devices and libraries with --mount");
    ensure!(
        run.no_optimize || rustix::process::geteuid().is_root(),
        "running an image takes root: run it as root, or convert with a record that was made elsewhere (pantala image \
         convert --estargz-record-in)"
    );
    Ok(())
}

async fn work(
    args: &OptimizeArgs,
    places: &Places,
    enough: &CancellationToken,
    stop: &CancellationToken,
) -> anyhow::Result<OptimizeReport> {
    let progress = progress(args.convert.output);
    // Copies of the image, and what the container needs; gone in the end.
    let dir = tempfile::Builder::new()
        .prefix("pantala-optimize-")
        .tempdir_in(&places.temporary)
        .with_context(|| format!("making a directory in {}", places.temporary.display()))?;
    let theatre = Theatre { args, places, dir: dir.path(), stop, progress: &*progress };
    let mut warnings = Vec::new();
    let (mut rehearsed, mut source) = (None, args.convert.source.clone());
    if !args.run.no_optimize {
        let (image, near) = theatre.image().await?;
        source = near;
        let options = run_options(&args.run, args.convert.output, enough, stop)?;
        say(args, "running the image");
        rehearsed = Some(rehearsal::rehearse(image, &options, dir.path()).await?);
    }
    // A signal from here on is for the conversion.
    enough.cancel();
    let record = rehearsed.as_ref().map(|rehearsed| rehearsed.record.to_lines());
    if let Some(rehearsed) = &rehearsed {
        warnings.extend(warnings_of(rehearsed));
        for text in &warnings {
            progress.note(text);
        }
    }
    if let (Some(file), Some(record)) = (&args.run.record_out, &record) {
        std::fs::write(file, record).with_context(|| format!("--record-out {}", file.display()))?;
    }
    let options = ConvertOptions { stop: stop.clone(), ..options(&args.convert, record.as_deref())? };
    let mut conversion =
        convert::convert(places, &source, &args.convert.destination, &options, &*progress).await?;
    conversion.source = args.convert.source.to_string();
    Ok(OptimizeReport { rehearsal: rehearsed.map(|it| RehearsalReport::new(&it)), warnings, conversion })
}

/// What is needed to get an image that can be run.
struct Theatre<'a> {
    args: &'a OptimizeArgs,
    places: &'a Places,
    dir: &'a Path,
    stop: &'a CancellationToken,
    progress: &'a dyn Progress,
}

impl Theatre<'_> {
    /// The image to run, and where it is to be converted from: where it is, or from a copy nearby, so that nothing
    /// is downloaded twice.
    async fn image(&self) -> anyhow::Result<(rehearsal::Image, Place)> {
        let place = &self.args.convert.source;
        let platform = which(&self.args.convert.platform);
        let there = async {
            let source = self.places.source(place).await?;
            convert::mountable(&*source, Some(&platform)).await
        };
        let there = tokio::select! {
            there = there => there,
            () = self.stop.cancelled() => Err(ConvertError::Interrupted),
        }?;
        if let Some(image) = there {
            return Ok((runnable(image), place.clone()));
        }
        say(self.args, "preparing a copy of the image that can be mounted");
        let (near, original) = self.near().await?;
        let copy = self.copy("run");
        let options = ConvertOptions {
            platforms: Platforms::Only(vec![platform.clone()]),
            layer: estargz::Options { level: Some(FAST), ..estargz::Options::default() },
            ..self.options()
        };
        let made = convert::convert(self.places, &near, &copy, &options, self.progress).await?;
        let image = convert::mountable(&*self.places.source(&copy).await?, Some(&platform)).await?;
        let mut image = image.context("the image has layers that cannot be mounted, so it cannot be run")?;
        // A record speaks of the image that the user has, not of copies.
        if let Some(made) = made.images.first() {
            let copied = original.iter().find(|(_, copy)| *copy == made.source_digest);
            image.manifest = copied.map_or(made.source_digest, |(original, _)| *original);
        }
        Ok((runnable(image), near))
    }

    /// The image on this machine, and for each of its manifests what it was and what it is now. A copy is made of what
    /// is in a registry alone.
    async fn near(&self) -> anyhow::Result<(Place, Vec<(Digest, Digest)>)> {
        let place = &self.args.convert.source;
        if !matches!(place, Place::Registry(_)) {
            return Ok((place.clone(), Vec::new()));
        }
        let near = self.copy("source");
        let platforms = super::convert::platforms(&self.args.convert);
        let options = ConvertOptions { platforms, verbatim: true, ..self.options() };
        let made = convert::convert(self.places, place, &near, &options, self.progress).await?;
        Ok((near, made.images.iter().map(|image| (image.source_digest, image.digest)).collect()))
    }

    fn options(&self) -> ConvertOptions {
        ConvertOptions { stop: self.stop.clone(), jobs: self.args.convert.jobs, ..ConvertOptions::default() }
    }

    /// A place for a copy.
    fn copy(&self, tag: &str) -> Place {
        Place::OciLayout { dir: self.dir.join("image"), tag: Some(tag.to_owned()) }
    }
}

fn runnable(image: Mountable) -> rehearsal::Image {
    let layers = image.layers.into_iter().map(|layer| StageLayer {
        toc_digest: layer.toc_digest,
        layer_digest: layer.layer_digest,
        source: layer.source,
    });
    rehearsal::Image { manifest: image.manifest, config: image.config.to_vec(), layers: layers.collect() }
}

/// A word to the user, where a person looks.
fn say(args: &OptimizeArgs, text: &str) {
    if args.convert.output == Output::Table {
        // Nobody may be listening.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// The platform that is run: this machine's, if it is among those that are wanted.
fn which(wanted: &[PlatformSpec]) -> PlatformSpec {
    let here = PlatformSpec::here();
    let mut wanted = wanted.iter();
    wanted.clone().find(|it| it.covers(&here)).or_else(|| wanted.next()).cloned().unwrap_or(here)
}

fn run_options(
    run: &RunArgs,
    output: Output,
    enough: &CancellationToken,
    stop: &CancellationToken,
) -> anyhow::Result<Options> {
    let mut env = Vec::new();
    if let Some(file) = &run.env_file {
        let text = read_variables(file).with_context(|| format!("--env-file {}", file.display()))?;
        env.extend(
            text.lines()
                .map(str::trim)
                .filter(|it| !it.is_empty() && !it.starts_with('#'))
                .map(str::to_owned),
        );
    }
    env.extend(run.env.iter().cloned());
    let unlimited = run.wait_on_signal || run.wait_on_line.is_some();
    let servers = if run.dns_nameservers.is_empty() && !run.net_host {
        vec![NAMESERVER.to_owned()]
    } else {
        run.dns_nameservers.clone()
    };
    Ok(Options {
        args: run.args.clone().map(|words| words.0),
        entrypoint: run.entrypoint.clone().map(|words| words.0),
        env: env.into_iter().filter_map(with_value).collect(),
        cwd: run.cwd.clone(),
        user: run.user.clone(),
        mounts: run.mount.clone(),
        network: if run.net_host { Network::Host } else { Network::Own },
        dns: Dns { servers, search: run.dns_search_domains.clone(), options: run.dns_options.clone() },
        hosts: run.add_hosts.clone(),
        terminal: run.terminal,
        interactive: run.interactive,
        quiet: output == Output::Json,
        until: Until {
            period: (!unlimited).then(|| Duration::from_secs(run.period)),
            line: run.wait_on_line.clone(),
            enough: enough.clone(),
        },
        runc: run.runc.clone(),
        abort: stop.clone(),
    })
}

fn read_variables(file: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)?.take(MOST_VARIABLES).read_to_string(&mut text)?;
    Ok(text)
}

/// `NAME` alone has the value that it has here, and is left out if it has none.
fn with_value(variable: String) -> Option<String> {
    if variable.contains('=') {
        return Some(variable);
    }
    let value = std::env::var(&variable).ok()?;
    Some(format!("{variable}={value}"))
}

fn warnings_of(rehearsed: &Rehearsed) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Ending::Exited(code) = rehearsed.ending
        && code != 0
    {
        warnings.push(format!(
            "the program ended with exit code {code}: what it would have read later is not known"
        ));
    }
    if rehearsed.record.entries.is_empty() {
        warnings.push("the program read no file of the image: no layer gets files in front".to_owned());
    }
    if rehearsed.record.left_out > 0 {
        warnings.push(format!(
            "{} files stay where they are: their names are not UTF-8",
            rehearsed.record.left_out
        ));
    }
    warnings
}

/// What was done.
#[derive(Debug, Serialize)]
struct OptimizeReport {
    /// What the run brought, if there was one.
    rehearsal: Option<RehearsalReport>,
    /// What the user should know of the run.
    warnings: Vec<String>,
    /// What was made of it.
    conversion: ConvertReport,
}

/// What a run brought.
#[derive(Debug, Serialize)]
struct RehearsalReport {
    /// `period`, `line`, `signal` or `exit`.
    ended_by: &'static str,
    /// The program's exit code, if it ended by itself.
    exit_code: Option<i32>,
    /// Files that were read.
    files: usize,
    /// Chunks that were read.
    chunks: usize,
    /// Bytes of files in these chunks.
    bytes: u64,
}

impl RehearsalReport {
    fn new(rehearsed: &Rehearsed) -> Self {
        let (ended_by, exit_code) = match rehearsed.ending {
            Ending::Period => ("period", None),
            Ending::Line => ("line", None),
            Ending::Enough => ("signal", None),
            Ending::Exited(code) => ("exit", Some(code)),
        };
        let record = &rehearsed.record;
        Self { ended_by, exit_code, files: record.entries.len(), chunks: record.chunks, bytes: record.bytes }
    }
}

impl fmt::Display for OptimizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(run) = &self.rehearsal {
            let kib = run.bytes.div_ceil(1024);
            writeln!(
                f,
                "{} files are first, {} chunks of {kib} KiB; ended by {}",
                run.files, run.chunks, run.ended_by
            )?;
        }
        self.conversion.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_platform_is_run_if_it_is_wanted() {
        let spec = |text: &str| text.parse::<PlatformSpec>().unwrap();
        let here = PlatformSpec::here();
        let other = if here == spec("linux/arm64") { spec("linux/amd64") } else { spec("linux/arm64") };
        assert_eq!(which(&[]), here);
        assert_eq!(which(&[other.clone(), here.clone()]), here);
        assert_eq!(which(std::slice::from_ref(&other)), other);
    }

    #[test]
    fn a_variable_without_a_value_has_the_one_from_here() {
        assert_eq!(with_value("A=1".to_owned()).as_deref(), Some("A=1"));
        assert_eq!(with_value("A=".to_owned()).as_deref(), Some("A="));
        let path = std::env::var("PATH").unwrap();
        assert_eq!(with_value("PATH".to_owned()), Some(format!("PATH={path}")));
        assert_eq!(with_value("NOBODY_HAS_THIS_VARIABLE".to_owned()), None);
    }
}
