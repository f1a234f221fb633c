//! The stream of another node: what is read of it can be sent again and is the same.
#![no_main]

use content::ByteRange;
use libfuzzer_sys::fuzz_target;
use proto::peer::peer_message::Kind;
use swarm::fuzzing::{frame, messages, proof_from_wire, proof_to_wire, ranges_from_wire, ranges_to_wire};

fn check(stream: &[u8]) {
    let (read, _end) = messages(stream);
    let again: Vec<u8> = read.iter().flat_map(|message| frame(message.clone())).collect();
    let (second, end) = messages(&again);
    assert_eq!(second, read);
    assert!(end.is_ok(), "our own frames end well");
    for message in &read {
        match message {
            Kind::Piece(piece) => {
                if let Some(wire) = &piece.proof
                    && let Some(proof) = proof_from_wire(wire)
                {
                    assert_eq!(&proof_to_wire(&proof), wire);
                }
            }
            Kind::Have(have) => {
                for pieces in [0, 1, 1000, u32::MAX] {
                    let set = ranges_from_wire(&have.pieces, pieces);
                    let all = ByteRange::new(0, pieces.into());
                    assert!(set.iter().all(|range| all.contains(&range)));
                    assert_eq!(ranges_from_wire(&ranges_to_wire(&set), pieces), set);
                }
            }
            _ => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // As one frame, so that the message is looked at.
    let framed = [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    check(&framed);
});
