//! The record of one piece in the `map` file.
//!
//! ```text
//! 0   digest     32   BLAKE3 of the piece
//! 32  signer     32   Ed25519 public key of who read it at the origin
//! 64  signature  64   that key's word for the digest
//! 128 flag        1   1 = present, anything else = absent
//! 129 zero        3
//! 132 check       4   first bytes of the BLAKE3 of the 132 before
//! ```
//!
//! The check tells a torn record from a whole one. It is no proof of anything: the digest is.

/// Length of a record in bytes.
pub(crate) const RECORD: usize = 136;

const PRESENT: u8 = 1;

/// Who vouches for a piece: it read the piece at the origin and signed its digest.
///
/// The store keeps it and checks the digest; whether the signer deserves trust is for the swarm to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// BLAKE3 of the piece.
    pub digest: [u8; 32],
    /// Ed25519 public key of the node that read it at the origin.
    pub signer: [u8; 32],
    /// Its signature, over a message that names content, piece and digest.
    pub signature: [u8; 64],
}

impl Proof {
    /// The record of a present piece.
    pub(crate) fn encode(&self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        let body = [&self.digest[..], &self.signer, &self.signature, &[PRESENT, 0, 0, 0]].concat();
        let check = check(&body);
        for (to, from) in record.iter_mut().zip(body.iter().chain(&check)) {
            *to = *from;
        }
        record
    }

    /// The proof in a record; `None` if the piece is absent or the record is torn.
    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        let (body, rest) = record.split_at_checked(RECORD - 4)?;
        if rest != check(body) {
            return None;
        }
        let (digest, rest) = body.split_first_chunk::<32>()?;
        let (signer, rest) = rest.split_first_chunk::<32>()?;
        let (signature, rest) = rest.split_first_chunk::<64>()?;
        (rest.first() == Some(&PRESENT)).then_some(Self {
            digest: *digest,
            signer: *signer,
            signature: *signature,
        })
    }
}

fn check(body: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(body);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_is_read_back_and_a_changed_one_is_not(
            digest: [u8; 32], signer: [u8; 32], at in 0..RECORD, bit in 0..8,
        ) {
            let proof = Proof { digest, signer, signature: [7; 64] };
            let mut record = proof.encode();
            prop_assert_eq!(Proof::decode(&record), Some(proof));
            record[at] ^= 1_u8 << bit;
            prop_assert_eq!(Proof::decode(&record), None);
        }
    }

    #[test]
    fn a_hole_is_an_absent_piece() {
        assert_eq!(Proof::decode(&[0; RECORD]), None);
        assert_eq!(Proof::decode(&[]), None);
    }
}
