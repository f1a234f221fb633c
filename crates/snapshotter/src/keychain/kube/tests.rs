//! Against an API server that lists in pages, watches, forgets, refuses and goes away.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;

type Answer = http::Response<BoxBody<Bytes, std::convert::Infallible>>;

/// What the fake server has, and was asked.
#[derive(Default)]
struct Server {
    pages: Mutex<Vec<String>>,
    watches: Mutex<VecDeque<mpsc::Receiver<String>>>,
    asked: Mutex<Vec<String>>,
    refuses: std::sync::atomic::AtomicBool,
}

impl Server {
    async fn start() -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Self::default());
        let answering = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let server = Arc::clone(&answering);
                let service = service_fn(move |request| {
                    let server = Arc::clone(&server);
                    async move { Ok::<_, std::convert::Infallible>(server.answer(&request)) }
                });
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        (server, address)
    }

    fn answer(&self, request: &http::Request<Incoming>) -> Answer {
        let full = |text: String| Full::new(Bytes::from(text)).boxed();
        let answer = |status: u16, body| http::Response::builder().status(status).body(body).unwrap();
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.asked.lock().unwrap().push(query.clone());
        let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap());
        if self.refuses.load(std::sync::atomic::Ordering::SeqCst) || authorization != Some("Bearer token") {
            return answer(403, full("{}".into()));
        }
        assert_eq!(request.uri().path(), "/api/v1/secrets");
        assert!(query.contains("fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson"), "{query}");
        if !query.contains("watch=1") {
            let page = query.split_once("continue=p").map_or(0, |(_, number)| number[..1].parse().unwrap());
            return answer(200, full(self.pages.lock().unwrap()[page].clone()));
        }
        let Some(events) = self.watches.lock().unwrap().pop_front() else {
            return answer(200, full(String::new()));
        };
        let events = futures::stream::unfold(events, |mut events| async {
            let line = events.recv().await?;
            Some((Ok(Frame::data(Bytes::from(line))), events))
        });
        answer(200, BodyExt::boxed(StreamBody::new(events)))
    }

    /// What the next watch will say.
    fn next_watch(&self) -> mpsc::Sender<String> {
        let (sender, receiver) = mpsc::channel(8);
        self.watches.lock().unwrap().push_back(receiver);
        sender
    }
}

fn secret(namespace: &str, name: &str, host: &str, user: &str, version: u32) -> String {
    let config = format!(r#"{{"auths": {{"{host}": {{"username": "{user}", "password": "p"}}}}}}"#);
    format!(
        r#"{{"metadata": {{"namespace": "{namespace}", "name": "{name}", "resourceVersion": "{version}"}},
            "type": "{TYPE}", "data": {{"{DATA}": "{}"}}}}"#,
        STANDARD.encode(config)
    )
}

fn list(items: &[String], version: u32, next: &str) -> String {
    let items = items.join(",");
    format!(r#"{{"metadata": {{"resourceVersion": "{version}", "continue": "{next}"}}, "items": [{items}]}}"#)
}

fn event(kind: &str, object: &str) -> String {
    format!("{}\n", format!(r#"{{"type": "{kind}", "object": {object}}}"#).replace('\n', " "))
}

fn kubeconfig(dir: &Path, address: SocketAddr) -> PathBuf {
    let path = dir.join("kubeconfig");
    let text = format!(
        "current-context: c\nclusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::write(dir.join("token"), "token\n").unwrap();
    path
}

async fn users(keychain: &KubeKeychain, registry: &str) -> Vec<String> {
    let found = keychain.find(&Asked { registry, repository: Some("a") }).await.unwrap();
    let name = |credential| match credential {
        Credential::Password { username, .. } => username,
        other => panic!("{other:?}"),
    };
    found.into_iter().map(name).collect()
}

async fn until(keychain: &KubeKeychain, registry: &str, expected: &[&str]) {
    for _ in 0..500 {
        if users(keychain, registry).await == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{registry}: {:?}, not {expected:?}", users(keychain, registry).await);
}

#[tokio::test]
async fn secrets_are_listed_in_pages_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    let broken = r#"{"metadata": {"namespace": "b", "name": "broken"}, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}"#;
    *server.pages.lock().unwrap() = vec![
        list(&[secret("a", "one", "r.example", "one", 1), broken.to_owned()], 5, "p1"),
        list(&[secret("b", "two", "https://two.example/v1/", "two", 2)], 5, ""),
    ];
    let events = server.next_watch();
    let path = kubeconfig(dir.path(), address);
    let keychain = Arc::new(KubeKeychain::new(Some(path)));
    let stop = CancellationToken::new();
    let (watching, stopping) = (Arc::clone(&keychain), stop.clone());
    let task = tokio::spawn(async move { watching.watch(&stopping).await });

    // A lookup just after the start waits for the first list.
    assert_eq!(users(&keychain, "r.example").await, ["one"]);
    assert_eq!(users(&keychain, "two.example").await, ["two"]);

    let changed = event("MODIFIED", &secret("a", "one", "r.example", "uno", 6));
    let (first, second) = changed.split_at(changed.len() / 2);
    events.send(first.to_owned()).await.unwrap();
    events.send(second.to_owned()).await.unwrap();
    until(&keychain, "r.example", &["uno"]).await;
    events.send(event("DELETED", &secret("b", "two", "two.example", "two", 7))).await.unwrap();
    events.send(event("BOOKMARK", r#"{"metadata": {"resourceVersion": "9"}}"#)).await.unwrap();
    until(&keychain, "two.example", &[]).await;

    // The server ends the watch: it is gone on with from where it was, without a list.
    let next = server.next_watch();
    drop(events);
    next.send(event("ADDED", &secret("c", "three", "three.example", "three", 10))).await.unwrap();
    until(&keychain, "three.example", &["three"]).await;
    assert!(server.asked.lock().unwrap().last().unwrap().contains("resourceVersion=9"));

    // It has forgotten that version: everything is listed again.
    *server.pages.lock().unwrap() = vec![list(&[secret("d", "four", "four.example", "four", 20)], 20, "")];
    let last = server.next_watch();
    next.send(event("ERROR", r#"{"kind": "Status", "code": 410}"#)).await.unwrap();
    until(&keychain, "four.example", &["four"]).await;
    until(&keychain, "r.example", &[]).await;

    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    drop(last);
}

#[tokio::test]
async fn what_is_known_stays_known_while_the_server_refuses_and_a_late_kubeconfig_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    *server.pages.lock().unwrap() = vec![list(&[secret("a", "one", "r.example", "one", 1)], 5, "")];
    let keychain = Arc::new(KubeKeychain::new(Some(dir.path().join("kubeconfig"))));
    let stop = CancellationToken::new();
    let (watching, stopping) = (Arc::clone(&keychain), stop.clone());
    let task = tokio::spawn(async move { watching.watch(&stopping).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let events = server.next_watch();
    kubeconfig(dir.path(), address);
    until(&keychain, "r.example", &["one"]).await;

    server.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    drop(events);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(users(&keychain, "r.example").await, ["one"]);
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
}

#[test]
fn nothing_of_a_secret_is_in_a_message() {
    let keychain = KubeKeychain::new(None);
    for line in [
        r#"{"type": "ADDED", "object": {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": 7, "x": "canary"}}}"#,
        r#"{"type": "ADDED", "object": "canary"}"#,
        "canary",
    ] {
        let error = keychain.event(line.as_bytes()).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }
    assert!(!format!("{keychain:?}").contains("secrets"));
}
