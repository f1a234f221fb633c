//! A registry for benchmarks: finished images of an OCI layout, to be read alone.
//!
//! Debian's `docker-registry` takes 3 ms for an answer of one byte, more than a lazily read file costs otherwise, and would
//! hide what is measured. This one serves from memory, a thread for each connection, and counts. It knows what readers ask:
//! `/v2/`, manifests, blobs, and ranges, several of them in one request included.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::net::Host;

/// Separates the parts of an answer with several ranges.
const BOUNDARY: &str = "shelf-0123456789abcdef";
/// The media type of such an answer.
const SEVERAL: &str = "multipart/byteranges; boundary=shelf-0123456789abcdef";

/// What was asked for since the last reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for blobs, of whatever method.
    pub requests: u64,
    /// Bytes of blobs that were sent.
    pub bytes: u64,
}

/// The running registry. Its threads end with the process.
#[derive(Debug)]
pub struct Shelf {
    address: SocketAddr,
    stock: Arc<Mutex<Stock>>,
    counts: Arc<Mutex<Counts>>,
}

/// What there is.
#[derive(Debug, Default)]
struct Stock {
    /// Bytes by digest.
    blobs: BTreeMap<String, Arc<Vec<u8>>>,
    /// Digests and media types of manifests, by `<repository>:<tag>` and by digest.
    manifests: BTreeMap<String, (String, String)>,
}

impl Shelf {
    /// Listens on a host, with nothing to give.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let address = SocketAddr::from((host.address(), port));
        let (stock, counts) = (Arc::default(), Arc::default());
        let (ready, listening) = std::sync::mpsc::channel();
        let (host, shared) = (host.clone(), (Arc::clone(&stock), Arc::clone(&counts)));
        std::thread::Builder::new().name("shelf".into()).spawn(move || {
            let setup = || -> Result<_> {
                host.enter()?;
                Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?)
            };
            match setup() {
                Ok(listener) => {
                    let _ = ready.send(Ok(()));
                    for stream in listener.incoming().flatten() {
                        let (stock, counts) = (Arc::clone(&shared.0), Arc::clone(&shared.1));
                        // A client that hangs up is no error.
                        std::thread::spawn(move || drop(serve(&stream, &stock, &counts)));
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        listening.recv().context("the shelf's thread ended")??;
        Ok(Self { address, stock, counts })
    }

    /// Takes in an OCI layout of one image. Answers its reference.
    pub fn stock(&self, layout: &Path, repository: &str, tag: &str) -> Result<String> {
        let mut stock = self.stock.lock().unwrap();
        for entry in fs::read_dir(layout.join("blobs/sha256"))? {
            let entry = entry?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            stock.blobs.insert(digest, Arc::new(fs::read(entry.path())?));
        }
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let manifest = &index["manifests"][0];
        let digest = manifest["digest"].as_str().context("an index without a manifest")?.to_owned();
        let kind = manifest["mediaType"].as_str().context("a manifest without a type")?.to_owned();
        stock.manifests.insert(digest.clone(), (digest.clone(), kind.clone()));
        stock.manifests.insert(format!("{repository}:{tag}"), (digest, kind));
        Ok(format!("{}/{repository}:{tag}", self.name()))
    }

    /// `host:port` as it stands in references.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// A blob, not counted.
    pub fn blob(&self, digest: &str) -> Option<Arc<Vec<u8>>> {
        self.stock.lock().unwrap().blobs.get(digest).cloned()
    }

    /// The manifest of `<repository>:<tag>`, not counted.
    pub fn manifest(&self, name: &str) -> Result<Value> {
        let digest = self.stock.lock().unwrap().manifests.get(name).map(|(digest, _)| digest.clone());
        let bytes = digest.and_then(|digest| self.blob(&digest)).context("no such image")?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Counts anew from here; answers what there was.
    pub fn reset(&self) -> Counts {
        std::mem::take(&mut *self.counts.lock().unwrap())
    }
}

/// Answers one connection to its end.
fn serve(stream: &TcpStream, stock: &Mutex<Stock>, counts: &Mutex<Counts>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let found = stock.lock().unwrap().find(&request.path);
        let Some((bytes, digest, kind)) = found else {
            let (status, body) =
                if request.path == "/v2/" { ("200 OK", "{}") } else { ("404 Not Found", "") };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            (&*stream).write_all(answer.as_bytes())?;
            continue;
        };
        let answer = Answer::new(&bytes, &request.ranges);
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: {}\r\ncontent-length: {}\r\naccept-ranges: bytes\r\n\
             docker-content-digest: {digest}\r\netag: \"{digest}\"\r\n{}\r\n",
            answer.status,
            answer.kind.unwrap_or(&kind),
            answer.len(),
            answer.field
        );
        let blob = request.path.contains("/blobs/");
        if blob {
            counts.lock().unwrap().requests += 1;
        }
        (&*stream).write_all(head.as_bytes())?;
        for (before, part) in answer.parts.iter().filter(|_| request.method != "HEAD") {
            (&*stream).write_all(before.as_bytes())?;
            (&*stream).write_all(part)?;
            if blob {
                counts.lock().unwrap().bytes += part.len() as u64;
            }
        }
    }
    Ok(())
}

impl Stock {
    /// Bytes, digest and media type of what a path names.
    fn find(&self, path: &str) -> Option<(Arc<Vec<u8>>, String, String)> {
        let path = path.strip_prefix("/v2/")?;
        if let Some((_, digest)) = path.split_once("/blobs/") {
            let bytes = self.blobs.get(digest)?;
            return Some((Arc::clone(bytes), digest.to_owned(), "application/octet-stream".to_owned()));
        }
        let (repository, name) = path.split_once("/manifests/")?;
        let known =
            self.manifests.get(name).or_else(|| self.manifests.get(&format!("{repository}:{name}")))?;
        let (digest, kind) = known.clone();
        Some((Arc::clone(self.blobs.get(&digest)?), digest, kind))
    }
}

/// What is needed of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    /// First and last byte of each range; neither is there when it was left out.
    ranges: Vec<(Option<usize>, Option<usize>)>,
}

impl Request {
    /// The next of a connection, if there is one.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        let mut ranges = Vec::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                return Ok(Some(Self { method, path, ranges }));
            };
            if let (true, Some(list)) =
                (name.eq_ignore_ascii_case("range"), value.trim().strip_prefix("bytes="))
            {
                let range = |text: &str| {
                    let (first, last) = text.trim().split_once('-')?;
                    Some((first.parse().ok(), last.parse().ok()))
                };
                ranges = list.split(',').filter_map(range).collect();
            }
        }
    }
}

/// An answer: what stands before each part, and the part.
struct Answer<'a> {
    status: &'static str,
    kind: Option<&'static str>,
    field: String,
    parts: Vec<(String, &'a [u8])>,
}

impl<'a> Answer<'a> {
    fn new(bytes: &'a [u8], ranges: &[(Option<usize>, Option<usize>)]) -> Self {
        let len = bytes.len();
        let of = |range: &(Option<usize>, Option<usize>)| match *range {
            (Some(first), last) if first < len => {
                Some(first..last.map_or(len, |last| last.saturating_add(1).min(len)))
            }
            (None, Some(last)) if last > 0 => Some(len.saturating_sub(last)..len),
            _ => None,
        };
        let parts: Vec<_> = ranges.iter().filter_map(of).filter(|range| !range.is_empty()).collect();
        let content_range = |range: &std::ops::Range<usize>| {
            format!("content-range: bytes {}-{}/{len}\r\n", range.start, range.end - 1)
        };
        match parts.as_slice() {
            [] if ranges.is_empty() => Self {
                status: "200 OK",
                kind: None,
                field: String::new(),
                parts: vec![(String::new(), bytes)],
            },
            [] => Self {
                status: "416 Range Not Satisfiable",
                kind: None,
                field: format!("content-range: bytes */{len}\r\n"),
                parts: Vec::new(),
            },
            [range] => Self {
                status: "206 Partial Content",
                kind: None,
                field: content_range(range),
                parts: vec![(String::new(), &bytes[range.clone()])],
            },
            several => {
                let mut parts: Vec<(String, &[u8])> = Vec::new();
                for range in several {
                    let mut before =
                        format!("\r\n--{BOUNDARY}\r\ncontent-type: application/octet-stream\r\n");
                    let _ = write!(before, "{}\r\n", content_range(range));
                    parts.push((before, &bytes[range.clone()]));
                }
                parts.push((format!("\r\n--{BOUNDARY}--\r\n"), &[]));
                Self { status: "206 Partial Content", kind: Some(SEVERAL), field: String::new(), parts }
            }
        }
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|(before, part)| before.len() + part.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> (String, String) {
        let head = format!("GET /v2/lab/one/blobs/x HTTP/1.1\r\nRange: {text}\r\n\r\n");
        let request = Request::read(&mut head.as_bytes()).unwrap().unwrap();
        let answer = Answer::new(b"0123456789", &request.ranges);
        let mut body = String::new();
        for (before, part) in &answer.parts {
            body += before;
            body += std::str::from_utf8(part).unwrap();
        }
        assert_eq!(body.len(), answer.len());
        (format!("{} {}", answer.status, answer.field.trim()), body)
    }

    #[test]
    fn ranges_are_cut_and_several_come_in_parts() {
        let partial = |range: &str| format!("206 Partial Content content-range: bytes {range}/10");
        assert_eq!(answer("bytes=2-4"), (partial("2-4"), "234".into()));
        assert_eq!(answer("bytes=7-"), (partial("7-9"), "789".into()));
        assert_eq!(answer("bytes=-3"), (partial("7-9"), "789".into()));
        assert_eq!(answer("bytes=8-99"), (partial("8-9"), "89".into()));
        assert_eq!(answer("bytes=10-").0, "416 Range Not Satisfiable content-range: bytes */10");
        let (status, body) = answer("bytes=0-0, 5-6");
        assert_eq!(status, "206 Partial Content ");
        assert!(
            body.contains("bytes 0-0/10\r\n\r\n0\r\n--")
                && body.ends_with("56\r\n--shelf-0123456789abcdef--\r\n"),
            "{body}"
        );
    }
}
