use std::io;
use std::path::PathBuf;

use zk_agent::Error as AgentError;
use zk_hsm::HsmUri;
use zk_sensors::{SensorError, SensorId};

/// Why a command did not do what it was told.
///
/// A record that could not be delivered, and what doctor finds, are no errors:
/// they are an [`Outcome`](crate::Outcome) with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration, or a file that it names, can't be used.
    #[error(transparent)]
    Agent(#[from] AgentError),

    /// The agent did not take the data.
    #[error("the agent at {} did not take it ({error}): {message}", socket.display())]
    AgentRefused {
        /// The agent's socket.
        socket: PathBuf,
        /// The agent's name for what is wrong.
        error: String,
        /// What it says.
        message: String,
    },

    /// The agent did not answer in time.
    #[error(
        "the agent at {} did not answer in time: its key may not sign at the moment (see zk-ctl \
         doctor). Whether it has taken the data is not known; give it longer with --timeout",
        socket.display()
    )]
    AgentSilent {
        /// The agent's socket.
        socket: PathBuf,
    },

    /// The agent's socket can't be used.
    #[error(
        "the agent's socket {}: {source}; members of its group may use it (usermod -aG zk-publish \
         USER, then log in anew), or give --spool to go without the agent",
        socket.display()
    )]
    AgentSocket {
        /// The socket.
        socket: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// Bytes that are not text would go to a terminal.
    #[error("the result is not text: send standard output into a file or a pipe")]
    BinaryToTerminal,

    /// The data is empty.
    #[error("{from}: no data; give a file that holds some, or pipe some in")]
    Empty {
        /// Where it should have come from.
        from: String,
    },

    /// The key's answer.
    #[error("key {uri}: {source}")]
    Hsm {
        /// The key's URI.
        uri: String,
        /// What is wrong.
        source: Box<zk_hsm::Error>,
    },

    /// The data can't be read.
    #[error("cannot read {from}: {source}")]
    Input {
        /// Where it should have come from.
        from: String,
        /// What the operating system said.
        source: io::Error,
    },

    /// The device's configuration can't be read.
    #[error(
        "cannot read the device's configuration {}: {source}; name another with --config or \
         ZK_CTL_CONFIG, or have it made with zk-setup device add",
        path.display()
    )]
    NoConfig {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// No refused record is named so, or several are.
    #[error(
        "{record} names {found} of the refused records in {}; zk-ctl spool rejected list shows \
         them. Give more of the stream's digits if it names several",
        dir.display()
    )]
    NoRecord {
        /// What was given.
        record: String,
        /// How many it names.
        found: usize,
        /// The spool's directory.
        dir: PathBuf,
    },

    /// No thermometer of this name is listed.
    #[error(
        "there is no thermometer {sensor} in {}; zk-ctl sensors shows those that there are",
        root.display()
    )]
    NoSensor {
        /// What was given.
        sensor: SensorId,
        /// The tree that was looked at.
        root: PathBuf,
    },

    /// There is no spool in the directory.
    #[error(
        "{}: there is no spool; is the agent's configuration the right one, and has the agent \
         run? Another place is named with --dir",
        dir.display()
    )]
    NoSpool {
        /// The directory.
        dir: PathBuf,
    },

    /// A file can't be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// There is a file where one was to be made.
    #[error(
        "{} exists, and nothing is overwritten; choose another name, or move it away",
        path.display()
    )]
    OutputExists {
        /// The file.
        path: PathBuf,
    },

    /// A forgery did not get to the server.
    #[error("not delivered, and not kept: {0}")]
    Publish(#[source] zk_publish::PublishError),

    /// Standard output can't be written.
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),

    /// A file is no public key.
    #[error(
        "{} holds no P-256 public key, neither in PEM nor as X and Y in hexadecimal; zk-ctl hsm \
         public-key prints one",
        path.display()
    )]
    PublicKey {
        /// The file.
        path: PathBuf,
    },

    /// A record could not be made.
    #[error("sealing: {0}")]
    Seal(#[source] zk_envelope::Error),

    /// A secret would go to a terminal.
    #[error(
        "what was locked may be a secret, and is not shown on a terminal: send standard output \
         into a file or a pipe, give --out FILE, or ask for it with --out -"
    )]
    SecretToTerminal,

    /// The sensors can't be read, or one can't be set.
    #[error(transparent)]
    Sensors(#[from] SensorError),

    /// A spool can't be used.
    #[error("the spool in {}: {source}", dir.display())]
    Spool {
        /// The spool's directory.
        dir: PathBuf,
        /// What is wrong.
        source: zk_spool::Error,
    },

    /// Somebody has the spool open, and what was to be done needs it closed.
    #[error(
        "the spool in {} is in use by {holder}; stop it for as long as this takes (the agent: \
         systemctl stop zk-agent)",
        dir.display()
    )]
    SpoolInUse {
        /// The spool's directory.
        dir: PathBuf,
        /// By whom: the program and its process id, if the system tells.
        holder: String,
    },

    /// The spool for publishing would be the agent's.
    #[error(
        "{}: this is the agent's spool, or lies in it; records of zk-ctl go through another one, \
         so that the agent's stream stays its own. Name another directory with --spool",
        dir.display()
    )]
    SpoolOfAgent {
        /// The directory that was given.
        dir: PathBuf,
    },

    /// The system gave no thread or runtime.
    #[error("the system gave no thread: {0}; check the limits on threads and memory")]
    Thread(#[source] io::Error),

    /// The data does not fit.
    #[error("{from} holds more than {limit} bytes, which is the most that {what}")]
    TooLarge {
        /// Where the data came from.
        from: String,
        /// How many bytes do fit.
        limit: usize,
        /// Into what, and the way out.
        what: &'static str,
    },

    /// Two things can't come from standard input.
    #[error("file and signature can't both come from standard input; give a file for one of them")]
    TwiceStandardInput,
}

impl Error {
    /// The program's exit code for it: 2 if arguments or configuration have to
    /// be changed, 6 if the security module can't do that, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Agent(error) => error.exit_code(),
            Self::BinaryToTerminal
            | Self::Empty { .. }
            | Self::NoConfig { .. }
            | Self::NoRecord { .. }
            | Self::NoSensor { .. }
            | Self::NoSpool { .. }
            | Self::OutputExists { .. }
            | Self::PublicKey { .. }
            | Self::SecretToTerminal
            | Self::Sensors(
                SensorError::BadConversionTime { .. } | SensorError::NoResolution { .. },
            )
            | Self::SpoolOfAgent { .. }
            | Self::TooLarge { .. }
            | Self::TwiceStandardInput => 2,
            Self::Hsm { source, .. } => match **source {
                zk_hsm::Error::Subject { .. } => 2,
                zk_hsm::Error::Unsupported { .. } => 6,
                _ => 1,
            },
            _ => 1,
        }
    }

    pub(crate) fn hsm(uri: &HsmUri, source: zk_hsm::Error) -> Self {
        Self::Hsm {
            uri: uri.to_string(),
            source: Box::new(source),
        }
    }
}
