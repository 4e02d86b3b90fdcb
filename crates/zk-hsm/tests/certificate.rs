//! Certificate requests and self-signed certificates, read by x509-cert and by
//! OpenSSL, and taken by rustls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code, reason = "other tests use more of it")]
mod support;

use std::net::IpAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use ecdsa::{SigningKey, der};
use p256::NistP256;
use p256::elliptic_curve::Generate;
use p256::pkcs8::DecodePublicKey;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use signature::Verifier;
use support::{Authority, connect, server_config};
use tempfile::TempDir;
use x509_cert::Certificate;
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::der::oid::db::rfc4519::{C, CN, SERIAL_NUMBER};
use x509_cert::der::{DecodePem, Encode, Tag, Tagged};
use x509_cert::request::CertReq;
use zk_hsm::{Class, Error, Hsm, Options, Subject, VerifyingKey, create_soft_key};

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
fn openssl_reads_the_whole_subject_in_requests_and_certificates() {
    let (dir, hsm) = open();
    let path = dir.path().join("pem");
    for (kind, pem) in [
        ("req", hsm.csr(full()).unwrap()),
        ("x509", hsm.self_signed(full(), YEAR).unwrap()),
    ] {
        std::fs::write(&path, pem).unwrap();
        let file = path.to_str().unwrap();
        let printed = openssl(&[
            kind,
            "-noout",
            "-text",
            "-nameopt",
            "RFC2253,sname",
            "-in",
            file,
        ]);
        let printed = String::from_utf8(printed.stdout).unwrap();
        for part in [
            // RFC 2253 begins with the last
            "Subject: serialNumber=1000000012345678,CN=pi-01,OU=Greenhouse 3\\, left,O=Gärtnerei \
             Ltd,ST=Sachsen,C=DE",
            "DNS:pi-01.plant.example.org, DNS:localhost, IP Address:192.0.2.7, \
             IP Address:2001:DB8:0:0:0:0:0:7, URI:urn:dev:mac:b827ebfffe123456, \
             URI:spiffe://example.org/pi%2D01",
        ] {
            let printed = printed.replace("\\C3\\A4", "ä");
            assert!(printed.contains(part), "no {part:?} in {printed}");
        }
        // the subject isn't empty, so the names needn't be understood
        assert!(
            printed.contains("Subject Alternative Name: \n"),
            "{printed}"
        );
    }
}

#[test]
fn attributes_have_the_types_of_rfc_5280() {
    let (_dir, hsm) = open();
    let request = CertReq::from_pem(hsm.csr(full()).unwrap()).unwrap();
    let attributes: Vec<_> = request.info.subject.iter().collect();
    assert_eq!(attributes.len(), 6);
    assert_eq!(request.info.subject.iter_rdn().count(), 6);
    for attribute in attributes {
        let expected = match attribute.oid {
            C | SERIAL_NUMBER => Tag::PrintableString,
            _ => Tag::Utf8String,
        };
        assert_eq!(attribute.value.tag(), expected, "{}", attribute.oid);
    }
}

#[test]
fn the_longest_values_are_taken() {
    let (dir, hsm) = open();
    // 253 bytes, labels of 63
    let host = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    let subject = Subject::new("温".repeat(64))
        .organization("o".repeat(64))
        .organizational_unit("ü".repeat(64))
        .state("s".repeat(128))
        .serial_number("'()+,-./:=? aZ09".repeat(4))
        .dns_name(&host)
        .dns_name("4.example.org")
        .uri(format!("tag:{}", "%aF".repeat(2044 / 3)));
    let path = dir.path().join("csr");
    std::fs::write(&path, hsm.csr(subject).unwrap()).unwrap();
    let text = openssl(&["req", "-noout", "-text", "-in", path.to_str().unwrap()]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(&format!("DNS:{host}, DNS:4.")), "{text}");
}

#[test]
fn what_cannot_stand_in_a_certificate_is_refused_before_anything_is_signed() {
    let (_dir, hsm) = open();
    let new = || Subject::new("pi-01");
    let long = |n| "x".repeat(n);
    let mut cases: Vec<(&str, Subject)> = Vec::new();
    for text in [
        String::new(),
        long(65),
        "a\nb".into(),
        "a\0".into(),
        "\u{85}".into(),
    ] {
        cases.push(("common name", Subject::new(&text)));
        cases.push(("organization", new().organization(&text)));
        cases.push(("organizational unit", new().organizational_unit(&text)));
        cases.push(("serial number", new().serial_number(&text)));
    }
    cases.push(("state", new().state("")));
    cases.push(("state", new().state(long(129))));
    for text in ["1_2", "a@b", "ä", "a*", "a\""] {
        cases.push(("serial number", new().serial_number(text)));
    }
    for text in ["", "D", "de", "DEU", "Ö", "D1", "D\n"] {
        cases.push(("country", new().country(text)));
    }
    let label = long(64);
    let name = format!("{0}.{0}.{0}.{0}", "a".repeat(63));
    for text in [
        "",
        ".",
        "a..b",
        ".a",
        "a.",
        "-a",
        "a-",
        "a.-b",
        "a b",
        "a_b",
        "*.example.org",
        "ä.org",
        "a\0b",
        "192.0.2.7",
        "a/b",
        "a:443",
        &label,
        &name,
    ] {
        cases.push(("DNS name", new().dns_name(text)));
    }
    let uri = format!("tag:{}", long(2045));
    for text in [
        "",
        ":",
        "a",
        "a:",
        ":a",
        "/relative",
        "1a:b",
        "ä:b",
        "a_b:c",
        "a:b c",
        "a:ä",
        "a:%",
        "a:%4",
        "a:%zz",
        "a:\"",
        "a:\0",
        "a:<b>",
        "a:\\b",
        "a:{b}",
        &uri,
    ] {
        cases.push(("URI", new().uri(text)));
    }
    for (what, subject) in cases {
        for error in [
            hsm.csr(subject.clone()).unwrap_err(),
            hsm.self_signed(subject.clone(), YEAR).unwrap_err(),
        ] {
            let Error::Subject { attribute, .. } = &error else {
                panic!("{subject:?}: {error}")
            };
            assert_eq!(*attribute, what, "{subject:?}");
            assert_eq!(error.class(), Class::Logic);
        }
    }
    assert_eq!(hsm.counters().signatures, 0);
}

#[test]
fn openssl_verifies_a_self_signed_certificate() {
    let (dir, hsm) = open();
    let mut serials = Vec::new();
    for name in ["one", "two"] {
        let path = dir.path().join(name);
        let pem = hsm.self_signed("pi-01", YEAR).unwrap();
        std::fs::write(&path, &pem).unwrap();
        let file = path.to_str().unwrap();
        // as its own trust anchor, by OpenSSL's strictest rules
        let verify = |arguments: &[&str], file: &str| {
            let strict = ["verify", "-x509_strict", "-check_ss_sig", "-no-CApath"];
            openssl(&[&strict, arguments, &[file]].concat())
        };
        let verified = verify(&["-purpose", "sslclient", "-CAfile", file], file);
        assert!(verified.status.success(), "{verified:?}");
        // for no other purpose, and not on its own
        let verified = verify(&["-purpose", "sslserver", "-CAfile", file], file);
        assert!(!verified.status.success(), "{verified:?}");
        let verified = verify(&["-no-CAfile"], file);
        assert!(!verified.status.success(), "{verified:?}");
        // a later one vouches for nothing but itself
        if name == "two" {
            let one = dir.path().join("one");
            let verified = verify(&["-CAfile", one.to_str().unwrap()], file);
            assert!(!verified.status.success(), "{verified:?}");
        }

        let text = openssl(&["x509", "-noout", "-text", "-in", file]);
        let text = String::from_utf8(text.stdout).unwrap();
        for part in [
            "Version: 3 (0x2)",
            "Signature Algorithm: ecdsa-with-SHA256",
            "Issuer: CN = pi-01\n",
            "Subject: CN = pi-01\n",
            "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
            "X509v3 Key Usage: critical\n                Digital Signature\n",
            "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n",
            "X509v3 Subject Key Identifier: \n",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(!text.contains("Alternative"), "{text}");
        let certificate = Certificate::from_pem(&pem).unwrap();
        let serial = certificate.tbs_certificate().serial_number().clone();
        assert_eq!(serial.as_bytes().len(), 16);
        assert!((0x40..0x80).contains(&serial.as_bytes()[0]), "{serial}");
        serials.push(serial);

        // the signature covers it all
        let mut der = certificate.to_der().unwrap();
        let at = der.windows(5).position(|part| part == b"pi-01").unwrap();
        der[at + 4] = b'2';
        let changed = dir.path().join("changed");
        std::fs::write(&changed, pem_of(&der)).unwrap();
        let changed = changed.to_str().unwrap();
        let verified = verify(&["-CAfile", changed], changed);
        assert!(!verified.status.success(), "{verified:?}");
    }
    assert_ne!(serials[0], serials[1]);
    assert_eq!(hsm.counters().signatures, 2);
}

/// As a gateway would that knows its devices by their certificates alone.
#[test]
fn rustls_takes_a_self_signed_certificate_that_is_pinned() {
    let (_dir, hsm) = open();
    let (_other_dir, other) = open();
    let authority = Authority::new();
    let key = SigningKey::generate();
    let server = authority.issue_server("localhost", &key);
    let own = |hsm: &Hsm| {
        let pem = hsm.self_signed(full(), YEAR).unwrap();
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    };
    let pinned = own(&hsm);
    let mut pins = RootCertStore::empty();
    pins.add(pinned.clone()).unwrap();
    let pins = Arc::new(pins);
    for version in [&TLS12, &TLS13] {
        let server = server_config(version, &[], Arc::clone(&pins), server.clone(), &key);
        let client = |hsm: &Hsm, certificate| {
            hsm.client_config(vec![certificate], authority.roots(), &[])
                .unwrap()
        };
        let (_, seen) = connect(&client(&hsm, pinned.clone()), &server).unwrap();
        assert_eq!(seen.peer_certificates(), Some(&[pinned.clone()][..]));
        // another key under the same name
        let error = connect(&client(&other, own(&other)), &server).unwrap_err();
        assert!(
            matches!(error, rustls::Error::InvalidCertificate(_)),
            "{error}"
        );
    }
    // and it is for this key only
    let error = other.client_config(vec![pinned], authority.roots(), &[]);
    let error = error.unwrap_err();
    assert!(
        matches!(error, Error::CertificateMismatch { .. }),
        "{error}"
    );
}

/// All that a subject can have.
fn full() -> Subject {
    Subject::new("pi-01")
        .serial_number("1000000012345678")
        .organizational_unit("Greenhouse 3, left")
        .organization("Gärtnerei Ltd")
        .state("Sachsen")
        .country("DE")
        .dns_name("pi-01.plant.example.org")
        .dns_name("localhost")
        .ip_address(IpAddr::from([192, 0, 2, 7]))
        .ip_address("2001:db8::7".parse::<IpAddr>().unwrap())
        .uri("urn:dev:mac:b827ebfffe123456")
        .uri("spiffe://example.org/pi%2D01")
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn pem_of(der: &[u8]) -> String {
    let ending = x509_cert::der::pem::LineEnding::LF;
    x509_cert::der::pem::encode_string("CERTIFICATE", ending, der).unwrap()
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
