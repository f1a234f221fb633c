//! The built binary as its operator meets it: what it prints, and with which exit code. Every failure must
//! say what to do. No network but loopback; what needs Debian's `docker-registry` is skipped without it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail where it stands")]

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Patience for a process that starts; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A run of `pantala` that ended.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn says(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pantala"));
    command.env_remove("PANTALA_JOIN_TOKEN").env("DOCKER_CONFIG", "/nonexistent");
    command
}

fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

fn pantala(args: &[&str]) -> Ran {
    ran(command().args(args))
}

/// A process that is killed when the test ends.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A node's file that names a scheduler nobody runs.
fn node_file(dir: &Path, ports: [u16; 3]) -> String {
    let [pieces, proxy, health] = ports;
    format!(
        "dataDir: {}\nscheduler: {{netAddrs: [{{type: tcp, addr: \"127.0.0.1:1\"}}]}}\nhost: {{advertiseIP: 127.0.0.1}}\n\
         security: {{joinToken: 0123456789abcdef}}\nupload: {{tcpListen: {{listen: 127.0.0.1, port: {pieces}}}}}\n\
         proxy: {{tcpListen: {{listen: 127.0.0.1, port: {proxy}}}}}\nhealth: {{tcpListen: {{listen: 127.0.0.1, port: {health}}}}}\n",
        dir.join("data").display()
    )
}

#[test]
fn wrong_usage_is_two_and_says_what_is_right() {
    pantala(&["image", "inspect", "App:1"]).says(2, &["\"App\"", "lower-case"]);
    pantala(&["image", "inspect", "https://r.example/app"]).says(2, &["without https://"]);
    pantala(&["image", "convert", "a", "b", "--chunk-size", "8Gi"]).says(2, &["from 64Ki to 256Mi"]);
    pantala(&["image", "convert", "a", "b", "--platform", "x"]).says(2, &["linux/arm64"]);
    pantala(&["snapshotter", "--log-level", "verbos"])
        .says(2, &["use trace, debug, info, warn, error, fatal or panic"]);
    pantala(&["up", "--registry", "foo"]).says(2, &["https://host"]);
    pantala(&["nosuch"]).says(2, &["unrecognized subcommand"]);
}

#[test]
fn help_has_examples_and_the_completion_script_loads() {
    for args in [&["--help"][..], &["image", "convert", "--help"], &["node", "--help"], &["up", "--help"]] {
        let help = pantala(args);
        assert_eq!(help.code, Some(0));
        assert!(help.stdout.contains("Examples:"), "{args:?}: {}", help.stdout);
    }
    let script = pantala(&["completion", "bash"]).stdout;
    let mut shell = Command::new("bash");
    let loads =
        shell.args(["--norc", "-c", "source /dev/stdin && complete -p pantala"]).stdin(Stdio::piped());
    let mut shell = loads.stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

#[test]
fn output_that_nobody_reads_is_no_failure_and_a_full_disk_is() {
    let mut child =
        command().args(["completion", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = command().args(["completion", "bash"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("free some space"));
}

#[test]
fn a_dead_registry_is_told_once_with_what_to_do() {
    let host = format!("127.0.0.1:{}", free_port());
    let told = pantala(&["image", "inspect", &format!("{host}/app:1")]);
    told.says(1, &["cannot talk to", &host, "is the registry running"]);
    assert_eq!(told.stderr.matches("refused").count(), 1, "{}", told.stderr);
    pantala(&["image", "inspect", "--docker-config", "/nonexistent", &format!("{host}/app:1")])
        .says(1, &["--docker-config /nonexistent", "docker login"]);
}

#[test]
fn a_wrong_file_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    pantala(&["node", "--config", &at("none.yaml")]).says(1, &["none.yaml", "pantala node --help"]);
    let file = node_file(dir.path(), [1, 2, 3]);
    let node = |name: &str, text: &str| {
        let path = write(dir.path(), name, text);
        pantala(&["node", "--config", &path.display().to_string()])
    };
    node("key.yaml", &(file.clone() + "uplod: {}\n")).says(1, &["key.yaml:8", "did you mean \"upload\"?"]);
    node("twice.yaml", &(file.clone() + "upload: {}\n"))
        .says(1, &["twice.yaml:8: duplicate mapping key: upload\n"]);
    node("token.yaml", &file.replace("joinToken: 0123456789abcdef", ""))
        .says(1, &["token.yaml", "openssl rand"]);
    node("url.yaml", &file.replace("127.0.0.1:1", "http://127.0.0.1:1")).says(1, &["as in 10.0.0.3:8002"]);
    let scheduler = write(dir.path(), "scheduler.yaml", "server: {port: 1}\n").display().to_string();
    pantala(&["scheduler", "--config", &scheduler]).says(1, &["scheduler.yaml", "security.joinToken"]);
    let toml = write(dir.path(), "bad.toml", "noprefetsch = true\n").display().to_string();
    pantala(&["snapshotter", "--config", &toml]).says(1, &["line 1", "did you mean noprefetch?"]);
    pantala(&["status", "--socket", &at("none.sock")]).says(1, &["none.sock", "pantala up"]);
}

/// A scheduler that is not there is no reason not to start; a second node on the same directory is.
#[test]
fn ports_and_directories_belong_to_one_node() {
    let dir = tempfile::tempdir().unwrap();
    let taken: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
    let keys = ["upload.tcpListen.port", "proxy.tcpListen.port", "health.tcpListen.port"];
    for (i, key) in keys.into_iter().enumerate() {
        let mut ports = [free_port(), free_port(), free_port()];
        ports[i] = taken[i].local_addr().unwrap().port();
        let config = write(dir.path(), "taken.yaml", &node_file(dir.path(), ports));
        pantala(&["node", "--config", &config.display().to_string()])
            .says(1, &["another process has that port", &format!("set {key}")]);
    }
    let config =
        write(dir.path(), "node.yaml", &node_file(dir.path(), [free_port(), free_port(), free_port()]));
    let mut first = command();
    first.arg("node").arg("--config").arg(&config).stderr(Stdio::null());
    let _first = Guard(first.spawn().unwrap());
    let socket = dir.path().join("data/pantala.sock").display().to_string();
    wait_for("the node without a scheduler", || pantala(&["status", "--socket", &socket]).code == Some(0));
    let status = pantala(&["status", "--socket", &socket]).stdout;
    assert!(status.contains("scheduler not connected"), "{status}");
    let second =
        write(dir.path(), "second.yaml", &node_file(dir.path(), [free_port(), free_port(), free_port()]));
    pantala(&["node", "--config", &second.display().to_string()])
        .says(1, &["another process answers", "its own dataDir"]);
}

#[test]
fn a_user_without_rights_is_told_which_ones_at_the_start() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to become somebody else");
        return;
    }
    // The build's directory may be closed to others.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = dir.path().join("pantala");
    std::fs::copy(env!("CARGO_BIN_EXE_pantala"), &binary).unwrap();
    for args in [["snapshotter", "--root", "/nonexistent"], ["up", "--root", "/nonexistent"]] {
        let mut nobody = Command::new(&binary);
        nobody.args(args).uid(65534).gid(65534);
        ran(&mut nobody).says(1, &["CAP_SYS_ADMIN", "/dev/fuse", "run it as root"]);
    }
}

/// `user:password`, hashed by `htpasswd -Bbn user password`.
const HTPASSWD: &str = "user:$2y$05$iAmpqTq53O9hHZmf3MZmNeRrSyTdf81iocNrP8UK1FD3BZ2hhQZ9i\n";

/// Debian's registry with a password, on loopback.
struct Registry {
    _process: Guard,
    host: String,
    dir: tempfile::TempDir,
}

fn registry() -> Option<Registry> {
    if Command::new("docker-registry").arg("--version").output().is_err() {
        eprintln!("skipped: needs docker-registry");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let users = write(dir.path(), "htpasswd", HTPASSWD);
    let host = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {host}}}\n\
         auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        dir.path().join("data").display(),
        users.display()
    );
    let config = write(dir.path(), "config.yml", &config);
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Guard(command.spawn().unwrap());
    wait_for("docker-registry", || std::net::TcpStream::connect(&host).is_ok());
    Some(Registry { _process: process, host, dir })
}

impl Registry {
    /// A Docker configuration with `auth`, the base64 of `user:password`.
    fn login(&self, auth: &str) -> String {
        let text = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{auth}\"}}}}}}", self.host);
        write(self.dir.path(), &format!("{auth}.json"), &text).display().to_string()
    }
}

#[test]
fn passwords_that_are_missing_or_wrong_are_told_apart() {
    let Some(registry) = registry() else { return };
    let image = format!("{}/app:1", registry.host);
    let login = format!("docker login {}", registry.host);
    pantala(&["image", "inspect", &image]).says(1, &["401", "there are no credentials", &login]);
    let wrong = registry.login("dXNlcjp3cm9uZw==");
    pantala(&["image", "inspect", &image, "--docker-config", &wrong])
        .says(1, &["401", "password is wrong", &login]);
    let right = registry.login("dXNlcjpwYXNzd29yZA==");
    pantala(&["image", "inspect", &image, "--docker-config", &right])
        .says(1, &["404", "check the repository"]);
}
