use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use p256::ecdsa::VerifyingKey;
use rustls_pki_types::ServerName;
use zk_envelope::{DeviceId, KeyId, Timestamp};
use zk_store::{Options, Store, StoreError, StoreUri};

use crate::config::{self, Config};
use crate::files::{self, PUBLIC, SECRET};
use crate::hand::{Hand, Secrets};
use crate::report::{Action, Age, AuthorityEntry, GatewayFiles, Item, Step};
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
/// devices/NAME/next/                   the same for its next key, while it changes
/// owner.pem, owner.pub.pem             the owner's key, if it is made here
/// reader.toml                          configuration of the owner's reader
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
        let mut tell = |_: &Step| {};
        let mut hand = Hand::that_does(now, authorities(passphrase), &mut tell);
        for role in [Role::Device, Role::Gateway] {
            self.authority_stage(&mut hand, role)?;
        }
        Ok(hand.steps)
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
        let signer = Signer::of(self.authority(Role::Gateway, passphrase)?);
        let devices = self.authority_certificate(Role::Device)?;
        let _lock = files::lock(&self.dir)?;
        let mut tell = |_: &Step| {};
        let mut hand = Hand::that_does(now, authorities(passphrase), &mut tell);
        let made = self
            .gateway_stage(&mut hand, gateway, &[], &signer, Some(&devices))
            .await?;
        let dir = self.gateway_dir();
        // one that does has made it
        let certificate = made.certificate.ok_or(Error::NoGateway {
            dir: self.dir.clone(),
        })?;
        Ok(GatewayFiles {
            certificate,
            dir,
            steps: hand.steps,
        })
    }

    /// The authorities that there are.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn authorities(&self) -> Result<Vec<AuthorityEntry>, Error> {
        let mut all = Vec::new();
        for role in [Role::Device, Role::Gateway] {
            let (_, file) = self.authority_files(role);
            if let Some(certificate) = read_certificate(&file)? {
                all.push(AuthorityEntry {
                    signs: role.as_str(),
                    subject: certificate.subject(),
                    key: KeyId::of(certificate.key()),
                    id: certificate.principal(),
                    expires: certificate.not_after(),
                    file,
                });
            }
        }
        Ok(all)
    }

    /// Makes an authority, if there is none.
    pub(crate) fn authority_stage(&self, hand: &mut Hand<'_>, role: Role) -> Result<Signer, Error> {
        let (key_file, certificate_file) = self.authority_files(role);
        if let Some(certificate) = read_certificate(&certificate_file)? {
            if !key_file.exists() {
                return Err(lost(&key_file));
            }
            let open = |passphrase| self.authority(role, passphrase);
            let authority = hand.authorities().map(open).transpose()?;
            hand.kept(&key_file);
            hand.kept(&certificate_file);
            return Ok(Signer {
                certificate: Some(certificate),
                authority,
                is_known: true,
            });
        }
        hand.make_dir(&self.dir.join("ca"))?;
        // A key without its certificate is what an interrupted run leaves,
        // or someone deleted the certificate; either way the key is good.
        let pem = files::read(&key_file)?;
        let age = if pem.is_some() { Age::Known } else { Age::New };
        let Some(passphrase) = hand.need_authorities(age)? else {
            if pem.is_some() {
                hand.kept(&key_file);
            } else {
                hand.new_file(&key_file, "");
            }
            hand.new_file(&certificate_file, "");
            return Ok(Signer {
                is_known: pem.is_some(),
                ..Signer::default()
            });
        };
        let key = if let Some(pem) = pem {
            let key = keys::from_encrypted_pem(&pem, passphrase).ok_or_else(|| {
                Error::WrongPassphrase {
                    path: key_file.clone(),
                }
            })?;
            hand.kept(&key_file);
            key
        } else {
            let key = keys::generate()?;
            let pem = keys::to_encrypted_pem(&key, passphrase)?;
            hand.file(&key_file, pem.as_bytes(), SECRET, "")?;
            key
        };
        let authority = Authority::new(&format!("zk {} CA", role.as_str()), &key, hand.now)?;
        let pem = authority.certificate().pem();
        hand.file(&certificate_file, pem.as_bytes(), PUBLIC, "")?;
        Ok(Signer::of(authority))
    }

    /// Makes the gateway's files and its store, or what is missing of them.
    pub(crate) async fn gateway_stage(
        &self,
        hand: &mut Hand<'_>,
        gateway: &Gateway,
        names_at_first: &[ServerName<'static>],
        signer: &Signer,
        devices: Option<&Certificate>,
    ) -> Result<MadeGateway, Error> {
        let dir = self.gateway_dir();
        let certificate_file = dir.join(CERTIFICATE);
        let there = read_certificate(&certificate_file)?;
        let mut names = gateway.names.clone();
        if names.is_empty() {
            names = there.as_ref().map(Certificate::names).unwrap_or_default();
        }
        if names.is_empty() {
            names = names_at_first.to_vec();
        }
        if names.is_empty() {
            return Err(Error::NoNames);
        }
        hand.make_dir(&dir)?;

        let key_file = dir.join(KEY);
        let key = if let Some(pem) = files::read(&key_file)? {
            hand.kept(&key_file);
            Some(keys::from_pem(&pem).ok_or_else(|| not_a_key(&key_file))?)
        } else if hand.plans() {
            hand.new_file(&key_file, "");
            None
        } else {
            let key = keys::generate()?;
            let pem = keys::to_pem(&key)?;
            hand.file(&key_file, pem.as_bytes(), SECRET, "")?;
            Some(key)
        };
        let key = key.map(|key| VerifyingKey::from(key.public_key()));
        let other = there
            .as_ref()
            .map(|there| not_this(there, key.as_ref(), signer, &names, hand.now));
        let certificate = match (there, other) {
            (Some(there), Some(None)) => {
                hand.kept(&certificate_file);
                Some(there)
            }
            (_, reason) => {
                let reason = reason.flatten().unwrap_or_default();
                let issue = |authority: &Authority, key: &VerifyingKey, now| {
                    authority.issue_gateway(&names, key, now)
                };
                signer.sign(hand, key.as_ref(), issue, &certificate_file, &reason)?
            }
        };

        copy_root(hand, devices.map(Certificate::pem), &dir.join(ROOTS))?;

        let config_file = dir.join(CONFIG);
        let mut config = Config::open_or(&config_file, config::GATEWAY)?;
        if let Some(listen) = gateway.listen {
            config.set("listen", &listen.to_string())?;
        }
        if let Some(store) = &gateway.store {
            config.set("store", &store.to_string())?;
        }
        let text = config.text_of();
        hand.file(&config_file, text.as_bytes(), PUBLIC, "as it is asked for")?;

        let uri = self.store_of(&config_file, &config)?;
        let options = options_of(&config);
        let prefix = config.text("prefix").ok().map(str::to_owned);
        let store = store_stage(hand, &uri, options).await?;
        let port = port_of(&config_file, &config)?;
        Ok(MadeGateway {
            certificate,
            endpoint: names.first().map(|name| endpoint(name, port)),
            uri,
            prefix,
            store,
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
        self.store_of(&path, &config)
    }

    /// How it is opened: with the prefix that the gateway's configuration names.
    ///
    /// # Errors
    /// As [`LocalSetup::store`].
    pub fn store_options(&self) -> Result<Options, Error> {
        let path = self.gateway_dir().join(CONFIG);
        Ok(options_of(&self.gateway_config(&path)?))
    }

    fn store_of(&self, path: &Path, config: &Config<'_>) -> Result<StoreUri, Error> {
        let uri = config.text("store")?.parse();
        Ok(match uri.map_err(|error| Error::malformed(path, error))? {
            StoreUri::File(file) => StoreUri::File(self.gateway_dir().join(file)),
            other => other,
        })
    }

    /// Where it listens, as the gateway's configuration says.
    pub(crate) fn listen(&self) -> Result<SocketAddr, Error> {
        let path = self.gateway_dir().join(CONFIG);
        let config = self.gateway_config(&path)?;
        listen_of(&path, &config)
    }

    /// Where devices reach the gateway, `host:port`: the first name in its
    /// certificate, and the port that it listens on.
    pub(crate) fn endpoint(&self) -> Result<String, Error> {
        let port = self.listen()?.port();
        let path = self.gateway_file(CERTIFICATE);
        let certificate = read_certificate(&path)?.ok_or_else(|| Error::NoGateway {
            dir: self.dir.clone(),
        })?;
        match certificate.names().first() {
            Some(name) => Ok(endpoint(name, port)),
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
        let pem = files::read(&key_file)?.ok_or_else(|| lost(&key_file))?;
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

    pub(crate) fn authority_files(&self, role: Role) -> (PathBuf, PathBuf) {
        let file = |kind| self.dir.join(format!("ca/{}-ca.{kind}.pem", role.as_str()));
        (file("key"), file("crt"))
    }

    /// Where in AWS the set-up is, if it is there.
    pub(crate) fn aws_file(&self) -> PathBuf {
        self.dir.join("aws.toml")
    }

    pub(crate) fn gateway_dir(&self) -> PathBuf {
        self.dir.join("gateway")
    }

    pub(crate) fn gateway_file(&self, name: &str) -> PathBuf {
        self.gateway_dir().join(name)
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

/// An authority as far as it is known: its certificate unless it is yet to be
/// made, its key if it was unlocked.
#[derive(Debug, Default)]
pub(crate) struct Signer {
    pub(crate) certificate: Option<Certificate>,
    pub(crate) authority: Option<Authority>,
    /// Its key is there: what it has signed stays signed.
    pub(crate) is_known: bool,
}

impl Signer {
    pub(crate) fn of(authority: Authority) -> Self {
        Self {
            certificate: Some(authority.certificate().clone()),
            authority: Some(authority),
            is_known: true,
        }
    }

    /// Issues a certificate and writes it to `file`. A plan notes that, and gets
    /// `None`.
    pub(crate) fn sign(
        &self,
        hand: &mut Hand<'_>,
        key: Option<&VerifyingKey>,
        issue: impl FnOnce(&Authority, &VerifyingKey, SystemTime) -> Result<Certificate, Error>,
        file: &Path,
        reason: &str,
    ) -> Result<Option<Certificate>, Error> {
        hand.need_authorities(Age::Known)?;
        let (Some(authority), Some(key)) = (&self.authority, key) else {
            hand.new_file(file, reason);
            return Ok(None);
        };
        let certificate = issue(authority, key, hand.now)?;
        hand.file(file, certificate.pem().as_bytes(), PUBLIC, reason)?;
        Ok(Some(certificate))
    }

    /// Why a certificate of this key can't go on, whatever it is for.
    pub(crate) fn rejects(
        &self,
        there: &Certificate,
        key: Option<&VerifyingKey>,
        now: SystemTime,
    ) -> Option<String> {
        if key != Some(there.key()) {
            return Some("it is of another key".into());
        }
        let is_ours = match &self.certificate {
            Some(issuer) => there.is_issued_by(issuer),
            None => self.is_known,
        };
        if !is_ours {
            return Some("it is of another authority".into());
        }
        let until = Timestamp::from(there.not_after()).to_string();
        there
            .is_due(now)
            .then(|| format!("due: valid until {}", &until[..10]))
    }
}

/// A gateway, as far as it is made.
pub(crate) struct MadeGateway {
    pub(crate) certificate: Option<Certificate>,
    /// Where devices reach it.
    pub(crate) endpoint: Option<String>,
    pub(crate) uri: StoreUri,
    /// What the names of its tables begin with, if that is said.
    pub(crate) prefix: Option<String>,
    /// `None` in the plan of a store.
    pub(crate) store: Option<Store>,
}

/// Why the gateway needs another certificate than the one there is.
fn not_this(
    there: &Certificate,
    key: Option<&VerifyingKey>,
    signer: &Signer,
    names: &[ServerName<'_>],
    now: SystemTime,
) -> Option<String> {
    let list = |names: &[ServerName<'_>]| {
        let names: Vec<_> = names.iter().map(ServerName::to_str).collect();
        names.join(", ")
    };
    signer.rejects(there, key, now).or_else(|| {
        let old = there.names();
        (old != names).then(|| format!("names: {} instead of {}", list(names), list(&old)))
    })
}

/// Puts an authority's certificate where somebody needs it.
pub(crate) fn copy_root(hand: &mut Hand<'_>, root: Option<&str>, to: &Path) -> Result<(), Error> {
    let reason = "the authority is another one";
    match root {
        Some(pem) => hand.file(to, pem.as_bytes(), PUBLIC, reason),
        None => {
            hand.new_file(to, reason);
            Ok(())
        }
    }
}

/// Makes what is missing of the store. In the plan of one that is no store yet
/// it is `None`.
async fn store_stage(
    hand: &mut Hand<'_>,
    uri: &StoreUri,
    options: Options,
) -> Result<Option<Store>, Error> {
    let (item, there) = match uri {
        StoreUri::File(path) => (
            Item::File(path.clone()),
            // an interrupted run may have left an empty one
            fs::metadata(path).ok().map(|found| found.len() > 0),
        ),
        other => (Item::Tables(other.clone()), Some(true)),
    };
    let store = match there {
        Some(true) => Some(Store::open(uri, options.clone()).await?),
        _ => None,
    };
    let complete = match &store {
        Some(store) => has_tables(store).await?,
        None => false,
    };
    let action = match (there, complete) {
        (Some(_), true) => Action::Kept,
        (Some(_), false) if matches!(uri, StoreUri::File(_)) => Action::Changed,
        _ => Action::Created,
    };
    let reason = match action {
        Action::Changed => "its tables are missing",
        _ => "",
    };
    if complete {
        hand.step(action, item, reason);
        return Ok(store);
    }
    let mut made = None;
    if !hand.plans() {
        made = Some(Store::create(uri, options).await?);
    }
    hand.step(action, item, reason);
    Ok(made)
}

/// Whether each table answers.
pub(crate) async fn has_tables(store: &Store) -> Result<bool, Error> {
    let nobody = DeviceId::try_from("-")?;
    let asked = [
        store.devices().await.map(drop),
        store.latest(&nobody).await.map(drop),
        store.quarantined("-").await.map(drop),
    ];
    for answer in asked {
        match answer {
            Err(StoreError::NoTable { .. }) => return Ok(false),
            other => other?,
        }
    }
    Ok(true)
}

fn options_of(config: &Config<'_>) -> Options {
    let mut options = Options::default();
    if let Ok(prefix) = config.text("prefix") {
        prefix.clone_into(&mut options.prefix);
    }
    options
}

fn listen_of(path: &Path, config: &Config<'_>) -> Result<SocketAddr, Error> {
    let listen = config.text("listen")?.parse();
    listen.map_err(|error| Error::malformed(path, error))
}

fn port_of(path: &Path, config: &Config<'_>) -> Result<u16, Error> {
    Ok(listen_of(path, config)?.port())
}

fn endpoint(name: &ServerName<'_>, port: u16) -> String {
    let name = name.to_str();
    if name.contains(':') {
        format!("[{name}]:{port}")
    } else {
        format!("{name}:{port}")
    }
}

fn authorities(passphrase: &Passphrase) -> Secrets<'_> {
    Secrets {
        authorities: Some(passphrase),
        owner: None,
    }
}

fn lost(key_file: &Path) -> Error {
    let cure = "missing; its certificate is there, so restore it from a backup";
    Error::malformed(key_file, cure)
}

pub(crate) fn not_a_key(path: &Path) -> Error {
    Error::malformed(path, "not a P-256 key in PKCS#8 PEM")
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
pub(crate) const CONFIG: &str = "gateway.toml";
pub(crate) const CERTIFICATE: &str = "gateway.crt.pem";
pub(crate) const KEY: &str = "gateway.key.pem";
pub(crate) const ROOTS: &str = "device-ca.crt.pem";
