//! `pantala up`: scheduler, seed, proxy and snapshotter of one machine in one process.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use identity::JoinToken;
use rand::TryRng;
use scheduler::{SchedulerConfig, SchedulerSecurity};

use super::node::{DEFAULT_BUDGET, machine_name, plain_host};
use crate::admin::SOCKET_NAME;
use crate::cli::UpArgs;
use crate::node::{self, Registries, Settings, SnapshotterSettings};
use crate::out;
use crate::ports;

/// Runs until a signal.
pub async fn run(args: UpArgs) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    telemetry::init_logs(&args.log_level, telemetry::LogFormat::detect())?;
    snapshotter::check_host()?;
    let root = &args.root;
    std::fs::create_dir_all(root)
        .with_context(|| format!("cannot make the directory {}, choose another --root", root.display()))?;
    let token = join_token(&root.join("join-token"))?;
    let advertise = args.advertise_ip;
    // Nobody else can reach a node that is only known as loopback, so nobody else is let in.
    let listen_on = if advertise.is_loopback() { advertise } else { [0, 0, 0, 0].into() };

    let listener = ports::bind((listen_on, args.scheduler_port).into(), "the scheduler", "--scheduler-port")?;
    let shutdown = ports::shutdown_on_signal()?;
    let scheduler_dir = root.join("scheduler");
    std::fs::create_dir_all(&scheduler_dir)
        .with_context(|| format!("cannot make the directory {}", scheduler_dir.display()))?;
    let scheduler_stop = tokio_util::sync::CancellationToken::new();
    let serving = scheduler::serve(
        listener,
        SchedulerConfig { data_dir: scheduler_dir, security: SchedulerSecurity::Token(token.clone()) },
        scheduler_stop.clone(),
    );
    let all = shutdown.clone();
    let scheduling = tokio::spawn(async move {
        let ended = serving.await;
        if ended.is_err() {
            all.cancel();
        }
        ended
    });

    let mut config = match &args.config {
        Some(path) => super::snapshotter::load(Some(path))?,
        None => snapshotter::Config::default(),
    };
    config.driver = args.driver.unwrap_or(config.driver);
    let socket = args.address.clone().unwrap_or_else(|| root.join("snapshotter.sock"));
    let mut registries = Registries {
        plain_http: args.registries.plain_http.clone(),
        docker_config: args.registries.docker_config.clone(),
        ..Registries::default()
    }
    .with_lazy(&config, args.proxy_port);
    registries.plain_http.extend(plain_host(&args.registry));
    let mut rules = proxy::ProxyConfig::default();
    rules.registry_mirror.url.clone_from(&args.registry);
    let settings = Settings {
        data_dir: root.clone(),
        hostname: machine_name(),
        advertise,
        idc: String::new(),
        location: String::new(),
        seed: true,
        schedulers: vec![std::net::SocketAddr::from((advertise, args.scheduler_port)).to_string()],
        token: Some(token),
        pieces: (listen_on, args.piece_port).into(),
        health: (listen_on, args.health_port).into(),
        proxy: (listen_on, args.proxy_port).into(),
        port_keys: node::PortKeys { pieces: "--piece-port", health: "--health-port", proxy: "--proxy-port" },
        budget: DEFAULT_BUDGET,
        rules,
        registries,
        snapshotter: Some(SnapshotterSettings {
            address: socket.clone(),
            root: root.join("snapshotter"),
            config,
        }),
    };
    let welcome = welcome(&args, &socket);
    let ended = node::run(settings, shutdown, move || {
        if let Err(error) = out::print(format!("ready in {} ms\n{welcome}\n", started.elapsed().as_millis()))
        {
            tracing::warn!("{error:#}");
        }
    })
    .await;
    // Last: nodes say goodbye to a scheduler that still listens.
    scheduler_stop.cancel();
    scheduling.await.context("the scheduler broke off")??;
    ended
}

fn welcome(args: &UpArgs, socket: &Path) -> String {
    use std::fmt::Write as _;

    let mut text = format!(
        "  snapshotter  {}\n  proxy        http://{}:{} (registry mirror of {})\n  status       pantala status --socket {}\n",
        socket.display(),
        args.advertise_ip,
        args.proxy_port,
        args.registry,
        args.root.join(SOCKET_NAME).display()
    );
    if !args.advertise_ip.is_loopback() {
        let _ = writeln!(
            text,
            "  join         scheduler.netAddrs {}:{} with the token in {}",
            args.advertise_ip,
            args.scheduler_port,
            args.root.join("join-token").display()
        );
    }
    text.push_str("Ctrl-C stops it and leaves nothing mounted");
    text
}

/// The token of this machine's cluster, made at the first start.
fn join_token(path: &Path) -> anyhow::Result<JoinToken> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0_u8; 32];
            rand::rngs::SysRng.try_fill_bytes(&mut secret).context("the system has no randomness")?;
            let text = secret.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            // First whole, then in its place: half a token would be a wrong one for ever.
            let draft = path.with_extension("new");
            let written = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .and_then(|()| std::fs::rename(&draft, path));
            written.with_context(|| format!("cannot write {}", path.display()))?;
            text
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    text.trim()
        .parse()
        .map_err(anyhow::Error::from)
        .with_context(|| format!("{} holds no join token", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_only_root_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join-token");
        join_token(&path).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        join_token(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
    }
}
