//! Certificate requests: what is taken from them, and which are refused.

use crate::common::{id, key, openssl_ok, request_pem as request, text};
use p256::ecdsa::DerSignature;
use x509_cert::builder::Builder;
use x509_cert::der::pem::{self, LineEnding};
use x509_cert::der::{Decode, EncodePem};
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName, name::GeneralName};
use x509_cert::request::{CertReq, RequestBuilder};
use zk_provision::{CertificateRequest, RequestError};

#[test]
fn a_request_gives_its_name_and_its_key() {
    let key = key();
    let checked = parse(&request("CN=pi-01", &key)).unwrap();
    assert_eq!(checked.device(), &id("pi-01"));
    assert_eq!(checked.key(), key.verifying_key());
}

#[test]
fn openssls_requests_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let pem = from_openssl(
        dir.path(),
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    );
    parse(&pem).unwrap();
    // as `openssl req -text` prints it: for people first, then the block
    let shown = openssl_ok(&["req", "-text"], pem.as_bytes());
    assert!(shown.starts_with("Certificate Request"));
    parse(&shown).unwrap();
}

#[test]
fn other_parts_of_the_name_and_extensions_do_no_harm() {
    let key = key();
    let mut builder = RequestBuilder::new("CN=pi-01,O=Acme,C=DE".parse().unwrap()).unwrap();
    builder
        .add_extension(&BasicConstraints {
            ca: true,
            path_len_constraint: None,
        })
        .unwrap();
    let address: std::net::IpAddr = [192, 0, 2, 7].into();
    builder
        .add_extension(&SubjectAltName(vec![GeneralName::from(address)]))
        .unwrap();
    let pem = builder
        .build::<_, DerSignature>(&key)
        .unwrap()
        .to_pem(LineEnding::LF)
        .unwrap();
    parse(&pem).unwrap();
}

#[test]
fn another_devices_request_is_refused() {
    let error = parse(&request("CN=pi-02", &key())).unwrap_err();
    assert!(
        matches!(error, RequestError::Name { ref found, .. } if found == "pi-02"),
        "{error}"
    );
    // no folding of case or blanks
    for near in ["CN=PI-01", "CN=pi-01 ", "CN=pi-01\\00", "CN=\\ pi-01"] {
        let error = parse(&request(near, &key())).unwrap_err();
        assert!(
            matches!(error, RequestError::Name { .. }),
            "{near}: {error}"
        );
    }
}

#[test]
fn a_request_without_exactly_one_common_name_is_refused() {
    for subject in ["O=pi-01", "CN=pi-01,CN=pi-01", "CN=pi-02,CN=pi-01"] {
        let error = parse(&request(subject, &key())).unwrap_err();
        assert!(
            matches!(error, RequestError::CommonName),
            "{subject}: {error}"
        );
    }
}

#[test]
fn other_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let p384 = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
        "-sha256",
    ];
    let error = parse(&from_openssl(dir.path(), &p384)).unwrap_err();
    assert!(matches!(error, RequestError::Key { .. }), "{error}");

    let rsa = from_openssl(dir.path(), &["-newkey", "rsa:2048"]);
    let error = parse(&rsa).unwrap_err();
    assert!(matches!(error, RequestError::Algorithm { .. }), "{error}");

    let sha512 = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-sha512",
    ];
    let error = parse(&from_openssl(dir.path(), &sha512)).unwrap_err();
    assert!(matches!(error, RequestError::Algorithm { .. }), "{error}");
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let (own, other) = (key(), key());
    let mut forged = CertReq::from_der(&der(&request("CN=pi-01", &own))).unwrap();
    forged.signature = CertReq::from_der(&der(&request("CN=pi-01", &other)))
        .unwrap()
        .signature;
    let error = parse(&forged.to_pem(LineEnding::LF).unwrap()).unwrap_err();
    assert!(matches!(error, RequestError::Signature), "{error}");
}

/// Not one bit of a request can change: neither what is signed, nor the
/// algorithm, nor the signature, nor the frame around them.
#[test]
fn every_flipped_bit_is_refused() {
    let der = der(&request("CN=pi-01", &key()));
    for bit in 0..der.len() * 8 {
        let mut changed = der.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let pem = pem::encode_string("CERTIFICATE REQUEST", LineEnding::LF, &changed).unwrap();
        assert!(parse(&pem).is_err(), "bit {bit} of {}", der.len() * 8);
    }
}

#[test]
fn what_stands_after_or_beside_the_request_is_refused() {
    let pem = request("CN=pi-01", &key());
    for tail in [
        "x",
        "\n\nx\n",
        pem.as_str(),
        "-----END CERTIFICATE REQUEST-----\n",
    ] {
        assert!(
            matches!(parse(&format!("{pem}{tail}")), Err(RequestError::Pem(_))),
            "{tail:?}"
        );
    }
    let mut longer = der(&pem);
    longer.push(0);
    let longer = pem::encode_string("CERTIFICATE REQUEST", LineEnding::LF, &longer).unwrap();
    assert!(matches!(parse(&longer), Err(RequestError::Der(_))));

    let mislabelled = pem.replace("CERTIFICATE REQUEST", "CERTIFICATE");
    let error = parse(&mislabelled).unwrap_err();
    assert!(
        matches!(error, RequestError::Label { ref found } if found == "CERTIFICATE"),
        "{error}"
    );

    for nothing in ["", "\n", "no PEM at all"] {
        assert!(
            matches!(parse(nothing), Err(RequestError::Pem(_))),
            "{nothing:?}"
        );
    }
}

#[test]
fn a_huge_file_is_refused_unread() {
    let huge = " ".repeat(CertificateRequest::MAX_LEN) + &request("CN=pi-01", &key());
    assert!(matches!(parse(&huge), Err(RequestError::TooLarge { .. })));
}

fn parse(pem: &str) -> Result<CertificateRequest, RequestError> {
    CertificateRequest::from_pem(pem.as_bytes(), &id("pi-01"))
}

fn der(pem: &str) -> Vec<u8> {
    pem::decode_vec(pem.as_bytes()).unwrap().1
}

fn from_openssl(dir: &std::path::Path, key: &[&str]) -> String {
    let key_file = dir.join("key.pem");
    let mut arguments = vec!["req", "-new", "-nodes", "-subj", "/C=AU/CN=pi-01"];
    arguments.extend(key);
    arguments.extend(["-keyout", text(&key_file)]);
    openssl_ok(&arguments, b"")
}
