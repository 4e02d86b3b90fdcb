//! Mutual TLS by a key that never leaves its HSM, against a rustls server on
//! loopback. Each full handshake costs one signature of the HSM, a resumed one
//! costs none.
//!
//! ```sh
//! cargo run -p zk-examples --bin mtls_with_hsm_key
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use zk_hsm::{Hsm, Options, create_soft_key};

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let uri = create_soft_key(directory.path().join("key.pem"))?;
    let hsm = Hsm::open(&uri, Options::default())?;

    // One authority for both sides, in memory. A real device sends
    // `hsm.csr("pi-01")?` to its authority, and servers have another one
    // (zk-provision makes both).
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let roots = Arc::new(roots);
    let address = start_server(&authority, Arc::clone(&roots))?;

    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "pi-01");
    let point = hsm.public_key().to_sec1_point(false);
    let certificate = params.signed_by(&HsmKey(point.as_bytes().to_vec()), &authority)?;

    // One configuration for all connections: only within it are sessions
    // resumed. Certificate and key are compared here, not in the first
    // handshake.
    let tls = hsm.client_config(vec![certificate.der().clone()], roots, &[])?;

    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let before = hsm.counters().signatures;
        let answer = connect(&tls, address, expected)?;
        let signatures = hsm.counters().signatures - before;
        println!("{expected:?} handshake, signatures: {signatures}, server saw {answer}");
    }
    Ok(())
}

/// rustls signs on the thread that drives the handshake, and that thread waits
/// for the HSM: 100 ms and more for a small chip. With blocking sockets, as
/// here, nothing else is held up. On a current-thread async runtime everything
/// would be: give such connections a runtime of their own, or a multi-thread one
/// with threads to spare, or do the handshake in `spawn_blocking`.
fn connect(tls: &Arc<ClientConfig>, to: SocketAddr, expected: HandshakeKind) -> Result<String> {
    let connection = ClientConnection::new(Arc::clone(tls), "localhost".try_into()?)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect(to)?);
    stream.write_all(b"21.437 degrees\n")?;
    // To the end: with TLS 1.3 the tickets for resumption come after the
    // handshake, and are taken in while reading.
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let kind = stream.conn.handshake_kind();
    ensure!(kind == Some(expected), "the handshake was {kind:?}");
    Ok(answer)
}

/// A server that insists on a client certificate, and tells what it saw.
fn start_server(
    authority: &CertifiedIssuer<'_, KeyPair>,
    clients: Arc<RootCertStore>,
) -> Result<SocketAddr> {
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, authority)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(clients, Arc::clone(&provider)).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::from(key))?;
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let answered = tcp.map_err(Into::into).and_then(|tcp| answer(tcp, &config));
            if let Err(error) = answered {
                eprintln!("the server had no answer: {error:#}");
            }
        }
    });
    Ok(address)
}

fn answer(tcp: TcpStream, config: &Arc<ServerConfig>) -> Result<()> {
    let connection = ServerConnection::new(Arc::clone(config))?;
    let mut tls = StreamOwned::new(connection, tcp);
    let mut line = String::new();
    BufReader::new(&mut tls).read_line(&mut line)?;
    let version = tls.conn.protocol_version().context("no handshake")?;
    let certificates = tls.conn.peer_certificates().context("no certificate")?;
    let principal = zk_verify::principal_of(&certificates[0]);
    write!(tls, "{version:?}, certificate {}", &principal[..16])?;
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}

/// Lets rcgen certify a key that only the HSM has: the uncompressed point.
struct HsmKey(Vec<u8>);

impl PublicKeyData for HsmKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
