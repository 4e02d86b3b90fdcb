use std::time::SystemTime;

use serde_json::{Value, json};
use zk_envelope::{KeyState, Timestamp};
use zk_provision::{
    AddedDevice, DeviceEntry, GatewayFiles, LocalSetup, RevokedDevice, Standing, Step,
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
}

pub(crate) fn authorities(setup: &LocalSetup, steps: &[Step]) -> Outcome {
    let dir = setup.dir().display();
    Outcome {
        text: lines(steps),
        json: json!({ "dir": setup.dir(), "steps": list(steps) }),
        hints: vec![
            format!("Back up {dir}/ca and its passphrase: without them no device can be added."),
            format!("Next: {} gateway init --name HOST", command(setup)),
        ],
    }
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
    Outcome {
        text: format!(
            "{}\ngateway {}, certificate until {until}",
            lines(&files.steps),
            names.join(", ")
        ),
        json: json!({
            "dir": files.dir,
            "names": names,
            "expiresAt": instant(files.certificate.not_after()),
            "steps": list(&files.steps),
        }),
        hints: vec![
            format!("Start it: zk-gateway --config {}", config.display()),
            format!(
                "Next: {} device add NAME --csr FILE --owner FILE",
                command(setup)
            ),
        ],
    }
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
    Outcome {
        text: format!(
            "{}\ndevice {device} may publish\n  key          {key}\n  \
             certificate  {principal}, until {until}",
            lines(steps)
        ),
        json: json!({
            "device": device.as_str(),
            "key": key.to_string(),
            "principal": principal,
            "expiresAt": instant(certificate.not_after()),
            "dir": dir,
            "steps": list(steps),
        }),
        hints: vec![
            format!("Copy {} to the device, as /etc/zk-agent.", dir.display()),
            format!("Give {} to the owners.", setup.trust_file().display()),
        ],
    }
}

pub(crate) fn revoked(setup: &LocalSetup, revoked: &RevokedDevice) -> Outcome {
    let RevokedDevice { device, steps, .. } = revoked;
    Outcome {
        text: format!("{}\ndevice {device} is revoked", lines(steps)),
        json: json!({ "device": device.as_str(), "steps": list(steps) }),
        hints: vec![
            "A running gateway refuses it within a minute.".to_owned(),
            format!("Give {} to the owners.", setup.trust_file().display()),
        ],
    }
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
    Outcome {
        text: rows.iter().map(line).collect::<Vec<_>>().join("\n"),
        json: json!({ "devices": entries.iter().map(object).collect::<Vec<_>>() }),
        hints,
    }
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
    let lines: Vec<_> = steps
        .iter()
        .map(|step| format!("{:<8} {}", step.action, step.item))
        .collect();
    lines.join("\n")
}

fn list(steps: &[Step]) -> Vec<Value> {
    let object =
        |step: &Step| json!({ "action": step.action.to_string(), "item": step.item.to_string() });
    steps.iter().map(object).collect()
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
