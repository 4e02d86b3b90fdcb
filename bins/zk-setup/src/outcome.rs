use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use zk_cli::escaped;
use zk_envelope::{DeviceId, KeyState, Timestamp};
use zk_provision::{
    Action, AddedDevice, AuthorityEntry, AwsSetup, Checked, Desired, DesiredDevice, DeviceEntry,
    Expiry, FinishedRotation, GatewayFiles, Item, LocalSetup, Plan, RevokedDevice, Standing, Step,
    Verdict,
};

use crate::arguments::DEFAULT_DIR;

/// What a command has to say.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// For a person: several lines, without the last line's end.
    pub text: String,
    /// For a script: one object. Members may be added, none goes away.
    pub json: Value,
    /// What to do next.
    pub hints: Vec<String>,
    /// Something is to do, or to be mended: exit status 3.
    pub findings: bool,
}

impl Outcome {
    fn new(text: String, json: Value, hints: Vec<String>) -> Self {
        Self {
            text,
            json,
            hints,
            findings: false,
        }
    }

    /// Adds what it took to ask AWS.
    pub(crate) fn measured(mut self, calls: u64, took: Duration) -> Self {
        self.json["calls"] = json!(calls);
        self.json["seconds"] = json!((took.as_secs_f64() * 1000.0).round() / 1000.0);
        self
    }

    /// Adds where in AWS it is.
    pub(crate) fn placed(mut self, setup: &AwsSetup) -> Self {
        self.json["account"] = json!(setup.account());
        self.json["region"] = json!(setup.region());
        self.json["prefix"] = json!(setup.prefix());
        self
    }

    pub(crate) fn policy(policy: &str) -> Self {
        let json = serde_json::from_str(policy).unwrap_or_default();
        Self::new(policy.to_owned(), json, Vec::new())
    }

    pub(crate) fn template(text: &str) -> Self {
        let json = json!({ "template": text });
        Self::new(text.trim_end().to_owned(), json, Vec::new())
    }
}

pub(crate) fn plan(plan: &Plan) -> Outcome {
    let lines: Vec<_> = plan.steps.iter().map(planned).collect();
    Outcome {
        findings: plan.has_changes(),
        ..Outcome::new(
            format!("{}\n{}", lines.join("\n"), summary(plan)),
            json!({
                "hasChanges": plan.has_changes(),
                "changes": changes(plan, |_| true),
                "revokes": revokes(plan),
            }),
            warnings(plan),
        )
    }
}

/// What an `apply` came to.
pub(crate) struct Applied<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) devices: &'a BTreeMap<DeviceId, DesiredDevice>,
    pub(crate) here: &'a BTreeSet<DeviceId>,
    pub(crate) steps: &'a [Step],
    pub(crate) found: &'a [Checked],
}

/// `gateway`: what was asked for, where there is one.
pub(crate) fn applied(
    setup: &LocalSetup,
    applied: &Applied<'_>,
    gateway: Option<&Desired>,
) -> Outcome {
    let &Applied {
        plan,
        devices,
        here,
        steps,
        found,
    } = applied;
    let dir = setup.dir().display();
    let was_made = |path: &Path| {
        steps
            .iter()
            .any(|step| step.action == Action::Created && step.item == Item::File(path.to_owned()))
    };
    let checked = checked(found);
    let done = if plan.has_changes() {
        "done"
    } else {
        "nothing to do"
    };
    let is_bad = |one: &&Checked| matches!(one.verdict, Verdict::Bad { .. });
    let wrong = match found.iter().filter(is_bad).count() {
        0 => String::new(),
        wrong => format!(", {wrong} of them WRONG"),
    };
    let mut text = format!("{done}; {} things checked{wrong}", found.len());
    let conspicuous: Vec<_> = found.iter().filter_map(conspicuous).collect();
    if !conspicuous.is_empty() {
        text = format!("{text}\n{}", conspicuous.join("\n"));
    }
    let mut hints = Vec::new();
    if was_made(&setup.dir().join("ca/device-ca.key.pem")) {
        hints.push(format!(
            "Back up {dir}/ca and its passphrase: without them no device can be added."
        ));
    }
    let owner = setup.owner_key_file();
    if was_made(&owner) {
        hints.push(format!(
            "BACK UP THE OWNER'S KEY NOW: {} and its passphrase. There is no other copy; if it \
             is lost, nothing that devices encrypt for it can ever be read.",
            owner.display()
        ));
    }
    if let Some(desired) = gateway
        && desired.gateway.names.is_empty()
        && was_made(&setup.dir().join("gateway/gateway.crt.pem"))
    {
        let names = desired.names_at_first.iter().map(|name| name.to_str());
        hints.push(format!(
            "The gateway's names are {}, since none were given: devices reach it under no other. \
             Choose others with --name.",
            names.collect::<Vec<_>>().join(", ")
        ));
    }
    if plan.has_changes() {
        hints.push("Next:".to_owned());
        if gateway.is_some() {
            hints.push(format!("  zk-gateway --config {dir}/gateway/gateway.toml"));
        }
        for name in devices.keys() {
            let agent = setup.dir().join("devices").join(name.as_str());
            hints.push(if here.contains(name) {
                format!(
                    "  zk-agent --config {}/agent.toml --spool {name}.spool    (elsewhere than on \
                     a Pi, with --sensors-root)",
                    agent.display()
                )
            } else {
                format!(
                    "  copy {} to the device, as /etc/zk-agent, and start zk-agent there",
                    agent.display()
                )
            });
        }
        if owner.exists() {
            let reader = setup.reader_file();
            hints.push(format!("  zk-reader --config {} list", reader.display()));
        } else {
            hints.push(format!(
                "  give {} to the owners",
                setup.trust_file().display()
            ));
        }
        hints.push(format!("  {} status", command(setup)));
    }
    Outcome {
        findings: checked.findings,
        ..Outcome::new(
            text,
            json!({
                "dir": shown(setup.dir()),
                "hasChanged": plan.has_changes(),
                "steps": list(steps),
                "checks": checked.json["checks"],
            }),
            hints,
        )
    }
}

pub(crate) fn status(plan: &Plan, entries: &[DeviceEntry], expiries: &[Expiry]) -> Outcome {
    let is_change = |step: &Step| step.action != Action::Kept;
    let mut text: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| is_change(step))
        .map(planned)
        .collect();
    text.push(summary(plan));
    if !expiries.is_empty() {
        text.push(String::new());
        text.extend(expiries.iter().map(|expiry| {
            let due = if expiry.is_due { ", due" } else { "" };
            format!("until {}{due}  {}", day(expiry.at), expiry.file.display())
        }));
    }
    let table = devices(entries);
    if !entries.is_empty() {
        text.push(String::new());
        text.push(table.text);
    }
    for entry in entries.iter().filter(|entry| entry.next.is_some()) {
        text.push(format!(
            "{} is changing its key: nothing has come in under the new certificate yet",
            entry.device
        ));
    }
    let is_odd =
        |entry: &DeviceEntry| matches!(entry.standing, Standing::Incomplete | Standing::Untrusted);
    let certificates = expiries.iter().map(|expiry| {
        json!({
            "file": shown(&expiry.file),
            "expiresAt": instant(expiry.at),
            "due": expiry.is_due,
        })
    });
    let mut hints = warnings(plan);
    hints.extend(table.hints);
    Outcome {
        findings: plan.has_changes() || entries.iter().any(is_odd),
        ..Outcome::new(
            text.join("\n"),
            json!({
                "hasChanges": plan.has_changes(),
                "changes": changes(plan, is_change),
                "revokes": revokes(plan),
                "certificates": certificates.collect::<Vec<_>>(),
                "devices": table.json["devices"],
            }),
            hints,
        )
    }
}

pub(crate) fn checked(found: &[Checked]) -> Outcome {
    let count = |is: fn(&Verdict) -> bool| found.iter().filter(|one| is(&one.verdict)).count();
    let bad = count(|verdict| matches!(verdict, Verdict::Bad { .. }));
    let warnings = count(|verdict| matches!(verdict, Verdict::Warning { .. }));
    let good = found.len() - bad - warnings;
    let mut text: Vec<_> = found
        .iter()
        .map(|one| conspicuous(one).unwrap_or_else(|| format!("ok       {}", escaped(&one.what))))
        .collect();
    text.push(format!("{good} ok, {warnings} to look at, {bad} wrong"));
    let object = |one: &Checked| {
        let (state, cause, cure) = match &one.verdict {
            Verdict::Good => ("ok", None, None),
            Verdict::Warning { cause, cure } => ("warning", Some(cause), Some(cure)),
            Verdict::Bad { cause, cure } => ("wrong", Some(cause), Some(cure)),
        };
        json!({ "item": one.what, "state": state, "cause": cause, "cure": cure })
    };
    Outcome {
        findings: bad > 0,
        ..Outcome::new(
            text.join("\n"),
            json!({ "checks": found.iter().map(object).collect::<Vec<_>>() }),
            Vec::new(),
        )
    }
}

/// A check that a person should see.
fn conspicuous(one: &Checked) -> Option<String> {
    let (state, cause, cure) = match &one.verdict {
        Verdict::Good => return None,
        Verdict::Warning { cause, cure } => ("look at", cause, cure),
        Verdict::Bad { cause, cure } => ("WRONG", cause, cure),
    };
    Some(format!(
        "{state:<8} {}: {}\n         next: {cure}",
        escaped(&one.what),
        escaped(cause)
    ))
}

/// `place`: where else it was looked for.
pub(crate) fn destroyed(setup: &LocalSetup, steps: &[Step], place: Option<&str>) -> Outcome {
    let is_removed = |step: &&Step| step.action == Action::Removed;
    let removed = steps.iter().filter(is_removed).count();
    let kept: Vec<_> = steps.iter().filter(|step| !is_removed(step)).collect();
    let text = match (removed, kept.len()) {
        (0, 0) => format!(
            "there is nothing of zk-setup's in {}{}",
            setup.dir().display(),
            place
                .map(|place| format!(", nor in {place}"))
                .unwrap_or_default()
        ),
        (0, kept) => format!("nothing to remove; {kept} left as they are"),
        (removed, kept) => format!("{removed} removed, {kept} left as they are"),
    };
    let mut hints = Vec::new();
    if removed == 0 {
        hints.extend(kept.iter().map(|step| line(step)));
    }
    if steps.iter().any(|step| step.reason == "the data") {
        let command = command(setup);
        hints.push(format!(
            "The readings are still there: {command} destroy --with-data removes them, too."
        ));
    }
    Outcome::new(
        text,
        json!({ "dir": shown(setup.dir()), "steps": list(steps) }),
        hints,
    )
}

pub(crate) fn rotating(setup: &LocalSetup, next: &AddedDevice) -> Outcome {
    let device = &next.device;
    let command = command(setup);
    let mut outcome = added(setup, next);
    outcome.text = format!(
        "{}\ndevice {device} may change to\n  key          {}\n  certificate  {}, until {}",
        lines(&next.steps),
        next.key,
        next.certificate.principal(),
        day(next.certificate.not_after())
    );
    outcome.hints = vec![
        format!("Give {} to the owners.", setup.trust_file().display()),
        format!(
            "Then copy {} to the device, as /etc/zk-agent, and restart its agent.",
            next.dir.display()
        ),
        format!(
            "Once something has come in under the new certificate: {command} device rotate \
             {device} --finish"
        ),
    ];
    outcome
}

pub(crate) fn rotated(setup: &LocalSetup, finished: &FinishedRotation) -> Outcome {
    let FinishedRotation {
        device,
        key,
        certificate,
        steps,
        ..
    } = finished;
    Outcome::new(
        format!("{}\ndevice {device} has changed its key", lines(steps)),
        json!({
            "device": device.as_str(),
            "key": key.to_string(),
            "principal": certificate.principal(),
            "steps": list(steps),
        }),
        vec![format!(
            "Give {} to the owners.",
            setup.trust_file().display()
        )],
    )
}

/// A step of a plan.
pub(crate) fn planned(step: &Step) -> String {
    told(step.action.imperative(), step)
}

/// A step that was done.
pub(crate) fn line(step: &Step) -> String {
    told(&step.action.to_string(), step)
}

fn told(action: &str, step: &Step) -> String {
    let what = format!("{action:<8} {}", escaped(&step.item.to_string()));
    match step.reason.as_str() {
        "" => what,
        reason => format!("{what}  ({})", escaped(reason)),
    }
}

fn summary(plan: &Plan) -> String {
    if !plan.has_changes() {
        return format!("nothing to do, {} as they are to be", plan.steps.len());
    }
    let count = |action| {
        let of_it = plan.steps.iter().filter(|step| step.action == action);
        of_it.count()
    };
    format!(
        "{} to create, {} to change, {} to remove, {} to keep",
        count(Action::Created),
        count(Action::Changed),
        count(Action::Removed),
        count(Action::Kept)
    )
}

/// Who would be revoked, for a script.
fn revokes(plan: &Plan) -> Vec<&str> {
    plan.revokes.iter().map(DeviceId::as_str).collect()
}

/// What of a plan can't be taken back.
pub(crate) fn warnings(plan: &Plan) -> Vec<String> {
    let one = |device: &DeviceId| {
        format!("{device} would be revoked for good: its key is never accepted again.")
    };
    plan.revokes.iter().map(one).collect()
}

fn changes(plan: &Plan, wanted: impl Fn(&Step) -> bool) -> Vec<Value> {
    let object = |step: &Step| {
        json!({
            "action": step.action.imperative(),
            "item": step.item.to_string(),
            "reason": step.reason,
        })
    };
    plan.steps
        .iter()
        .filter(|step| wanted(step))
        .map(object)
        .collect()
}

pub(crate) fn authorities(setup: &LocalSetup, steps: &[Step], next: &str) -> Outcome {
    let dir = setup.dir().display();
    Outcome::new(
        lines(steps),
        json!({ "dir": shown(setup.dir()), "steps": list(steps) }),
        vec![
            format!("Back up {dir}/ca and its passphrase: without them no device can be added."),
            format!("Next: {} {next}", command(setup)),
        ],
    )
}

/// `status`: what AWS says of the one that signs devices, where it is asked.
pub(crate) fn shown_authorities(
    entries: &[AuthorityEntry],
    status: Option<Option<&'static str>>,
) -> Outcome {
    let status_of = |entry: &AuthorityEntry| match status {
        Some(status) if entry.signs == "device" => Some(status.unwrap_or("not registered")),
        _ => None,
    };
    let one = |entry: &AuthorityEntry| {
        let aws = status_of(entry).map(|status| format!("\n  in AWS IoT   {status}"));
        format!(
            "{}\n  signs        {}s\n  key          {}\n  certificate  {}, until {}\n  file         \
             {}{}",
            entry.subject,
            entry.signs,
            entry.key,
            entry.id,
            day(entry.expires),
            entry.file.display(),
            aws.unwrap_or_default(),
        )
    };
    let object = |entry: &AuthorityEntry| {
        json!({
            "signs": entry.signs,
            "subject": entry.subject,
            "key": entry.key.to_string(),
            "id": entry.id,
            "file": shown(&entry.file),
            "expiresAt": instant(entry.expires),
            "inAws": status_of(entry),
        })
    };
    let text = match entries {
        [] => "there are no authorities yet".to_owned(),
        entries => entries.iter().map(one).collect::<Vec<_>>().join("\n"),
    };
    let json = json!({ "authorities": entries.iter().map(object).collect::<Vec<_>>() });
    Outcome::new(text, json, Vec::new())
}

pub(crate) fn gateway(setup: &LocalSetup, files: &GatewayFiles) -> Outcome {
    let names: Vec<_> = files
        .certificate
        .names()
        .iter()
        .map(|name| name.to_str().into_owned())
        .collect();
    let until = day(files.certificate.not_after());
    let config = files.dir.join("gateway.toml");
    Outcome::new(
        format!(
            "{}\ngateway {}, certificate until {until}",
            lines(&files.steps),
            names.join(", ")
        ),
        json!({
            "dir": shown(&files.dir),
            "names": names,
            "expiresAt": instant(files.certificate.not_after()),
            "steps": list(&files.steps),
        }),
        vec![
            format!("Start it: zk-gateway --config {}", config.display()),
            format!(
                "Next: {} device add NAME --csr FILE --owner FILE",
                command(setup)
            ),
        ],
    )
}

pub(crate) fn added(setup: &LocalSetup, added: &AddedDevice) -> Outcome {
    let AddedDevice {
        device,
        key,
        certificate,
        dir,
        steps,
        ..
    } = added;
    let principal = certificate.principal();
    let until = day(certificate.not_after());
    Outcome::new(
        format!(
            "{}\ndevice {device} may publish\n  key          {key}\n  \
             certificate  {principal}, until {until}",
            lines(steps)
        ),
        json!({
            "device": device.as_str(),
            "key": key.to_string(),
            "principal": principal,
            "expiresAt": instant(certificate.not_after()),
            "dir": shown(dir),
            "steps": list(steps),
        }),
        vec![
            format!("Copy {} to the device, as /etc/zk-agent.", dir.display()),
            format!("Give {} to the owners.", setup.trust_file().display()),
        ],
    )
}

pub(crate) fn revoked(setup: &LocalSetup, revoked: &RevokedDevice, soon: &str) -> Outcome {
    let RevokedDevice { device, steps, .. } = revoked;
    Outcome::new(
        format!("{}\ndevice {device} is revoked", lines(steps)),
        json!({ "device": device.as_str(), "steps": list(steps) }),
        vec![
            soon.to_owned(),
            format!("Give {} to the owners.", setup.trust_file().display()),
        ],
    )
}

pub(crate) fn devices(entries: &[DeviceEntry]) -> Outcome {
    let mut rows = vec![["DEVICE", "STATE", "KEY", "CERTIFICATE", "REGISTERED"].map(str::to_owned)];
    rows.extend(entries.iter().map(row));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].len())
            .max()
            .unwrap_or_default()
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let count = |standing| {
        entries
            .iter()
            .filter(|entry| entry.standing == standing)
            .count()
    };
    let mut hints = Vec::new();
    if count(Standing::Incomplete) > 0 {
        hints.push(
            "incomplete: trust file and store disagree; add or revoke the device again.".into(),
        );
    }
    if count(Standing::Untrusted) > 0 {
        hints.push(
            "untrusted: the store has a device that the trust file doesn't know; revoke it, \
             or restore trust.toml."
                .into(),
        );
    }
    Outcome::new(
        rows.iter().map(line).collect::<Vec<_>>().join("\n"),
        json!({ "devices": entries.iter().map(object).collect::<Vec<_>>() }),
        hints,
    )
}

/// The latest key and certificate of a device, both shortened.
fn row(entry: &DeviceEntry) -> [String; 5] {
    // a principal is the store's word, and this goes to a terminal
    let short = |id: String| id.escape_debug().take(16).collect();
    let none = || "-".to_owned();
    let latest = entry.certificates.last();
    [
        entry.device.to_string(),
        entry.standing.to_string(),
        entry
            .keys
            .last()
            .map_or_else(none, |(key, _)| short(key.to_string())),
        latest.map_or_else(none, |certificate| short(certificate.principal.clone())),
        latest.map_or_else(none, |certificate| certificate.registered_at.to_string()),
    ]
}

fn object(entry: &DeviceEntry) -> Value {
    let keys = entry.keys.iter().map(|(key, state)| {
        let mut object = state_object(*state);
        object["id"] = json!(key.to_string());
        object
    });
    let certificates = entry.certificates.iter().map(|certificate| {
        let mut object = state_object(certificate.state);
        object["principal"] = json!(certificate.principal);
        object["registeredAt"] = json!(certificate.registered_at.to_string());
        object
    });
    json!({
        "device": entry.device.as_str(),
        "state": entry.standing.to_string(),
        "keys": keys.collect::<Vec<_>>(),
        "certificates": certificates.collect::<Vec<_>>(),
        "expiresAt": entry.expires.map(instant),
        "changingTo": entry.next,
    })
}

fn state_object(state: KeyState) -> Value {
    match state {
        KeyState::Active => json!({ "state": "active" }),
        KeyState::Retired => json!({ "state": "retired" }),
        KeyState::Revoked { at } => json!({ "state": "revoked", "revokedAt": at.to_string() }),
    }
}

fn lines(steps: &[Step]) -> String {
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn list(steps: &[Step]) -> Vec<Value> {
    let object = |step: &Step| {
        json!({
            "action": step.action.to_string(),
            "item": step.item.to_string(),
            "reason": step.reason,
        })
    };
    steps.iter().map(object).collect()
}

/// A path for JSON, which has no room for what is not UTF-8.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The program with the directory it was told.
fn command(setup: &LocalSetup) -> String {
    match setup.dir().to_str() {
        Some(DEFAULT_DIR) | None => "zk-setup".to_owned(),
        Some(dir) => format!("zk-setup --dir {dir}"),
    }
}

fn instant(time: SystemTime) -> String {
    Timestamp::from(time).to_string()
}

fn day(time: SystemTime) -> String {
    instant(time).chars().take(10).collect()
}
