//! Whether the agent would start: all that can be seen without starting it.

use std::io;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, access};
use serde_json::{Value, json};
use x509_cert::der::Decode;
use zk_envelope::{Envelope, OwnerPublicKey, Sealer, StreamId};
use zk_hsm::{BackendKind, Hsm, HsmUri};
use zk_sensors::W1Bus;

use crate::arguments::{Arguments, Place};
use crate::config::{Config, Engine};
use crate::files::{certificates, check_certificate, roots};
use crate::{Error, agent, socket, with_causes};

/// What [`check`] found about one key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The key, as in `device.certificate`.
    pub key: &'static str,
    /// Where its value stands.
    pub place: Place,
    /// Whether the agent starts all the same.
    pub starts: bool,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

impl Finding {
    /// One object, for a script. Members may be added, none goes away.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (line, by) = match &self.place {
            Place::File { line, .. } => (*line, None),
            Place::Given(by) => (None, Some(by)),
        };
        json!({
            "key": self.key,
            "line": line,
            "by": by,
            "starts": self.starts,
            "what": self.what,
            "cure": self.cure,
        })
    }
}

/// Looks at everything that `config` names, which `arguments` made of the file and of
/// themselves: what would keep the agent from starting here, and what will need
/// somebody soon. Empty: all is right.
///
/// The key is opened, and asked for no signature. Nothing is written, nothing is sent,
/// and a running agent isn't disturbed.
#[must_use]
pub fn check(arguments: &Arguments, config: &Config) -> Vec<Finding> {
    let mut check = Check {
        arguments,
        found: Vec::new(),
    };
    check.all(config);
    check.found
}

struct Check<'a> {
    arguments: &'a Arguments,
    found: Vec<Finding>,
}

impl Check<'_> {
    fn all(&mut self, config: &Config) {
        // flags may have changed what was read
        if let Err((key, detail)) = config.check() {
            self.wrong(key, format!("it {detail}"), "give it such a value");
        }
        if let Err(Error::Target(error)) = agent::target(config) {
            self.wrong("target.endpoint", error.to_string(), "correct it");
        }
        let owners = self.owners(config);
        let key = self.key(config);
        self.certificate(config, key.as_ref());
        if let (Some(owners), Some(key)) = (owners, &key) {
            let sealer = Sealer::new(
                config.device.id.clone(),
                StreamId([0; 16]),
                key.public_key(),
                &owners,
            );
            if let Err(error) = sealer {
                self.wrong("owners.files", with_causes(&error), "name each owner once");
            }
        }
        self.roots(config);
        self.sensors(config);
        self.spool(config);
        self.metrics(config);
        self.socket(config);
    }

    fn owners(&mut self, config: &Config) -> Option<Vec<OwnerPublicKey>> {
        let cure = "give the public keys that zk-reader keygen made, readable for the agent's user";
        self.taken("owners.files", agent::owners(config), cure)
    }

    fn key(&mut self, config: &Config) -> Option<Hsm> {
        let uri: HsmUri = match config.device.hsm.parse() {
            Ok(uri) => uri,
            Err(error) => {
                let cure = "zymkey:slot=0 is the usual one";
                self.wrong("device.hsm", with_causes(&error), cure);
                return None;
            }
        };
        match Hsm::open(&uri, zk_hsm::Options::default()) {
            Ok(hsm) => Some(hsm),
            // systemd hands it to the service, and to nobody else
            Err(error @ zk_hsm::Error::Pin { .. })
                if std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
                    && config.device.hsm.contains("credential:") =>
            {
                self.soon(
                    "device.hsm",
                    format!("not looked at: {}", with_causes(&error)),
                    "the service itself has its credentials: see what systemctl status zk-agent \
                     says",
                );
                None
            }
            Err(error) => {
                let cure = match uri.backend() {
                    BackendKind::Soft => "the file has to be there, of mode 0600, and this user's",
                    _ => "is the module there, and may this user use it? zk-ctl doctor says more",
                };
                self.wrong(
                    "device.hsm",
                    format!("{uri}: {}", with_causes(&error)),
                    cure,
                );
                None
            }
        }
    }

    fn certificate(&mut self, config: &Config, key: Option<&Hsm>) {
        let name = "device.certificate";
        let path = &config.device.certificate;
        let cure = "use the certificate that zk-setup device add wrote for this device";
        let Some(chain) = self.taken(name, certificates(path), cure) else {
            return;
        };
        let expires = check_certificate(path, &chain, &config.device.id);
        let Some(expires) = self.taken(name, expires, cure) else {
            return;
        };
        let path = path.display();
        let until = zk_envelope::Timestamp::from(expires);
        let renew = "zk-setup device add makes a new one; records wait until it is there";
        match expires.duration_since(SystemTime::now()) {
            Err(_) => self.soon(name, format!("{path}: it expired at {until}"), renew),
            Ok(left) if left < SOON => {
                self.soon(name, format!("{path}: it expires at {until}"), renew);
            }
            Ok(_) => {}
        }
        let none = rustls::RootCertStore::empty();
        if let Some(key) = key
            && let Err(error) = key.client_config(chain, none, &[])
        {
            let cure = "use the certificate that was issued for this key";
            self.wrong(name, format!("{path}: {}", with_causes(&error)), cure);
        }
    }

    fn roots(&mut self, config: &Config) {
        let name = "target.roots";
        let path = &config.target.roots;
        let cure = "give the server's authority in PEM: the gateway's, or Amazon's";
        if self.taken(name, roots(path), cure).is_none() {
            return;
        }
        let Ok(all) = certificates(path) else { return };
        let now = SystemTime::now();
        let expires = |root: &x509_cert::Certificate| {
            root.tbs_certificate().validity().not_after.to_system_time()
        };
        let expired = all
            .iter()
            .filter_map(|der| x509_cert::Certificate::from_der(der).ok())
            .filter(|root| expires(root) <= now)
            .count();
        if expired > 0 {
            let what = format!(
                "{}: {expired} of {} have expired",
                path.display(),
                all.len()
            );
            self.soon(name, what, cure);
        }
    }

    fn sensors(&mut self, config: &Config) {
        let devices = config.sensors.root.join("bus/w1/devices");
        if !devices.is_dir() {
            let what = format!("{}: there is no 1-Wire bus", devices.display());
            let cure = "add dtoverlay=w1-gpio to /boot/firmware/config.txt, and start the machine \
                        anew; the agent starts all the same, and finds it when it is there";
            self.soon("sensors.root", what, cure);
        }
        let Ok(listing) = W1Bus::new(&config.sensors.root).list() else {
            return;
        };
        for offset in &config.sensors.offsets {
            let mut here = listing.thermometers.iter();
            if !here.any(|thermometer| thermometer.id() == offset.sensor) {
                let what = format!("{offset}: there is no such thermometer here");
                let cure = "correct its name, or plug it in: zk-ctl sensors shows which are here";
                self.soon("sensors.offsets", what, cure);
            }
        }
    }

    fn spool(&mut self, config: &Config) {
        let cure = "give another spool.dir, or see that the agent's user may write there";
        if let Err(error) = agent::spool_options(config) {
            let cure = "give \"log\", and another spool.dir";
            self.wrong("spool.engine", error.to_string(), cure);
            return;
        }
        let dir = &config.spool.dir;
        let other_engine = |found: &str| {
            format!(
                "{}: records of the engine {found} wait there",
                dir.display()
            )
        };
        let keep = "keep the engine until they are published, or give another spool.dir";
        match zk_spool::inspect(dir) {
            Ok(Some(spool)) if config.spool.engine == Engine::Sled && spool.segments > 0 => {
                self.wrong("spool.engine", other_engine("log"), keep);
            }
            Ok(Some(spool)) => self.waiting(config, &spool),
            Err(zk_spool::Error::NotInspectable { engine, .. })
                if config.spool.engine == Engine::Log =>
            {
                self.wrong("spool.engine", other_engine(engine), keep);
            }
            Ok(None) | Err(zk_spool::Error::NotInspectable { .. }) => {}
            Err(error) => {
                let what = format!("{}: {}", dir.display(), with_causes(&error));
                return self.wrong("spool.dir", what, cure);
            }
        }
        // itself, or the first that is there of those it lies in
        let there = dir.ancestors().find(|place| place.exists());
        if let Some(there) = there
            && let Err(what) = writable(there)
        {
            self.wrong("spool.dir", what, cure);
        }
    }

    /// Whether what waits is this device's own.
    fn waiting(&mut self, config: &Config, spool: &zk_spool::Inspection) {
        let mut found = None;
        let seen = spool.visit(|record| {
            let envelope = Envelope::from_bytes(record.bytes());
            found = envelope
                .ok()
                .map(|own| own.unverified_header().device.clone());
            ControlFlow::Break(())
        });
        if seen.is_ok()
            && let Some(found) = found
            && found != config.device.id
        {
            let error = Error::OtherSpool {
                dir: config.spool.dir.clone(),
                device: config.device.id.clone(),
                found,
            };
            self.wrong(
                "spool.dir",
                error.to_string(),
                "give it a directory of its own",
            );
        }
    }

    fn metrics(&mut self, config: &Config) {
        let name = "metrics.listen";
        let Some(address) = config.metrics.listen else {
            return;
        };
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let what = format!("somebody listens at {address}");
                self.soon(name, what, IF_NOT_THE_AGENT);
            }
            Err(error) => {
                let cure = "give it an address of this machine, and a port of 1024 or more";
                self.wrong(name, format!("{address}: {error}"), cure);
            }
        }
    }

    fn socket(&mut self, config: &Config) {
        let name = "socket.listen";
        let Some(path) = &config.socket.listen else {
            return;
        };
        match config.socket.group.as_deref().map(socket::group_id) {
            None => {}
            Some(Ok(group)) if socket::may_give(group) => {}
            Some(Ok(_)) => {
                let what = "this user is none of its members".to_owned();
                let cure =
                    "usermod -aG GROUP zk-agent, and start it anew; or leave socket.group out";
                self.wrong("socket.group", what, cure);
            }
            Some(Err(error)) => {
                let cure = "make it with groupadd --system, or leave socket.group out";
                let what = match error {
                    Error::Group { group } => format!("there is no group {group} in /etc/group"),
                    error => with_causes(&error),
                };
                self.wrong("socket.group", what, cure);
            }
        }
        let absolute = std::path::absolute(path);
        let path = absolute.as_deref().unwrap_or(path);
        let dir = path.parent().unwrap_or(path);
        if !dir.is_dir() {
            let what = format!("{}: its directory is not there", path.display());
            // systemd makes it when the service starts
            if dir == Path::new(RUNTIME_DIRECTORY) {
                let cure = "the unit makes it when it starts; by hand: mkdir, and chown zk-agent";
                return self.soon(name, what, cure);
            }
            let cure = "the unit makes /run/zk-agent; make any other one for the agent's user";
            return self.wrong(name, what, cure);
        }
        match socket::left_behind(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let what = format!("somebody listens at {}", path.display());
                self.soon(name, what, IF_NOT_THE_AGENT);
            }
            Err(error) => {
                let cure = "give another path, of 107 characters at most, where nothing is";
                self.wrong(name, format!("{}: {error}", path.display()), cure);
            }
        }
        if let Err(what) = writable(dir) {
            let cure = "give it a directory of the agent's user, such as /run/zk-agent";
            self.wrong(name, what, cure);
        }
    }

    /// The value, or what is wrong with it.
    fn taken<T>(&mut self, key: &'static str, outcome: Result<T, Error>, cure: &str) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(key, with_causes(&error), cure);
                None
            }
        }
    }

    fn wrong(&mut self, key: &'static str, what: String, cure: &str) {
        self.finding(key, false, what, cure);
    }

    fn soon(&mut self, key: &'static str, what: String, cure: &str) {
        self.finding(key, true, what, cure);
    }

    fn finding(&mut self, key: &'static str, starts: bool, what: String, cure: &str) {
        self.found.push(Finding {
            key,
            place: self.arguments.place(key),
            starts,
            what,
            cure: cure.to_owned(),
        });
    }
}

/// Whether this user may make files in a directory; what is wrong if not.
fn writable(dir: &Path) -> Result<(), String> {
    access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("{}: {}", dir.display(), io::Error::from(error)))
}

const IF_NOT_THE_AGENT: &str = "if that is not the agent itself, which runs, it does not start: \
                                give another one, or end what has it";

/// As in the unit.
const RUNTIME_DIRECTORY: &str = "/run/zk-agent";

/// When an expiring certificate is worth a word.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
