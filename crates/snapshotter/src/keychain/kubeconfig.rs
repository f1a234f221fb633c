//! How a cluster's API server is reached: what `kubectl` reads, as far as a daemon can follow it.
//!
//! The current context's cluster and user: CA, client certificate, token (in the file, or in one of its own), password,
//! and programs that give a token or a certificate (`exec`), which cloud providers' nodes have. In a pod without a
//! kubeconfig: the service account. Everything is read anew for each connection, because certificates and tokens are
//! renewed in place.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use serde::Deserialize;
use url::Url;

/// A file longer than this is no kubeconfig.
const MAX: u64 = 4 << 20;
/// A program that gives a token may ask a cloud's API.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error("reading {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("there is no kubeconfig: set kubeconfig_keychain.kubeconfig_path")]
    Nowhere,
    #[error("{0} is no kubeconfig that can be followed: {1}")]
    Wrong(PathBuf, String),
    #[error("{0}, which gives credentials for the cluster: {1}")]
    Exec(String, String),
    #[error("cannot make a client: {0}")]
    Client(String),
}

/// A way to the API server.
pub(super) struct Access {
    pub(super) server: Url,
    pub(super) client: reqwest::Client,
    /// Sent with each request.
    pub(super) headers: HeaderMap,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named<ClusterEntry>>,
    contexts: Vec<Named<ContextEntry>>,
    users: Vec<Named<UserEntry>>,
}

/// A list entry: its name, and what it is called by in its list.
#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: Option<T>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ContextEntry {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "kebab-case", default)]
struct ClusterEntry {
    server: String,
    certificate_authority: PathBuf,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    proxy_url: String,
    tls_server_name: String,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "kebab-case", default)]
struct UserEntry {
    client_certificate: PathBuf,
    client_certificate_data: String,
    client_key: PathBuf,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: PathBuf,
    username: String,
    password: String,
    exec: Option<Exec>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
struct Exec {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
}

#[derive(Deserialize, Clone)]
struct Variable {
    name: String,
    value: String,
}

/// What an `exec` program prints.
#[derive(Deserialize)]
struct ExecCredential {
    status: ExecStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ExecStatus {
    token: String,
    client_certificate_data: String,
    client_key_data: String,
}

impl Access {
    /// Reads the file that is named, or finds the one that `kubectl` would take.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(super) async fn load(path: Option<&Path>) -> Result<Self, AccessError> {
        let path = match path {
            Some(path) => Some(path.to_owned()),
            None => usual(),
        };
        let Some(path) = path else { return in_a_pod() };
        let text = read(&path)?;
        let text = String::from_utf8_lossy(&text);
        let (cluster, user) = parse(&text).map_err(|reason| AccessError::Wrong(path.clone(), reason))?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        connect(&path, &folder, cluster, user).await
    }
}

/// `$KUBECONFIG`, else the one in the home directory.
fn usual() -> Option<PathBuf> {
    let listed = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty());
    if let Some(list) = listed {
        return std::env::split_paths(&list).find(|path| path.exists());
    }
    let home = std::env::var_os("HOME")?;
    Some(Path::new(&home).join(".kube/config")).filter(|path| path.exists())
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    let failed = |error| AccessError::Read(path.to_owned(), error);
    if std::fs::metadata(path).map_err(failed)?.len() > MAX {
        return Err(AccessError::Wrong(path.to_owned(), "it is too long".into()));
    }
    std::fs::read(path).map_err(failed)
}

fn parse(text: &str) -> Result<(ClusterEntry, UserEntry), String> {
    // What the parser says could quote a secret.
    let config: Kubeconfig =
        serde_saphyr::from_str(text).map_err(|_| "it is not YAML of that form".to_owned())?;
    let name = &config.current_context;
    let context = find(&config.contexts, name).ok_or_else(|| format!("it has no context {name:?}"))?;
    let cluster = find(&config.clusters, &context.cluster)
        .ok_or_else(|| format!("it has no cluster {:?}", context.cluster))?;
    let user = find(&config.users, &context.user).cloned().unwrap_or_default();
    if !cluster.tls_server_name.is_empty() {
        return Err("tls-server-name cannot be followed".into());
    }
    Ok((cluster.clone(), user))
}

fn find<'a, T>(list: &'a [Named<T>], name: &str) -> Option<&'a T> {
    list.iter().find(|entry| entry.name == name)?.value.as_ref()
}

async fn connect(
    path: &Path,
    folder: &Path,
    cluster: ClusterEntry,
    user: UserEntry,
) -> Result<Access, AccessError> {
    let wrong = |reason: &str| AccessError::Wrong(path.to_owned(), reason.to_owned());
    let server = Url::parse(&cluster.server).map_err(|_| wrong("the cluster's server is no URL"))?;
    let data = |text: &str, file: &Path, what: &str| {
        if !text.is_empty() {
            return STANDARD.decode(text.trim()).map(Some).map_err(|_| wrong(what));
        }
        if file.as_os_str().is_empty() { Ok(None) } else { read(&folder.join(file)).map(Some) }
    };
    let authority = data(
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
        "certificate-authority-data is not base64",
    )?;
    let mut certificate = data(
        &user.client_certificate_data,
        &user.client_certificate,
        "client-certificate-data is not base64",
    )?;
    let mut key = data(&user.client_key_data, &user.client_key, "client-key-data is not base64")?;
    let mut token = user.token.clone();
    if token.is_empty() && !user.token_file.as_os_str().is_empty() {
        let file = read(&folder.join(&user.token_file))?;
        String::from_utf8_lossy(&file).trim().clone_into(&mut token);
    }
    if let Some(exec) = user.exec.as_ref().filter(|_| token.is_empty() && certificate.is_none()) {
        let given = run(exec, folder).await?;
        token = given.token;
        if !given.client_certificate_data.is_empty() {
            certificate = Some(given.client_certificate_data.into_bytes());
            key = Some(given.client_key_data.into_bytes());
        }
    }
    let identity =
        certificate.map(|certificate| [certificate, b"\n".to_vec(), key.unwrap_or_default()].concat());
    let mut headers = HeaderMap::new();
    let header = if !token.is_empty() {
        Some(format!("Bearer {token}"))
    } else if user.username.is_empty() {
        None
    } else {
        Some(format!("Basic {}", STANDARD.encode(format!("{}:{}", user.username, user.password))))
    };
    if let Some(header) = header {
        let mut value =
            HeaderValue::try_from(header).map_err(|_| wrong("a token that no header can carry"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let client = client(authority.as_deref(), identity.as_deref(), &cluster)?;
    Ok(Access { server, client, headers })
}

fn client(
    authority: Option<&[u8]>,
    identity: Option<&[u8]>,
    cluster: &ClusterEntry,
) -> Result<reqwest::Client, AccessError> {
    // The binary has done this already; the second time is no error.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let failed = |what: &'static str| move |_: reqwest::Error| AccessError::Client(what.to_owned());
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("pantala/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_danger_accept_invalid_certs(cluster.insecure_skip_tls_verify);
    if let Some(pem) = authority {
        let roots = reqwest::Certificate::from_pem_bundle(pem);
        builder = builder.tls_certs_only(roots.map_err(failed("the cluster's CA is no PEM certificate"))?);
    }
    if let Some(pem) = identity {
        let identity = reqwest::Identity::from_pem(pem);
        builder = builder
            .identity(identity.map_err(failed("the user's certificate and key are no PEM, or encrypted"))?);
    }
    if !cluster.proxy_url.is_empty() {
        let proxy = reqwest::Proxy::all(&cluster.proxy_url);
        builder = builder.proxy(proxy.map_err(failed("proxy-url is no URL"))?);
    }
    builder.build().map_err(|error| AccessError::Client(error.to_string()))
}

/// Runs an `exec` program by the protocol of kubectl's.
async fn run(exec: &Exec, folder: &Path) -> Result<ExecStatus, AccessError> {
    let failed = |reason: String| AccessError::Exec(exec.command.clone(), reason);
    // As kubectl: a path is meant from where the file is, a bare name is searched for.
    let program =
        if exec.command.contains('/') { folder.join(&exec.command) } else { PathBuf::from(&exec.command) };
    let info = serde_json::json!({
        "kind": "ExecCredential", "apiVersion": exec.api_version, "spec": {"interactive": false},
    });
    let mut command = tokio::process::Command::new(program);
    command.args(exec.args.iter().flatten()).env("KUBERNETES_EXEC_INFO", info.to_string());
    for Variable { name, value } in exec.env.iter().flatten() {
        command.env(name, value);
    }
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(EXEC_TIMEOUT, command.output())
        .await
        .map_err(|_| failed(format!("no answer within {} s", EXEC_TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    let given: Result<ExecCredential, _> = serde_json::from_slice(&output.stdout);
    Ok(given.map_err(|_| failed("its answer is no ExecCredential".into()))?.status)
}

/// What a pod without a kubeconfig has.
fn in_a_pod() -> Result<Access, AccessError> {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"))
    else {
        return Err(AccessError::Nowhere);
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let server = Url::parse(&format!("https://{host}:{port}/")).map_err(|_| AccessError::Nowhere)?;
    let folder = Path::new(SERVICE_ACCOUNT);
    let token = String::from_utf8_lossy(&read(&folder.join("token"))?).trim().to_owned();
    let mut headers = HeaderMap::new();
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| AccessError::Nowhere)?;
    value.set_sensitive(true);
    headers.insert(AUTHORIZATION, value);
    let authority = read(&folder.join("ca.crt"))?;
    Ok(Access { server, client: client(Some(&authority), None, &ClusterEntry::default())?, headers })
}

/// For the fuzz target.
#[doc(hidden)]
pub fn fuzz_kubeconfig(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r"
apiVersion: v1
kind: Config
current-context: admin@lab
clusters:
- name: lab
  cluster:
    server: https://10.0.0.3:6443
    certificate-authority: pki/ca.crt
- name: other
  cluster: {server: https://other.example}
contexts:
- name: admin@lab
  context: {cluster: lab, user: admin, namespace: default}
- name: lost
  context: {cluster: nowhere, user: admin}
users:
- name: admin
  user:
    token: canary
    tokenFile: token
preferences: {}
";

    #[test]
    fn the_current_contexts_cluster_and_user_are_taken() {
        let (cluster, user) = parse(FILE).unwrap();
        assert_eq!(cluster.server, "https://10.0.0.3:6443");
        assert_eq!(cluster.certificate_authority, Path::new("pki/ca.crt"));
        assert_eq!((user.token.as_str(), user.token_file.to_str()), ("canary", Some("token")));
    }

    #[test]
    fn what_is_wrong_is_told_without_its_secrets() {
        for (text, word) in [
            (FILE.replace("current-context: admin@lab", "current-context: gone"), "gone"),
            (FILE.replace("current-context: admin@lab", "current-context: lost"), "nowhere"),
            (FILE.replace("token: canary", "token: [canary]"), "form"),
            ("{".to_owned(), "form"),
        ] {
            let error = parse(&text).err().unwrap();
            assert!(error.contains(word) && !error.contains("canary"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_program_gives_the_token() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("give");
        let script = "#!/bin/sh\ncase \"$KUBERNETES_EXEC_INFO\" in *ExecCredential*) ;; *) exit 1;; esac\n\
                      echo \"{\\\"status\\\": {\\\"token\\\": \\\"$1-$EXTRA\\\"}}\"\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let user =
            "user: {exec: {apiVersion: v1, command: ./give, args: [to], env: [{name: EXTRA, value: x}]}}";
        let text = FILE.replace("  user:\n    token: canary\n    tokenFile: token\n", &format!("  {user}\n"));
        let text = text.replace("    certificate-authority: pki/ca.crt\n", "");
        std::fs::write(dir.path().join("config"), text).unwrap();
        let access = Access::load(Some(&dir.path().join("config"))).await.unwrap();
        assert_eq!(access.headers[AUTHORIZATION], "Bearer to-x");
        assert!(!format!("{:?}", access.headers).contains("to-x"));
    }
}
