//! What the authorities sign, as openssl and rustls see it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use p256::pkcs8::EncodePrivateKey;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use zk_provision::{Certificate, LocalSetup};

use crate::common::{
    PASSPHRASE, authorities, gateway, id, key, names, now, openssl_ok, openssl_refuses, passphrase,
    text, years,
};

#[test]
fn authorities_are_what_aws_and_rfc_5280_ask_for() {
    let (_dir, setup) = authorities();
    for role in ["device", "gateway"] {
        let file = setup.dir().join(format!("ca/{role}-ca.crt.pem"));
        let shown = openssl_ok(&["x509", "-in", text(&file), "-noout", "-text"], b"");
        for line in [
            "Version: 3 (0x2)",
            "Signature Algorithm: ecdsa-with-SHA256",
            "ASN1 OID: prime256v1",
            "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0\n",
            "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n",
            "X509v3 Subject Key Identifier: \n",
            "X509v3 Authority Key Identifier: \n",
            "Not Before: Nov 23 10:20:44 2026 GMT",
            "Not After : Nov 18 11:20:44 2046 GMT",
        ] {
            assert!(shown.contains(line), "no {line:?} in {shown}");
        }
        let subject = format!("Subject: CN = zk {role} CA ");
        assert!(shown.contains(&subject), "no {subject:?} in {shown}");
        verify(&["-purpose", "any"], &file, &file);
    }
}

#[test]
fn the_two_authorities_have_nothing_in_common() {
    let (_dir, setup) = authorities();
    let field = |role: &str, what: &str| {
        let file = setup.dir().join(format!("ca/{role}-ca.crt.pem"));
        openssl_ok(&["x509", "-in", text(&file), "-noout", what], b"")
    };
    for what in ["-pubkey", "-subject", "-serial"] {
        assert_ne!(field("device", what), field("gateway", what));
    }
}

#[test]
fn authority_keys_are_encrypted_and_openssl_reads_them() {
    let (_dir, setup) = authorities();
    let file = setup.dir().join("ca/device-ca.key.pem");
    let pem = fs::read_to_string(&file).unwrap();
    assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));

    let shown = openssl_ok(&["asn1parse", "-in", text(&file)], b"");
    assert!(shown.contains(":PBES2"), "{shown}");
    assert!(shown.contains(":scrypt"), "{shown}");
    assert!(shown.contains(":aes-256-cbc"), "{shown}");

    let pass = format!("pass:{PASSPHRASE}");
    let public = openssl_ok(
        &["pkey", "-in", text(&file), "-passin", &pass, "-pubout"],
        b"",
    );
    let certificate = setup.dir().join("ca/device-ca.crt.pem");
    let certified = openssl_ok(
        &["x509", "-in", text(&certificate), "-noout", "-pubkey"],
        b"",
    );
    assert_eq!(public, certified);
    openssl_refuses(
        &["pkey", "-in", text(&file), "-passin", "pass:something else"],
        "",
    );
}

#[test]
fn a_device_certificate_is_for_clients_and_nothing_else() {
    let (dir, setup) = authorities();
    let (_, file) = device(&dir, &setup, now());
    let authority = setup.dir().join("ca/device-ca.crt.pem");
    verify(&["-purpose", "sslclient"], &authority, &file);
    refuse(
        &["-purpose", "sslserver"],
        &authority,
        &file,
        "unsuitable certificate purpose",
    );
    let other = setup.dir().join("ca/gateway-ca.crt.pem");
    refuse(
        &["-purpose", "sslclient"],
        &other,
        &file,
        "unable to get local issuer",
    );

    let shown = openssl_ok(&["x509", "-in", text(&file), "-noout", "-text"], b"");
    for line in [
        "Subject: CN = pi-01\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n",
        "X509v3 Subject Key Identifier: \n",
        "X509v3 Authority Key Identifier: \n",
        "Not After : Nov 20 11:20:44 2036 GMT",
    ] {
        assert!(shown.contains(line), "no {line:?} in {shown}");
    }
    assert!(!shown.contains("Subject Alternative Name"), "{shown}");
}

#[tokio::test]
async fn a_gateway_certificate_is_for_its_names_and_nothing_else() {
    let (_dir, setup) = gateway().await;
    let file = setup.dir().join("gateway/gateway.crt.pem");
    let authority = setup.dir().join("ca/gateway-ca.crt.pem");
    for host in [
        "-verify_hostname gateway.example",
        "-verify_ip 192.0.2.7",
        "-verify_ip 2001:db8::7",
    ] {
        let mut arguments = vec!["-purpose", "sslserver"];
        arguments.extend(host.split(' '));
        verify(&arguments, &authority, &file);
    }
    let elsewhere = [
        "-purpose",
        "sslserver",
        "-verify_hostname",
        "elsewhere.example",
    ];
    refuse(&elsewhere, &authority, &file, "hostname mismatch");
    refuse(
        &["-purpose", "sslclient"],
        &authority,
        &file,
        "unsuitable certificate purpose",
    );
    let other = setup.dir().join("ca/device-ca.crt.pem");
    refuse(
        &["-purpose", "sslserver"],
        &other,
        &file,
        "unable to get local issuer",
    );
}

/// `pathlen:0` and `CA:FALSE`: a device's key makes no further devices.
#[test]
fn a_device_cannot_sign_certificates() {
    let (dir, setup) = authorities();
    let (key, file) = device(&dir, &setup, now());
    let path = |name: &str| dir.path().join(name);
    let (key_file, request_file, forged) = (path("key"), path("request"), path("forged"));
    fs::write(&key_file, key.to_pkcs8_pem(Default::default()).unwrap()).unwrap();
    openssl_ok(
        &[
            "req",
            "-new",
            "-key",
            text(&key_file),
            "-subj",
            "/CN=pi-02",
            "-out",
            text(&request_file),
        ],
        b"",
    );
    openssl_ok(
        &[
            "x509",
            "-req",
            "-in",
            text(&request_file),
            "-CA",
            text(&file),
            "-CAkey",
            text(&key_file),
            "-set_serial",
            "1",
            "-out",
            text(&forged),
        ],
        b"",
    );
    let authority = setup.dir().join("ca/device-ca.crt.pem");
    refuse(
        &["-untrusted", text(&file)],
        &authority,
        &forged,
        "invalid CA certificate",
    );
}

#[test]
fn serial_numbers_are_long_positive_and_never_the_same() {
    let (_dir, setup) = authorities();
    let authority = setup.device_authority(&passphrase()).unwrap();
    let key = key();
    let serials: BTreeSet<_> = (0..50)
        .map(|_| {
            let made = authority
                .issue_device(&id("pi-01"), key.verifying_key(), now())
                .unwrap();
            let shown = openssl_ok(&["x509", "-noout", "-serial"], made.pem().as_bytes());
            let digits = shown.trim().strip_prefix("serial=").unwrap().to_owned();
            assert_eq!(digits.len(), 32, "{digits}");
            assert!((b'4'..=b'7').contains(&digits.as_bytes()[0]), "{digits}");
            digits
        })
        .collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn rustls_takes_devices_while_they_are_valid() {
    let (dir, setup) = authorities();
    let (_, file) = device(&dir, &setup, now());
    let accepts = |authority: &str, time: SystemTime| {
        WebPkiClientVerifier::builder_with_provider(
            roots(&setup, authority),
            default_provider().into(),
        )
        .build()
        .unwrap()
        .verify_client_cert(&der(&file), &[], unix(time))
        .is_ok()
    };
    assert!(accepts("device", now()));
    // a clock that is a bit behind
    assert!(accepts("device", now() - Duration::from_secs(3599)));
    assert!(!accepts("device", now() - Duration::from_secs(3601)));
    assert!(accepts(
        "device",
        now() + years(10) - Duration::from_secs(1)
    ));
    assert!(!accepts(
        "device",
        now() + years(10) + Duration::from_secs(1)
    ));
    assert!(!accepts("gateway", now()));
}

#[tokio::test]
async fn rustls_takes_the_gateway_by_its_names() {
    let (_dir, setup) = gateway().await;
    let file = setup.dir().join("gateway/gateway.crt.pem");
    let accepts = |authority: &str, name: &str| {
        WebPkiServerVerifier::builder_with_provider(
            roots(&setup, authority),
            default_provider().into(),
        )
        .build()
        .unwrap()
        .verify_server_cert(&der(&file), &[], &names(&[name])[0], &[], unix(now()))
        .is_ok()
    };
    assert!(accepts("gateway", "gateway.example"));
    assert!(accepts("gateway", "GATEWAY.example"));
    assert!(accepts("gateway", "192.0.2.7"));
    assert!(accepts("gateway", "2001:db8::7"));
    assert!(!accepts("gateway", "192.0.2.8"));
    assert!(!accepts("gateway", "example"));
    assert!(!accepts("device", "gateway.example"));
}

/// A device's certificate can't stand in for the gateway, nor the other way.
#[tokio::test]
async fn rustls_keeps_the_purposes_apart() {
    let (dir, setup) = gateway().await;
    let (_, device) = device(&dir, &setup, now());
    let provider = Arc::new(default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots(&setup, "gateway"), provider.clone());
    let gateway = setup.dir().join("gateway/gateway.crt.pem");
    clients
        .build()
        .unwrap()
        .verify_client_cert(&der(&gateway), &[], unix(now()))
        .unwrap_err();
    let servers = WebPkiServerVerifier::builder_with_provider(roots(&setup, "device"), provider);
    let name = &names(&["pi-01"])[0];
    servers
        .build()
        .unwrap()
        .verify_server_cert(&der(&device), &[], name, &[], unix(now()))
        .unwrap_err();
}

#[test]
fn nothing_outlives_its_authority() {
    let (_dir, setup) = authorities();
    let authority = setup.device_authority(&passphrase()).unwrap();
    let issue = |time| authority.issue_device(&id("pi-01"), key().verifying_key(), time);
    let late = issue(now() + years(15)).unwrap();
    assert_eq!(late.not_after(), authority.certificate().not_after());
    assert_eq!(late.not_after(), now() + years(20));
    let error = issue(now() + years(20)).unwrap_err();
    assert!(
        matches!(error, zk_provision::Error::AuthorityExpired { .. }),
        "{error}"
    );
}

#[test]
fn a_clock_that_was_never_set_makes_no_certificate() {
    let (_dir, setup) = authorities();
    let authority = setup.device_authority(&passphrase()).unwrap();
    let after_start = SystemTime::UNIX_EPOCH + Duration::from_secs(90);
    let error = authority
        .issue_device(&id("pi-01"), key().verifying_key(), after_start)
        .unwrap_err();
    assert!(
        error.to_string().contains("1970-01-01T00:01:30.000Z"),
        "{error}"
    );
}

#[test]
fn a_certificate_says_what_it_is() {
    let (dir, setup) = authorities();
    let authority = setup.device_authority(&passphrase()).unwrap();
    let key = key();
    let made: Certificate = authority
        .issue_device(&id("pi-01"), key.verifying_key(), now())
        .unwrap();
    assert_eq!(made.key(), key.verifying_key());
    assert_eq!(made.not_after(), now() + years(10));
    assert!(made.names().is_empty());
    let file = dir.path().join("made.crt.pem");
    fs::write(&file, made.pem()).unwrap();
    assert_eq!(made.der(), &*der(&file));
    let shown = openssl_ok(
        &["x509", "-noout", "-fingerprint", "-sha256"],
        made.pem().as_bytes(),
    );
    let shown = shown
        .trim()
        .rsplit('=')
        .next()
        .unwrap()
        .replace(':', "")
        .to_lowercase();
    assert_eq!(made.principal(), shown);
    assert!(format!("{made:?}").contains("CN=pi-01"));
}

/// A certificate for a new key of pi-01, and where it is.
fn device(dir: &TempDir, setup: &LocalSetup, time: SystemTime) -> (p256::SecretKey, PathBuf) {
    let key = key();
    let authority = setup.device_authority(&passphrase()).unwrap();
    let made = authority
        .issue_device(&id("pi-01"), key.verifying_key(), time)
        .unwrap();
    let file = dir.path().join("pi-01.crt.pem");
    fs::write(&file, made.pem()).unwrap();
    ((&key).into(), file)
}

fn verify(arguments: &[&str], authority: &Path, certificate: &Path) {
    openssl_ok(&strict(arguments, authority, certificate), b"");
}

fn refuse(arguments: &[&str], authority: &Path, certificate: &Path, reason: &str) {
    openssl_refuses(&strict(arguments, authority, certificate), reason);
}

fn strict<'a>(arguments: &[&'a str], authority: &'a Path, certificate: &'a Path) -> Vec<&'a str> {
    let mut all = vec![
        "verify",
        "-x509_strict",
        "-no-CApath",
        "-no-CAstore",
        "-attime",
        "1795432844",
    ];
    all.extend(["-CAfile", text(authority)]);
    all.extend(arguments);
    all.push(text(certificate));
    all
}

fn roots(setup: &LocalSetup, role: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots
        .add(der(&setup.dir().join(format!("ca/{role}-ca.crt.pem"))))
        .unwrap();
    roots.into()
}

fn der(file: &Path) -> CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::from_pem_file(file).unwrap()
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}
