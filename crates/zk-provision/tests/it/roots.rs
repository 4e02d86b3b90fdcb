//! The authorities that devices believe about AWS's servers.

use zk_provision::AwsSetup;

use crate::common::{openssl_ok, text};

/// By the SHA-256 of each one's SubjectPublicKeyInfo that Amazon Trust Services
/// publishes (https://www.amazontrust.com/repository/), and by that of the
/// certificate.
const PUBLISHED: [(&str, &str, &str); 5] = [
    (
        "Amazon Root CA 1",
        "fbe3018031f9586bcbf41727e417b7d1c45c2f47f93be372a17b96b50757d5a2",
        "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
    ),
    (
        "Amazon Root CA 2",
        "7f4296fc5b6a4e3b35d3c369623e364ab1af381d8fa7121533c9d6c633ea2461",
        "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
    ),
    (
        "Amazon Root CA 3",
        "36abc32656acfc645c61b71613c4bf21c787f5cabbee48348d58597803d7abc9",
        "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
    ),
    (
        "Amazon Root CA 4",
        "f7ecded5c66047d28ed6466b543c40e0743abe81d109254dcf845d4c2c7853c5",
        "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
    ),
    (
        "Starfield Services Root Certificate Authority - G2",
        "2b071c59a0a0ae76b0eadb2bad23bad4580b69c3601b630c2eaf0613afa83f92",
        "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5",
    ),
];

#[test]
fn they_are_those_that_amazon_publishes() {
    let dir = tempfile::tempdir().unwrap();
    let pems: Vec<_> = AwsSetup::AMAZON_ROOTS
        .split_inclusive("-----END CERTIFICATE-----\n")
        .filter(|part| part.contains("-----BEGIN CERTIFICATE-----"))
        .collect();
    assert_eq!(pems.len(), PUBLISHED.len());
    for (pem, (name, key, certificate)) in pems.into_iter().zip(PUBLISHED) {
        let file = dir.path().join("root.pem");
        std::fs::write(&file, pem).unwrap();
        let subject = [
            "x509",
            "-noout",
            "-subject",
            "-issuer",
            "-nameopt",
            "multiline",
        ];
        let said = openssl_ok(&subject, pem.as_bytes());
        assert_eq!(said.matches(&format!("= {name}\n")).count(), 2, "{said}");

        let fingerprint = ["x509", "-noout", "-fingerprint", "-sha256"];
        let said = openssl_ok(&fingerprint, pem.as_bytes()).to_lowercase();
        let said = said.trim().rsplit('=').next().unwrap().replace(':', "");
        assert_eq!(said, certificate, "{name}");

        let public = openssl_ok(&["x509", "-noout", "-pubkey"], pem.as_bytes());
        let der = dir.path().join("key.der");
        let to_der = ["pkey", "-pubin", "-outform", "DER", "-out", text(&der)];
        openssl_ok(&to_der, public.as_bytes());
        let said = openssl_ok(&["dgst", "-sha256", "-r", text(&der)], b"");
        assert_eq!(said.split(' ').next().unwrap(), key, "{name}");

        // an authority, valid for five years yet, and signed by itself
        let five_years = (5 * 365 * 24 * 60 * 60).to_string();
        openssl_ok(
            &["x509", "-noout", "-checkend", &five_years],
            pem.as_bytes(),
        );
        let verify = ["verify", "-check_ss_sig", "-purpose", "any", "-CAfile"];
        openssl_ok(&[&verify[..], &[text(&file), text(&file)]].concat(), b"");
    }
}
