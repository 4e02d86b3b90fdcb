//! The operator's tool: certificate authorities, a gateway of one's own, and its
//! devices.
//!
//! The work is done by [`zk_provision`]; here are the command line, the question
//! for the passphrase, and what a person or a script reads of the result. The
//! program prints what [`run`] returns.
#![forbid(unsafe_code)]

mod arguments;
mod outcome;
mod passphrase;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use zk_envelope::{DeviceId, OwnerPublicKey};
use zk_hsm::{BackendKind, Hsm, HsmUri, create_soft_key};
use zk_provision::{CertificateRequest, Device, Gateway, LocalSetup};
use zk_store::{Options, Store, StoreUri};

pub use arguments::Arguments;
use arguments::{CaCommand, Command, DeviceAdd, DeviceCommand, GatewayCommand, GatewayInit};
pub use outcome::Outcome;

/// Does what the command line says.
///
/// # Errors
/// What happened, and with what; running the command again is safe.
pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let setup = LocalSetup::new(&arguments.dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match &arguments.command {
            Command::Ca(CaCommand::Init(source)) => {
                let new = !setup.dir().join("ca/gateway-ca.key.pem").exists();
                let passphrase = passphrase::get(source, new)?;
                let steps = setup.init_authorities(&passphrase, SystemTime::now())?;
                Ok(outcome::authorities(&setup, &steps))
            }
            Command::Gateway(GatewayCommand::Init(init)) => init_gateway(&setup, init).await,
            Command::Device(DeviceCommand::Add(add)) => add_device(&setup, add).await,
            Command::Device(DeviceCommand::List) => Ok(outcome::devices(
                &setup.devices(&store(&setup).await?).await?,
            )),
            Command::Device(DeviceCommand::Revoke { name }) => {
                let store = store(&setup).await?;
                let revoked = setup.revoke_device(name, &store, SystemTime::now()).await?;
                Ok(outcome::revoked(&setup, &revoked))
            }
        }
    })
}

async fn init_gateway(setup: &LocalSetup, init: &GatewayInit) -> anyhow::Result<Outcome> {
    let store = match init.store.clone() {
        // what a person types begins where that person is
        Some(StoreUri::File(path)) => Some(StoreUri::File(std::path::absolute(path)?)),
        other => other,
    };
    let gateway = Gateway {
        names: init.names.clone(),
        listen: init.listen,
        store,
    };
    let passphrase = passphrase::get(&init.passphrase, false)?;
    let files = setup
        .init_gateway(&gateway, &passphrase, SystemTime::now())
        .await?;
    Ok(outcome::gateway(setup, &files))
}

async fn add_device(setup: &LocalSetup, add: &DeviceAdd) -> anyhow::Result<Outcome> {
    let store = store(setup).await?;
    let mut owners = Vec::new();
    for path in &add.owners {
        let owner = read(path)
            .and_then(|pem| Ok(OwnerPublicKey::from_pem(&String::from_utf8_lossy(&pem))?));
        owners.push(owner.with_context(|| format!("owner's key {}", path.display()))?);
    }
    let pem = match (&add.csr, &add.hsm) {
        (Some(path), _) => read(path)?,
        (None, Some(uri)) => request(uri, &add.name)?,
        (None, None) => anyhow::bail!("--csr or --hsm is needed"),
    };
    let device = Device {
        request: CertificateRequest::from_pem(&pem, &add.name)
            .map_err(zk_provision::Error::from)
            .with_context(|| match &add.csr {
                Some(path) => path.display().to_string(),
                None => format!("the request made here, of {}", add.name),
            })?,
        hsm: add.hsm.as_ref().map(ToString::to_string),
        endpoint: add.endpoint.clone(),
        owners,
    };
    let passphrase = passphrase::get(&add.passphrase, false)?;
    let added = setup
        .add_device(&device, &passphrase, &store, SystemTime::now())
        .await?;
    Ok(outcome::added(setup, &added))
}

async fn store(setup: &LocalSetup) -> anyhow::Result<Store> {
    let uri = setup.store()?;
    Store::open(&uri, Options::default())
        .await
        .with_context(|| format!("store {uri}"))
}

/// A certificate request by the key in this machine. A key for development is
/// made if there is none.
fn request(uri: &HsmUri, device: &DeviceId) -> anyhow::Result<Vec<u8>> {
    let name = uri.to_string();
    if uri.backend() == BackendKind::Soft
        && let Some(path) = name.strip_prefix("soft:").map(Path::new)
        && !path.exists()
    {
        create_soft_key(path)?;
    }
    let hsm = Hsm::open(uri, zk_hsm::Options::default())?;
    Ok(hsm.csr(device.as_str())?.into_bytes())
}

/// A file, as far as anything that is expected here can go.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(CertificateRequest::MAX_LEN as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}
