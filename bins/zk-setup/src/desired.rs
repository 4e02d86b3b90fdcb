//! What the command line and zk-setup.toml ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustls_pki_types::ServerName;
use zk_envelope::{DeviceId, OwnerPublicKey, TrustFile};
use zk_hsm::{BackendKind, Hsm, HsmUri, create_soft_key};
use zk_provision::{
    CertificateRequest, Desired, DesiredDevice, DesiredKey, Gateway, LocalSetup, Others,
};
use zk_store::StoreUri;

use crate::arguments::{DesiredArguments, FunctionArguments};
use crate::file::{AwsTable, SetupFile};

/// What is asked for, wherever readings go.
pub(crate) struct Wanted {
    pub(crate) owners: Vec<OwnerPublicKey>,
    pub(crate) devices: BTreeMap<DeviceId, DesiredDevice>,
    pub(crate) others: Others,
    /// The devices whose keys are in this machine.
    pub(crate) here: BTreeSet<DeviceId>,
}

/// The file, or nothing.
pub(crate) fn file(arguments: &DesiredArguments) -> anyhow::Result<Option<SetupFile>> {
    arguments.file.as_deref().map(SetupFile::read).transpose()
}

/// What is to be of a gateway: the file, and over it what the command line says.
/// Also the devices whose keys are in this machine.
pub(crate) fn desired(
    setup: &LocalSetup,
    arguments: &DesiredArguments,
) -> anyhow::Result<(Desired, BTreeSet<DeviceId>)> {
    let file = file(arguments)?;
    without_function(&arguments.function)?;
    let gateway = file.as_ref().map(|file| file.gateway.clone());
    let gateway = gateway.unwrap_or_default();
    if file
        .as_ref()
        .is_some_and(|file| file.aws != AwsTable::default())
    {
        bail!("[aws] in the file is for --target aws; this is a set-up with a gateway");
    }
    let wanted = wanted(setup, arguments, file)?;
    let desired = Desired {
        gateway: Gateway {
            names: match &arguments.names[..] {
                [] => gateway.names,
                names => names.to_vec(),
            },
            listen: arguments.listen.or(gateway.listen),
            store: absolute(arguments.store.clone())?.or(gateway.store),
        },
        names_at_first: names_of_this_machine(),
        owners: wanted.owners,
        devices: wanted.devices,
        others: wanted.others,
    };
    Ok((desired, wanted.here))
}

/// A gateway runs no function.
pub(crate) fn without_function(given: &FunctionArguments) -> anyhow::Result<()> {
    ensure!(
        given.lambda_zip.is_none() && given.arch.is_none(),
        "--lambda-zip and --arch are for --target aws; this is a set-up with a gateway"
    );
    Ok(())
}

/// Owners and devices: the file, and over it what the command line says.
pub(crate) fn wanted(
    setup: &LocalSetup,
    arguments: &DesiredArguments,
    file: Option<SetupFile>,
) -> anyhow::Result<Wanted> {
    let others = match file {
        Some(_) => Others::Remove,
        None => Others::Keep,
    };
    let SetupFile {
        owners,
        devices: tables,
        ..
    } = file.unwrap_or_default();
    let given = |flag: &[PathBuf], file: Vec<PathBuf>| match flag {
        [] => file,
        flag => flag.to_vec(),
    };
    let (mut devices, mut here) = (BTreeMap::new(), BTreeSet::new());
    let mut add = |name: DeviceId, device: DesiredDevice, csr: Option<&Path>| {
        if csr.is_none() && !matches!(device.key, DesiredKey::Registered) {
            here.insert(name.clone());
        } else {
            here.remove(&name);
        }
        devices.insert(name, device);
    };
    for (name, table) in tables {
        let device = device(
            setup,
            &name,
            table.csr.as_deref(),
            table.hsm.as_ref(),
            table.endpoint,
        )?;
        add(name, device, table.csr.as_deref());
    }
    if let Some(name) = &arguments.device {
        let (csr, hsm) = (arguments.csr.as_deref(), arguments.hsm.as_ref());
        let device = device(setup, name, csr, hsm, arguments.endpoint.clone())?;
        add(name.clone(), device, csr);
    }
    Ok(Wanted {
        owners: owner_keys(&given(&arguments.owners, owners))?,
        devices,
        others,
        here,
    })
}

fn device(
    setup: &LocalSetup,
    name: &DeviceId,
    csr: Option<&Path>,
    hsm: Option<&HsmUri>,
    endpoint: Option<String>,
) -> anyhow::Result<DesiredDevice> {
    let key = match (csr, hsm) {
        // the request has done its work, and need not be kept
        (Some(csr), _) if !csr.exists() && is_registered(setup, name) => DesiredKey::Registered,
        (Some(csr), _) => DesiredKey::Request(request_in(csr, name)?),
        (None, Some(uri)) => match missing_soft_key(uri) {
            Some(path) => DesiredKey::ToBeMade(path),
            None => DesiredKey::Request(request_by(uri, name)?),
        },
        (None, None) => DesiredKey::Registered,
    };
    Ok(DesiredDevice {
        key,
        hsm: hsm.map(ToString::to_string),
        endpoint,
    })
}

/// Makes the keys that are yet to be made, and says so.
pub(crate) fn make_keys(
    devices: &mut BTreeMap<DeviceId, DesiredDevice>,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    for (name, device) in devices {
        if let DesiredKey::ToBeMade(path) = &device.key {
            let uri = make_soft_key(path)?;
            say(&format!("created  {}", path.display()));
            device.key = DesiredKey::Request(request_by(&uri, name)?);
        }
    }
    Ok(())
}

/// The request in a file, or one by a key in this machine. A key for
/// development is made if there is none.
pub(crate) fn request(
    name: &DeviceId,
    csr: Option<&Path>,
    hsm: Option<&HsmUri>,
) -> anyhow::Result<CertificateRequest> {
    match (csr, hsm) {
        (Some(path), _) => request_in(path, name),
        (None, Some(uri)) => {
            if let Some(path) = missing_soft_key(uri) {
                make_soft_key(&path)?;
            }
            request_by(uri, name)
        }
        (None, None) => anyhow::bail!("--csr or --hsm is needed"),
    }
}

pub(crate) fn owner_keys(paths: &[PathBuf]) -> anyhow::Result<Vec<OwnerPublicKey>> {
    let key = |path: &PathBuf| {
        read(path)
            .and_then(|pem| Ok(OwnerPublicKey::from_pem(&String::from_utf8_lossy(&pem))?))
            .with_context(|| format!("owner's key {}", path.display()))
    };
    paths.iter().map(key).collect()
}

/// What a person types begins where that person is.
pub(crate) fn absolute(store: Option<StoreUri>) -> anyhow::Result<Option<StoreUri>> {
    Ok(match store {
        Some(StoreUri::File(path)) => Some(StoreUri::File(std::path::absolute(path)?)),
        other => other,
    })
}

fn is_registered(setup: &LocalSetup, name: &DeviceId) -> bool {
    TrustFile::read(&setup.trust_file()).is_ok_and(|trust| trust.devices.contains_key(name))
}

fn missing_soft_key(uri: &HsmUri) -> Option<PathBuf> {
    let name = uri.to_string();
    let path = Path::new(name.strip_prefix("soft:")?);
    (uri.backend() == BackendKind::Soft && !path.exists()).then(|| path.to_owned())
}

fn make_soft_key(path: &Path) -> anyhow::Result<HsmUri> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    Ok(create_soft_key(path)?)
}

fn request_in(path: &Path, name: &DeviceId) -> anyhow::Result<CertificateRequest> {
    CertificateRequest::from_pem(&read(path)?, name)
        .map_err(zk_provision::Error::from)
        .with_context(|| path.display().to_string())
}

fn request_by(uri: &HsmUri, name: &DeviceId) -> anyhow::Result<CertificateRequest> {
    let hsm = Hsm::open(uri, zk_hsm::Options::default()).map_err(|error| match error {
        // no key is made in hardware unasked
        zk_hsm::Error::KeyMissing { .. } => anyhow::Error::from(error).context(format!(
            "{uri} has no key yet; make one with zk-ctl hsm keys generate --hsm '{uri}', then run \
             this again"
        )),
        error => error.into(),
    })?;
    let pem = hsm.csr(name.as_str())?;
    CertificateRequest::from_pem(pem.as_bytes(), name)
        .map_err(zk_provision::Error::from)
        .with_context(|| format!("the request made here, of {name}"))
}

/// `localhost`, and the name that others may know the machine by.
fn names_of_this_machine() -> Vec<ServerName<'static>> {
    let mut names = Vec::new();
    let system = rustix::system::uname();
    let host = system.nodename().to_str().unwrap_or_default();
    for name in ["localhost", host] {
        if let Ok(name) = ServerName::try_from(name.to_owned())
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
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
