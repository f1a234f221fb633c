//! The stream between two neighbours: frames, and what a piece's proof signs.

use bytes::{BufMut, Bytes, BytesMut};
use content::{ByteRange, ContentId, RangeSet, Urgency};
use futures::{FutureExt, StreamExt};
use identity::NodeKey;
use prost::Message;
use proto::cluster::{PieceRange, Urgency as WireUrgency};
use proto::peer::{PeerMessage, peer_message::Kind};
use store::{PIECE, Proof};
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use crate::policy::Class;

/// Version of the words between nodes.
pub(crate) const PROTOCOL: u32 = 1;

/// Longest message. A piece with its proof is a little over 64 KiB; what a node has of the largest
/// content, told piece by piece, stays below this too.
const MAX_FRAME: usize = 1 << 20;

/// Why the stream of a neighbour cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream broke, or a frame is longer than allowed.
    #[error("stream: {0}")]
    Io(#[from] std::io::Error),
    /// A frame is no message.
    #[error("not a message: {0}")]
    Decode(#[from] prost::DecodeError),
}

impl WireError {
    /// Whether the neighbour said something that no honest node says.
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
            Self::Decode(_) => true,
        }
    }
}

/// Reads messages.
pub(crate) struct Frames<R>(FramedRead<R, LengthDelimitedCodec>);

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(reader: R) -> Self {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec();
        Self(FramedRead::new(reader, codec))
    }

    /// The next message; `None` at the end. Messages of kinds that this version does not know are skipped.
    pub(crate) async fn next(&mut self) -> Result<Option<Kind>, WireError> {
        while let Some(frame) = self.0.next().await {
            if let Some(kind) = PeerMessage::decode(frame?.freeze())?.kind {
                return Ok(Some(kind));
            }
        }
        Ok(None)
    }
}

/// The messages of a stream that is here as a whole, and how it ended.
pub fn messages(stream: &[u8]) -> (Vec<Kind>, Result<(), WireError>) {
    let mut frames = Frames::new(stream);
    let mut messages = Vec::new();
    loop {
        // Bytes in memory are never waited for.
        match frames.next().now_or_never() {
            Some(Ok(Some(message))) => messages.push(message),
            Some(Ok(None)) | None => return (messages, Ok(())),
            Some(Err(error)) => return (messages, Err(error)),
        }
    }
}

/// A message with its length before it.
pub fn frame(kind: Kind) -> Bytes {
    let message = PeerMessage { kind: Some(kind) };
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(len + 4);
    frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // A BytesMut grows as needed: encoding into it cannot fail.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// What the signature of a piece's reader covers.
fn signed(id: &ContentId, piece: u32, len: u64, digest: &[u8; 32]) -> Vec<u8> {
    let mut message = b"pantala-piece-v1".to_vec();
    message.extend_from_slice(id.to_string().as_bytes());
    message.extend_from_slice(&piece.to_be_bytes());
    message.extend_from_slice(&PIECE.to_be_bytes());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(digest);
    message
}

/// This node's word for a piece that it read at the origin.
pub(crate) fn prove(key: &NodeKey, id: &ContentId, piece: u32, len: u64, bytes: &[u8]) -> Proof {
    let digest = *blake3::hash(bytes).as_bytes();
    Proof { digest, signer: key.public_key(), signature: key.sign(&signed(id, piece, len, &digest)) }
}

/// Whether the signer of `proof` said it of this very piece.
pub(crate) fn is_signed(proof: &Proof, id: &ContentId, piece: u32, len: u64) -> bool {
    identity::verify(&proof.signer, &signed(id, piece, len, &proof.digest), &proof.signature)
}

/// A proof as it travels.
pub fn proof_to_wire(proof: &Proof) -> proto::peer::Proof {
    proto::peer::Proof {
        digest: proof.digest.to_vec(),
        signer: proof.signer.to_vec(),
        signature: proof.signature.to_vec(),
    }
}

/// `None` if a field has not its length.
pub fn proof_from_wire(proof: &proto::peer::Proof) -> Option<Proof> {
    Some(Proof {
        digest: proof.digest.as_slice().try_into().ok()?,
        signer: proof.signer.as_slice().try_into().ok()?,
        signature: proof.signature.as_slice().try_into().ok()?,
    })
}

/// Ranges of pieces as they travel.
pub fn ranges_to_wire(set: &RangeSet) -> Vec<PieceRange> {
    let cut = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
    set.iter().map(|range| PieceRange { start: cut(range.start), end: cut(range.end) }).collect()
}

/// Ranges of pieces as they came, cut at the `pieces` that there are.
pub fn ranges_from_wire(ranges: &[PieceRange], pieces: u32) -> RangeSet {
    let all = ByteRange::new(0, u64::from(pieces));
    ranges.iter().map(|range| ByteRange::new(range.start.into(), range.end.into()).intersect(&all)).collect()
}

/// Every piece of a set.
pub(crate) fn each(set: &RangeSet) -> impl Iterator<Item = u32> + '_ {
    set.iter().flat_map(|range| range.start..range.end).filter_map(|piece| u32::try_from(piece).ok())
}

/// The number that the policy knows an urgency by.
pub(crate) const fn class_of(urgency: Urgency) -> Class {
    match urgency {
        Urgency::Blocking => 0,
        Urgency::Prefetch => 1,
        Urgency::Background => 2,
    }
}

/// The urgency behind a policy's number.
pub(crate) const fn urgency_of(class: Class) -> Urgency {
    match class {
        0 => Urgency::Blocking,
        1 => Urgency::Prefetch,
        _ => Urgency::Background,
    }
}

/// An unknown urgency is the least one.
pub(crate) fn class_from_wire(urgency: i32) -> Class {
    match WireUrgency::try_from(urgency) {
        Ok(WireUrgency::Blocking) => 0,
        Ok(WireUrgency::Prefetch) => 1,
        _ => 2,
    }
}

pub(crate) fn class_to_wire(class: Class) -> i32 {
    i32::try_from(class).unwrap_or(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::peer::Get;

    #[test]
    fn messages_come_back_and_nonsense_is_told_from_an_end() {
        let get = Kind::Get(Get { content: "claimed-00".into(), piece: 3, urgency: 1, satisfaction: 9 });
        let bytes = [frame(get.clone()), frame(get.clone())].concat();
        let (read, end) = messages(&bytes);
        assert_eq!(read, [get.clone(), get]);
        end.unwrap();

        let torn = messages(&bytes[..10]).1.unwrap_err();
        assert!(!torn.is_invalid(), "{torn}");
        for bad in [&[0xff; 8][..], &[0, 0, 0, 2, 0xff, 0xff]] {
            let error = messages(bad).1.unwrap_err();
            assert!(error.is_invalid(), "{error}");
        }
    }

    #[test]
    fn a_proof_names_its_piece_and_no_other() {
        let key = NodeKey::generate().unwrap();
        let id = ContentId::url(&["a"]);
        let proof = prove(&key, &id, 4, 1_000_000, b"bytes");
        assert!(is_signed(&proof, &id, 4, 1_000_000));
        assert!(!is_signed(&proof, &id, 5, 1_000_000));
        assert!(!is_signed(&proof, &id, 4, 1_000_001));
        assert!(!is_signed(&proof, &ContentId::url(&["b"]), 4, 1_000_000));
        assert_eq!(proof_from_wire(&proof_to_wire(&proof)), Some(proof));
    }
}
