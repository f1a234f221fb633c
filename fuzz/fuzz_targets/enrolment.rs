//! Enrolment: requests and answers with changed bytes are refused; under a right MAC, too, they stop nobody.
#![no_main]

use std::sync::LazyLock;

use identity::EnrollRefused;
use identity::fuzzing::Stage;
use libfuzzer_sys::fuzz_target;
use proto::cluster::{EnrollRequest, EnrollResponse};

struct Genuine {
    stage: Stage,
    request: EnrollRequest,
    response: EnrollResponse,
}

static GENUINE: LazyLock<Genuine> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    let stage = Stage::new(dir.path()).expect("a stage");
    let request = stage.request().expect("a request");
    let response = stage.enroll(&request).expect("a certificate");
    stage.accept(&request.nonce, response.clone()).expect("a good certificate");
    Genuine { stage, request, response }
});

/// Changes bytes at places that the input names.
fn edit(bytes: &mut [u8], edits: &[(u16, u8)]) {
    for (at, byte) in edits {
        if let Some(place) = bytes.get_mut(usize::from(*at)) {
            *place = *byte;
        }
    }
}

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (what, edits, raw) = input;
    let Genuine { stage, request, response } = &*GENUINE;
    let (mut request, mut response, nonce) = (request.clone(), response.clone(), request.nonce.clone());
    let field = match what % 5 {
        0 => &mut request.csr,
        1 => &mut request.nonce,
        2 => &mut request.mac,
        3 => &mut response.certificate,
        _ => &mut response.authority,
    };
    if what & 128 == 0 {
        edit(field, &edits)
    } else {
        *field = raw.to_vec()
    }
    let answered = stage.enroll(&request);
    let changed = request != GENUINE.request;
    assert_eq!(answered.is_err(), changed, "the MAC covers all of the request");
    if let Ok(answer) = stage.enroll(&stage.sealed_request(request.clone())) {
        // The node's own key and address, or the requester's signature would not fit.
        assert_eq!(request.nonce.len(), 32);
        let taken = stage.accept(&request.nonce, answer);
        assert!(taken.is_ok(), "{taken:?}");
    } else if what % 5 == 2 {
        panic!("only the MAC was wrong, and that was put right");
    }
    if changed {
        let refused = matches!(answered, Err(EnrollRefused::Token | EnrollRefused::Malformed(_)));
        assert!(refused, "nothing else is looked at before the MAC");
    }
    let changed = response != GENUINE.response;
    assert_eq!(stage.accept(&nonce, response.clone()).is_err(), changed, "the MAC covers all of the answer");
    // Without a panic; a changed certificate has no authority behind it, unless that was changed to fit.
    let _ = stage.accept(&nonce, stage.sealed_response(&nonce, response));
});
