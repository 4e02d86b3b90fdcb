//! Which device this is, and what it takes to publish as it.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::ClientConfig;
use zk_agent::{Clock, Config};
use zk_envelope::{OwnerPublicKey, Sealer, StreamId};
use zk_hsm::{Hsm, HsmUri, Options};
use zk_publish::Target;

use crate::Error;
use crate::arguments::{Common, Endpoint};

impl Common {
    /// The configuration, with what the command line puts in its place.
    pub(crate) fn read(&self) -> Result<Config, Error> {
        // A missing file has a cure of its own.
        if let Err(source) = File::open(&self.config) {
            let path = self.config.clone();
            return Err(Error::NoConfig { path, source });
        }
        let mut config = Config::read(&self.config)?;
        if let Some(uri) = &self.hsm {
            config.device.hsm = uri.to_string();
        }
        Ok(config)
    }

    /// The key's URI; the configuration is read only if it has to be.
    pub(crate) fn key_uri(&self) -> Result<HsmUri, Error> {
        match &self.hsm {
            Some(uri) => Ok(uri.clone()),
            None => Ok(self
                .read()?
                .device
                .hsm
                .parse()
                .map_err(zk_agent::Error::HsmUri)?),
        }
    }

    pub(crate) fn key(&self) -> Result<Hsm, Error> {
        let uri = self.key_uri()?;
        Hsm::open(&uri, Options::default()).map_err(|error| Error::hsm(&uri, error))
    }
}

impl Endpoint {
    pub(crate) fn apply(&self, config: &mut Config) {
        if let Some(endpoint) = &self.endpoint {
            config.target.endpoint.clone_from(endpoint);
        }
    }
}

/// The device, ready to publish.
pub(crate) struct Device {
    pub(crate) config: Config,
    pub(crate) hsm: Hsm,
    pub(crate) owners: Vec<OwnerPublicKey>,
    pub(crate) target: Target,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) clock: Clock,
}

impl Device {
    pub(crate) fn open(common: &Common, endpoint: &Endpoint) -> Result<Self, Error> {
        let mut config = common.read()?;
        endpoint.apply(&mut config);
        let target = target(&config)?;
        let uri: HsmUri = config.device.hsm.parse().map_err(zk_agent::Error::HsmUri)?;
        let owners = config.owners.files.iter().map(|file| zk_agent::owner(file));
        let owners = owners.collect::<Result<_, _>>()?;
        let chain = zk_agent::certificates(&config.device.certificate)?;
        zk_agent::check_certificate(&config.device.certificate, &chain, &config.device.id)?;
        let roots = zk_agent::roots(&config.target.roots)?;
        let clock = Clock::new(SystemTime::now)?;
        let hsm_error = |error| Error::hsm(&uri, error);
        let hsm = Hsm::open(&uri, Options::default()).map_err(hsm_error)?;
        let tls = hsm.client_config(chain, roots, &[]).map_err(hsm_error)?;
        Ok(Self {
            config,
            hsm,
            owners,
            target,
            tls,
            clock,
        })
    }

    /// What makes records of this device on a stream.
    pub(crate) fn sealer(&self, stream: StreamId) -> Result<Sealer, Error> {
        let device = self.config.device.id.clone();
        Sealer::new(device, stream, self.hsm.public_key(), &self.owners).map_err(Error::Seal)
    }
}

/// Where a device publishes.
pub(crate) fn target(config: &Config) -> Result<Target, zk_agent::Error> {
    let topic = format!("Zymkey/{}", config.device.id);
    Ok(Target::new(&config.target.endpoint, &topic)?)
}
