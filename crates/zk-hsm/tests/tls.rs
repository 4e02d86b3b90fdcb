//! Mutual TLS in memory: a rustls client that signs with an `Hsm`, and a rustls
//! server that insists on a client certificate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::sync::Arc;

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, HandshakeKind, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
};
use sha2::{Digest, Sha256};
use support::{Authority, connect, server_config};
use tempfile::TempDir;
use x509_cert::der::Encode;
use x509_cert::spki::{EncodePublicKey, SubjectPublicKeyInfo};
use zk_hsm::{Class, Error, Hsm, Options, create_soft_key};

#[test]
fn tls_1_3_and_1_2_with_a_client_certificate() {
    for (version, number) in [
        (&TLS13, ProtocolVersion::TLSv1_3),
        (&TLS12, ProtocolVersion::TLSv1_2),
    ] {
        let set = Set::new();
        let config = set.client(&[]);
        let server = set.server(version, &[]);

        let (client, server) = connect(&config, &server).unwrap();

        assert_eq!(client.protocol_version(), Some(number));
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.peer_certificates().unwrap(), set.chain);
        assert_eq!(set.hsm.counters().signatures, 1);
    }
}

#[test]
fn connections_of_one_configuration_resume_without_a_signature() {
    for version in [&TLS13, &TLS12] {
        let set = Set::new();
        let config = set.client(&[]);
        let server = set.server(version, &[]);

        let (first, _) = connect(&config, &server).unwrap();
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(set.hsm.counters().signatures, 1);

        let (second, server_side) = connect(&config, &server).unwrap();
        assert_eq!(
            second.handshake_kind(),
            Some(HandshakeKind::Resumed),
            "{version:?}"
        );
        assert_eq!(server_side.peer_certificates().unwrap(), set.chain);
        // a clone shares what matters, so ALPN and the like can be changed
        let (third, _) = connect(&Arc::new(ClientConfig::clone(&config)), &server).unwrap();
        assert_eq!(
            third.handshake_kind(),
            Some(HandshakeKind::Resumed),
            "{version:?}"
        );
        assert_eq!(set.hsm.counters().signatures, 1);

        // another configuration starts anew: why one is to be shared
        let (fourth, _) = connect(&set.client(&[]), &server).unwrap();
        assert_eq!(fourth.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(set.hsm.counters().signatures, 2);
    }
}

#[test]
fn alpn_is_offered_in_the_order_given() {
    let set = Set::new();
    let config = set.client(&[b"x-amzn-http-ca", b"http/1.1"]);
    let server = set.server(&TLS13, &[b"http/1.1", b"x-amzn-http-ca"]);
    let (client, _) = connect(&config, &server).unwrap();
    // rustls servers choose by their own order
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(config.alpn_protocols, [&b"x-amzn-http-ca"[..], b"http/1.1"]);

    let server = set.server(&TLS13, &[b"x-amzn-http-ca"]);
    let (client, _) = connect(&config, &server).unwrap();
    assert_eq!(client.alpn_protocol(), Some(&b"x-amzn-http-ca"[..]));
}

#[test]
fn servers_of_strange_authorities_get_no_signature() {
    let set = Set::new();
    let stranger = Authority::new();
    let config = set
        .hsm
        .client_config(set.chain.clone(), stranger.roots(), &[])
        .unwrap();

    let error = connect(&config, &set.server(&TLS13, &[])).unwrap_err();

    assert!(
        matches!(error, rustls::Error::InvalidCertificate(_)),
        "{error}"
    );
    assert_eq!(set.hsm.counters().signatures, 0);
}

#[test]
fn a_certificate_for_another_key_is_refused_at_the_start() {
    let (one, other) = (Set::new(), Set::new());

    let error = one
        .hsm
        .client_config(other.chain.clone(), one.authority.roots(), &[])
        .unwrap_err();

    let id = |hsm: &Hsm| -> [u8; 32] {
        let spki = hsm.public_key().to_public_key_der().unwrap();
        Sha256::digest(spki.as_bytes()).into()
    };
    assert_eq!(error.class(), Class::Logic);
    let text = error.to_string();
    let Error::CertificateMismatch {
        hsm,
        subject,
        expected,
        found,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(*hsm, *one.hsm.uri().to_string());
    assert_eq!(&*subject, "CN=pi-01");
    assert_eq!((expected, found), (id(&one.hsm), id(&other.hsm)));
    for id in [expected, found] {
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(text.contains(&hex), "{text}");
    }
    assert_eq!(one.hsm.counters().signatures, 0);
}

#[test]
fn a_chain_that_cannot_be_used_is_refused_at_the_start() {
    let set = Set::new();
    let version_1 = set
        .authority
        .issue_version_1(&set.hsm.csr("pi-01").unwrap());
    for chain in [
        vec![],
        vec![CertificateDer::from(vec![0x30, 0x00])],
        vec![version_1],
    ] {
        let error = set
            .hsm
            .client_config(chain, set.authority.roots(), &[])
            .unwrap_err();
        assert!(
            matches!(error, Error::CertificateUnusable { .. }),
            "{error}"
        );
    }
}

#[test]
fn an_hsm_can_be_the_authority() {
    let dir = TempDir::new().unwrap();
    let uri = create_soft_key(dir.path().join("ca.pem")).unwrap();
    let ca_hsm = Hsm::open(&uri, Options::default()).unwrap();
    let authority = Authority::with_key(ca_hsm.clone());
    assert_eq!(ca_hsm.counters().signatures, 1);
    let own = SubjectPublicKeyInfo::from_key(ca_hsm.public_key())
        .unwrap()
        .to_der()
        .unwrap();
    assert!(
        authority
            .certificate
            .windows(own.len())
            .any(|window| window == own)
    );

    let key = SigningKey::generate();
    let server = authority.issue_server("localhost", &key);
    assert_eq!(ca_hsm.counters().signatures, 2);

    // webpki accepts what it signed
    let set = Set::new();
    let config = set
        .hsm
        .client_config(set.chain.clone(), authority.roots(), &[])
        .unwrap();
    let server = server_config(&TLS13, &[], set.authority.roots(), server, &key);
    connect(&config, &server).unwrap();
}

/// A device with its key and certificate, and the authority of both sides.
struct Set {
    _dir: TempDir,
    hsm: Hsm,
    authority: Authority<SigningKey>,
    chain: Vec<CertificateDer<'static>>,
}

impl Set {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let uri = create_soft_key(dir.path().join("key.pem")).unwrap();
        let authority = Authority::new();
        let hsm = Hsm::open(&uri, Options::default()).unwrap();
        let chain = vec![authority.issue(&hsm.csr("pi-01").unwrap())];
        // counting begins here
        let hsm = Hsm::open(hsm.uri(), Options::default()).unwrap();
        Self {
            _dir: dir,
            hsm,
            authority,
            chain,
        }
    }

    fn client(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        self.hsm
            .client_config(self.chain.clone(), self.authority.roots(), alpn)
            .unwrap()
    }

    fn server(
        &self,
        version: &'static SupportedProtocolVersion,
        alpn: &[&[u8]],
    ) -> Arc<ServerConfig> {
        let key = SigningKey::generate();
        let certificate = self.authority.issue_server("localhost", &key);
        server_config(version, alpn, self.authority.roots(), certificate, &key)
    }
}
