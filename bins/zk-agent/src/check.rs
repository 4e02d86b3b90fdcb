//! Whether the agent would start: all that can be seen without starting it.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, access};
use serde_json::{Value, json};
use x509_cert::der::Decode;
use zk_envelope::{Envelope, OwnerPublicKey, Sealer, StreamId};
use zk_hsm::{Hsm, HsmUri};
use zk_sensors::W1Bus;

use crate::config::{Config, line_of};
use crate::files::{certificates, check_certificate, owner, roots};
use crate::{Error, agent, socket};

/// What [`check`] found about one key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The key, as in `device.certificate`.
    pub key: &'static str,
    /// Its line in the file; `None` if it does not stand there.
    pub line: Option<usize>,
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
        json!({
            "key": self.key,
            "line": self.line,
            "starts": self.starts,
            "what": self.what,
            "cure": self.cure,
        })
    }
}

/// Looks at everything that `config` names, whose file is at `path`: what would keep
/// the agent from starting here, and what will need somebody soon. Empty: all is
/// right.
///
/// The key is opened, and asked for no signature. Nothing is written, nothing is sent,
/// and a running agent isn't disturbed.
#[must_use]
pub fn check(path: &Path, config: &Config) -> Vec<Finding> {
    let mut check = Check {
        text: fs::read_to_string(path).unwrap_or_default(),
        found: Vec::new(),
    };
    check.all(config);
    check.found
}

struct Check {
    text: String,
    found: Vec<Finding>,
}

impl Check {
    fn all(&mut self, config: &Config) {
        // flags may have changed what was read
        if let Err((key, detail)) = config.check() {
            self.wrong(key, format!("{key} {detail}"), "give it such a value");
        }
        let topic = format!("Zymkey/{}", config.device.id);
        if let Err(error) = zk_publish::Target::new(&config.target.endpoint, &topic) {
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
                self.wrong("owners.files", told(&error), "name each owner once");
            }
        }
        self.roots(config);
        self.sensors(config);
        self.spool(config);
        self.socket(config);
    }

    fn owners(&mut self, config: &Config) -> Option<Vec<OwnerPublicKey>> {
        let read = config.owners.files.iter().map(|file| owner(file));
        let cure = "give the public keys that zk-reader keygen made, readable for the agent's user";
        self.taken("owners.files", read.collect(), cure)
    }

    fn key(&mut self, config: &Config) -> Option<Hsm> {
        let uri: HsmUri = match config.device.hsm.parse() {
            Ok(uri) => uri,
            Err(error) => {
                let cure = "zymkey:slot=0 is the usual one";
                self.wrong("device.hsm", told(&error), cure);
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
                    format!("not looked at: {}", told(&error)),
                    "the service itself has its credentials: see what systemctl status zk-agent \
                     says",
                );
                None
            }
            Err(error) => {
                let cure = "is the module there, and may this user use it? zk-ctl doctor says more";
                self.wrong("device.hsm", format!("{uri}: {}", told(&error)), cure);
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
            self.wrong(name, format!("{path}: {}", told(&error)), cure);
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
            self.wrong("spool.engine", error.to_string(), "give \"log\"");
            return;
        }
        let dir = &config.spool.dir;
        match zk_spool::inspect(dir) {
            Ok(Some(spool)) => self.waiting(config, &spool),
            Ok(None) | Err(zk_spool::Error::NotInspectable { .. }) => {}
            Err(error) => {
                let what = format!("{}: {}", dir.display(), told(&error));
                return self.wrong("spool.dir", what, cure);
            }
        }
        // itself, or the first that is there of those it lies in
        let there = dir.ancestors().find(|place| place.exists());
        if let Some(there) = there
            && let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK)
        {
            let what = format!("{}: {}", there.display(), std::io::Error::from(error));
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

    fn socket(&mut self, config: &Config) {
        let Some(path) = &config.socket.listen else {
            return;
        };
        if let Some(group) = &config.socket.group
            && let Err(error) = socket::group_id(group)
        {
            let cure = "make it with groupadd --system, or leave socket.group out";
            self.wrong("socket.group", error.to_string(), cure);
        }
        if !path.parent().is_some_and(Path::is_dir) {
            // systemd makes it when the service starts
            let what = format!("{}: its directory is not there", path.display());
            let cure = "the unit makes /run/zk-agent; make any other one for the agent's user";
            self.soon("socket.listen", what, cure);
        }
    }

    /// The value, or what is wrong with it.
    fn taken<T>(&mut self, key: &'static str, outcome: Result<T, Error>, cure: &str) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(key, told(&error), cure);
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
            line: line_of(&self.text, key),
            starts,
            what,
            cure: cure.to_owned(),
        });
    }
}

/// An error with its causes, where it does not say them itself.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// When an expiring certificate is worth a word.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
