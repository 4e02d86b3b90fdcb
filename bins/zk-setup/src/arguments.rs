use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use rustls_pki_types::ServerName;
use zk_cli::KeyUri;
use zk_envelope::DeviceId;
use zk_hsm::HsmUri;
use zk_provision::Architecture;
use zk_publish::TargetError;
use zk_store::StoreUri;

use crate::cost::Cost;
use crate::credentials::CredentialsCommand;

/// Sets up devices, and what takes in their readings: in an AWS account, or on a
/// gateway of your own.
///
/// Authorities, keys and each device's files lie in one directory on the
/// operator's machine. `apply` makes everything what it is to be, `plan` says
/// beforehand what that takes; the commands below them do one thing each. Every
/// command can be run again, keeps what is there and makes what is missing.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The operator's directory
    #[arg(long, global = true, env = "ZK_SETUP_DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,

    /// Prints one JSON object
    #[arg(long, global = true)]
    pub json: bool,

    /// Where readings go [otherwise: what the directory was set up for; a new one:
    /// aws]
    #[arg(long, global = true, env = "ZK_SETUP_TARGET", value_enum)]
    pub target: Option<Target>,

    #[command(flatten)]
    pub(crate) aws: AwsArguments,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where readings go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// An AWS account: IoT Core, Lambda, DynamoDB
    Aws,
    /// A gateway of your own: zk-gateway
    Local,
}

/// How AWS is reached. Credentials come from where AWS's own tools find them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "AWS")]
pub(crate) struct AwsArguments {
    /// Whose credentials: a profile of ~/.aws/config, before keys in the environment
    /// [otherwise: those that AWS's own tools would take, AWS_PROFILE after keys]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,

    /// The region [otherwise: AWS_REGION, the set-up's aws.toml, the profile]
    #[arg(long, global = true, value_name = "REGION")]
    pub(crate) region: Option<String>,

    /// What every name in the account begins with [otherwise: the set-up's
    /// aws.toml, zk]
    #[arg(long, global = true, env = "ZK_SETUP_PREFIX", value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,

    /// Asks something else than AWS [otherwise: AWS_ENDPOINT_URL and what else
    /// AWS's own tools go by]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what `apply` would do, and writes nothing
    ///
    /// Every item is listed: create, change, keep or remove, and why. No
    /// passphrase is needed. Exit status 3 if there is anything to do.
    #[command(after_help = PLAN_HELP)]
    Plan(DesiredArguments),

    /// Makes the set-up what it is to be: from nothing, or from whatever is there
    ///
    /// Missing authorities, owner's key, devices, and the gateway with its store or
    /// whatever it takes in AWS, are made; certificates that are due are renewed,
    /// changes of key are finished; then all is checked. After a failure, run it
    /// again.
    #[command(after_help = APPLY_HELP)]
    Apply(Apply),

    /// Shows how far the set-up is from what it is to be, what expires when, and
    /// the devices
    ///
    /// Exit status 3 if `apply` had anything to do, or a device is not in order.
    Status(DesiredArguments),

    /// Looks at every file, key, certificate, table and device, and at the gateway
    /// on this machine or everything in AWS
    ///
    /// Where a device's key is in this machine, and the gateway or AWS answers, a good
    /// and a forged message are published as the device, on streams of their own, and
    /// awaited among the readings, where the good one stays, and in quarantine, which the
    /// forged one leaves again. Nothing else is changed. Exit status 3 if anything is wrong;
    /// a warning is not.
    Check(FunctionArguments),

    /// Removes what was made here; the data and the keys only when told
    ///
    /// What zk-setup didn't make stays, and is named.
    #[command(after_help = DESTROY_HELP)]
    Destroy(Destroy),

    /// Prints a commented zk-setup.toml, for `plan --file` and `apply --file`
    Template,

    /// Prints the IAM policy that the operator needs for all of this, and no more
    #[command(after_help = POLICY_HELP)]
    Policy(Policy),

    /// The certificate authorities
    #[command(subcommand)]
    Ca(CaCommand),

    /// The gateway of your own
    #[command(subcommand)]
    Gateway(GatewayCommand),

    /// The devices
    #[command(subcommand)]
    Device(DeviceCommand),

    /// AWS keys that only an HSM of this machine unlocks
    #[command(subcommand)]
    Credentials(CredentialsCommand),

    /// Shows what a device's readings cost in AWS, by its price list
    Cost(Cost),
}

/// What the set-up is to be. Without any of it: what is there, made whole.
#[derive(Clone, Debug, Args)]
pub(crate) struct DesiredArguments {
    /// What the set-up is to be, in TOML; a device that it doesn't name is
    /// removed. `zk-setup template` prints one
    #[arg(long, env = "ZK_SETUP_FILE", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// A device to set up, besides those there are: 1 to 64 of A-Z a-z 0-9 _ -
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<DeviceId>,

    /// The device's key: zymkey:slot=0, pkcs11:token=T;object=O or, for
    /// development, soft:/absolute/path.pem. Without --csr the key is in this
    /// machine, and the request is made here; a missing soft key is made too
    #[arg(long, value_name = "URI", value_parser = KeyUri, requires = "device")]
    pub(crate) hsm: Option<HsmUri>,

    /// A certificate request in PEM that the device made, with CN=NAME
    #[arg(long, value_name = "FILE", requires = "device")]
    pub(crate) csr: Option<PathBuf>,

    /// Where the device publishes to [at first: the account's endpoint in AWS, or
    /// the gateway's first name]
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint, requires = "device")]
    pub(crate) endpoint: Option<String>,

    /// A public key in PEM that readings are encrypted to; up to 8 [at first: a
    /// key that is made here, owner.pem; later: those each device has]
    #[arg(long = "owner", value_name = "FILE")]
    pub(crate) owners: Vec<PathBuf>,

    /// A host name or IP address that devices reach the gateway at; the first is
    /// what they are told [at first: localhost and this machine's name]
    #[arg(long = "name", visible_alias = "ip", value_name = "HOST|ADDRESS", value_parser = server_name)]
    pub(crate) names: Vec<ServerName<'static>>,

    /// Where the gateway listens [at first: 0.0.0.0:8443]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket_address)]
    pub(crate) listen: Option<SocketAddr>,

    /// Where device records and readings are kept [at first: store.db beside
    /// gateway.toml]
    #[arg(long, value_name = "file:PATH|dynamodb:REGION")]
    pub(crate) store: Option<StoreUri>,

    #[command(flatten)]
    pub(crate) function: FunctionArguments,
}

/// The program that runs in AWS.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "AWS")]
pub(crate) struct FunctionArguments {
    /// The program that verifies in AWS, as `cargo xtask lambda` builds it
    /// [otherwise: zk-verifier-lambda-ARCH.zip beside zk-setup; without that, the one
    /// that is there stays]
    #[arg(long, value_name = "FILE")]
    pub(crate) lambda_zip: Option<PathBuf>,

    /// What it runs on: arm64, which costs less, or x86_64 [otherwise: what the file
    /// says; what the one that is there runs on; at first arm64]
    #[arg(long, value_name = "arm64|x86_64", value_parser = architecture)]
    pub(crate) arch: Option<Architecture>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) desired: DesiredArguments,

    /// Asks nothing. Without a terminal it is needed where a device is removed, and
    /// for anything in AWS
    #[arg(long)]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) passphrase: PassphraseSource,

    /// A file with the passphrase of the owner's key in its only line, if that is
    /// made here [otherwise: ZK_OWNER_PASSPHRASE, or it is asked for]
    #[arg(long, value_name = "FILE")]
    pub(crate) owner_passphrase_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Destroy {
    /// The store too, with all readings, and what is needed to read them:
    /// trust.toml, reader.toml, gateway.toml
    #[arg(long)]
    pub(crate) with_data: bool,

    /// The authorities too, and the owner's key: what was encrypted for it can
    /// never be read again, but by a copy of the key
    #[arg(long, requires = "with_data")]
    pub(crate) with_keys: bool,

    /// Asks nothing; needed without a terminal
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Policy {
    /// The account, 12 digits; with it AWS is not asked, only a region is needed
    /// [otherwise: that of the credentials]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) account: Option<String>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Makes the authority that signs devices: for AWS, where it is registered,
    /// that is all; for a gateway, another one signs that
    Init(PassphraseSource),

    /// Shows the authorities, and what AWS says of the devices' one
    Show,
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

    /// Changes a device's key without a gap: first --csr or --hsm, later --finish
    ///
    /// The new certificate lies beside the old one until the device has used it;
    /// then the old key is retired, by --finish or by the next `apply`. What the
    /// old key has signed stays right, however late it arrives.
    #[command(after_help = ROTATE_HELP)]
    Rotate(Box<DeviceRotate>),

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
    #[arg(long, value_name = "URI", value_parser = KeyUri)]
    pub(crate) hsm: Option<HsmUri>,

    /// A public key in PEM that readings are encrypted to; up to 8 [at first:
    /// those of the other devices, later: those it has]
    #[arg(long = "owner", value_name = "FILE")]
    pub(crate) owners: Vec<PathBuf>,

    /// Where the device publishes to [at first: the account's endpoint in AWS, or
    /// the gateway's first name]
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoint: Option<String>,

    #[command(flatten)]
    pub(crate) passphrase: PassphraseSource,
}

#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("what").args(["csr", "hsm", "finish"]).required(true).multiple(true))]
pub(crate) struct DeviceRotate {
    /// The device
    pub(crate) name: DeviceId,

    /// A certificate request in PEM by the new key, with CN=NAME
    #[arg(long, value_name = "FILE")]
    pub(crate) csr: Option<PathBuf>,

    /// The new key. Without --csr it is in this machine, and the request is made
    /// here; a missing soft key is made too
    #[arg(long, value_name = "URI", value_parser = KeyUri)]
    pub(crate) hsm: Option<HsmUri>,

    /// Retires the old key, once something has come in under the new certificate
    #[arg(long, conflicts_with_all = ["csr", "hsm"])]
    pub(crate) finish: bool,

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

pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "give an IP address and a port, like 0.0.0.0:8443 or [::]:8443")
}

pub(crate) fn architecture(text: &str) -> Result<Architecture, &'static str> {
    [Architecture::Arm64, Architecture::X86_64]
        .into_iter()
        .find(|known| known.as_str() == text)
        .ok_or("give arm64 or x86_64")
}

/// As the agent will read it.
pub(crate) fn endpoint(text: &str) -> Result<String, TargetError> {
    zk_publish::Target::new(text, "Zymkey/name").map(|_| text.to_owned())
}

pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(name).map_err(|_| "not a host name or an IP address")?;
    Ok(name.to_owned())
}

pub(crate) const DEFAULT_DIR: &str = "zk";

const AFTER_HELP: &str = "\
Examples:
  zk-setup apply --device pi-01 --hsm zymkey:slot=0      everything, from nothing
  zk-setup apply --target local --device pi-01 --hsm zymkey:slot=0
                                                         the same for your own gateway
  zk-setup template > zk-setup.toml
  zk-setup plan --file zk-setup.toml
  zk-setup apply --file zk-setup.toml
  zk-setup status --json
  zk-setup check
  zk-setup destroy
  zk-setup policy                                        what the operator may do in AWS

One thing at a time:
  zk-setup ca init --target local
  zk-setup gateway init --name gateway.example --name 192.0.2.7
  zk-setup device add pi-01 --csr pi-01.csr.pem --owner owner.pub.pem
  zk-setup device add pi-02 --hsm zymkey:slot=0          run on the device itself
  zk-setup device list --json
  zk-setup device rotate pi-01 --csr new.csr.pem
  zk-setup device revoke pi-01
  zk-setup credentials seal ops --hsm zymkey:slot=0      AWS keys for this machine
  zk-setup cost --readings-per-hour 360 --sensors 4      in AWS

In the directory:
  aws.toml         where in AWS: region, prefix, account; or
  gateway/         what zk-gateway needs: gateway.toml, certificate, key, store
  ca/              the authorities; their keys are encrypted with a passphrase
  devices/NAME/    what zk-agent needs on the device: agent.toml, certificates
  trust.toml       what owners need: which keys speak for which device
  owner.pem        the owner's key, if apply has made it, and reader.toml with it
  credentials/     AWS keys that an HSM has locked

Exit codes: 0 done, or nothing to do; 1 failed (run it again once the cause is
mended); 2 wrong arguments; 3 plan, status: something is to do; check, apply:
something is wrong.";

const PLAN_HELP: &str = "\
Examples:
  zk-setup plan --file zk-setup.toml
  zk-setup plan --device pi-01 --hsm soft:/home/me/key.pem
  zk-setup plan --json | jq -r '.changes[] | select(.action != \"keep\") | .item'

Exit codes: 0 nothing to do, 1 failed, 2 wrong arguments, 3 something to do.";

const APPLY_HELP: &str = "\
Examples:
  zk-setup apply --device pi-01 --hsm zymkey:slot=0
  zk-setup apply --device pi-02 --csr pi-02.csr.pem --hsm zymkey:slot=0
  zk-setup apply --target local --device pi-01 --name gateway.example
  zk-setup apply --region eu-central-1 --prefix greenhouse
  zk-setup apply --file zk-setup.toml
  zk-setup apply                       renews what is due, makes what is missing

At a terminal it asks before it changes anything. Elsewhere it goes on for a gateway
of your own, unless a device would be removed: that revokes its key for good, and
takes --yes. So does anything in AWS, which may cost money.

Exit codes: 0 done, and all is well; 1 failed: run it again; 2 wrong arguments;
3 done, and something is wrong.";

const POLICY_HELP: &str = "\
Examples:
  zk-setup policy > operator.json
  zk-setup policy --account 123456789012 --region eu-central-1 --prefix greenhouse
  aws iam create-policy --policy-name zk-operator --policy-document file://operator.json";

const DESTROY_HELP: &str = "\
Examples:
  zk-setup destroy                          all but readings and keys
  zk-setup destroy --with-data --with-keys  everything

Exit codes: 0 done, or nothing was there; 1 failed: run it again; 2 wrong
arguments.";

const ROTATE_HELP: &str = "\
Examples:
  zk-setup device rotate pi-01 --csr new.csr.pem --hsm zymkey:slot=1
  zk-setup device rotate pi-01 --finish";
