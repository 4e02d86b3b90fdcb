//! A P-256 key that lives in a hardware security module, for TLS client
//! authentication, certificate requests and signed data.
//!
//! [`Hsm::open`] takes a URI and gives a handle that can be cloned and used
//! from any thread. With it you can
//!
//! - connect with **rustls**: [`Hsm::client_config`] for the whole
//!   configuration, [`Hsm::signing_key`] for your own;
//! - get a **certificate**: [`Hsm::csr`], [`Hsm::self_signed`], or sign
//!   `x509-cert`'s builders;
//! - **sign** anything: [`Hsm::sign`], or RustCrypto's [`signature::Signer`];
//! - **lock** secrets so that only this HSM opens them, and draw its random
//!   numbers: [`Hsm::lock`], [`Hsm::unlock`], [`Hsm::random`];
//! - see **how it is**: [`Hsm::state`], [`Hsm::counters`], [`Hsm::info`].
//!
//! # Example: your own rustls client
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//! use std::sync::Arc;
//!
//! use rustls::pki_types::CertificateDer;
//! use rustls::pki_types::pem::PemObject;
//! use rustls::{ClientConnection, RootCertStore, StreamOwned};
//! use zk_hsm::{Hsm, HsmUri, Options};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let uri: HsmUri = "soft:/etc/zk/key.pem".parse()?;
//!     let hsm = Hsm::open(&uri, Options::default())?;
//!
//!     // the device's certificate first, then its issuers
//!     let chain = CertificateDer::pem_file_iter("/etc/zk/device.crt")?.collect::<Result<_, _>>()?;
//!     // who may sign the server's certificate
//!     let mut roots = RootCertStore::empty();
//!     for root in CertificateDer::pem_file_iter("/etc/zk/server-ca.crt")? {
//!         roots.add(root?)?;
//!     }
//!
//!     // once per process: connections resume only within one configuration
//!     let config = hsm.client_config(chain, roots, &[])?;
//!
//!     for _ in 0..2 {
//!         let connection = ClientConnection::new(Arc::clone(&config), "example.org".try_into()?)?;
//!         let mut stream = StreamOwned::new(connection, TcpStream::connect("example.org:443")?);
//!         stream.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n")?;
//!         std::io::copy(&mut stream, &mut std::io::stdout())?;
//!     }
//!     // 1 if the server let the second connection resume
//!     println!("{} signatures", hsm.counters().signatures);
//!     Ok(())
//! }
//! ```
//!
//! The key comes from [`create_soft_key`] (for development), its certificate
//! from whoever signs [`Hsm::csr`].
//!
//! # Backends
//!
//! | URI | where the key is |
//! | --- | --- |
//! | `zymkey:slot=0` | Zymkey, or another Zymbit HSM, through the vendor's library |
//! | `pkcs11:token=…;object=…` | a PKCS#11 token |
//! | `soft:/path/key.pem` | a key file of mode 0600, **for development** |
//!
//! # What to expect when hardware misbehaves
//!
//! A small HSM takes 100 ms and more for a signature, and sometimes it fails,
//! hangs, vanishes or comes back as another one. What this crate does about
//! that is told at [`Hsm`]; in short: every call has a deadline, every
//! signature is verified before it leaves, what may pass is tried once more,
//! and what may not is a typed [`Error`] whose [`class`](Error::class) says
//! whether waiting can help. Nothing here waits for ever.
//!
//! Calls block. There is no async interface: rustls can't await a signature,
//! so one would help only half of the users; from async code use your runtime's
//! `spawn_blocking`. What that means for TLS is told, and shown, at [`Hsm`].
//!
//! # What it does not do
//!
//! - It signs no bare digests, and speaks no other curve or scheme than ECDSA
//!   P-256 with SHA-256.
//! - It deletes no keys, locks no binding to a machine and sets no perimeter
//!   action: what can't be taken back is left to the vendor's tools.
//! - It attests nothing: that a public key is in hardware is known to whoever
//!   took the certificate request from the device.
//! - It runs on Unix-like systems only, and loads libraries only into programs
//!   that are linked dynamically.
//!
//! Unsafe code is in one module, which calls the vendor's library
//! for `zymkey:`. What the library allocates is freed, whatever happens; what
//! it says of lengths is checked before it is believed; and only one call at a
//! time is in it.

// The workspace denies unsafe code. It isn't forbidden here, because that
// module allows it for itself.

mod backend;
mod certificate;
mod counters;
mod error;
mod hsm;
mod library;
mod session;
mod subject;
mod tls;
mod uri;
mod worker;

#[cfg(test)]
mod fault;

pub use zeroize::Zeroizing;

pub use crate::backend::soft::create_soft_key;
pub use crate::counters::{Counters, Histogram};
pub use crate::error::{Class, Error, Operation};
pub use crate::hsm::{
    Binding, Health, Hsm, Info, KeyEntry, MAX_LOCK, MAX_RANDOM, Options, Signature, VerifyingKey,
    generate_key, list_keys,
};
pub use crate::subject::Subject;
pub use crate::uri::{BackendKind, HsmUri, UriError};
pub use crate::worker::State;
