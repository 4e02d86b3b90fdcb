use std::path::{Path, PathBuf};

use zk_envelope::DeviceId;

/// Why the agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// agent.toml is wrong.
    #[error("{}: {detail}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Line, what is wrong and what is allowed.
        detail: String,
    },
    /// A record could not be sealed, and trying again does not help.
    #[error("sealing: {0}")]
    Envelope(#[from] zk_envelope::Error),
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no such group.
    #[error("socket.group: there is no group {group} in /etc/group")]
    Group {
        /// Its name.
        group: String,
    },
    /// The device's key.
    #[error("key {uri}: {source}")]
    Hsm {
        /// Its URI.
        uri: String,
        /// What is wrong.
        source: Box<zk_hsm::Error>,
    },
    /// The key's URI.
    #[error("device.hsm: {0}")]
    HsmUri(#[from] zk_hsm::UriError),
    /// Metrics can't be served.
    #[error("metrics at {address}: {source}; give another metrics.listen, or end what has it")]
    Listen {
        /// Where they were to be served.
        address: std::net::SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The certificate of another device.
    #[error(
        "{}: this certificate is for {found:?}, and device.id is {device}: use the certificate \
         that zk-setup wrote for this device, or correct device.id",
        path.display()
    )]
    OtherDevice {
        /// The certificate's file.
        path: PathBuf,
        /// Who this device is to be.
        device: DeviceId,
        /// The certificate's common name.
        found: String,
    },
    /// Records of another device wait in the spool.
    #[error(
        "{}: records of device {found} wait in this spool, and device.id is {device}: give \
         spool.dir another directory, or publish them first as {found}",
        dir.display()
    )]
    OtherSpool {
        /// The spool's directory.
        dir: PathBuf,
        /// Who this device is to be.
        device: DeviceId,
        /// Whose records wait.
        found: DeviceId,
    },
    /// A file that is not the PEM it should be.
    #[error("{}: no {what} in PEM: {detail}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A setting, perhaps given by a flag, is outside of what is allowed.
    #[error("{0}")]
    Setting(String),
    /// The socket for data of other programs.
    #[error(
        "socket {}: {source}; give another socket.listen, whose directory is there and the \
         agent's, or end what has it",
        path.display()
    )]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The spool.
    #[error("spool: {0}")]
    Spool(#[from] zk_spool::Error),
    /// The target.
    #[error("target.endpoint: {0}")]
    Target(#[from] zk_publish::TargetError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A thread ended that never should.
    #[error("a thread of the agent ended unexpectedly: this is a defect, please report it")]
    ThreadEnded,
    /// The key did not sign before the agent had to stop.
    #[error(
        "{readings} readings are lost: the key did not sign before the agent had to stop, and \
         a receipt will say so after the next start; look for the cause in its log"
    )]
    Unsealed {
        /// How many there were.
        readings: u64,
    },
}

impl Error {
    pub(crate) fn hsm(uri: &str, source: zk_hsm::Error) -> Self {
        Self::Hsm {
            uri: uri.to_owned(),
            source: Box::new(source),
        }
    }

    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }
}
