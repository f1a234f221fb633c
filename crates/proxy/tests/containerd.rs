//! Stock containerd pulls through the mirror with a `hosts.toml`, as users configure it.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../registry/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use common::{RealRegistry, image, noise};
use content::{Digest, DirectOpener};
use futures::StreamExt;
use proxy::{ProxyConfig, RegistryMirror};
use registry::{Client, ClientConfig, Reference, UpstreamRule, media_type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Containerd {
    child: Child,
    socket: String,
}

impl Containerd {
    /// `None`, with a word on standard error, if it is not installed.
    fn start(folder: &Path) -> Option<Self> {
        let socket = folder.join("containerd.sock").display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = {socket:?}\n",
            folder.join("root").display(),
            folder.join("state").display(),
        );
        let path = folder.join("config.toml");
        std::fs::write(&path, config).unwrap();
        let spawned = Command::new("containerd")
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => Some(Self { child, socket }),
            Err(error) => {
                eprintln!("SKIPPED: containerd does not start: {error}");
                None
            }
        }
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        Command::new("ctr").args(["--address", &self.socket]).args(arguments).output().unwrap()
    }

    /// Asks until it answers: its socket appears before it does.
    fn wait(&mut self) {
        for _ in 0..200 {
            if self.ctr(&["version"]).status.success() {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "containerd ended");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("containerd does not answer");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_containerd_pulls_through_the_mirror() {
    let Some(registry) = RealRegistry::start(false) else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(mut containerd) = Containerd::start(folder.path()) else { return };
    let layer = noise(2_000_000);
    let reference: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    let client = Client::new(ClientConfig::default()).unwrap();
    let (manifest, blobs) = image(&layer);
    for (digest, bytes) in blobs {
        let size = bytes.len() as u64;
        let make = move || futures::stream::iter([Ok(bytes.clone())]).boxed();
        client.push_blob(&reference, &digest, size, &make, None).await.unwrap();
    }
    client.push_manifest(&reference, media_type::OCI_MANIFEST, manifest).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ProxyConfig {
        registry_mirror: RegistryMirror { dynamic: false, ..ProxyConfig::default().registry_mirror },
        white_list: vec![UpstreamRule { host: Some("127.0.0.1".to_owned()), ..UpstreamRule::default() }],
        ..ProxyConfig::default()
    };
    let stop = CancellationToken::new();
    let counted = client.clone();
    let before = counted.usage();
    let serving = tokio::spawn(proxy::serve(listener, config, client, Arc::new(DirectOpener), stop.clone()));

    let hosts = folder.path().join("hosts");
    let host = hosts.join(&registry.host);
    std::fs::create_dir_all(&host).unwrap();
    // No server of last resort: what is not pulled through the mirror is not pulled.
    let toml = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    std::fs::write(host.join("hosts.toml"), toml).unwrap();
    let hosts = hosts.display().to_string();
    let name = reference.to_string();
    let (fetched, stored) = tokio::task::spawn_blocking(move || {
        containerd.wait();
        let fetched = containerd.ctr(&["content", "fetch", "--hosts-dir", &hosts, &name]);
        let stored = containerd.ctr(&["content", "get", &Digest::of(&layer).to_string()]);
        (fetched, (stored.stdout == layer, stored.stdout.len()))
    })
    .await
    .unwrap();
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    assert_eq!(stored, (true, 2_000_000));
    let bytes = counted.usage().bytes - before.bytes;
    assert!((2_000_000..2_010_000).contains(&bytes), "{bytes} bytes from the registry");
    stop.cancel();
    serving.await.unwrap().unwrap();
}
