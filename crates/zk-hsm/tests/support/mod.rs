//! A certificate authority and handshakes in memory, for tests. All keys and
//! certificates are made anew in each run.

use std::io::{Read, Write};
use std::sync::Arc;

use p256::ecdsa::{DerSignature, SigningKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::EncodePrivateKey;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use signature::{Keypair, Signer};
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::Ia5String;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::der::{DecodePem, Encode};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::request::CertReq;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{
    DynSignatureAlgorithmIdentifier, EncodePublicKey, SubjectPublicKeyInfo, SubjectPublicKeyInfoRef,
};
use x509_cert::time::Validity;

/// An authority whose key is `S`: one in memory, or an HSM.
pub(crate) struct Authority<S> {
    key: S,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Authority<SigningKey> {
    pub(crate) fn new() -> Self {
        Self::with_key(SigningKey::generate())
    }
}

impl<S> Authority<S>
where
    S: Signer<DerSignature> + Keypair + DynSignatureAlgorithmIdentifier,
    S::VerifyingKey: EncodePublicKey,
{
    pub(crate) fn with_key(key: S) -> Self {
        let own = SubjectPublicKeyInfo::from_key(&key.verifying_key()).unwrap();
        let certificate = build(&key, Profile::Authority, own, None);
        Self { key, certificate }
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }

    /// A client certificate as the request asks for it.
    pub(crate) fn issue(&self, request: &str) -> CertificateDer<'static> {
        let info = CertReq::from_pem(request).unwrap().info;
        let profile = Profile::Leaf {
            subject: info.subject,
            usage: ID_KP_CLIENT_AUTH,
        };
        build(&self.key, profile, info.public_key, None)
    }

    /// X.509 version 1: a certificate without extensions.
    pub(crate) fn issue_version_1(&self, request: &str) -> CertificateDer<'static> {
        let info = CertReq::from_pem(request).unwrap().info;
        build(
            &self.key,
            Profile::Bare {
                subject: info.subject,
            },
            info.public_key,
            None,
        )
    }

    pub(crate) fn issue_server(&self, name: &str, key: &SigningKey) -> CertificateDer<'static> {
        let subject = format!("CN={name}").parse().unwrap();
        let profile = Profile::Leaf {
            subject,
            usage: ID_KP_SERVER_AUTH,
        };
        let public_key = SubjectPublicKeyInfo::from_key(key.verifying_key()).unwrap();
        let name = GeneralName::DnsName(Ia5String::new(name).unwrap());
        build(
            &self.key,
            profile,
            public_key,
            Some(SubjectAltName(vec![name])),
        )
    }
}

fn build<S>(
    issuer: &S,
    profile: Profile,
    public_key: SubjectPublicKeyInfo<x509_cert::der::Any, x509_cert::der::asn1::BitString>,
    alternative: Option<SubjectAltName>,
) -> CertificateDer<'static>
where
    S: Signer<DerSignature> + Keypair + DynSignatureAlgorithmIdentifier,
    S::VerifyingKey: EncodePublicKey,
{
    let serial = SerialNumber::new(&p256::SecretKey::generate().to_bytes()[..16]).unwrap();
    let validity = Validity::from_now(std::time::Duration::from_secs(3600)).unwrap();
    let mut builder = CertificateBuilder::new(profile, serial, validity, public_key).unwrap();
    if let Some(alternative) = alternative {
        builder.add_extension(&alternative).unwrap();
    }
    let certificate = builder.build::<_, DerSignature>(issuer).unwrap();
    certificate.to_der().unwrap().into()
}

enum Profile {
    Authority,
    Bare {
        subject: Name,
    },
    Leaf {
        subject: Name,
        usage: ObjectIdentifier,
    },
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _subject: &Name) -> Name {
        "CN=test authority".parse().unwrap()
    }

    fn get_subject(&self) -> Name {
        match self {
            Self::Authority => self.get_issuer(&Name::default()),
            Self::Bare { subject } | Self::Leaf { subject, .. } => subject.clone(),
        }
    }

    fn build_extensions(
        &self,
        key: SubjectPublicKeyInfoRef<'_>,
        issuer_key: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let subject = tbs.subject();
        let (ca, usage) = match self {
            Self::Authority => (true, KeyUsages::KeyCertSign),
            Self::Bare { .. } => return Ok(Vec::new()),
            Self::Leaf { .. } => (false, KeyUsages::DigitalSignature),
        };
        let constraints = BasicConstraints {
            ca,
            path_len_constraint: ca.then_some(0),
        };
        let mut extensions = vec![
            (&constraints).to_extension(subject, &[])?,
            (&KeyUsage(usage.into())).to_extension(subject, &[])?,
            (&SubjectKeyIdentifier::try_from(key)?).to_extension(subject, &[])?,
            (&AuthorityKeyIdentifier::try_from(issuer_key)?).to_extension(subject, &[])?,
        ];
        if let Self::Leaf { usage, .. } = self {
            extensions.push((&ExtendedKeyUsage(vec![*usage])).to_extension(subject, &[])?);
        }
        Ok(extensions)
    }
}

/// A server that insists on a client certificate.
pub(crate) fn server_config(
    version: &'static SupportedProtocolVersion,
    alpn: &[&[u8]],
    clients: Arc<RootCertStore>,
    certificate: CertificateDer<'static>,
    key: &SigningKey,
) -> Arc<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(clients, Arc::clone(&provider));
    let key = PrivatePkcs8KeyDer::from(key.to_pkcs8_der().unwrap().as_bytes().to_vec());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A handshake, then a byte each way.
pub(crate) fn connect(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    client.writer().write_all(b"?").unwrap();
    server.writer().write_all(b"!").unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    let mut byte = [0];
    server.reader().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"?");
    client.reader().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
    Ok((client, server))
}
