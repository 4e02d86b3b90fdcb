//! `zk-ctl doctor`: what a device needs to read its sensors and to publish, checked
//! one thing after the other, without publishing anything unless that is asked for.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytesize::ByteSize;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::name::RelativeDistinguishedName;
use zk_agent::{Clock, Config};
use zk_envelope::{ClockQuality, KeyId, Timestamp};
use zk_hsm::{BackendKind, Hsm, HsmUri, Options};

use crate::arguments::{self, Common};
use crate::outcome::{Outcome, Output, table};
use crate::server::{self, Answer, Refusal, with_causes};
use crate::{Error, device, hsm, spool};

mod machine;

pub(crate) fn doctor(common: &Common, arguments: &arguments::Doctor) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let limit = arguments.timeout;
    let mut report = Report::default();

    let config = report.check("configuration", Ok(()), |()| {
        configuration(common, arguments)
    });
    let config = config.as_ref().ok_or("configuration");
    report.check("clock", Ok(()), |()| clock());
    let key = report.check("key", config, key);
    report.check("module", key.as_ref().ok_or("key"), module);
    let chain = report.check("certificate", config, certificate);
    let pair = both(
        key.as_ref().ok_or("key"),
        chain.as_ref().ok_or("certificate"),
    );
    let tls = report.check("pair", pair, |(key, chain)| {
        pair_fits(key, chain, config.map_or(0, port))
    });
    let roots = report.check("roots", config, roots);
    report.check("owners", config, owners);

    let addresses = report.check("name", config, |config| name(&runtime, config, limit));
    let stream = report.check(
        "connection",
        both(config, addresses.as_ref().ok_or("name")),
        |(config, addresses)| connection(&runtime, config, addresses, limit),
    );
    let needed = both(tls.ok_or("pair"), roots.ok_or("roots"));
    let needed = both(config, both(stream.ok_or("connection"), needed));
    let answer = report.check("tls", needed, |(config, (stream, (tls, roots)))| {
        handshake(&runtime, config, stream, &tls, roots, limit)
    });
    report.check("server-clock", answer.as_ref().ok_or("tls"), server_clock);

    report.check("spool", config, spool_is_fine);
    report.check("disk", config, disk);
    report.check("sensors", config, machine::sensors);
    report.check("bulk", config, machine::bulk);
    report.check("unit", Ok(()), |()| machine::unit());
    report.check("agent", config, machine::agent_is_well);
    report.check("publish", config, |config| {
        machine::really_published(common, arguments, config)
    });
    Ok(report.outcome())
}

/// What came of the checks so far.
#[derive(Default)]
struct Report {
    checks: Vec<Check>,
}

struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    finding: String,
    /// What to do about it.
    cure: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Failed,
    NotRun,
    Ok,
    Warning,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::NotRun => "not run",
            Self::Ok => "ok",
            Self::Warning => "warning",
        }
    }
}

/// What one check came to: something for later checks to work with, unless it
/// failed; a finding; a cure, unless all is well.
enum Verdict<T> {
    Failed(String, String),
    /// It has no meaning here, for this reason.
    NotRun(String),
    Ok(T, String),
    Warning(T, String, String),
}

impl Report {
    /// Runs a check on what it needs, or says which earlier one it lacks.
    fn check<I, T>(
        &mut self,
        name: &'static str,
        needs: Result<I, &'static str>,
        check: impl FnOnce(I) -> Verdict<T>,
    ) -> Option<T> {
        let verdict = match needs {
            Ok(needs) => check(needs),
            Err(missing) => Verdict::NotRun(format!("it needs {missing}")),
        };
        let (status, value, finding, cure) = match verdict {
            Verdict::Failed(finding, cure) => (Status::Failed, None, finding, Some(cure)),
            Verdict::NotRun(finding) => (Status::NotRun, None, finding, None),
            Verdict::Ok(value, finding) => (Status::Ok, Some(value), finding, None),
            Verdict::Warning(value, finding, cure) => {
                (Status::Warning, Some(value), finding, Some(cure))
            }
        };
        // one line each, whatever an error has to say, and nothing that could move
        // a cursor
        let line = |text: String| {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            text.replace(char::is_control, "")
        };
        self.checks.push(Check {
            name,
            status,
            finding: line(finding),
            cure: cure.map(line),
        });
        value
    }

    fn outcome(&self) -> Outcome {
        let mut rows = Vec::new();
        for check in &self.checks {
            rows.push([check.status.as_str(), check.name, &check.finding].map(str::to_owned));
            if let Some(cure) = &check.cure {
                rows.push(["", "", &format!("-> {cure}")].map(str::to_owned));
            }
        }
        let count = |status| {
            self.checks
                .iter()
                .filter(|check| check.status == status)
                .count()
        };
        let (failed, warnings) = (count(Status::Failed), count(Status::Warning));
        let summary = match (failed, warnings) {
            (0, 0) => "all is well".to_owned(),
            (0, warnings) => format!("nothing failed; {warnings} to look at"),
            (failed, _) => format!("{failed} failed, {warnings} to look at"),
        };
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|check| {
                json!({
                    "check": check.name,
                    "status": check.status.as_str(),
                    "finding": check.finding,
                    "cure": check.cure,
                })
            })
            .collect();
        Outcome {
            output: Output::Text(format!("{}\n{summary}", table(&rows))),
            json: json!({ "failed": failed, "warnings": warnings, "checks": checks }),
            hints: Vec::new(),
            exit: if failed > 0 { 3 } else { 0 },
        }
    }
}

fn both<A, B, E>(a: Result<A, E>, b: Result<B, E>) -> Result<(A, B), E> {
    a.and_then(|a| b.map(|b| (a, b)))
}

fn configuration(common: &Common, arguments: &arguments::Doctor) -> Verdict<Config> {
    let path = common.config.display();
    let mut config = match common.read() {
        Ok(config) => config,
        Err(Error::NoConfig { source, .. }) => {
            return Verdict::Failed(
                format!("{path}: {source}"),
                "name another file with --config, or have it made with zk-setup device add".into(),
            );
        }
        Err(error) => {
            return Verdict::Failed(
                with_causes(&error),
                format!("correct {path}; zk-setup device add writes a complete one"),
            );
        }
    };
    arguments.endpoint.apply(&mut config);
    if let Err(error) = device::target(&config) {
        return Verdict::Failed(
            with_causes(&error),
            format!("correct target.endpoint in {path}"),
        );
    }
    let finding = format!(
        "{path}: device {}, to {}",
        config.device.id, config.target.endpoint
    );
    Verdict::Ok(config, finding)
}

fn clock() -> Verdict<()> {
    let clock = match Clock::new(SystemTime::now) {
        Ok(clock) => clock,
        Err(error) => {
            return Verdict::Failed(
                with_causes(&error),
                "records need a boot id, which Linux tells in /proc; is it mounted?".into(),
            );
        }
    };
    let now = clock.now();
    was_set(now.time, now.clock)
}

fn was_set(time: Timestamp, quality: ClockQuality) -> Verdict<()> {
    let said = format!("{time} ({quality})");
    if time.as_millis() < Y2020_MS {
        return Verdict::Failed(
            format!("{said}: it was never set, so that no certificate counts as valid"),
            "set it, or switch time synchronisation on: timedatectl set-ntp true".into(),
        );
    }
    Verdict::Ok((), said)
}

fn key(config: &Config) -> Verdict<Hsm> {
    let text = &config.device.hsm;
    let uri: HsmUri = match text.parse() {
        Ok(uri) => uri,
        Err(error) => {
            return Verdict::Failed(
                format!("device.hsm: {error}"),
                "correct device.hsm; zymkey:slot=0 is the usual one".into(),
            );
        }
    };
    let failed = |error: zk_hsm::Error| {
        let cure = key_cure(&uri, &error);
        Verdict::Failed(format!("{uri}: {}", with_causes(&error)), cure)
    };
    let hsm = match Hsm::open(&uri, Options::default()) {
        Ok(hsm) => hsm,
        // systemd hands it to the service, and to nobody else
        Err(error @ zk_hsm::Error::Pin { .. })
            if std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
                && text.contains("credential:") =>
        {
            return Verdict::NotRun(format!(
                "{error}, which the service itself has: unit and agent, below, say how it fares"
            ));
        }
        Err(error) => return failed(error),
    };
    let begun = Instant::now();
    if let Err(error) = hsm.sign(&hsm::preimage(b"doctor")) {
        return failed(error);
    }
    let took = begun.elapsed();
    let info = match hsm.info() {
        Ok(info) => info,
        Err(error) => return failed(error),
    };
    let finding = format!(
        "{uri}: key {}, signs in {:.1} ms",
        KeyId::of(hsm.public_key()),
        took.as_secs_f64() * 1000.0
    );
    if info.development {
        return Verdict::Warning(
            hsm,
            format!("{finding}; a key for development, which no hardware protects"),
            "for use in the field, give device.hsm a key in hardware: zymkey:slot=0".into(),
        );
    }
    Verdict::Ok(hsm, finding)
}

/// What to do on this machine; the error itself says what is wrong.
fn key_cure(uri: &HsmUri, error: &zk_hsm::Error) -> String {
    use zk_hsm::Error;
    let zymkey = uri.backend() == BackendKind::Zymkey;
    match error {
        Error::KeyFileFormat { .. }
        | Error::KeyFileIo { .. }
        | Error::KeyFilePermissions { .. } => {
            "the file has to be there, of mode 0600, and the agent's user's; zk-ctl hsm keys \
             generate makes a new key, which then needs a certificate"
        }
        Error::KeyMissing { .. } => {
            "give device.hsm one of the URIs of zk-ctl hsm keys list, or make a key with zk-ctl hsm \
             keys generate; then it needs a certificate"
        }
        Error::LibraryUnloadable { .. } if zymkey => {
            "install Zymbit's packages, or name the library in device.hsm: \
             zymkey:slot=0?module-path=/absolute/library.so"
        }
        Error::LibraryUnloadable { .. } => {
            "install the token's PKCS#11 module, or name it in device.hsm: \
             ?module-path=/absolute/module.so"
        }
        Error::LibraryUntrusted { .. } => {
            "see who has changed it, then install it again, and do as it says"
        }
        Error::Pin { .. } => {
            "let pin-source name a file of mode 0600 that belongs to this user, or a systemd \
             credential, which only the service itself has: file:/absolute/path, credential:NAME"
        }
        Error::PinRefused { .. } => {
            "correct the PIN where pin-source says before anything tries again: a few wrong ones \
             lock a token for good"
        }
        Error::TokenMissing { .. } => {
            "is the token plugged in, its service running, and this user in its group? Compare \
             token and serial in device.hsm with what is there"
        }
        Error::Library { .. } | Error::TimedOut { .. } | Error::Wedged { .. } if zymkey => {
            "does its LED blink once in 3 s, and does systemctl status zkifc say that it runs? \
             Restart zkifc, then the machine"
        }
        Error::Library { .. } | Error::TimedOut { .. } | Error::Wedged { .. } => {
            "restart the token's service, or unplug the token and plug it in again"
        }
        Error::BadSignature { .. } => "see to its wiring and its power supply",
        _ => "see the cause; is it the right module and key, and may this user use it?",
    }
    .to_owned()
}

fn module(hsm: &Hsm) -> Verdict<()> {
    let health = match hsm.health() {
        Ok(health) => health,
        Err(error) => {
            let cure = key_cure(hsm.uri(), &error);
            return Verdict::Warning((), with_causes(&error), cure);
        }
    };
    judge(&hsm::Report::new(&health))
}

fn judge(report: &hsm::Report) -> Verdict<()> {
    let items = report.items();
    if items.is_empty() {
        return Verdict::NotRun("it measures nothing".into());
    }
    let said: Vec<_> = items
        .iter()
        .map(|(name, text)| format!("{name} {text}"))
        .collect();
    let said = said.join("; ");
    if report.is_broken() {
        let cure = "look at the case; then clear the events with Zymbit's tools";
        return Verdict::Warning((), said, cure.into());
    }
    match report.binding {
        Some(binding) if !binding.bound => Verdict::Warning(
            (),
            said,
            "bind it to this machine: it is not protected against being moved".into(),
        ),
        Some(binding) if !binding.locked => Verdict::Warning(
            (),
            said,
            "for use in the field, bind it for good, with Zymbit's tools; that can't be undone"
                .into(),
        ),
        _ => Verdict::Ok((), said),
    }
}

fn certificate(config: &Config) -> Verdict<Vec<CertificateDer<'static>>> {
    let path = config.device.certificate.display();
    let id = &config.device.id;
    let renew = format!("have a new one issued: zk-ctl hsm csr, then zk-setup device add {id}");
    let chain = match zk_agent::certificates(&config.device.certificate) {
        Ok(chain) => chain,
        Err(error) => return Verdict::Failed(with_causes(&error), renew),
    };
    let parsed = chain.first().map(|der| Certificate::from_der(der));
    let Some(Ok(certificate)) = parsed else {
        return Verdict::Failed(format!("{path}: it can't be read"), renew);
    };
    let tbs = certificate.tbs_certificate();
    let named = tbs
        .subject()
        .iter_rdn()
        .flat_map(RelativeDistinguishedName::iter)
        .filter(|attribute| attribute.oid == CN)
        .any(|attribute| attribute.value.value() == id.as_str().as_bytes());
    if !named {
        let subject = server::printable(&tbs.subject().to_string());
        return Verdict::Failed(
            format!("{path}: it is for {subject}, and device.id is {id}"),
            format!("use the certificate of {id}, or set device.id to what it says"),
        );
    }
    let validity = tbs.validity();
    let (from, until) = (
        validity.not_before.to_system_time(),
        validity.not_after.to_system_time(),
    );
    let now = SystemTime::now();
    let until_text = Timestamp::from(until);
    if now > until {
        let cure = format!("{renew}; if that date is still to come, set the clock");
        return Verdict::Failed(format!("{path}: it expired at {until_text}"), cure);
    }
    if now < from {
        let from = Timestamp::from(from);
        return Verdict::Failed(
            format!("{path}: it is not valid before {from}"),
            "set the clock; it is behind".into(),
        );
    }
    let finding = format!("{path}: for {id}, valid until {until_text}");
    if until.duration_since(now).unwrap_or_default() < SOON {
        return Verdict::Warning(chain, finding, format!("it expires soon: {renew}"));
    }
    Verdict::Ok(chain, finding)
}

fn pair_fits(
    hsm: &Hsm,
    chain: &[CertificateDer<'static>],
    port: u16,
) -> Verdict<Arc<ClientConfig>> {
    // AWS IoT asks for it at this port
    let alpn: &[&[u8]] = if port == 443 {
        &[b"x-amzn-http-ca"]
    } else {
        &[]
    };
    // The roots come with the handshake.
    match hsm.client_config(chain.to_vec(), RootCertStore::empty(), alpn) {
        Ok(tls) => Verdict::Ok(tls, "the certificate is for this key".into()),
        Err(error) => Verdict::Failed(
            with_causes(&error),
            "use the certificate that was issued for this key, or have one issued: zk-ctl hsm csr"
                .into(),
        ),
    }
}

fn roots(config: &Config) -> Verdict<RootCertStore> {
    let path = config.target.roots.display();
    let cure = "give target.roots the server's authority in PEM: the gateway's, or Amazon's";
    let both = both(
        zk_agent::certificates(&config.target.roots),
        zk_agent::roots(&config.target.roots),
    );
    let (certificates, roots) = match both {
        Ok(both) => both,
        Err(error) => return Verdict::Failed(with_causes(&error), cure.into()),
    };
    let now = SystemTime::now();
    let expired = certificates
        .iter()
        .filter_map(|der| Certificate::from_der(der).ok())
        .filter(|root| root.tbs_certificate().validity().not_after.to_system_time() < now)
        .count();
    let count = roots.len();
    let finding = format!("{path}: {count} of the server's authorities, {expired} expired");
    match expired {
        0 => Verdict::Ok(roots, finding),
        _ if expired == count => Verdict::Failed(finding, cure.into()),
        _ => Verdict::Warning(roots, finding, "take the expired ones out".into()),
    }
}

fn owners(config: &Config) -> Verdict<()> {
    let owners = config.owners.files.iter().map(|file| zk_agent::owner(file));
    match owners.collect::<Result<Vec<_>, _>>() {
        Ok(owners) => {
            let ids: Vec<_> = owners.iter().map(|owner| owner.id().to_string()).collect();
            Verdict::Ok((), format!("records are encrypted for {}", ids.join(", ")))
        }
        Err(error) => Verdict::Failed(
            with_causes(&error),
            "give owners.files the public keys that zk-reader keygen made".into(),
        ),
    }
}

fn name(runtime: &Runtime, config: &Config, limit: Duration) -> Verdict<Vec<std::net::SocketAddr>> {
    let target = match device::target(config) {
        Ok(target) => target,
        Err(error) => return Verdict::Failed(with_causes(&error), "correct it".into()),
    };
    let host = target.host();
    let cure = "check the network, the name server (resolvectl status) and target.endpoint";
    match runtime.block_on(server::resolve(host, target.port(), limit)) {
        Ok(addresses) if !addresses.is_empty() => {
            let list: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
            let list = list.join(", ");
            Verdict::Ok(addresses, format!("{host} is {list}"))
        }
        Ok(_) => Verdict::Failed(format!("{host} has no address"), cure.into()),
        Err(error) => Verdict::Failed(format!("{host} can't be resolved: {error}"), cure.into()),
    }
}

fn connection(
    runtime: &Runtime,
    config: &Config,
    addresses: &[std::net::SocketAddr],
    limit: Duration,
) -> Verdict<TcpStream> {
    match runtime.block_on(server::connect(addresses, limit)) {
        Ok((stream, address)) => Verdict::Ok(stream, format!("{address} takes connections")),
        Err(error) => Verdict::Failed(
            format!("{} can't be reached: {error}", config.target.endpoint),
            "is the server running, and does a firewall let this port through? AWS IoT is at 8443 \
             and 443"
                .into(),
        ),
    }
}

fn handshake(
    runtime: &Runtime,
    config: &Config,
    stream: TcpStream,
    tls: &ClientConfig,
    roots: RootCertStore,
    limit: Duration,
) -> Verdict<Answer> {
    let target = match device::target(config) {
        Ok(target) => target,
        Err(error) => return Verdict::Failed(with_causes(&error), "correct it".into()),
    };
    let host = target.host();
    let begun = Instant::now();
    match runtime.block_on(server::greet(stream, host, tls, roots, limit)) {
        Ok(answer) => {
            let finding = format!(
                "{}, with this device's key, in {:.0} ms; the server chains to the roots",
                answer.version,
                begun.elapsed().as_secs_f64() * 1000.0
            );
            Verdict::Ok(answer, finding)
        }
        Err(refusal) => {
            let (finding, cure) = explain(&refusal, host, &config.target.roots);
            Verdict::Failed(finding, cure)
        }
    }
}

/// Why there was no answer, and the cure.
fn explain(refusal: &Refusal, host: &str, roots: &Path) -> (String, String) {
    let roots = roots.display();
    let registration = "see zk-setup device list; a new certificate comes from zk-setup device add";
    let portal = "if this network has a page to log in to (a captive portal), log in there";
    match refusal {
        Refusal::Certificate { error, shown } => {
            let who = shown.as_ref().map_or_else(
                || "a certificate that can't be read".to_owned(),
                |shown| format!("a certificate for {} by {}", shown.subject, shown.issuer),
            );
            let fits = shown.as_ref().is_some_and(|shown| shown.fits);
            match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                    format!("{host} shows {who}, which has expired"),
                    "have the server's renewed (zk-setup gateway init); is this clock right?".into(),
                ),
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                    format!("{host} shows {who}, which is not valid yet"),
                    "set the clock of this device; it is behind".into(),
                ),
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => (
                    format!("{host} shows {who}, which is not for {host}"),
                    "use a name in target.endpoint that the server's certificate has".into(),
                ),
                _ if !fits => (
                    format!(
                        "{host} shows {who}, neither for {host} nor by an authority in {roots}: \
                         something else answers in its place ({error})"
                    ),
                    format!("{portal}; else check target.endpoint and the name server"),
                ),
                _ => (
                    format!("{host} shows {who}, which is no authority in {roots} ({error})"),
                    "give target.roots the authority of this server; do not, if you don't know why \
                     it changed"
                        .into(),
                ),
            }
        }
        Refusal::Device(alert) => (
            format!("{host} does not take this device's certificate: {alert:?}"),
            format!("is it from the authority that the server knows? {registration}"),
        ),
        Refusal::NotTls => (
            format!("what answers at {host} does not speak TLS"),
            format!("{portal}; else check the port of target.endpoint"),
        ),
        Refusal::Closed => (
            format!(
                "{host} closed the connection without a word, as AWS IoT does to a device it \
                 doesn't know"
            ),
            format!("is the certificate registered and active? {registration}"),
        ),
        Refusal::TimedOut => (
            format!("{host} took the connection and said nothing in time"),
            "try again with a longer --timeout; is something between here and the server?".into(),
        ),
        Refusal::Other(error) => (
            format!("{host}: {error}"),
            "try again; if it stays so, ask who runs the server".into(),
        ),
    }
}

fn server_clock(answer: &Answer) -> Verdict<()> {
    let Some(date) = answer.date else {
        let status = answer.status;
        return Verdict::NotRun(format!("the server's answer ({status}) has no date"));
    };
    let now = SystemTime::now();
    let (off, how) = match now.duration_since(date) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let finding = format!("this clock is {} s {how} the server's", off.as_secs());
    let cure = "switch time synchronisation on: timedatectl set-ntp true";
    if off > FAR_OFF {
        Verdict::Failed(finding, cure.into())
    } else if off > OFF {
        Verdict::Warning((), finding, cure.into())
    } else {
        Verdict::Ok((), finding)
    }
}

fn spool_is_fine(config: &Config) -> Verdict<()> {
    let dir = config.spool.dir.display();
    let seen = match zk_spool::inspect(&config.spool.dir) {
        Ok(Some(seen)) => seen,
        Ok(None) => {
            return Verdict::Ok((), format!("{dir}: not there yet; the agent makes it"));
        }
        Err(error @ zk_spool::Error::NotInspectable { .. }) => {
            return Verdict::NotRun(error.to_string());
        }
        Err(error) => {
            let cure = match &error {
                zk_spool::Error::UnsupportedFormat { .. } => {
                    "use the newer zk-agent, or drain the spool with it first"
                }
                _ => "run this as the agent's user or as root, and see that the disk is in order",
            };
            return Verdict::Failed(format!("{dir}: {}", with_causes(&error)), cure.into());
        }
    };
    let waiting = format!("{dir}: {} records wait", seen.records);
    if seen.unreadable > 0 {
        return Verdict::Warning(
            (),
            format!("{waiting}; {} segments can't be read", seen.unreadable),
            "the agent says at its next start what is lost; is the disk in order?".into(),
        );
    }
    if let Some(loss) = seen.losses.first() {
        return Verdict::Warning(
            (),
            format!(
                "{waiting}; lost and not yet reported: {}",
                spool::loss_text(loss)
            ),
            "the agent reports it to the owner when it runs; see zk-ctl spool status".into(),
        );
    }
    let (used, cap) = (seen.disk_bytes, config.spool.cap.as_u64());
    let finding = format!("{waiting}, {} of {} used", ByteSize(used), ByteSize(cap));
    if used > cap / 10 * 9 {
        return Verdict::Warning(
            (),
            finding,
            "it is nearly full: see to the link, or give spool.cap more".into(),
        );
    }
    Verdict::Ok((), finding)
}

fn disk(config: &Config) -> Verdict<()> {
    let dir = &config.spool.dir;
    // where the spool will be, if it is not there yet
    let free = dir
        .ancestors()
        .find_map(|place| match rustix::fs::statvfs(place) {
            Err(rustix::io::Errno::NOENT) => None,
            answer => Some(answer.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))),
        });
    let free = match free {
        Some(Ok(free)) => free,
        Some(Err(error)) => {
            return Verdict::Failed(
                format!("{}: {}", dir.display(), io::Error::from(error)),
                "see that spool.dir is on a disk that is there, and that this user may see it"
                    .into(),
            );
        }
        None => return Verdict::NotRun(format!("{} is nowhere", dir.display())),
    };
    let used = zk_spool::inspect(dir).ok().flatten();
    let used = used.map_or(0, |seen| seen.disk_bytes);
    let more = config.spool.cap.as_u64().saturating_sub(used);
    let finding = format!(
        "{} free, and the spool may grow by {}",
        ByteSize(free),
        ByteSize(more)
    );
    let cure = "free some space, or lower spool.cap";
    if free < LEAST_FREE {
        Verdict::Failed(finding, cure.into())
    } else if free < more {
        Verdict::Warning((), finding, cure.into())
    } else {
        Verdict::Ok((), finding)
    }
}

fn port(config: &Config) -> u16 {
    device::target(config).map_or(0, |target| target.port())
}

/// Before it, nothing has set the clock.
const Y2020_MS: u64 = 1_577_836_800_000;

/// A certificate that expires within it should be renewed.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How far a clock may be from the server's. A record that is an hour ahead is
/// flagged by the server.
const OFF: Duration = Duration::from_secs(60);
const FAR_OFF: Duration = Duration::from_secs(60 * 60);

/// With less a spool can't even begin a segment in safety.
const LEAST_FREE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_nothing_has_set_fails() {
        let at = |text: &str| was_set(text.parse().unwrap(), ClockQuality::Unknown);
        for unset in ["1970-01-01T00:05:00.000Z", "2019-12-31T23:59:59.999Z"] {
            assert!(matches!(at(unset), Verdict::Failed(..)), "{unset}");
        }
        assert!(matches!(at("2020-01-01T00:00:00.000Z"), Verdict::Ok(..)));
    }

    #[test]
    fn a_module_that_was_opened_or_moves_is_looked_at() {
        let binding = |bound, locked| Some(zk_hsm::Binding { locked, bound });
        let with = |binding, perimeter| hsm::Report {
            binding,
            perimeter: Some(perimeter),
            ..hsm::Report::default()
        };
        let whole = vec![None, None];
        let fine = with(binding(true, true), whole.clone());
        assert!(matches!(judge(&fine), Verdict::Ok(..)));
        // a model that doesn't tell of its binding
        assert!(matches!(judge(&with(None, whole.clone())), Verdict::Ok(..)));
        for (bound, locked) in [(true, false), (false, false), (false, true)] {
            let moves = with(binding(bound, locked), whole.clone());
            assert!(matches!(judge(&moves), Verdict::Warning(..)));
        }
        let broken = with(binding(true, true), vec![None, Some(SystemTime::now())]);
        assert!(matches!(judge(&broken), Verdict::Warning(..)));
        let silent = hsm::Report::default();
        assert!(matches!(judge(&silent), Verdict::NotRun(_)));
    }

    #[test]
    fn a_clock_is_compared_with_the_servers() {
        let answer = |off: i64| {
            let now = SystemTime::now();
            let off_by = Duration::from_secs(off.unsigned_abs());
            Answer {
                version: String::new(),
                status: 405,
                date: Some(if off < 0 { now - off_by } else { now + off_by }),
            }
        };
        assert!(matches!(server_clock(&answer(2)), Verdict::Ok(..)));
        assert!(matches!(server_clock(&answer(-300)), Verdict::Warning(..)));
        assert!(matches!(server_clock(&answer(300)), Verdict::Warning(..)));
        assert!(matches!(server_clock(&answer(-9000)), Verdict::Failed(..)));
        let undated = Answer {
            date: None,
            ..answer(0)
        };
        assert!(matches!(server_clock(&undated), Verdict::NotRun(_)));
    }
}
