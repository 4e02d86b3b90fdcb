use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zk_envelope::Timestamp;
use zk_store::{StoreError, StoreUri};

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The certificate and the key are both fine, but not of one pair.
    #[error(
        "the certificate {certificate} does not belong to the key {key}; name the certificate that was issued for this key",
        certificate = certificate.display(), key = key.display()
    )]
    CertificateAndKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The system's clock says a year before 2020: no certificate can be judged
    /// with it, and what it would write down of receipts would be wrong.
    #[error(
        "the clock of this machine was never set (it says {now}); set it, or order the service after time-sync.target"
    )]
    ClockUnset {
        /// What it says.
        now: Timestamp,
    },
    /// The configuration file says something it cannot say.
    #[error("the configuration {} is not usable:\n{error}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The line, what is wrong with it, and what is allowed.
        error: Box<toml::de::Error>,
    },
    /// A key that others can read or write. Its group may read it if the gateway's
    /// user is not the owner.
    #[error(
        "the TLS key {} is open to other users of this machine (mode {mode:04o}); make it private: chmod 600 {}",
        path.display(), path.display()
    )]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}: {error}; {}", listen_hint(*address, error))]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// A PEM file without what it is there for.
    #[error("{what} {} is not usable: {reason}", path.display())]
    Pem {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// The store cannot be opened.
    #[error("the store {uri} cannot be opened")]
    Store {
        /// Which.
        uri: StoreUri,
        /// Why, and what to do.
        source: StoreError,
    },
    /// rustls takes neither the certificate nor the key.
    #[error("TLS cannot be set up from the certificate {}", path.display())]
    Tls {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A file cannot be read.
    #[error("the {what} {} cannot be read: {error}{}", path.display(), read_hint(path, error))]
    Unreadable {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl Error {
    /// The program's exit code for it, which does not change between versions:
    /// 3 configuration, 4 certificates and key, 5 address, 6 store.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ClockUnset { .. } => 1,
            Self::Config { .. } => 3,
            Self::Unreadable {
                what: CONFIGURATION,
                ..
            } => 3,
            Self::CertificateAndKey { .. }
            | Self::KeyExposed { .. }
            | Self::Pem { .. }
            | Self::Tls { .. }
            | Self::Unreadable { .. } => 4,
            Self::Listen { .. } => 5,
            Self::Store { .. } => 6,
        }
    }

    /// Whether the clock can be right.
    ///
    /// # Errors
    ///
    /// [`Error::ClockUnset`].
    pub fn check_clock(now: SystemTime) -> Result<(), Self> {
        let now = Timestamp::from(now);
        if now.as_millis() < Y2020_MS {
            return Err(Self::ClockUnset { now });
        }
        Ok(())
    }

    pub(crate) fn unreadable(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Unreadable {
            what,
            path: path.to_owned(),
            error,
        }
    }
}

const Y2020_MS: u64 = 1_577_836_800_000;

/// What [`Error::Unreadable`] calls `gateway.toml`.
pub(crate) const CONFIGURATION: &str = "configuration";

fn listen_hint(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process has the port (`ss -ltnp 'sport = :{}'` shows which); stop it or choose another port",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit)"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; 0.0.0.0 or [::] stand for all of them"
                .to_owned()
        }
        _ => "choose another address".to_owned(),
    }
}

/// Who may read a file that this process may not, and what to do about it.
fn read_hint(path: &Path, error: &io::Error) -> String {
    let mut hint = String::new();
    match error.kind() {
        io::ErrorKind::NotFound => hint.push_str("; check the path"),
        io::ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            match path.metadata() {
                Ok(metadata) => {
                    // writing to a String cannot fail
                    let _ = write!(
                        hint,
                        " (mode {:04o}, owner {}, group {}; this process is user {user}); give it to the gateway's user: chown {user} {}",
                        metadata.mode() & 0o7777,
                        metadata.uid(),
                        metadata.gid(),
                        path.display(),
                    );
                }
                Err(_) => {
                    let _ = write!(hint, "; user {user} may not enter its directory");
                }
            }
        }
        _ => {}
    }
    hint
}
