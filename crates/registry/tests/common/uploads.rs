//! A registry's uploads in memory, as the distribution specification has them.
// Clippy exempts test functions from these lints, and not their helpers; each test file uses its part.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use content::Digest;
use http::{Method, Response};

use crate::common::{Body, Seen, full, serve_blob, status};

/// Open sessions and finished blobs.
#[derive(Clone, Default)]
pub struct Uploads(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    opened: usize,
    sessions: HashMap<String, Vec<u8>>,
    blobs: HashMap<Digest, Bytes>,
}

impl Uploads {
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.0.lock().unwrap().blobs.get(digest).cloned()
    }

    /// How many sessions are open.
    pub fn open(&self) -> usize {
        self.0.lock().unwrap().sessions.len()
    }

    /// How many were ever opened.
    pub fn opened(&self) -> usize {
        self.0.lock().unwrap().opened
    }

    /// Forgets every session, as a registry does whose storage was not shared.
    pub fn forget(&self) {
        self.0.lock().unwrap().sessions.clear();
    }

    /// Adds bytes to the only session without a word, as when an answer was lost.
    pub fn sneak(&self, bytes: &[u8]) {
        self.0.lock().unwrap().sessions.values_mut().next().unwrap().extend_from_slice(bytes);
    }

    /// What a good registry answers.
    pub fn answer(&self, seen: &Seen) -> Response<Body> {
        let mut state = self.0.lock().unwrap();
        let name = seen.path.rsplit('/').next().unwrap().to_owned();
        if !seen.path.contains("/blobs/uploads/") {
            let blob = name.parse().ok().and_then(|digest: Digest| state.blobs.get(&digest).cloned());
            return blob.map_or_else(|| status(404), |blob| serve_blob(seen, &blob));
        }
        if seen.method == Method::POST {
            state.opened += 1;
            let name = format!("session-{}", state.opened);
            state.sessions.insert(name.clone(), Vec::new());
            return told(202, &format!("{}{name}", seen.path), 0);
        }
        let Some(session) = state.sessions.get_mut(&name) else {
            let unknown = r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"no such upload"}]}"#;
            return Response::builder().status(404).body(full(unknown)).unwrap();
        };
        match seen.method {
            Method::GET => told(204, &seen.path, session.len()),
            Method::PATCH => {
                let expected = format!("{}-{}", session.len(), session.len() + seen.body.len() - 1);
                if seen.header("content-range") != Some(&expected) {
                    return told(416, &seen.path, session.len());
                }
                session.extend_from_slice(&seen.body);
                told(202, &seen.path, session.len())
            }
            Method::PUT => {
                let mut blob = session.clone();
                blob.extend_from_slice(&seen.body);
                let digest: Digest = seen.query("digest").unwrap().parse().unwrap();
                if Digest::of(&blob) != digest {
                    let invalid = r#"{"errors":[{"code":"DIGEST_INVALID","message":"other bytes"}]}"#;
                    return Response::builder().status(400).body(full(invalid)).unwrap();
                }
                state.sessions.remove(&name);
                state.blobs.insert(digest, Bytes::from(blob));
                status(201)
            }
            Method::DELETE => {
                state.sessions.remove(&name);
                status(204)
            }
            _ => status(405),
        }
    }
}

/// The answer of a session at `path` that holds `len` bytes.
pub fn told(code: u16, path: &str, len: usize) -> Response<Body> {
    let answer = Response::builder().status(code).header("location", path);
    answer.header("range", format!("0-{}", len.saturating_sub(1))).body(full("")).unwrap()
}
