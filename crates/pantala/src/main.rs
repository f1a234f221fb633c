//! `pantala`: starts containers before their image has arrived, and makes a whole cluster fetch every
//! byte from the registry once.
//!
//! This crate is the binary: command line ([`cli`]), configuration files ([`config`]) and the assembly of
//! processes ([`node`], [`commands`]). It has no logic of its own.

mod admin;
mod cli;
mod commands;
mod config;
mod faces;
mod failure;
mod node;
mod out;
mod ports;
mod status;
mod supervised;
mod unix;
mod watchdog;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use cli::stargz::{self, Asked};
use cli::{Cli, Command, ImageCommand};

/// Returns memory to the system sooner than the C library's allocator, at a tenth of jemalloc's build time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match stargz::asked(std::env::args_os()) {
        None => Cli::parse(),
        Some(Asked::Serve(args)) => Cli { command: Command::Snapshotter(*args) },
        Some(Asked::Version) => return printed(&stargz::version(), ExitCode::SUCCESS),
        Some(Asked::Help) => return printed(&stargz::help(), ExitCode::SUCCESS),
        Some(Asked::Wrong(what)) => {
            let _ = write!(std::io::stderr(), "{what}\n{}", stargz::help());
            return ExitCode::from(2);
        }
    };
    // The one crypto provider of the process; nothing else is compiled in.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = failure::text(&error);
            if !text.is_empty() {
                // Standard error may be closed; there is nobody left to tell then.
                let _ = writeln!(std::io::stderr(), "pantala: {text}");
            }
            let stopped = error.downcast_ref().map(commands::image::Stopped::exit_code);
            let exit = error.downcast_ref().map(failure::Exit::code);
            stopped.or(exit).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn printed(text: &str, code: ExitCode) -> ExitCode {
    if out::print(text).is_ok() { code } else { ExitCode::FAILURE }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Command::Completion { shell } = cli.command {
        return commands::completion(shell);
    }
    // Both of these want a process with one thread.
    if let Command::Keeper(args) = cli.command {
        return commands::keeper::run(args);
    }
    if let Command::Image(ImageCommand::Optimize(args)) = &cli.command {
        commands::image::hide_mounts(args);
    }
    if let Some(service) = supervised::service(&cli.command) {
        return service.supervise();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(lazyfs::memory::at_rest)
        .build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Image(ImageCommand::Pull(args)) => commands::image::pull(*args).await,
            Command::Image(ImageCommand::Convert(args)) => commands::image::convert(*args).await,
            Command::Image(ImageCommand::Optimize(args)) => commands::image::optimize(*args).await,
            Command::Image(ImageCommand::Inspect(args)) => commands::image::inspect(*args).await,
            Command::Image(ImageCommand::Verify(args)) => commands::image::verify(*args).await,
            Command::Image(ImageCommand::TocDigest(args)) => commands::image::toc_digest(*args).await,
            Command::Image(ImageCommand::Diff(args)) => commands::image::diff(*args).await,
            Command::Snapshotter(args) => commands::snapshotter::run(args).await,
            Command::Scheduler(args) => commands::scheduler::run(args).await,
            Command::Node(args) => commands::node::run(args).await,
            Command::Up(args) => commands::up::run(args).await,
            Command::Status(args) => commands::status::run(args).await,
            Command::Completion { .. } | Command::Keeper(_) => Ok(()),
        }
    });
    // Blocking work that nobody waits for any more (a read of a dead disk) must not hold the exit back.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
