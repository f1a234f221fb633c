//! Images of a real registry.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use convert::Place;
use serde_json::json;

use crate::common::{Copied, Desk, TAG, copy, place, sample};

/// A `docker-registry` that ends with the test.
struct Registry {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (process, address) = serve(dir.path(), "127.0.0.1:0")?;
        Some(Self { process, address, dir })
    }

    /// Kills it and starts it again at the same address.
    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = serve(self.dir.path(), &self.address).unwrap().0;
    }

    fn place(&self, name: &str) -> Place {
        place(&format!("{}/{name}", self.address))
    }

    /// Uploads of a repository that are open.
    fn open_uploads(&self, repository: &str) -> usize {
        let dir: PathBuf =
            self.dir.path().join("docker/registry/v2/repositories").join(repository).join("_uploads");
        // Of one that was taken back this registry keeps a directory without the data.
        let open = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().join("data").exists();
        std::fs::read_dir(dir).map_or(0, |uploads| uploads.map(open).filter(|open| *open).count())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(dir: &Path, address: &str) -> Option<(Child, String)> {
    let config = json!({
        "version": "0.1",
        "log": {"accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": dir}, "cache": {}},
        "http": {"addr": address},
    });
    let file = dir.join("config.yml");
    // JSON is YAML.
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::piped());
    let Ok(mut process) = command.spawn() else {
        println!("skipped: needs docker-registry (scripts/setup.sh test installs it)");
        return None;
    };
    let mut log = BufReader::new(process.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended before it listened");
        if let Some((_, rest)) = line.split_once("listening on ") {
            break rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
        }
    };
    // The pipe must not fill up.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Some((process, address))
}

#[tokio::test]
async fn an_image_goes_there_and_back() {
    let Some(registry) = Registry::start() else { return };
    let desk = Desk::new();
    // One blob of several chunks, one that goes in one piece.
    let image = sample(&[30_000_000, 10]);
    let at = registry.place(&format!("team/app:{TAG}"));
    let target = desk.target(&at).await;
    assert!(target.current().await.unwrap().is_none());
    assert!(target.manifest(&image.manifest.0).await.unwrap().is_none());
    image.put(&*target).await;
    image.is_at(&*desk.source(&at).await).await;
    assert_eq!(target.current().await.unwrap().unwrap().1, image.manifest.1);
    assert_eq!(target.manifest(&image.manifest.0).await.unwrap().unwrap(), image.manifest.1);
    // Without moving a byte: by being there, and by a mount.
    let source = desk.source(&at).await;
    let same = desk.target(&registry.place("team/app:other")).await;
    assert_eq!(copy(&*source, &*same).await.unwrap(), Copied { there: 3, ..Copied::default() });
    let mounted = desk.target(&registry.place("else/where:1")).await;
    assert_eq!(copy(&*source, &*mounted).await.unwrap(), Copied { adopted: 3, ..Copied::default() });
    let layout = desk.target(&desk.oci("layout", TAG)).await;
    assert_eq!(copy(&*source, &*layout).await.unwrap(), Copied { moved: 3, ..Copied::default() });
    image.is_at(&*desk.source(&desk.oci("layout", TAG)).await).await;
    // A sibling.
    let beside = target.sibling("-esgztoc").await.unwrap();
    assert_eq!(beside.place().to_string(), format!("{at}-esgztoc"));
    assert!(source.sibling("-esgztoc").await.unwrap().is_none());
    sample(&[5]).put(&*beside).await;
    assert!(source.sibling("-esgztoc").await.unwrap().is_none(), "it has its name before the image has");
    image.put(&*target).await;
    sample(&[5]).is_at(&*source.sibling("-esgztoc").await.unwrap().unwrap()).await;
    assert_eq!((registry.open_uploads("team/app"), registry.open_uploads("else/where")), (0, 0));
    assert_eq!(std::fs::read_dir(desk.path("tmp")).unwrap().count(), 0);
    let digest = registry.place(&format!("team/app@{}", image.manifest.0.digest));
    assert!(desk.places.target(&digest).await.unwrap_err().to_string().contains("give it a tag"));
    image.is_at(&*desk.source(&digest).await).await;
}

#[tokio::test]
async fn an_upload_survives_a_registry_that_is_killed() {
    let Some(mut registry) = Registry::start() else { return };
    let desk = Desk::new();
    let image = sample(&[50_000_000]);
    let at = registry.place(&format!("team/app:{TAG}"));
    let target = desk.target(&at).await;
    target.check().await.unwrap();
    let (layer, diff_id, bytes) = &image.layers[0];
    let mut writer = target.begin().await.unwrap();
    for (number, part) in bytes.chunks(1_000_000).enumerate() {
        writer.write(bytes::Bytes::copy_from_slice(part)).await.unwrap();
        if number == 30 {
            // The first chunks are there by now, or under way.
            while registry.open_uploads("team/app") == 0 {
                tokio::task::yield_now().await;
            }
            registry.restart();
        }
    }
    writer.commit(layer, Some(diff_id)).await.unwrap();
    target.put_blob(&image.config.0, image.config.1.clone()).await.unwrap();
    target.name(&image.manifest.0, image.manifest.1.clone()).await.unwrap();
    image.is_at(&*desk.source(&at).await).await;
}

#[tokio::test]
async fn uploads_that_are_given_up_are_taken_back() {
    let Some(registry) = Registry::start() else { return };
    let desk = Desk::new();
    let image = sample(&[20_000_000]);
    let (layer, _, bytes) = &image.layers[0];
    for dropped in [true, false] {
        let target = desk.target(&registry.place("team/app:1")).await;
        let mut writer = target.begin().await.unwrap();
        writer.write(bytes.clone()).await.unwrap();
        while registry.open_uploads("team/app") == 0 {
            tokio::task::yield_now().await;
        }
        if dropped {
            drop(writer);
        } else {
            writer.abort().await;
        }
        target.abandon().await;
        assert_eq!(registry.open_uploads("team/app"), 0);
        assert!(!target.has(layer).await.unwrap());
    }
    // Not what was announced.
    let target = desk.target(&registry.place("team/app:1")).await;
    let mut writer = target.begin().await.unwrap();
    writer.write(bytes.slice(1..)).await.unwrap();
    assert!(writer.commit(layer, None).await.is_err());
    target.abandon().await;
    assert_eq!(registry.open_uploads("team/app"), 0);
    // Two bring the same blob: the second has nothing to do.
    let (left, right) =
        (desk.target(&registry.place("team/app:1")).await, desk.target(&registry.place("team/app:2")).await);
    let (mut first, mut second) = (left.begin().await.unwrap(), right.begin().await.unwrap());
    first.write(bytes.clone()).await.unwrap();
    second.write(bytes.clone()).await.unwrap();
    first.commit(layer, None).await.unwrap();
    second.commit(layer, None).await.unwrap();
    assert!(right.has(layer).await.unwrap());
    assert_eq!(registry.open_uploads("team/app"), 0);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_an_error_before_the_work() {
    let desk = Desk::new();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let at = place(&format!("{closed}/team/app:1"));
    assert!(desk.target(&at).await.check().await.is_err());
    assert!(!desk.source(&at).await.root().await.unwrap_err().is_not_found());
}

/// A registry that opens uploads and never ends one. Tells of each request by its method.
async fn never_ending() -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut stream = tokio::io::BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.is_ok_and(|len| len > 0) {
                    let method = line.split(' ').next().unwrap().to_owned();
                    while line.trim() != "" {
                        line.clear();
                        stream.read_line(&mut line).await.unwrap();
                    }
                    line.clear();
                    let answer = match method.as_str() {
                        "POST" => "202 Accepted\r\nLocation: /v2/team/app/blobs/uploads/1",
                        "DELETE" => "204 No Content",
                        _ => "404 Not Found",
                    };
                    let ends = method != "PUT";
                    tell.send(method).unwrap();
                    if !ends {
                        std::future::pending::<()>().await;
                    }
                    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn an_upload_whose_end_nobody_waits_for_is_taken_back() {
    let (address, mut told) = never_ending().await;
    let desk = Desk::new();
    let image = sample(&[1000]);
    let target = desk.target(&place(&format!("{address}/team/app:1"))).await;
    let mut writer = target.begin().await.unwrap();
    writer.write(image.layers[0].2.clone()).await.unwrap();
    let mut seen = Vec::new();
    tokio::select! {
        ended = writer.commit(&image.layers[0].0, None) => panic!("{ended:?}"),
        () = async {
            while seen.last().is_none_or(|method| method != "PUT") {
                seen.push(told.recv().await.unwrap());
            }
        } => {}
    }
    target.abandon().await;
    while let Ok(method) = told.try_recv() {
        seen.push(method);
    }
    assert_eq!(seen.iter().filter(|method| *method == "POST").count(), 1, "{seen:?}");
    assert_eq!(seen.last().unwrap(), "DELETE", "{seen:?}");
}
