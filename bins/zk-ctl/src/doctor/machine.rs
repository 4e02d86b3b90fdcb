//! What of this machine the agent needs besides key and server: sensors, its unit; and
//! how it is, and whether a record gets through.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;
use zk_agent::Config;
use zk_sensors::{Offset, Quality, W1Bus};

use super::Verdict;
use crate::arguments::{self, Common};
use crate::server::{self, with_causes};
use crate::{agent, device, publish};

pub(super) fn sensors(config: &Config) -> Verdict<()> {
    let root = &config.sensors.root;
    let overlay = "add dtoverlay=w1-gpio to /boot/firmware/config.txt and start the machine anew; \
                   is w1_therm loaded?";
    // a conversion for all would empty the readings of a running agent
    let mut bus = W1Bus::new(root).without_bulk();
    let readings = match bus.read_all(SystemTime::now) {
        Ok(readings) => readings,
        Err(error) => return missing(config, with_causes(&error), overlay),
    };
    if readings.is_empty() {
        let finding = format!("{}: no thermometer on any bus", root.display());
        let cure = "check the wiring, and the resistor of 4.7 kOhm from data to 3.3 V; ls \
                    /sys/bus/w1/devices shows what answers";
        return missing(config, finding, cure);
    }
    let doubtful = readings
        .iter()
        .filter(|reading| reading.quality != Quality::Ok);
    let doubtful: Vec<_> = doubtful
        .map(|reading| format!("{} {}", reading.sensor, reading.quality))
        .collect();
    let count = readings.len();
    if doubtful.is_empty() {
        let finding = format!("{count} of {count} thermometers give a good value");
        let here = |offset: &&Offset| readings.iter().any(|it| it.sensor == offset.sensor);
        let idle = config.sensors.offsets.iter().find(|offset| !here(offset));
        return match idle {
            None => Verdict::Ok((), finding),
            Some(offset) => Verdict::Warning(
                (),
                format!("{finding}; sensors.offsets has {offset}, which is not here"),
                "correct the name in sensors.offsets, or plug it in".into(),
            ),
        };
    }
    let finding = format!(
        "{} of {count} thermometers give a good value; {}",
        count - doubtful.len(),
        doubtful.join(", ")
    );
    let cure = "check the wiring and the supply of those; docs/agent.md says what each quality \
                comes from";
    if doubtful.len() == count {
        Verdict::Failed(finding, cure.into())
    } else {
        Verdict::Warning((), finding, cure.into())
    }
}

/// A device may have no sensors, and publish what other programs hand over.
fn missing(config: &Config, finding: String, cure: &str) -> Verdict<()> {
    if config.socket.listen.is_some() {
        Verdict::Warning((), finding, cure.into())
    } else {
        Verdict::Failed(finding, cure.into())
    }
}

/// Whether others than root may begin a conversion of all thermometers at once.
pub(super) fn bulk(config: &Config) -> Verdict<()> {
    let devices = config.sensors.root.join("bus/w1/devices");
    let buses = std::fs::read_dir(devices).into_iter().flatten().flatten();
    let files = buses.map(|bus| bus.path().join("therm_bulk_read"));
    let found: Vec<_> = files
        .filter_map(|file| Some((std::fs::metadata(&file).ok()?, file)))
        .collect();
    if found.is_empty() {
        return Verdict::NotRun("no bus offers it".into());
    }
    let roots_alone = |meta: &Metadata| match meta.gid() {
        // its group is root's
        0 => meta.mode() & 0o002 == 0,
        _ => meta.mode() & 0o022 == 0,
    };
    match found.iter().find(|(meta, _)| roots_alone(meta)) {
        None => Verdict::Ok((), format!("permitted on {} buses", found.len())),
        Some((meta, file)) => Verdict::Warning(
            (),
            format!(
                "{}: mode {:o}, group {}, so that root alone may begin one conversion for all; the \
                 agent reads one thermometer after the other, 0.8 s each",
                file.display(),
                meta.mode() & 0o777,
                meta.gid()
            ),
            "install the udev rule zk-agent.rules, then: udevadm control --reload && udevadm \
             trigger --action=add --subsystem-match=w1"
                .into(),
        ),
    }
}

pub(super) fn unit() -> Verdict<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Verdict::NotRun("systemd does not run here".into());
    }
    let output = Command::new("systemctl")
        .args(["show", "zk-agent.service", "--property", UNIT_PROPERTIES])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            unit_is_well(&String::from_utf8_lossy(&output.stdout))
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Verdict::NotRun(format!("systemctl: {}", server::printable(&said)))
        }
        Err(error) => Verdict::NotRun(format!("systemctl: {error}")),
    }
}

/// Judges what `systemctl show` prints of [`UNIT_PROPERTIES`].
fn unit_is_well(shown: &str) -> Verdict<()> {
    let property = |name: &str| {
        shown
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let state = property("ActiveState");
    let said = format!("zk-agent.service is {state} ({})", property("SubState"));
    if property("LoadState") == "not-found" {
        return Verdict::Warning(
            (),
            "there is no zk-agent.service: nothing starts the agent".into(),
            "install the package, or copy the unit to /etc/systemd/system".into(),
        );
    }
    let result = format!(
        "{said}: {}, exit status {}",
        property("Result"),
        property("ExecMainStatus")
    );
    match state {
        "active" | "reloading" => {}
        // the configuration: systemd does not start it again
        "failed" if property("ExecMainStatus") == "2" => {
            return Verdict::Failed(
                result,
                "zk-agent --check-config says what is wrong; then: systemctl restart zk-agent"
                    .into(),
            );
        }
        // a slow module, a large spool
        "activating" if property("SubState") != "auto-restart" => {
            return Verdict::Warning(
                (),
                said,
                "it starts just now: look again in a minute".into(),
            );
        }
        "failed" | "activating" => {
            return Verdict::Failed(result, "journalctl -u zk-agent -e says why".into());
        }
        _ => {
            return Verdict::Warning(
                (),
                said,
                "start it, now and at each boot: systemctl enable --now zk-agent".into(),
            );
        }
    }
    if property("NeedDaemonReload") == "yes" {
        return Verdict::Warning(
            (),
            format!("{said}, and its file is another one now"),
            "systemctl daemon-reload && systemctl restart zk-agent".into(),
        );
    }
    if property("UnitFileState") == "disabled" {
        return Verdict::Warning(
            (),
            format!("{said}, and will not be after the next boot"),
            "systemctl enable zk-agent".into(),
        );
    }
    let restarts = property("NRestarts");
    if !matches!(restarts, "" | "0") {
        return Verdict::Warning(
            (),
            format!("{said}; it was started again {restarts} times"),
            "journalctl -u zk-agent says why".into(),
        );
    }
    Verdict::Ok((), said)
}

/// What the running agent says of itself.
pub(super) fn agent_is_well(config: &Config) -> Verdict<()> {
    let Some(listen) = config.metrics.listen else {
        return Verdict::NotRun("metrics.listen is not set".into());
    };
    match agent::page(listen, "/healthz") {
        Ok((status, said)) if status.is_success() => {
            let notices: Vec<_> = said.lines().skip(1).collect();
            if notices.is_empty() {
                Verdict::Ok((), format!("at {listen}, it needs nobody"))
            } else {
                let cure = "see to it in time";
                Verdict::Warning((), notices.join("; "), cure.into())
            }
        }
        Ok((_, said)) => {
            let said = said.lines().collect::<Vec<_>>().join("; ");
            let cure = "journalctl -u zk-agent says more; see Troubleshooting in docs/agent.md";
            Verdict::Failed(said, cure.into())
        }
        Err(error) => Verdict::Warning(
            (),
            format!("no agent answers at {listen}: {error}"),
            "does it run? systemctl status zk-agent".into(),
        ),
    }
}

/// A record of a few bytes, through zk-ctl's own spool.
pub(super) fn really_published(
    common: &Common,
    arguments: &arguments::Doctor,
    config: &Config,
) -> Verdict<()> {
    if !arguments.publish {
        return Verdict::NotRun("it is asked for with --publish".into());
    }
    let published = device::Device::open(common, &arguments.endpoint).and_then(|device| {
        let dir = publish::spool_dir(config, None)?;
        let limit = arguments.timeout;
        publish::deliver(&device, &dir, b"zk-ctl doctor", "text/plain", limit)
    });
    let outcome = match published {
        Ok(outcome) => outcome,
        Err(error) => {
            let cure = "see the checks before it; another user's spool needs that user or root";
            return Verdict::Failed(with_causes(&error), cure.into());
        }
    };
    let member = |name: &str| match &outcome.json[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let record = format!(
        "record {} of stream {}",
        member("sequence"),
        member("stream")
    );
    let because = member("error");
    match member("outcome").as_str() {
        "delivered" => Verdict::Ok((), format!("the server has {record}")),
        "forbidden" => Verdict::Failed(
            format!("the server does not let this device publish: {because}"),
            "see zk-setup device list: is its certificate registered, and not revoked?".into(),
        ),
        "kept" => Verdict::Failed(
            format!("{record} is not delivered, and kept: {because}"),
            "try again with a longer --timeout; see the checks before it".into(),
        ),
        other => Verdict::Failed(
            format!("{record} is {other}: {because}"),
            "see zk-ctl spool rejected list, and ask who runs the server".into(),
        ),
    }
}

/// What is asked of systemd.
const UNIT_PROPERTIES: &str = "LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,\
                               UnitFileState,NeedDaemonReload";

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    /// As systemd 252 prints them.
    fn shown(changes: &[(&str, &str)]) -> String {
        let mut text = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n\
                        ExecMainStatus=0\nNRestarts=0\nUnitFileState=enabled\n\
                        NeedDaemonReload=no\n"
            .to_owned();
        for (name, value) in changes {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            text = text.replace(line, &format!("{name}={value}"));
        }
        text
    }

    #[test]
    fn the_unit_is_judged_by_what_systemd_says() {
        let failed = [
            ("ActiveState", "failed"),
            ("SubState", "failed"),
            ("Result", "exit-code"),
        ];
        let with = |status| [&failed[..], &[("ExecMainStatus", status)]].concat();
        let Verdict::Failed(finding, cure) = unit_is_well(&shown(&with("2"))) else {
            panic!();
        };
        assert!(finding.contains("exit-code, exit status 2"), "{finding}");
        assert!(cure.contains("--check-config"), "{cure}");
        let Verdict::Failed(_, cure) = unit_is_well(&shown(&with("1"))) else {
            panic!();
        };
        assert!(cure.contains("journalctl"), "{cure}");
        let starting = [("ActiveState", "activating"), ("SubState", "auto-restart")];
        assert!(matches!(
            unit_is_well(&shown(&starting)),
            Verdict::Failed(..)
        ));
        let begins = [("ActiveState", "activating"), ("SubState", "start")];
        assert!(matches!(
            unit_is_well(&shown(&begins)),
            Verdict::Warning(..)
        ));
        assert!(matches!(unit_is_well(&shown(&[])), Verdict::Ok(..)));
        for (name, value, says) in [
            ("LoadState", "not-found", "there is no zk-agent.service"),
            ("ActiveState", "inactive", "is inactive"),
            ("NeedDaemonReload", "yes", "another one now"),
            ("UnitFileState", "disabled", "after the next boot"),
            ("NRestarts", "7", "started again 7 times"),
        ] {
            let Verdict::Warning((), finding, _) = unit_is_well(&shown(&[(name, value)])) else {
                panic!("{name}");
            };
            assert!(finding.contains(says), "{finding}");
        }
    }
}
