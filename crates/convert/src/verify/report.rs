//! What was found, for people and for programs.

use std::fmt;

use content::Digest;
use estargz::TOC_DIGEST_ANNOTATION;
use estargz::audit::{Audit, Lie};
use registry::Descriptor;
use serde::Serialize;

use crate::inspect::LayerKind;
use crate::inspect::show::{bytes, printable, short};

/// What is said of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It has a TOC, and everything is as it is said to be.
    True,
    /// It has no TOC, and its digests are right.
    Ordinary,
    /// It was not looked into.
    Unread,
    /// Something is not as it is said to be.
    Lie,
}

/// A lie.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LieReport {
    /// A word for programs: `differs`, `chunk-digest`, `diff-id`, …
    pub kind: String,
    /// The entry that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl LieReport {
    pub(super) fn digest(message: String) -> Self {
        Self { kind: "digest".to_owned(), entry: None, message }
    }

    pub(super) fn toc(message: String) -> Self {
        Self { kind: "toc-unreadable".to_owned(), entry: None, message }
    }
}

impl From<&Lie> for LieReport {
    fn from(lie: &Lie) -> Self {
        Self { kind: lie.kind().to_owned(), entry: lie.entry().map(str::to_owned), message: lie.to_string() }
    }
}

/// A layer, and what was found out about it.
#[derive(Clone, Debug, Serialize)]
pub struct LayerVerdict {
    /// Number of the layer, from 1, the lowest.
    pub number: usize,
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// What it is.
    pub kind: LayerKind,
    /// What is said of it.
    pub verdict: Verdict,
    /// The first lie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lie: Option<LieReport>,
    /// Something to know that is no lie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What it inflates to.
    pub diff_id: Option<Digest>,
    /// Bytes that it inflates to.
    pub inflated: Option<u64>,
    /// sha256 of its TOC.
    pub toc_digest: Option<Digest>,
    /// Whether the image pins that TOC.
    pub pinned: bool,
    /// Entries of its tar.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Chunks.
    pub chunks: u64,
}

impl LayerVerdict {
    fn new(number: usize, layer: &Descriptor, verdict: Verdict) -> Self {
        Self {
            number,
            digest: layer.digest,
            size: layer.size,
            kind: LayerKind::ordinary(&layer.media_type),
            verdict,
            lie: None,
            note: None,
            diff_id: None,
            inflated: None,
            toc_digest: None,
            pinned: false,
            entries: 0,
            files: 0,
            chunks: 0,
        }
    }

    pub(super) fn unread(number: usize, layer: &Descriptor, note: &str) -> Self {
        Self { note: Some(note.to_owned()), ..Self::new(number, layer, Verdict::Unread) }
    }

    pub(super) fn lying(number: usize, layer: &Descriptor, lie: LieReport) -> Self {
        Self { lie: Some(lie), ..Self::new(number, layer, Verdict::Lie) }
    }

    pub(super) fn of(number: usize, layer: &Descriptor, audit: &Audit) -> Self {
        let verdict = match (&audit.lie, audit.kind) {
            (Some(_), _) => Verdict::Lie,
            (None, Some(_)) => Verdict::True,
            (None, None) => Verdict::Ordinary,
        };
        let kind = audit.kind.map_or_else(|| LayerKind::ordinary(&layer.media_type), LayerKind::from);
        // What an annotation says was held against the blob: if it is there, it is right.
        let pins =
            |key: &str| key == TOC_DIGEST_ANNOTATION || key.ends_with("zstd-chunked.manifest-checksum");
        let pinned = layer.annotations.iter().flatten().any(|(key, _)| pins(key));
        let note = match (audit.kind, verdict) {
            (_, Verdict::Lie) => None,
            (None, _) => Some("ordinary layer, no table of contents"),
            (Some(kind), _) if !kind.is_verifiable() => {
                Some("its chunks have no digests, so no mount could verify them")
            }
            (Some(_), _) if !pinned => Some("the image does not pin its table of contents"),
            _ => None,
        };
        Self {
            kind,
            lie: audit.lie.as_ref().map(LieReport::from),
            note: note.map(str::to_owned),
            diff_id: audit.diff_id,
            inflated: audit.diff_id.map(|_| audit.inflated),
            toc_digest: audit.toc_digest,
            pinned: pinned && audit.toc_digest.is_some(),
            entries: audit.entries,
            files: audit.files,
            chunks: audit.chunks,
            ..Self::new(number, layer, verdict)
        }
    }

    /// Nothing but a layer that can be mounted lazily will do.
    pub(super) fn require_lazy(&mut self) {
        if self.verdict == Verdict::Lie || (self.note.is_none() && self.verdict == Verdict::True) {
            return;
        }
        let why = self.note.take().unwrap_or_else(|| "it has no table of contents".to_owned());
        let message = format!("it cannot be mounted lazily: {why}");
        self.lie = Some(LieReport { kind: "not-lazy".to_owned(), entry: None, message });
        self.verdict = Verdict::Lie;
    }

    /// One word for it.
    pub const fn word(&self) -> &'static str {
        match self.verdict {
            Verdict::True => "true",
            Verdict::Ordinary => "ordinary",
            Verdict::Unread => "not read",
            Verdict::Lie => "LIE",
        }
    }
}

/// The image of one platform.
#[derive(Clone, Debug, Serialize)]
pub struct PlatformVerdict {
    /// `linux/amd64`.
    pub platform: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// What manifest, config and index contradict each other in.
    pub problems: Vec<String>,
    /// The layers, lowest first.
    pub layers: Vec<LayerVerdict>,
}

impl PlatformVerdict {
    pub(super) fn is_truthful(&self) -> bool {
        self.problems.is_empty() && self.layers.iter().all(|layer| layer.verdict != Verdict::Lie)
    }
}

/// An image.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The name.
    pub reference: String,
    /// Digest of what it stands for.
    pub digest: Digest,
    /// Whether nothing is wrong.
    pub truthful: bool,
    /// Its platforms.
    pub platforms: Vec<PlatformVerdict>,
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  {}", self.reference, self.digest)?;
        for platform in &self.platforms {
            writeln!(f, "\n{}  {}", platform.platform, short(&platform.digest))?;
            for problem in &platform.problems {
                writeln!(f, "  LIE  {}", printable(problem))?;
            }
            platform.layers.iter().try_for_each(|layer| layer.fmt(f))?;
        }
        let layers = self.platforms.iter().flat_map(|platform| &platform.layers);
        let lies = layers.filter(|layer| layer.verdict == Verdict::Lie).count()
            + self.platforms.iter().map(|platform| platform.problems.len()).sum::<usize>();
        match lies {
            0 => writeln!(f, "\nit tells the truth"),
            1 => writeln!(f, "\nit does not tell the truth: 1 lie"),
            lies => writeln!(f, "\nit does not tell the truth: {lies} lies"),
        }
    }
}

impl fmt::Display for LayerVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:8}  {:>2}  {:12}  {:>9}  {:22}",
            self.word(),
            self.number,
            short(&self.digest),
            bytes(self.size),
            self.kind
        )?;
        if self.verdict == Verdict::True {
            write!(f, "  {} entries, {} chunks", self.entries, self.chunks)?;
        } else if self.verdict == Verdict::Ordinary {
            write!(f, "  {} entries", self.entries)?;
        }
        writeln!(f)?;
        let more = self.lie.as_ref().map(|lie| &lie.message).or(self.note.as_ref());
        more.iter().try_for_each(|text| writeln!(f, "            {}", printable(text)))
    }
}
