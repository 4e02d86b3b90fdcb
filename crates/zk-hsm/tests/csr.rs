//! Certificate requests, read by x509-cert and by OpenSSL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::{Command, Output};

use ecdsa::der;
use p256::NistP256;
use p256::pkcs8::DecodePublicKey;
use signature::Verifier;
use tempfile::TempDir;
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::{DecodePem, Encode, Tag, Tagged};
use x509_cert::request::CertReq;
use zk_hsm::{Class, Error, Hsm, Options, VerifyingKey, create_soft_key};

#[test]
fn x509_cert_reads_it_back() {
    let (_dir, hsm) = open();

    let pem = hsm.csr("pi-01").unwrap();

    assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
    let request = CertReq::from_pem(&pem).unwrap();
    assert_eq!(request.info.subject.to_string(), "CN=pi-01");
    let spki = request.info.public_key.to_der().unwrap();
    let key = VerifyingKey::from_public_key_der(&spki).unwrap();
    assert_eq!(&key, hsm.public_key());
    let signature = der::Signature::<NistP256>::try_from(request.signature.raw_bytes()).unwrap();
    key.verify(&request.info.to_der().unwrap(), &signature)
        .unwrap();
    assert_eq!(hsm.counters().signatures, 1);
}

#[test]
fn openssl_verifies_it() {
    let (dir, hsm) = open();
    let path = dir.path().join("device.csr");
    std::fs::write(&path, hsm.csr("pi-01").unwrap()).unwrap();
    let request = path.to_str().unwrap();

    let verified = openssl(&["req", "-verify", "-noout", "-in", request]);
    // by what it says: OpenSSL 3.0 exits with 0 even if the signature is wrong
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(said.contains("verify OK"), "{verified:?}");

    let text = openssl(&[
        "req", "-noout", "-text", "-nameopt", "RFC2253", "-in", request,
    ]);
    let text = String::from_utf8(text.stdout).unwrap();
    for part in [
        "Version: 1 (0x0)",
        "Subject: CN=pi-01",
        "ASN1 OID: prime256v1",
        "X509v3 Key Usage: critical",
        "Digital Signature",
        "TLS Web Client Authentication",
        "Signature Algorithm: ecdsa-with-SHA256",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }

    // the signature covers the name: one that was changed is found out
    let pem = std::fs::read_to_string(&path).unwrap();
    let mut changed = CertReq::from_pem(&pem).unwrap();
    changed.info.subject = "CN=pi-02".parse().unwrap();
    let der = dir.path().join("changed.der");
    std::fs::write(&der, changed.to_der().unwrap()).unwrap();
    let der = der.to_str().unwrap();
    let output = openssl(&["req", "-verify", "-noout", "-inform", "DER", "-in", der]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.to_lowercase().contains("verify failure"), "{output:?}");
}

#[test]
fn a_common_name_is_taken_literally() {
    let (_dir, hsm) = open();
    let longest = "ä".repeat(64);
    for name in [
        "a,O=evil",
        "a+C=US",
        "#0500",
        " padded ",
        "\"quoted\\",
        "温度計",
        &longest,
    ] {
        let request = CertReq::from_pem(hsm.csr(name).unwrap()).unwrap();
        let attributes: Vec<_> = request.info.subject.iter().collect();
        assert_eq!(attributes.len(), 1, "{name}");
        assert_eq!(attributes[0].oid, CN);
        assert_eq!(attributes[0].value.tag(), Tag::Utf8String);
        assert_eq!(
            attributes[0]
                .value
                .decode_as::<Utf8StringRef<'_>>()
                .unwrap()
                .as_str(),
            name
        );
    }
}

#[test]
fn impossible_common_names_are_refused_before_anything_is_signed() {
    let (_dir, hsm) = open();
    for name in ["", &"x".repeat(65), "a\nb", "a\0"] {
        let error = hsm.csr(name).unwrap_err();
        assert!(
            matches!(error, Error::CommonName { .. }),
            "{name:?}: {error}"
        );
        assert_eq!(error.class(), Class::Logic);
    }
    assert_eq!(hsm.counters().signatures, 0);
}

fn open() -> (TempDir, Hsm) {
    let dir = TempDir::new().unwrap();
    let uri = create_soft_key(dir.path().join("key.pem")).unwrap();
    let hsm = Hsm::open(&uri, Options::default()).unwrap();
    (dir, hsm)
}

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl")
        .args(arguments)
        .output()
        .expect("this test needs the openssl program: apt-get install openssl")
}
