//! Looking at a set-up as a whole, piece by piece.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use p256::ecdsa::VerifyingKey;
use rustls::crypto::aws_lc_rs;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use zk_envelope::{DeviceId, Timestamp};
use zk_store::Store;
use zk_verify::DeviceRecord;

use crate::config::Config;
use crate::device::{
    AGENT, AMAZON_ROOTS, CERTIFICATE as DEVICE_CERTIFICATE, Roots, Trust, by_device, standing,
};
use crate::local::{
    CERTIFICATE, CONFIG, KEY, ROOTS, Role, has_tables, not_a_key, read_certificate,
};
use crate::report::{Action, Checked, Expiry, Standing, Verdict};
use crate::{Certificate, Error, LocalSetup, files, keys};

impl LocalSetup {
    /// Looks at everything: files and their modes, keys and certificates, the
    /// store and its tables, each device on both sides, and whether the gateway
    /// answers on this machine. It changes nothing and needs no passphrase, so
    /// it can't tell whether a passphrase is the right one.
    ///
    /// The gateway is asked on the calling thread, for a few seconds at most.
    pub async fn check(&self, now: SystemTime) -> Vec<Checked> {
        let mut found = Found::default();
        if !self.dir().is_dir() {
            found.bad(
                &self.dir().display(),
                "there is no set-up",
                "make one with `zk-setup apply`, or name its directory with --dir",
            );
            return found.0;
        }
        self.check_modes(&mut found);
        let devices = self.check_authority(&mut found, Role::Device, now);
        let gateways = self.check_authority(&mut found, Role::Gateway, now);
        let gateway = self.check_gateway(&mut found, gateways.as_ref(), devices.as_ref(), now);
        let records = self.check_store(&mut found).await;
        let rest = Rest {
            issuer: devices.as_ref(),
            roots: Roots::of_gateway(gateways.as_ref()),
            gateway: gateway.as_ref(),
            endpoint: None,
            now,
        };
        self.check_devices(&mut found, records.as_deref(), &rest);
        let config = self.gateway_file(CONFIG);
        let named = Config::open(&config).ok().flatten();
        let named = named.and_then(|config| config.text("tls.certificate").ok().map(str::to_owned));
        if let Some(other) = named.filter(|named| named != CERTIFICATE) {
            found.warn(
                &config.display(),
                format!("the gateway uses {other}, which zk-setup didn't make and doesn't look at"),
                format!("for the one made here: tls.certificate = \"{CERTIFICATE}\""),
            );
        } else if let (Some(roots), Ok(listen), Some(gateway)) =
            (&gateways, self.listen(), &gateway)
            && let Some(name) = gateway.names().first()
        {
            check_answer(&mut found, probe(listen, roots, name), gateway);
        }
        found.0
    }

    /// The same for a set-up in AWS, and there.
    #[cfg(feature = "aws")]
    pub(crate) async fn check_aws(
        &self,
        setup: &crate::AwsSetup,
        function: Option<&crate::FunctionZip>,
        now: SystemTime,
    ) -> Vec<Checked> {
        let mut found = Found::default();
        if !self.dir().is_dir() {
            found.bad(
                &self.dir().display(),
                "there is no set-up",
                "make one with `zk-setup apply`, or name its directory with --dir",
            );
            return found.0;
        }
        self.check_modes(&mut found);
        let devices = self.check_authority(&mut found, Role::Device, now);
        let account = format!("AWS account {}, {}", setup.account(), setup.region());
        let endpoint = match setup.endpoint().await {
            Ok(endpoint) => {
                found.good(&account);
                Some(endpoint)
            }
            Err(error) => {
                found.error(&account, &error);
                None
            }
        };
        let records = match setup.store() {
            Ok(store) => store.devices().await.map_err(Error::from),
            Err(error) => Err(error),
        };
        let records = match records {
            Ok(records) => Some(records),
            Err(error) => {
                found.error(&format!("tables {}-*", setup.prefix()), &error);
                None
            }
        };
        let rest = Rest {
            issuer: devices.as_ref(),
            roots: Roots {
                file: AMAZON_ROOTS,
                pem: Some(crate::AwsSetup::AMAZON_ROOTS),
            },
            gateway: None,
            endpoint: endpoint.as_deref(),
            now,
        };
        self.check_devices(&mut found, records.as_deref(), &rest);
        match setup.drift(function, now).await {
            Ok(steps) => {
                for step in steps {
                    if step.action == Action::Kept {
                        if step.reason.is_empty() {
                            found.good(&step.item);
                        } else {
                            found.warn(&step.item, step.reason, "see whether it is meant so");
                        }
                        continue;
                    }
                    let cause = match &step.reason[..] {
                        "" => "missing",
                        reason => reason,
                    };
                    found.bad(&step.item, cause, APPLY);
                }
            }
            Err(error) => found.error(&account, &error),
        }
        found.0
    }

    /// When the certificates in the directory expire.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::Envelope`].
    pub fn expiries(&self, now: SystemTime) -> Result<Vec<Expiry>, Error> {
        let mut files = vec![
            self.authority_files(Role::Device).1,
            self.authority_files(Role::Gateway).1,
            self.gateway_file(CERTIFICATE),
        ];
        for device in Trust::read(self)?.file.devices.keys() {
            files.push(self.device_dir(device).join(DEVICE_CERTIFICATE));
        }
        let mut all = Vec::new();
        for file in files {
            if let Some(certificate) = read_certificate(&file)? {
                all.push(Expiry {
                    file,
                    at: certificate.not_after(),
                    is_due: certificate.is_due(now),
                });
            }
        }
        Ok(all)
    }

    fn check_modes(&self, found: &mut Found) {
        let mut closed = vec![
            (self.dir().to_owned(), 0o022),
            (self.trust_file(), 0o022),
            (self.gateway_file(KEY), 0o077),
            (self.owner_key_file(), 0o077),
        ];
        for role in [Role::Device, Role::Gateway] {
            closed.push((self.authority_files(role).0, 0o077));
        }
        let mut is_right = true;
        for (path, closed) in closed {
            let Ok(metadata) = path.metadata() else {
                continue;
            };
            let mode = metadata.permissions().mode() & 0o777;
            if mode & closed != 0 {
                is_right = false;
                let (may, take) = if closed == 0o022 {
                    ("write", "go-w")
                } else {
                    ("read", "go=")
                };
                found.bad(
                    &path.display(),
                    format!("mode {mode:03o} lets other users {may} it"),
                    format!("run: chmod {take} {}", path.display()),
                );
            }
        }
        if is_right {
            found.good(&"files that others may not read or write");
        }
    }

    fn check_authority(
        &self,
        found: &mut Found,
        role: Role,
        now: SystemTime,
    ) -> Option<Certificate> {
        let (key_file, file) = self.authority_files(role);
        let certificate = found.certificate(&file)?;
        match files::read(&key_file) {
            Ok(Some(pem)) if pem.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") => {}
            Ok(Some(_)) => found.bad(
                &key_file.display(),
                "not an encrypted key",
                "restore it from a backup",
            ),
            Ok(None) => found.bad(
                &key_file.display(),
                "missing: nothing more can be signed",
                "restore it from a backup",
            ),
            Err(error) => found.error(&key_file.display(), &error),
        }
        if !certificate.is_issued_by(&certificate) {
            found.bad(
                &file.display(),
                "not signed by its own key",
                "restore it from a backup",
            );
        } else if found.is_valid(&file, &certificate, now, START_ANEW) {
            found.good(&file.display());
        }
        Some(certificate)
    }

    fn check_gateway(
        &self,
        found: &mut Found,
        issuer: Option<&Certificate>,
        devices: Option<&Certificate>,
        now: SystemTime,
    ) -> Option<Certificate> {
        let config = self.gateway_file(CONFIG);
        match self.listen().and_then(|_| self.store()) {
            Ok(_) => found.good(&config.display()),
            Err(error) => found.error(&config.display(), &error),
        }
        check_root(
            found,
            &self.gateway_file(ROOTS),
            devices.map(Certificate::pem),
        );
        let file = self.gateway_file(CERTIFICATE);
        let certificate = found.certificate(&file)?;
        let key_file = self.gateway_file(KEY);
        let key = files::read(&key_file).and_then(|pem| match pem {
            Some(pem) => keys::from_pem(&pem).ok_or_else(|| not_a_key(&key_file)),
            None => Err(Error::malformed(&key_file, "missing")),
        });
        match key {
            Ok(key) if VerifyingKey::from(key.public_key()) == *certificate.key() => {}
            Ok(_) => {
                let of = file.display();
                let cause = format!("not the key of {of}");
                found.bad(&key_file.display(), cause, APPLY);
            }
            Err(error) => found.error(&key_file.display(), &error),
        }
        if issuer.is_some_and(|issuer| !certificate.is_issued_by(issuer)) {
            found.bad(&file.display(), "signed by another authority", APPLY);
        } else if found.is_valid(&file, &certificate, now, APPLY) {
            found.good(&file.display());
        }
        Some(certificate)
    }

    async fn check_store(&self, found: &mut Found) -> Option<Vec<(String, DeviceRecord)>> {
        let (uri, options) = (self.store().ok()?, self.store_options().ok()?);
        let store = match Store::open(&uri, options).await {
            Ok(store) => store,
            Err(error) => {
                found.error(&format!("store {uri}"), &error);
                return None;
            }
        };
        let records = match has_tables(&store).await {
            Ok(true) => store.devices().await.map_err(Error::from),
            Ok(false) => {
                store.close().await;
                found.bad(&format!("store {uri}"), "its tables are missing", APPLY);
                return None;
            }
            Err(error) => Err(error),
        };
        store.close().await;
        match records {
            Ok(records) => {
                found.good(&format!("store {uri}"));
                Some(records)
            }
            Err(error) => {
                found.error(&format!("store {uri}"), &error);
                None
            }
        }
    }

    fn check_devices(
        &self,
        found: &mut Found,
        records: Option<&[(String, DeviceRecord)]>,
        rest: &Rest<'_>,
    ) {
        let trust = match Trust::read(self) {
            Ok(trust) => trust,
            Err(error) => return found.error(&self.trust_file().display(), &error),
        };
        let all = records.map(|records| by_device(&trust.file, records.to_vec()));
        for (name, records) in all.unwrap_or_default() {
            let standing = standing(trust.file.devices.get(&name), &records);
            let what = format!("device {name}: trust file and store");
            match standing {
                Standing::Active | Standing::Revoked => found.good(&what),
                Standing::Incomplete => {
                    found.bad(&what, "they disagree: an operation was interrupted", APPLY);
                }
                Standing::Untrusted => found.bad(
                    &what,
                    "the gateway takes its records, and the trust file doesn't know it",
                    format!("run `zk-setup device revoke {name}`, or restore trust.toml"),
                ),
            }
        }
        for name in trust.file.devices.keys() {
            if let Some(key) = trust.active_key(name) {
                self.check_device(found, name, &key, &trust, rest);
            }
        }
    }

    fn check_device(
        &self,
        found: &mut Found,
        name: &DeviceId,
        key: &VerifyingKey,
        trust: &Trust,
        rest: &Rest<'_>,
    ) {
        let dir = self.device_dir(name);
        let file = dir.join(DEVICE_CERTIFICATE);
        if let Some(certificate) = found.certificate(&file) {
            let subject = certificate.parsed().tbs_certificate().subject().to_string();
            let what = file.display();
            if subject != format!("CN={name}") {
                found.bad(&what, format!("made for {subject}, not CN={name}"), REMAKE);
            } else if certificate.key() != key {
                found.bad(&what, "of another key than the device's", APPLY);
            } else if rest
                .issuer
                .is_some_and(|issuer| !certificate.is_issued_by(issuer))
            {
                found.bad(&what, "signed by another authority", APPLY);
            } else if found.is_valid(&file, &certificate, rest.now, APPLY) {
                found.good(&what);
            }
        }
        let roots = dir.join(rest.roots.file);
        if rest.roots.file == AMAZON_ROOTS && differs(&roots, rest.roots.pem) {
            found.warn(
                &roots.display(),
                "other authorities than Amazon's",
                "if nothing stands in for AWS, run `zk-setup apply`",
            );
        } else {
            check_root(found, &roots, rest.roots.pem);
        }
        let mut owners: Vec<_> = trust
            .owners(name)
            .map(|owner| (format!("owner-{}.pub.pem", owner.id()), owner.to_pem()))
            .collect();
        for (file, pem) in &owners {
            let path = dir.join(file);
            match files::read(&path) {
                Ok(Some(there)) if *there == *pem.as_bytes() => {}
                Ok(_) => found.bad(
                    &path.display(),
                    "not the owner's key that the trust file has",
                    APPLY,
                ),
                Err(error) => found.error(&path.display(), &error),
            }
        }
        let file = dir.join(AGENT);
        let agent = match Config::open(&file) {
            Ok(Some(agent)) => agent,
            Ok(None) => return found.bad(&file.display(), "missing", APPLY),
            Err(error) => return found.error(&file.display(), &error),
        };
        let mut named = agent.list("owners.files");
        named.sort();
        owners.sort();
        if agent.text("device.id").ok() != Some(name.as_str()) {
            found.bad(&file.display(), "device.id is another device", APPLY);
        } else if !named.iter().eq(owners.iter().map(|(file, _)| file)) {
            let cause = "owners.files are not those of the trust file";
            found.bad(&file.display(), cause, APPLY);
        } else if let Some(host) = agent.text("target.endpoint").ok().and_then(host_of)
            && let Some(gateway) = rest.gateway
            && !gateway.names().contains(&host)
        {
            let host = host.to_str();
            found.warn(
                &file.display(),
                format!("target.endpoint is {host}, which the gateway's certificate doesn't name"),
                "give the gateway that name: zk-setup gateway init --name, with all its names",
            );
        } else if let Some(endpoint) = rest.endpoint
            && let Ok(named) = agent.text("target.endpoint")
            && named != endpoint
        {
            found.warn(
                &file.display(),
                format!("target.endpoint is {named}, and AWS IoT is at {endpoint}"),
                format!("if it isn't meant so: target.endpoint = \"{endpoint}\""),
            );
        } else {
            found.good(&file.display());
        }
    }
}

/// What the devices' files have to fit, as far as it is there.
struct Rest<'a> {
    /// The authority that signs devices.
    issuer: Option<&'a Certificate>,
    roots: Roots<'a>,
    gateway: Option<&'a Certificate>,
    /// Where devices are to publish to, if that is known.
    endpoint: Option<&'a str>,
    now: SystemTime,
}

/// What answers where the gateway listens.
pub(crate) enum Answer {
    /// A gateway with a certificate of this set-up.
    Gateway { at: SocketAddr, der: Vec<u8> },
    /// Something else.
    Stranger { at: SocketAddr, cause: String },
    /// Nobody.
    Nobody { at: SocketAddr, error: io::Error },
    /// The port is chosen when it starts.
    AnyPort,
}

/// Makes a TLS handshake as a client without a certificate: enough to see the
/// gateway's own, though not to be served.
pub(crate) fn probe(listen: SocketAddr, roots: &Certificate, name: &ServerName<'_>) -> Answer {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let at = SocketAddr::new(ip, listen.port());
    if at.port() == 0 {
        return Answer::AnyPort;
    }
    let tcp = TcpStream::connect_timeout(&at, PATIENCE).and_then(|tcp| {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        Ok(tcp)
    });
    let mut tcp = match tcp {
        Ok(tcp) => tcp,
        Err(error) => return Answer::Nobody { at, error },
    };
    match handshake(&mut tcp, roots, name) {
        Ok(der) => Answer::Gateway { at, der },
        Err(cause) => Answer::Stranger { at, cause },
    }
}

fn handshake(
    tcp: &mut TcpStream,
    roots: &Certificate,
    name: &ServerName<'_>,
) -> Result<Vec<u8>, String> {
    let said = |error: rustls::Error| error.to_string();
    let mut store = RootCertStore::empty();
    store
        .add(CertificateDer::from(roots.der().to_vec()))
        .map_err(said)?;
    // In TLS 1.3 the client is done before the gateway can miss its certificate.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(said)?
        .with_root_certificates(store)
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), name.to_owned()).map_err(said)?;
    while tls.is_handshaking() {
        tls.complete_io(tcp).map_err(|error| error.to_string())?;
    }
    let chain = tls.peer_certificates().unwrap_or_default();
    let first = chain.first().map(|der| der.to_vec());
    first.ok_or_else(|| "no certificate".to_owned())
}

fn check_answer(found: &mut Found, answer: Answer, certificate: &Certificate) {
    match answer {
        Answer::Gateway { at, der } if der == certificate.der() => {
            found.good(&format!("gateway at {at}"));
        }
        Answer::Gateway { at, .. } => found.warn(
            &format!("gateway at {at}"),
            "it still uses an older certificate than the one in the directory",
            "restart zk-gateway",
        ),
        Answer::Stranger { at, cause } => found.bad(
            &format!("gateway at {at}"),
            format!("what answers there is not this gateway: {cause}"),
            "if it is zk-gateway, restart it with this set-up's gateway.toml; if it is another \
             program, choose another port: zk-setup gateway init --listen",
        ),
        Answer::Nobody { at, error } => found.warn(
            &format!("gateway at {at}"),
            format!("it does not answer: {error}"),
            "if it is to run on this machine, start zk-gateway",
        ),
        Answer::AnyPort => found.warn(
            &"gateway",
            "it takes any free port, so it can't be found",
            "choose a port: zk-setup gateway init --listen",
        ),
    }
}

fn check_root(found: &mut Found, path: &Path, root: Option<&str>) {
    match files::read(path) {
        Ok(None) => found.bad(&path.display(), "missing", APPLY),
        Ok(Some(pem)) if root.is_some_and(|root| *root.as_bytes() != **pem) => {
            let cause = "not what this set-up's devices are to believe";
            found.bad(&path.display(), cause, APPLY);
        }
        Ok(Some(_)) => found.good(&path.display()),
        Err(error) => found.error(&path.display(), &error),
    }
}

/// Whether there is a file with something else in it.
fn differs(path: &Path, wanted: Option<&str>) -> bool {
    let found = files::read(path).ok().flatten();
    found.is_some_and(|found| wanted.is_some_and(|wanted| *wanted.as_bytes() != **found))
}

/// The host of `host:port`.
fn host_of(endpoint: &str) -> Option<ServerName<'static>> {
    let (host, _) = endpoint.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).ok()
}

#[derive(Default)]
struct Found(Vec<Checked>);

impl Found {
    fn good(&mut self, what: &impl ToString) {
        self.add(&what.to_string(), Verdict::Good);
    }

    fn warn(&mut self, what: &impl ToString, cause: impl Into<String>, cure: impl Into<String>) {
        let (cause, cure) = (cause.into(), cure.into());
        self.add(&what.to_string(), Verdict::Warning { cause, cure });
    }

    fn bad(&mut self, what: &impl ToString, cause: impl Into<String>, cure: impl Into<String>) {
        let (cause, cure) = (cause.into(), cure.into());
        self.add(&what.to_string(), Verdict::Bad { cause, cure });
    }

    fn error(&mut self, what: &impl ToString, error: &dyn std::error::Error) {
        let mut cause = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            if !cause.contains(&error.to_string()) {
                cause = format!("{cause}: {error}");
            }
            source = error.source();
        }
        self.bad(what, cause, "mend that, then run `zk-setup apply`");
    }

    fn add(&mut self, what: &str, verdict: Verdict) {
        self.0.push(Checked {
            what: what.to_owned(),
            verdict,
        });
    }

    /// The certificate, or why there is none.
    fn certificate(&mut self, file: &Path) -> Option<Certificate> {
        match read_certificate(file) {
            Ok(Some(certificate)) => return Some(certificate),
            Ok(None) => self.bad(&file.display(), "missing", APPLY),
            Err(error) => self.error(&file.display(), &error),
        }
        None
    }

    /// Whether it is valid for a good while yet; else it says so.
    fn is_valid(
        &mut self,
        file: &Path,
        certificate: &Certificate,
        now: SystemTime,
        cure: &str,
    ) -> bool {
        let until = Timestamp::from(certificate.not_after()).to_string();
        let day = &until[..10];
        if certificate.not_after() <= now {
            self.bad(&file.display(), format!("expired on {day}"), cure);
        } else if certificate.is_due(now) {
            self.warn(&file.display(), format!("due: valid until {day}"), cure);
        } else {
            return true;
        }
        false
    }
}

const APPLY: &str = "run `zk-setup apply`";
const REMAKE: &str = "remove it, then run `zk-setup apply`";
const START_ANEW: &str = "set up anew in an empty directory, and move the devices there in time";

/// For each part of a conversation with what answers.
const PATIENCE: Duration = Duration::from_secs(2);
