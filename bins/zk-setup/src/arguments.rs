use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use rustls_pki_types::ServerName;
use zk_envelope::DeviceId;
use zk_hsm::HsmUri;
use zk_publish::{Target, TargetError};
use zk_store::StoreUri;

/// Sets up certificate authorities, a gateway of your own, and devices.
///
/// Everything lies in one directory on the operator's machine; every command
/// can be run again, keeps what is there and makes what is missing.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The operator's directory
    #[arg(long, global = true, env = "ZK_SETUP_DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,

    /// Prints one JSON object
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// The certificate authorities
    #[command(subcommand)]
    Ca(CaCommand),

    /// The gateway
    #[command(subcommand)]
    Gateway(GatewayCommand),

    /// The devices
    #[command(subcommand)]
    Device(DeviceCommand),
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Makes the two authorities: one signs devices, one the gateway
    Init(PassphraseSource),
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum GatewayCommand {
    /// Makes the gateway's key, certificate, configuration and store, or renews
    /// the certificate when it is due
    Init(GatewayInit),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GatewayInit {
    /// A host name or IP address that devices reach it at; the first is what
    /// they are told [at first one is needed, later: those it has]
    #[arg(long = "name", visible_alias = "ip", value_name = "HOST|ADDRESS", value_parser = server_name)]
    pub(crate) names: Vec<ServerName<'static>>,

    /// Where it listens [at first: 0.0.0.0:8443]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket_address)]
    pub(crate) listen: Option<SocketAddr>,

    /// Where device records and readings are kept [at first: store.db beside
    /// gateway.toml]
    #[arg(long, value_name = "file:PATH|dynamodb:REGION")]
    pub(crate) store: Option<StoreUri>,

    #[command(flatten)]
    pub(crate) passphrase: PassphraseSource,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Lets a device publish: certificate, configuration, trust file, record
    Add(Box<DeviceAdd>),

    /// Shows every device and whether its records are accepted
    #[command(visible_alias = "ls")]
    List,

    /// Shuts a device out for good: its key is never accepted again
    Revoke {
        /// The device
        name: DeviceId,
    },
}

#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("request").args(["csr", "hsm"]).required(true).multiple(true))]
pub(crate) struct DeviceAdd {
    /// The device's name: 1 to 64 of A-Z a-z 0-9 _ -
    pub(crate) name: DeviceId,

    /// A certificate request in PEM that the device made, with CN=NAME
    #[arg(long, value_name = "FILE")]
    pub(crate) csr: Option<PathBuf>,

    /// The device's key: zymkey:slot=0, pkcs11:token=T;object=O or, for
    /// development, soft:/absolute/path.pem. Without --csr the key is in this
    /// machine, and the request is made here; a missing soft key is made too
    #[arg(long, value_name = "URI")]
    pub(crate) hsm: Option<HsmUri>,

    /// A public key in PEM that readings are encrypted to; up to 8 [at first:
    /// those of the other devices, later: those it has]
    #[arg(long = "owner", value_name = "FILE")]
    pub(crate) owners: Vec<PathBuf>,

    /// Where the device publishes to [at first: the gateway's first name]
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoint: Option<String>,

    #[command(flatten)]
    pub(crate) passphrase: PassphraseSource,
}

/// Where the passphrase of the authorities' keys comes from. Without any it is
/// asked for.
#[derive(Clone, Debug, Args)]
pub(crate) struct PassphraseSource {
    /// A file with the passphrase of the authorities' keys in its only line,
    /// readable for nobody else [otherwise: ZK_SETUP_PASSPHRASE, or it is asked
    /// for]
    #[arg(long, env = "ZK_SETUP_PASSPHRASE_FILE", value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "give an IP address and a port, like 0.0.0.0:8443 or [::]:8443")
}

/// As the agent will read it.
fn endpoint(text: &str) -> Result<String, TargetError> {
    Target::new(text, "Zymkey/name").map(|_| text.to_owned())
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(name).map_err(|_| "not a host name or an IP address")?;
    Ok(name.to_owned())
}

pub(crate) const DEFAULT_DIR: &str = "zk";

const AFTER_HELP: &str = "\
Examples:
  zk-setup ca init
  zk-setup gateway init --name gateway.example --name 192.0.2.7
  zk-setup device add pi-01 --csr pi-01.csr.pem --owner owner.pub.pem
  zk-setup device add pi-02 --hsm zymkey:slot=0          run on the device itself
  zk-setup device list --json
  zk-setup device revoke pi-01

In the directory:
  ca/              the authorities; their keys are encrypted with a passphrase
  gateway/         what zk-gateway needs: gateway.toml, certificate, key, store
  devices/NAME/    what zk-agent needs on the device: agent.toml, certificates
  trust.toml       what owners need: which keys speak for which device

Exit codes: 0 done, 1 failed (run it again once the cause is mended), 2 wrong
arguments.";
