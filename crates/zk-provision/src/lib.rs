//! Certificate authorities, device certificates, and the set-up of a gateway of
//! one's own.
//!
//! Two authorities, kept apart, sign a gateway and its devices. Each device
//! sends a [`CertificateRequest`] that its own key has signed, and gets a
//! certificate, a configuration, a place in the owners' trust file and a record
//! in the gateway's store. All of it lies in one directory on the operator's
//! machine, a [`LocalSetup`].
//!
//! ```
//! use std::time::SystemTime;
//!
//! use zk_envelope::OwnerKey;
//! use zk_hsm::{Hsm, create_soft_key};
//! use zk_provision::{CertificateRequest, Device, Gateway, LocalSetup, Passphrase};
//! use zk_store::{Options, Store};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! # let home = home.path();
//! let now = SystemTime::now();
//! let passphrase = Passphrase::new("several words are good".to_owned())?;
//! let setup = LocalSetup::new(home.join("zk"));
//! setup.init_authorities(&passphrase, now)?;
//! let gateway = Gateway { names: vec!["localhost".try_into()?], ..Gateway::default() };
//! setup.init_gateway(&gateway, &passphrase, now).await?;
//!
//! // On the device, in a security module; here in a file.
//! let key = Hsm::open(&create_soft_key(home.join("key.pem"))?, Default::default())?;
//! let pem = key.csr("pi-01")?;
//!
//! let store = Store::open(&setup.store()?, Options::default()).await?;
//! let device = Device {
//!     request: CertificateRequest::from_pem(pem.as_bytes(), &"pi-01".parse()?)?,
//!     hsm: Some(key.uri().to_string()),
//!     endpoint: None,
//!     owners: vec![OwnerKey::generate()?.public_key().clone()],
//! };
//! let added = setup.add_device(&device, &passphrase, &store, now).await?;
//! assert_eq!(added.certificate.key(), key.public_key());
//! assert!(added.dir.join("agent.toml").exists());
//! assert!(store.device(&added.certificate.principal()).await?.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! All of it at once is [`LocalSetup::apply`]: it takes a [`Desired`] state,
//! compares it with what is there, and does what is missing;
//! [`LocalSetup::plan`] says beforehand what that is, by the same code.
//! [`LocalSetup::check`] looks at the result, [`LocalSetup::destroy`] takes it
//! away, [`LocalSetup::rotate_device`] changes a device's key.
//!
//! Every operation can be run again: what is there is kept, what is missing is
//! made, and the [`Step`]s say which was which. So an interrupted one is mended
//! by repeating it.
//!
//! # What it does not do
//!
//! It keeps no revocation list: a device is shut out by its record in the store
//! and its key in the trust file, which gateway and readers look at for every
//! message. It can't tell whether a device's key is in hardware; that is known
//! to who takes the request from the device. It asks nobody for a passphrase and
//! prints nothing. Locking and unlocking an authority's key takes a good part of
//! a second of the calling thread.

#![forbid(unsafe_code)]

mod apply;
mod authority;
#[cfg(feature = "aws")]
mod aws;
mod certificate;
mod check;
mod config;
mod desired;
mod destroy;
mod device;
mod error;
mod files;
mod hand;
mod keys;
mod local;
mod owner;
mod passphrase;
mod report;
mod request;
mod rotate;
mod signed;

pub use authority::Authority;
#[cfg(feature = "aws")]
pub use aws::{
    Architecture, AwsDesired, AwsOptions, AwsPlace, AwsSetup, FunctionZip, operator_policy,
};
pub use certificate::Certificate;
pub use desired::{Desired, DesiredDevice, DesiredKey, Others};
pub use destroy::Destroy;
pub use device::Device;
pub use error::Error;
pub use hand::Secrets;
pub use local::{Gateway, LocalSetup};
pub use passphrase::Passphrase;
pub use report::{
    Action, AddedDevice, Age, AuthorityEntry, CertificateEntry, Checked, DeviceEntry, Expiry,
    FinishedRotation, GatewayFiles, Item, Needs, Plan, RevokedDevice, Standing, Step, Verdict,
};
pub use request::{CertificateRequest, RequestError};
