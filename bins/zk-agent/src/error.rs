use std::path::{Path, PathBuf};

use zk_envelope::DeviceId;

use crate::config::Config;

/// Why the agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// agent.toml is wrong.
    #[error("{}: {detail}", in_file(path, *line))]
    Config {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: Option<usize>,
        /// What is wrong and what is allowed.
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
    #[error("{key} {detail}")]
    Setting {
        /// The key, as in `sensors.interval`.
        key: &'static str,
        /// What it is, and what is allowed.
        detail: String,
    },
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
    /// The program's exit status: 2 if a restart does not help, which is so for the
    /// configuration and for files that it names, and else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        use std::io::ErrorKind::{
            InvalidData, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        };
        match self {
            Self::Config { .. }
            | Self::Group { .. }
            | Self::HsmUri(_)
            | Self::OtherDevice { .. }
            | Self::OtherSpool { .. }
            | Self::Pem { .. }
            | Self::Setting { .. }
            | Self::Target(_)
            | Self::Spool(
                zk_spool::Error::InvalidOptions { .. }
                | zk_spool::Error::NotASpool { .. }
                | zk_spool::Error::OtherEngine { .. },
            ) => 2,
            Self::File { source, .. } => match source.kind() {
                InvalidData | IsADirectory | NotADirectory | NotFound | PermissionDenied => 2,
                _ => 1,
            },
            _ => 1,
        }
    }

    /// The key of `config`, as in `device.certificate`, that keeps the agent from
    /// starting by this error, if it is one of them.
    #[must_use]
    pub fn key(&self, config: &Config) -> Option<&'static str> {
        match self {
            Self::Config { .. }
            | Self::Envelope(_)
            | Self::Thread(_)
            | Self::ThreadEnded
            | Self::Unsealed { .. } => None,
            Self::File { path, .. } | Self::Pem { path, .. } => config.names(path),
            Self::Group { .. } => Some("socket.group"),
            Self::Hsm { source, .. } => match **source {
                zk_hsm::Error::CertificateMismatch { .. } => Some("device.certificate"),
                _ => Some("device.hsm"),
            },
            Self::HsmUri(_) => Some("device.hsm"),
            Self::Listen { .. } => Some("metrics.listen"),
            Self::OtherDevice { .. } => Some("device.certificate"),
            Self::OtherSpool { .. } | Self::Spool(_) => Some("spool.dir"),
            Self::Setting { key, .. } => Some(key),
            Self::Socket { .. } => Some("socket.listen"),
            Self::Target(_) => Some("target.endpoint"),
        }
    }

    /// Owners that nothing can be encrypted for together.
    pub(crate) fn owners(error: &zk_envelope::Error) -> Self {
        Self::Setting {
            key: "owners.files",
            detail: format!("can't be used together: {error}"),
        }
    }

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

/// A place in a file, as editors and people take it: `agent.toml:12`.
pub(crate) fn in_file(path: &Path, line: Option<usize>) -> String {
    let path = path.display();
    line.map_or_else(|| path.to_string(), |line| format!("{path}:{line}"))
}

/// An error with its causes, where it does not say them itself.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
