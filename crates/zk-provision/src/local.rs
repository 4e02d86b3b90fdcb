use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use p256::ecdsa::VerifyingKey;
use rustls_pki_types::ServerName;
use zk_store::{Options, Store, StoreUri};

use crate::config::{self, Config};
use crate::files::{self, PUBLIC, SECRET};
use crate::report::{Action, GatewayFiles, Step};
use crate::{Authority, Certificate, Error, Passphrase, keys};

/// The operator's directory for a gateway of one's own.
///
/// It holds the two certificate authorities, what the gateway and each device
/// need, and the trust file for the owners:
///
/// ```text
/// trust.toml                           for the owners: whose signatures count
/// ca/device-ca.{crt,key}.pem           signs devices; key encrypted
/// ca/gateway-ca.{crt,key}.pem          signs the gateway; key encrypted
/// gateway/gateway.toml                 configuration of the gateway
/// gateway/gateway.{crt,key}.pem        its certificate and key
/// gateway/device-ca.crt.pem            who signs devices
/// gateway/store.db                     device records and readings
/// devices/NAME/agent.toml              configuration of the device's agent
/// devices/NAME/device.crt.pem          its certificate
/// devices/NAME/gateway-ca.crt.pem      who signs the gateway
/// devices/NAME/owner-ID.pub.pem        for whom it encrypts
/// ```
///
/// New directories have mode 0700, key files and the trust file 0600. Every
/// operation holds a lock on the directory, replaces files as a whole, and
/// can be run again: what is there is kept, what an interrupted run left out is
/// made. Configuration files keep what a person changed in them.
#[derive(Clone, Debug)]
pub struct LocalSetup {
    dir: PathBuf,
}

/// What a gateway is to be. What is left out stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Gateway {
    /// The host names and addresses that devices may reach it at, for its
    /// certificate. At first there has to be one.
    pub names: Vec<ServerName<'static>>,
    /// Where it listens; at first port 8443 of all addresses.
    pub listen: Option<SocketAddr>,
    /// Where device records and readings are kept; at first `store.db` in the
    /// gateway's directory, where a relative path begins.
    pub store: Option<StoreUri>,
}

impl LocalSetup {
    /// The setup in `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The operator's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the trust file is.
    #[must_use]
    pub fn trust_file(&self) -> PathBuf {
        self.dir.join("trust.toml")
    }

    /// Makes the two certificate authorities. Their keys are encrypted with
    /// `passphrase`.
    ///
    /// # Errors
    /// [`Error::WrongPassphrase`] if there are keys already that it doesn't
    /// open; [`Error::Busy`], [`Error::Io`], [`Error::Malformed`],
    /// [`Error::Random`].
    pub fn init_authorities(
        &self,
        passphrase: &Passphrase,
        now: SystemTime,
    ) -> Result<Vec<Step>, Error> {
        files::make_dir(&self.dir)?;
        let _lock = files::lock(&self.dir)?;
        files::make_dir(&self.dir.join("ca"))?;
        let mut steps = Vec::new();
        for role in [Role::Device, Role::Gateway] {
            let (key_file, certificate_file) = self.authority_files(role);
            if files::read(&certificate_file)?.is_some() {
                self.authority(role, passphrase)?;
                steps.push(files::step(Action::Kept, &key_file));
                steps.push(files::step(Action::Kept, &certificate_file));
                continue;
            }
            // A key without its certificate is what an interrupted run leaves,
            // or someone deleted the certificate; either way the key is good.
            let key = if let Some(pem) = files::read(&key_file)? {
                steps.push(files::step(Action::Kept, &key_file));
                keys::from_encrypted_pem(&pem, passphrase)
                    .ok_or(Error::WrongPassphrase { path: key_file })?
            } else {
                let key = keys::generate()?;
                let pem = keys::to_encrypted_pem(&key, passphrase)?;
                steps.push(files::update(&key_file, pem.as_bytes(), SECRET)?);
                key
            };
            let authority = Authority::new(&format!("zk {} CA", role.as_str()), &key, now)?;
            steps.push(files::update(
                &certificate_file,
                authority.certificate().pem().as_bytes(),
                PUBLIC,
            )?);
        }
        Ok(steps)
    }

    /// Makes the gateway's key, certificate, configuration and store.
    ///
    /// Run again, it keeps the key; and the certificate too, unless its names
    /// are to be others or it has less than a third of its life left.
    ///
    /// # Errors
    /// [`Error::NoAuthorities`] before [`LocalSetup::init_authorities`];
    /// [`Error::NoNames`], [`Error::WrongPassphrase`],
    /// [`Error::AuthorityExpired`], [`Error::Busy`], [`Error::Io`],
    /// [`Error::Malformed`], [`Error::Random`], [`Error::Store`].
    pub async fn init_gateway(
        &self,
        gateway: &Gateway,
        passphrase: &Passphrase,
        now: SystemTime,
    ) -> Result<GatewayFiles, Error> {
        let authority = self.authority(Role::Gateway, passphrase)?;
        let _lock = files::lock(&self.dir)?;
        let dir = self.gateway_dir();
        let certificate_file = dir.join(CERTIFICATE);
        let there = read_certificate(&certificate_file)?;
        let mut names = gateway.names.clone();
        if names.is_empty() {
            names = there.as_ref().map(Certificate::names).unwrap_or_default();
        }
        if names.is_empty() {
            return Err(Error::NoNames);
        }
        files::make_dir(&dir)?;
        let mut steps = Vec::new();

        let key_file = dir.join(KEY);
        let key = if let Some(pem) = files::read(&key_file)? {
            steps.push(files::step(Action::Kept, &key_file));
            keys::from_pem(&pem)
                .ok_or_else(|| Error::malformed(&key_file, "not a P-256 key in PKCS#8 PEM"))?
        } else {
            let key = keys::generate()?;
            steps.push(files::update(
                &key_file,
                keys::to_pem(&key)?.as_bytes(),
                SECRET,
            )?);
            key
        };
        let key = VerifyingKey::from(key.public_key());
        let certificate = match there {
            Some(there)
                if *there.key() == key
                    && there.is_issued_by(authority.certificate())
                    && there.names() == names
                    && !there.is_due(now) =>
            {
                there
            }
            _ => authority.issue_gateway(&names, &key, now)?,
        };
        steps.push(files::update(
            &certificate_file,
            certificate.pem().as_bytes(),
            PUBLIC,
        )?);
        let roots = self.authority_certificate(Role::Device)?;
        steps.push(files::update(
            &dir.join(ROOTS),
            roots.pem().as_bytes(),
            PUBLIC,
        )?);

        let config_file = dir.join(CONFIG);
        let mut config = Config::open_or(&config_file, config::GATEWAY)?;
        if let Some(listen) = gateway.listen {
            config.set("listen", &listen.to_string())?;
        }
        if let Some(store) = &gateway.store {
            config.set("store", &store.to_string())?;
        }
        steps.push(config.write()?);

        let uri = self.store()?;
        if let StoreUri::File(path) = &uri {
            let action = if path.exists() {
                Action::Kept
            } else {
                Action::Created
            };
            steps.push(files::step(action, path));
        }
        Store::create(&uri, Options::default()).await?;
        Ok(GatewayFiles {
            certificate,
            dir,
            steps,
        })
    }

    /// Unlocks the authority that signs devices.
    ///
    /// # Errors
    /// [`Error::NoAuthorities`], [`Error::WrongPassphrase`], [`Error::Io`],
    /// [`Error::Malformed`].
    pub fn device_authority(&self, passphrase: &Passphrase) -> Result<Authority, Error> {
        self.authority(Role::Device, passphrase)
    }

    /// Where device records and readings are kept, as the gateway's
    /// configuration says.
    ///
    /// # Errors
    /// [`Error::NoGateway`] before [`LocalSetup::init_gateway`]; [`Error::Io`],
    /// [`Error::Malformed`].
    pub fn store(&self) -> Result<StoreUri, Error> {
        let path = self.gateway_dir().join(CONFIG);
        let config = self.gateway_config(&path)?;
        let uri = config.text("store")?.parse();
        Ok(match uri.map_err(|error| Error::malformed(&path, error))? {
            StoreUri::File(file) => StoreUri::File(self.gateway_dir().join(file)),
            other => other,
        })
    }

    /// Where devices reach the gateway, `host:port`: the first name in its
    /// certificate, and the port that it listens on.
    pub(crate) fn endpoint(&self) -> Result<String, Error> {
        let path = self.gateway_dir().join(CONFIG);
        let listen = self.gateway_config(&path)?;
        let listen = listen.text("listen")?.parse::<SocketAddr>();
        let port = listen
            .map_err(|error| Error::malformed(&path, error))?
            .port();
        let path = self.gateway_dir().join(CERTIFICATE);
        let certificate = read_certificate(&path)?.ok_or_else(|| Error::NoGateway {
            dir: self.dir.clone(),
        })?;
        match certificate.names().first() {
            Some(name) if name.to_str().contains(':') => Ok(format!("[{}]:{port}", name.to_str())),
            Some(name) => Ok(format!("{}:{port}", name.to_str())),
            None => Err(Error::malformed(&path, "names no host")),
        }
    }

    pub(crate) fn authority_certificate(&self, role: Role) -> Result<Certificate, Error> {
        read_certificate(&self.authority_files(role).1)?.ok_or_else(|| Error::NoAuthorities {
            dir: self.dir.clone(),
        })
    }

    pub(crate) fn authority(
        &self,
        role: Role,
        passphrase: &Passphrase,
    ) -> Result<Authority, Error> {
        let (key_file, certificate_file) = self.authority_files(role);
        let certificate = self.authority_certificate(role)?;
        let pem = files::read(&key_file)?.ok_or_else(|| {
            Error::malformed(
                &key_file,
                "missing; its certificate is there, so restore it from a backup",
            )
        })?;
        let key = keys::from_encrypted_pem(&pem, passphrase).ok_or(Error::WrongPassphrase {
            path: key_file.clone(),
        })?;
        Authority::open(certificate, &key).ok_or_else(|| {
            let of = certificate_file.display();
            Error::malformed(
                &key_file,
                format_args!("not the key of {of}: restore it from a backup"),
            )
        })
    }

    fn authority_files(&self, role: Role) -> (PathBuf, PathBuf) {
        let file = |kind| self.dir.join(format!("ca/{}-ca.{kind}.pem", role.as_str()));
        (file("key"), file("crt"))
    }

    fn gateway_dir(&self) -> PathBuf {
        self.dir.join("gateway")
    }

    fn gateway_config<'a>(&self, path: &'a Path) -> Result<Config<'a>, Error> {
        Config::open(path)?.ok_or_else(|| Error::NoGateway {
            dir: self.dir.clone(),
        })
    }
}

/// Whom an authority signs.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Device,
    Gateway,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Gateway => "gateway",
        }
    }
}

pub(crate) fn read_certificate(path: &Path) -> Result<Option<Certificate>, Error> {
    let Some(pem) = files::read(path)? else {
        return Ok(None);
    };
    Certificate::from_pem(&pem).map(Some).map_err(|error| {
        let cure = "remove it, and run the command again, which makes another one";
        Error::malformed(
            path,
            format_args!("not a certificate in PEM ({error}): {cure}"),
        )
    })
}

// these names stand in the templates as well
const CONFIG: &str = "gateway.toml";
const CERTIFICATE: &str = "gateway.crt.pem";
const KEY: &str = "gateway.key.pem";
const ROOTS: &str = "device-ca.crt.pem";
