//! From messages, which anybody may have written, to events, which are sound.

use std::sync::Arc;

use content::{ByteRange, RangeSet};
use identity::{NodeId, PeerIdentity};
use proto::cluster::node_message::Kind;
use proto::cluster::{LeaseState, Locator, NodeMessage, PieceRange};
use tonic::Status;

use super::named;
use crate::core::{Event, NodeInfo, PROTOCOL, Peer, Say, Shape, Wants};

/// Longest name of a content in bytes; real ones have about 80.
const MAX_NAME: usize = 160;
/// Longest text of other kinds; longer ones are cut.
const MAX_TEXT: usize = 512;
/// Ranges in one set. The worst pattern of a 4 GiB blob has half as many.
const MAX_RANGES: usize = 65_536;
/// Largest content: 16 TiB.
const MAX_LENGTH: u64 = 1 << 44;
/// Signers named in one message.
const MAX_SIGNERS: usize = 256;

/// Why a message is no event. Ends the session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("the message says nothing this scheduler knows")]
    Empty,
    #[error("a second hello")]
    Hello,
    #[error("a content's name has 1 to {MAX_NAME} printable characters")]
    Name,
    #[error("a content of {0} bytes in pieces of {1}")]
    Shape(u64, u32),
    #[error("the range {0} to {1} does not lie inside the content")]
    Range(u32, u32),
    #[error("more than {MAX_RANGES} ranges in one message")]
    Ranges,
    #[error("a node id has 32 bytes")]
    Node,
    #[error("a locator has at most {MAX_TEXT} characters in each part")]
    Locator,
}

/// The hello of a session, checked against what is known of the caller.
pub(super) fn hello(first: Option<NodeMessage>, caller: &PeerIdentity) -> Result<NodeInfo, Status> {
    let Some(Kind::Hello(hello)) = first.and_then(|message| message.kind) else {
        return Err(Status::invalid_argument("a session begins with a hello"));
    };
    if hello.protocol != PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "this scheduler speaks protocol {PROTOCOL} and the node {}: use the same version of both",
            hello.protocol
        )));
    }
    let public_key: [u8; 32] = hello
        .public_key
        .as_slice()
        .try_into()
        .map_err(|_| Status::invalid_argument("a public key has 32 bytes"))?;
    if caller.public_key.is_some_and(|certified| certified != public_key) {
        return Err(Status::permission_denied(format!(
            "node {} says hello with another key than its certificate's",
            named(&hello.node)
        )));
    }
    let node = NodeId::of(&public_key);
    if hello.node != node.as_bytes() {
        return Err(Status::permission_denied("the node's id is not that of its key"));
    }
    let port = u16::try_from(hello.piece_port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Status::invalid_argument("a piece port is a number from 1 to 65535"))?;
    Ok(NodeInfo {
        node,
        public_key,
        hostname: text(&hello.hostname),
        address: (caller.address.ip().to_canonical(), port).into(),
        seed: hello.seed,
        idc: text(&hello.idc),
        returning: hello.returning,
    })
}

/// What a message of a running session says.
pub(super) fn said(peer: Peer, message: NodeMessage) -> Result<Option<Event>, WireError> {
    let (content, say) = match message.kind.ok_or(WireError::Empty)? {
        Kind::Hello(_) => return Err(WireError::Hello),
        Kind::Open(open) => (open.content, Say::Open { locator: locator(open.locator)? }),
        Kind::Opened(opened) => {
            let length = if opened.error.is_empty() {
                if opened.length > MAX_LENGTH {
                    return Err(WireError::Shape(opened.length, 0));
                }
                Ok(opened.length)
            } else {
                Err(text(&opened.error))
            };
            (opened.content, Say::Opened { length })
        }
        Kind::Want(want) => {
            let shape = shape(want.length, want.piece_size, want.locator)?;
            let wants = Wants {
                blocking: pieces(&want.blocking, &shape)?,
                prefetch: pieces(&want.prefetch, &shape)?,
                background: pieces(&want.background, &shape)?,
            };
            (want.content, Say::Want { shape, wants })
        }
        Kind::Have(have) => {
            let shape = shape(have.length, have.piece_size, have.locator)?;
            let pieces = pieces(&have.pieces, &shape)?;
            let signers =
                have.signers.iter().take(MAX_SIGNERS).map(|id| node(id)).collect::<Result<_, _>>()?;
            (have.content, Say::Have { shape, pieces, signers })
        }
        Kind::Forget(forget) => (forget.content, Say::Forget),
        Kind::Lease(report) => {
            let lease = report.lease;
            let say = match LeaseState::try_from(report.state).map_err(|_| WireError::Empty)? {
                LeaseState::NearlyDone => Say::LeaseNearlyDone { lease },
                LeaseState::Done => Say::LeaseDone { lease },
                LeaseState::Failed => Say::LeaseFailed { lease, error: text(&report.error) },
            };
            (report.content, say)
        }
        // A liar about no content in particular is its neighbours' business alone.
        Kind::Liar(liar) if liar.content.is_empty() => return Ok(None),
        Kind::Liar(liar) => (liar.content, Say::Liar { node: node(&liar.node)? }),
        Kind::More(more) => (more.content, Say::More),
    };
    Ok(Some(Event::Said { peer, content: name(&content)?, say }))
}

fn name(name: &str) -> Result<Arc<str>, WireError> {
    let sound = !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic());
    if sound { Ok(name.into()) } else { Err(WireError::Name) }
}

fn node(id: &[u8]) -> Result<NodeId, WireError> {
    NodeId::try_from(id).map_err(|_| WireError::Node)
}

/// Text for people: cut, and without what could break a line of a log.
fn text(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

fn locator(locator: Option<Locator>) -> Result<Option<Locator>, WireError> {
    let fits = |text: &String| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    match locator {
        Some(l) if !(fits(&l.registry) && fits(&l.repository) && fits(&l.digest)) => Err(WireError::Locator),
        other => Ok(other),
    }
}

fn shape(length: u64, piece_size: u32, at: Option<Locator>) -> Result<Shape, WireError> {
    let sound =
        length <= MAX_LENGTH && piece_size.is_power_of_two() && (1024..=1 << 26).contains(&piece_size);
    let shape = Shape { length, piece_size, locator: locator(at)? };
    // Pieces are numbered with 32 bits.
    if sound && u32::try_from(length.div_ceil(u64::from(piece_size.max(1)))).is_ok() {
        Ok(shape)
    } else {
        Err(WireError::Shape(length, piece_size))
    }
}

fn pieces(ranges: &[PieceRange], shape: &Shape) -> Result<RangeSet, WireError> {
    if ranges.len() > MAX_RANGES {
        return Err(WireError::Ranges);
    }
    let all = shape.pieces();
    ranges
        .iter()
        .map(|range| {
            if range.start <= range.end && u64::from(range.end) <= all {
                Ok(ByteRange::new(range.start.into(), range.end.into()))
            } else {
                Err(WireError::Range(range.start, range.end))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proto::cluster::{Have, Hello, Liar, Want};

    use super::*;

    fn say(kind: Kind) -> Result<Option<Event>, WireError> {
        said(Peer(1), NodeMessage { kind: Some(kind) })
    }

    fn want(length: u64, piece_size: u32, start: u32, end: u32) -> Kind {
        Kind::Want(Want {
            content: "claimed-00".into(),
            length,
            piece_size,
            blocking: vec![PieceRange { start, end }],
            ..Want::default()
        })
    }

    #[test]
    fn a_sound_want_is_an_event() {
        assert!(say(want(100_000, 65_536, 0, 2)).unwrap().is_some());
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(say(want(100_000, 65_536, 0, 3)).unwrap_err(), WireError::Range(0, 3));
        assert_eq!(say(want(100_000, 65_536, 2, 1)).unwrap_err(), WireError::Range(2, 1));
        assert_eq!(say(want(100_000, 0, 0, 1)).unwrap_err(), WireError::Shape(100_000, 0));
        assert_eq!(say(want(100_000, 65_537, 0, 1)).unwrap_err(), WireError::Shape(100_000, 65_537));
        assert_eq!(say(want(u64::MAX, 65_536, 0, 1)).unwrap_err(), WireError::Shape(u64::MAX, 65_536));
        assert!(say(want(1 << 44, 1024, 0, 1)).is_err(), "more pieces than 32 bits can number");
        let many = vec![PieceRange { start: 0, end: 1 }; MAX_RANGES + 1];
        let have =
            Have { content: "c".into(), length: 1, piece_size: 65_536, pieces: many, ..Have::default() };
        assert_eq!(say(Kind::Have(have)).unwrap_err(), WireError::Ranges);
    }

    #[test]
    fn names_are_short_and_printable() {
        for bad in ["", "a b", "a\n", "ä", &"x".repeat(MAX_NAME + 1)] {
            let more = proto::cluster::MoreNeighbours { content: bad.to_owned() };
            assert_eq!(say(Kind::More(more)).unwrap_err(), WireError::Name, "{bad:?}");
        }
        let liar = Liar { content: "c".into(), node: vec![1; 31] };
        assert_eq!(say(Kind::Liar(liar)).unwrap_err(), WireError::Node);
        assert_eq!(said(Peer(1), NodeMessage { kind: None }).unwrap_err(), WireError::Empty);
    }

    #[test]
    fn a_hello_must_fit_its_certificate_and_its_key() {
        let key = identity::NodeKey::generate().unwrap();
        let good = Hello {
            node: key.id().as_bytes().to_vec(),
            public_key: key.public_key().to_vec(),
            piece_port: 65_001,
            protocol: PROTOCOL,
            ..Hello::default()
        };
        let caller = PeerIdentity {
            address: "[::ffff:10.0.0.3]:40000".parse().unwrap(),
            public_key: Some(key.public_key()),
        };
        let check = |hello: Hello, caller: &PeerIdentity| {
            super::hello(Some(NodeMessage { kind: Some(Kind::Hello(hello)) }), caller)
        };
        let info = check(good.clone(), &caller).unwrap();
        assert_eq!(info.address, "10.0.0.3:65001".parse().unwrap());

        let other = PeerIdentity { public_key: Some([9; 32]), ..caller };
        assert_eq!(check(good.clone(), &other).unwrap_err().code(), tonic::Code::PermissionDenied);
        let stolen_name = Hello { node: vec![7; 32], ..good.clone() };
        assert_eq!(check(stolen_name, &caller).unwrap_err().code(), tonic::Code::PermissionDenied);
        let newer = Hello { protocol: PROTOCOL + 1, ..good.clone() };
        assert_eq!(check(newer, &caller).unwrap_err().code(), tonic::Code::FailedPrecondition);
        for port in [0, 65_536] {
            let hello = Hello { piece_port: port, ..good.clone() };
            assert_eq!(check(hello, &caller).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        assert!(super::hello(None, &caller).is_err());
    }
}
