//! Keys on PKCS#11 tokens: SoftHSM2, and a library that fails on command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "pkcs11/tokens.rs"]
mod tokens;

use signature::Verifier;
use zk_hsm::{BackendKind, Hsm, Options, State};

#[test]
#[ignore = "needs softhsm2"]
fn a_key_on_a_token_signs() {
    tokens::alone("a_key_on_a_token_signs", |tokens| {
        tokens.make("plant");
        let key = tokens.import("plant", "device key", "01");
        let uri = tokens.uri("token=plant;object=device%20key");

        let hsm = Hsm::open(&uri, Options::default()).unwrap();

        assert_eq!(hsm.public_key(), key.verifying_key());
        for message in [&b""[..], b"m", &[0x5a; 100_000]] {
            key.verifying_key()
                .verify(message, &hsm.sign(message).unwrap())
                .unwrap();
        }
        assert_eq!(hsm.counters().signatures, 3);
        assert!(matches!(hsm.state(), State::Ready));
        let info = hsm.info().unwrap();
        assert_eq!(info.backend, BackendKind::Pkcs11);
        assert_eq!(info.model.as_deref(), Some("SoftHSM v2"));
        assert!(info.development);
        hsm.health().unwrap();
    });
}
