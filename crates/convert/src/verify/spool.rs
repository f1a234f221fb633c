//! A layer in a file that has no name: it is gone when nobody holds it any more, whatever happens.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use content::Urgency;
use estargz::audit::ReadAt;
use futures::TryStreamExt;
use registry::Descriptor;
use tokio::sync::mpsc;

use super::watch::LayerWatch;
use crate::inspect::LookError;
use crate::place::ImageSource;

/// Parts that wait to be written.
const WAITING: usize = 8;

/// A layer's bytes on disk.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    len: u64,
}

impl Spool {
    /// Fetches `layer`. The stream compares digest and size.
    pub(crate) async fn fetch(
        source: &dyn ImageSource,
        layer: &Descriptor,
        dir: &Path,
        watch: &dyn LayerWatch,
    ) -> Result<Self, LookError> {
        let temporary = |error| LookError::temporary(dir, error);
        let mut file = tempfile::tempfile_in(dir).map_err(temporary)?;
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
        let writer = tokio::task::spawn_blocking(move || -> io::Result<Self> {
            let mut len = 0;
            while let Some(part) = receiver.blocking_recv() {
                file.write_all(&part)?;
                len += part.len() as u64;
            }
            Ok(Self { file, len })
        });
        let mut stream = source.stream(layer, Urgency::Background);
        let outcome = loop {
            match stream.try_next().await {
                Ok(Some(part)) => {
                    watch.fetched(part.len() as u64);
                    // The writer is gone: it failed, and tells why below.
                    if sender.send(part).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(reason) => break Err(LookError::Read { digest: layer.digest, reason }),
            }
        };
        drop(sender);
        let written = writer.await.map_err(|_| LookError::Interrupted)?;
        outcome?;
        written.map_err(temporary)
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }
}

impl ReadAt for Spool {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}
