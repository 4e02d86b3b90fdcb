use std::fmt;
use std::path::{Path, PathBuf};

use x509_cert::builder;
use zk_envelope::{DeviceId, KeyId};

use crate::RequestError;

/// What can stop a setup.
///
/// Every operation can be run again after any of these: what is there already
/// is kept, what is missing is made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not the number of an AWS account.
    #[cfg(feature = "aws")]
    #[error("{given:?} is no AWS account: its number has 12 digits")]
    AccountId {
        /// What was given.
        given: String,
    },

    /// An authority's certificate is past its end, so nothing it signs would
    /// be accepted.
    #[error(
        "the certificate authority {subject} has expired: start a new setup in an empty directory"
    )]
    AuthorityExpired {
        /// The authority's name.
        subject: String,
    },

    /// AWS didn't do what it was asked, for none of the reasons that have a name
    /// of their own here.
    #[cfg(feature = "aws")]
    #[error("{operation} of {resource} failed: {source}")]
    Aws {
        /// What it was asked, as its permission is called: `service:Action`.
        operation: &'static str,
        /// The resource.
        resource: String,
        /// AWS's own word for what happened, if it came that far.
        code: Option<String>,
        /// What AWS or its SDK said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Another AWS account has registered the authority, and only one account of
    /// a region may.
    #[cfg(feature = "aws")]
    #[error(
        "the certificate authority {subject} is registered in another AWS account of {region}: \
         remove it there, or set up anew in an empty directory, which makes another one"
    )]
    AuthorityTaken {
        /// The authority's name.
        subject: String,
        /// The region.
        region: String,
    },

    /// Another process is changing the same directory.
    #[error("{} is being changed by another process: try again when it has ended", dir.display())]
    Busy {
        /// The operator's directory.
        dir: PathBuf,
    },

    /// A certificate could not be encoded or signed.
    #[error("a certificate could not be made: {0}")]
    CertificateEncoding(#[from] builder::Error),

    /// AWS takes no request whose time is more than a few minutes off.
    #[cfg(feature = "aws")]
    #[error(
        "the clock of this machine is off, and AWS refuses what it signs ({said}): set it, or \
         turn time synchronisation on, and try again"
    )]
    ClockOff {
        /// What AWS said.
        said: String,
    },

    /// The system's clock says a year before 2020: a certificate from then would
    /// be valid at the wrong time, and a revocation would reach back to then.
    #[error(
        "the clock of this machine was never set (it says {}): set it, or wait for time \
         synchronisation, and try again",
        zk_envelope::Timestamp::from(*now)
    )]
    ClockUnset {
        /// What it says.
        now: std::time::SystemTime,
    },

    /// The credentials are those of a session that has ended.
    #[cfg(feature = "aws")]
    #[error(
        "the AWS credentials have expired ({said}): log in again (`aws sso login`, or as you got \
         them), and run this again, which goes on where it stopped"
    )]
    CredentialsExpired {
        /// What AWS said.
        said: String,
    },

    /// AWS doesn't know the credentials, or the secret is not that of the id.
    #[cfg(feature = "aws")]
    #[error(
        "AWS doesn't know these credentials ({said}): `aws sts get-caller-identity` shows whether \
         they are good; check the profile, that no old AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or \
         AWS_SESSION_TOKEN is set, and that the account has the region enabled"
    )]
    CredentialsRefused {
        /// What AWS said.
        said: String,
    },

    /// The caller may not do that.
    #[cfg(feature = "aws")]
    #[error(
        "not permitted: {action} on {resource} ({said}): have it added to your policy; \
         `zk-setup policy`, for the same --region and --prefix, prints all that is needed"
    )]
    Denied {
        /// The permission that is missing: `service:Action`.
        action: String,
        /// On what.
        resource: String,
        /// What AWS said.
        said: String,
    },

    /// A name or a file of owners and devices is not what it should be.
    #[error(transparent)]
    Envelope(#[from] zk_envelope::Error),

    /// What is to be uploaded as the function is not that.
    #[cfg(feature = "aws")]
    #[error(
        "{}: {detail}: `cargo xtask lambda` makes the one that is meant",
        path.display()
    )]
    FunctionZip {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The device has another key than the one in the request.
    #[error(
        "device {device} is registered with key {registered}, the request has {requested}: \
         use the registered key, change it with `zk-setup device rotate {device}`, or revoke \
         the device first if its key is lost"
    )]
    KeyChanged {
        /// The device.
        device: DeviceId,
        /// The key it is registered with.
        registered: KeyId,
        /// The key in the request.
        requested: KeyId,
    },

    /// A private key could not be encoded or encrypted.
    #[error("a private key could not be encoded: {0}")]
    KeyEncoding(#[source] pkcs8::Error),

    /// One key, two devices: their records could not be told apart.
    #[error("key {key} belongs to device {owner} already: {device} needs a key of its own")]
    KeyInUse {
        /// The device to be added.
        device: DeviceId,
        /// The device that has the key.
        owner: DeviceId,
        /// The key.
        key: KeyId,
    },

    /// The key was revoked; it is never accepted again.
    #[error(
        "key {key} of device {device} was revoked: make a new key on the device, and a request with it"
    )]
    KeyRevoked {
        /// The device.
        device: DeviceId,
        /// The revoked key.
        key: KeyId,
    },

    /// The file of a device's key is gone, and another key would be another
    /// device to those who trust it.
    #[error(
        "the key of device {device} is to be in {}, and is not: restore it, or change to another \
         with `zk-setup device rotate {device}`",
        path.display()
    )]
    KeyLost {
        /// The device.
        device: DeviceId,
        /// Where its key is to be.
        path: PathBuf,
    },

    /// A rotation to the key that the device has.
    #[error("device {device} has this key already: make another one to change to")]
    KeyUnchanged {
        /// The device.
        device: DeviceId,
    },

    /// A file of the directory is not what was written there.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },

    /// A later version of this program has set it up.
    #[cfg(feature = "aws")]
    #[error(
        "{resource} was made by a newer zk-setup (version {version} of a set-up, this one makes \
         {}): use that one",
        crate::aws::VERSION
    )]
    NewerSetUp {
        /// The resource.
        resource: String,
        /// What its tag says.
        version: String,
    },

    /// A device that the plan didn't know of is not named, and revoking it could
    /// not be taken back.
    #[error(
        "device {device} was added since the plan was made, and would be revoked for good: \
         nothing of it was changed; name it, or look at `zk-setup plan` and run this again"
    )]
    NotAgreed {
        /// The device.
        device: DeviceId,
    },

    /// Nothing was found to sign requests to AWS with.
    #[cfg(feature = "aws")]
    #[error(
        "no AWS credentials: log in (`aws sso login`, `aws configure`), and name the profile with \
         --profile or AWS_PROFILE; `aws configure list-profiles` shows those there are ({said})"
    )]
    NoCredentials {
        /// Where they were looked for.
        said: String,
    },

    /// The file of an authority holds a certificate that may sign no others.
    #[cfg(feature = "aws")]
    #[error(
        "{}: not a certificate authority (no CA:TRUE): restore the file from a backup",
        path.display()
    )]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
    },

    /// The directory has no certificate authorities.
    #[error(
        "{} holds no setup: make one with `zk-setup apply`, or begin with `zk-setup ca init`, or \
         name another directory with --dir",
        dir.display()
    )]
    NoAuthorities {
        /// The operator's directory.
        dir: PathBuf,
    },

    /// Neither the trust file nor the caller knows a key of the device that
    /// counts.
    #[error(
        "device {device} has no key that counts: name a certificate request with --csr, or a key \
         with --hsm"
    )]
    NoKey {
        /// The device.
        device: DeviceId,
    },

    /// There is no function yet, and no program to make it of.
    #[cfg(feature = "aws")]
    #[error(
        "there is no Lambda function {name} yet, and no zip file with the program for it: \
         `cargo xtask lambda` makes one"
    )]
    NoFunction {
        /// The function.
        name: String,
    },

    /// There is no gateway yet for devices to publish to.
    #[error("{} has no gateway yet: run `zk-setup gateway init` first", dir.display())]
    NoGateway {
        /// The operator's directory.
        dir: PathBuf,
    },

    /// A gateway that can't be reached.
    #[error("a gateway needs at least one name or address that devices reach it at")]
    NoNames,

    /// Neither option, environment nor profile names a region.
    #[cfg(feature = "aws")]
    #[error("no region: give --region, set AWS_REGION, or name one in the profile")]
    NoRegion,

    /// AWS is still busy with what it was asked before.
    #[cfg(feature = "aws")]
    #[error("{resource} is still {state}: run this again in a few minutes")]
    NotReady {
        /// The resource.
        resource: String,
        /// How AWS calls its state.
        state: String,
    },

    /// Something that isn't ours has a name that we need.
    #[cfg(feature = "aws")]
    #[error(
        "{resource} exists, and was not made by this set-up: choose another --prefix, or remove \
         it if nobody needs it"
    )]
    NotOurs {
        /// The resource.
        resource: String,
    },

    /// The directory belongs to a set-up in another account.
    #[cfg(feature = "aws")]
    #[error(
        "{} is for AWS account {expected}, and these are credentials of account {found} \
         ({caller}): choose others with --profile, or name another directory with --dir; to move \
         the set-up, change the file",
        path.display()
    )]
    OtherAccount {
        /// The file that says so.
        path: PathBuf,
        /// The account it names.
        expected: String,
        /// The account that the credentials are of.
        found: String,
        /// Whose they are.
        caller: String,
    },

    /// The directory belongs to a set-up in another region, whose devices and
    /// tables would be out of sight.
    #[cfg(feature = "aws")]
    #[error(
        "{} is for the region {expected}, and asked for is {found}, by --region, AWS_REGION or \
         zk-setup.toml: take that out, or name another directory with --dir; to move the set-up, \
         change the file",
        path.display()
    )]
    OtherRegion {
        /// The file that says so.
        path: PathBuf,
        /// The region it names.
        expected: String,
        /// The region that is asked for.
        found: String,
    },

    /// The directory belongs to a set-up of another prefix.
    #[cfg(feature = "aws")]
    #[error(
        "{} is for the prefix {expected}, and asked for is {found}, by --prefix, ZK_SETUP_PREFIX \
         or zk-setup.toml: take that out, or name another directory with --dir; to move the \
         set-up, change the file",
        path.display()
    )]
    OtherPrefix {
        /// The file that says so.
        path: PathBuf,
        /// The prefix it names.
        expected: String,
        /// The prefix that is asked for.
        found: String,
    },

    /// A prefix that doesn't go into every name.
    #[cfg(feature = "aws")]
    #[error(
        "prefix {prefix:?} can't be used in AWS's names: take a letter, and up to 31 of A-Z a-z \
         0-9 _ - after it"
    )]
    Prefix {
        /// The prefix.
        prefix: String,
    },

    /// No key of the device is on its way.
    #[error(
        "device {device} is not changing its key: begin with `zk-setup device rotate {device} \
         --csr FILE` or `--hsm URI`"
    )]
    NoRotation {
        /// The device.
        device: DeviceId,
    },

    /// The device has not used its new certificate yet.
    #[error(
        "nothing has come in under the new certificate of {device} yet, so the old key stays in \
         use: copy {} to the device, restart its agent, and try again after a reading or a heartbeat",
        dir.display()
    )]
    NotConnected {
        /// The device.
        device: DeviceId,
        /// What goes to the device.
        dir: PathBuf,
    },

    /// The gateway still answers.
    #[error("the gateway of {} is running at {address}: stop zk-gateway first", dir.display())]
    Running {
        /// The operator's directory.
        dir: PathBuf,
        /// Where it answers.
        address: std::net::SocketAddr,
    },

    /// Nobody to encrypt for.
    #[error(
        "no owner: name at least one public key with --owner; \
         `zk-reader keygen` makes a key pair on the owner's machine"
    )]
    NoOwners,

    /// There is something to sign or to encrypt, and no passphrase.
    #[error("the passphrase of the {of} is needed: give it with a file")]
    PassphraseNeeded {
        /// Whose.
        of: &'static str,
    },

    /// The passphrase is too short to protect a key.
    #[error("the passphrase needs at least {least} characters")]
    PassphraseTooShort {
        /// The least number of characters.
        least: usize,
    },

    /// The system's random source failed; nothing was made.
    #[error("the system's random source failed: {0}")]
    Random(#[from] getrandom::Error),

    /// A region that AWS can't have.
    #[cfg(feature = "aws")]
    #[error("region {region:?} is none of AWS's: they are called as in eu-central-1")]
    Region {
        /// The region.
        region: String,
    },

    /// The certificate request was refused.
    #[error("certificate request: {0}")]
    Request(#[from] RequestError),

    /// The store didn't answer, or refused.
    #[error(transparent)]
    Store(#[from] zk_store::StoreError),

    /// AWS asks for fewer requests, and went on doing so.
    #[cfg(feature = "aws")]
    #[error(
        "AWS has had too many requests from this account, and refused {operation} of {resource} \
         each time ({said}): run this again in a few minutes, which goes on where it stopped"
    )]
    Throttled {
        /// What it was asked.
        operation: &'static str,
        /// The resource.
        resource: String,
        /// What AWS said.
        said: String,
    },

    /// Somebody has revoked the certificate of a device that is to stay.
    #[cfg(feature = "aws")]
    #[error(
        "the certificate {principal} of device {device} was revoked in AWS IoT, and not here: run \
         `zk-setup device revoke {device}` to shut the device out, or, if it was a mistake, set the \
         certificate to INACTIVE there and run this again"
    )]
    RevokedInAws {
        /// The device.
        device: DeviceId,
        /// The certificate's id.
        principal: String,
    },

    /// More owners than a record has room for.
    #[error("{count} owners: a record can be encrypted for at most {limit}")]
    TooManyOwners {
        /// How many there are.
        count: usize,
        /// The most there can be.
        limit: usize,
    },

    /// No device of this name was ever added.
    #[error("no device {device}: `zk-setup device list` shows those there are")]
    UnknownDevice {
        /// The name.
        device: DeviceId,
    },

    /// No answer came.
    #[cfg(feature = "aws")]
    #[error(
        "no answer to {operation} ({said}): check the network, and that the region is one of \
         AWS's; with --endpoint-url or AWS_ENDPOINT_URL, that something answers there"
    )]
    Unreachable {
        /// What was asked.
        operation: &'static str,
        /// Where it ended.
        said: String,
    },

    /// The passphrase doesn't open the key, or the file is damaged: the two look
    /// the same.
    #[error("{}: wrong passphrase (or the file is damaged)", path.display())]
    WrongPassphrase {
        /// The key file.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn malformed(path: &Path, detail: impl fmt::Display) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            detail: detail.to_string(),
        }
    }
}
