//! The Debian packages in a machine that boots, with systemd and udev, as a user has
//! them: installed, configured, run, disturbed, started anew, upgraded and removed.
//!
//! `cargo xtask test packages` makes the packages and the machine's Debian.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod boot;
mod debs;

use std::fs;
use std::time::{Duration, Instant};

use boot::Machine;
use debs::{HOST, PACKAGES, newer, package};
use tempfile::TempDir;
use zk_sensors::{MilliCelsius, SensorId, SimulatedBus};

#[test]
fn systemd_runs_them() {
    let dir = TempDir::new().unwrap();
    let sensor: SensorId = "28-0000000a0001".parse().unwrap();
    let mut bus = SimulatedBus::create(dir.path().join("sys"), &[sensor]).unwrap();
    bus.set(sensor, MilliCelsius(21_437)).unwrap();
    fs::write(dir.path().join("metrics"), METRICS).unwrap();
    let made = newer("zk-agent", SETTINGS, dir.path());
    let mut files = vec![
        (dir.path().join("sys"), "srv/sys"),
        (dir.path().join("metrics"), "srv/metrics"),
        (made, "srv/newer/zk-agent.deb"),
    ];
    let places = ["srv/zk-agent.deb", "srv/zk-gateway.deb", "srv/zk-tools.deb"];
    for (name, place) in PACKAGES.iter().zip(places) {
        files.push((package(name, HOST), place));
    }
    let mut machine = Machine::start(&files, Duration::from_secs(6 * 60));
    let parts: [(&str, Part); 13] = [
        (
            "installed, they wait for a configuration",
            installed_it_waits,
        ),
        ("udev takes the rule", udev_takes_the_rule),
        ("configured, they start", configured_it_starts),
        ("a reload takes another interval", reload_takes_an_interval),
        ("members of a group may publish", members_may_publish),
        ("the clock is read within the sandbox", the_clock_is_read),
        (
            "a wrong configuration is not tried again",
            wrong_is_not_tried_again,
        ),
        ("killed, it starts again", killed_it_starts_again),
        ("stopped, the watchdog ends it", the_watchdog_ends_it),
        ("after a reboot it goes on", a_reboot),
        ("after a power cut it goes on", a_power_cut),
        ("a token's PIN comes as a credential", a_pin_is_a_credential),
        ("upgraded, removed, purged", upgraded_and_removed),
    ];
    for (what, part) in parts {
        let start = Instant::now();
        part(&mut machine);
        println!("{:>6.1} s  {what}", start.elapsed().as_secs_f64());
    }
}

/// What is done in turn, each with what the ones before it have left.
type Part = fn(&mut Machine);

/// Packages bring users, units and the rule; without a configuration nothing starts.
fn installed_it_waits(machine: &mut Machine) {
    machine.does("dpkg --install /srv/*.deb");
    for unit in ["zk-agent", "zk-gateway"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled");
        machine.does(&format!("systemctl start {unit}"));
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
        assert_eq!(machine.property(unit, "ConditionResult"), "no");
        let id = machine.does(&format!("id {unit}"));
        assert_eq!(id.contains("zk-publish"), unit == "zk-agent", "{id}");
    }
    let failed = machine.does("systemctl --failed --no-legend");
    assert_eq!(failed.trim(), "");
}

/// That it does what it should takes a bus, which this machine has not.
fn udev_takes_the_rule(machine: &mut Machine) {
    let said = machine.does("udevadm test --action=add /sys/class/net/lo 2>&1 | grep 60-zk-agent");
    assert!(said.contains("Reading rules file: "), "{said}");
    assert!(!said.contains("60-zk-agent.rules:"), "{said}");
}

/// As the operator sets them up and puts them where the units look.
fn configured_it_starts(machine: &mut Machine) {
    machine.does(
        "set -e
        (umask 077; echo 'correct horse battery staple' > passphrase)
        zk-ctl hsm keys generate --hsm soft:/etc/zk-agent/key.pem
        zk-setup apply --target local --dir ~/zk --name localhost \
            --listen 127.0.0.1:8443 --endpoint localhost:8443 \
            --store file:/var/lib/zk-gateway/store.db \
            --device pi-01 --hsm soft:/etc/zk-agent/key.pem \
            --passphrase-file passphrase --owner-passphrase-file passphrase
        cp zk/gateway/* /etc/zk-gateway/
        cp zk/devices/pi-01/* /etc/zk-agent/
        chown zk-gateway /etc/zk-gateway/gateway.key.pem
        chown zk-agent /etc/zk-agent/key.pem
        cd /etc/zk-agent
        sed -i '/^.sensors/,/^root/ { s|^root = .*|root = \"/srv/sys\"|; s|^interval = .*|interval = \"1h\"| }' agent.toml
        printf '[socket]\nlisten = \"/run/zk-agent/publish.sock\"\ngroup = \"zk-publish\"\n' >> agent.toml
        runuser -u zk-agent -- zk-agent --check-config
        systemctl start zk-gateway zk-agent",
    );
    for unit in ["zk-agent", "zk-gateway"] {
        // a service of the type notify is active once it has said that it is ready
        assert_eq!(machine.property(unit, "Type"), "notify");
        assert_eq!(machine.property(unit, "ActiveState"), "active");
        let user = machine.does(&format!("stat -c %U /proc/$({PID} {unit})"));
        assert_eq!(user.trim(), unit);
    }
    assert_eq!(machine.property("zk-agent", "WatchdogUSec"), "3min");
    let modes = machine
        .does("stat -c '%a %U %G' /var/lib/zk-agent /run/zk-agent /run/zk-agent/publish.sock");
    let expected = "700 zk-agent zk-agent\n755 zk-agent zk-agent\n660 zk-agent zk-publish\n";
    assert_eq!(modes, expected);
    delivered(machine);
}

fn reload_takes_an_interval(machine: &mut Machine) {
    let before = metric(machine, "readings_sampled_total");
    let pid = machine.does(&format!("{PID} zk-agent"));
    machine
        .does("sed -i 's|\"1h\"|\"500ms\"|' /etc/zk-agent/agent.toml; systemctl reload zk-agent");
    machine.until(&format!(
        "[ $(bash /srv/metrics readings_sampled_total) -gt $(({before} + 3)) ]"
    ));
    assert_eq!(machine.does(&format!("{PID} zk-agent")), pid);
}

fn members_may_publish(machine: &mut Machine) {
    machine.does("useradd --create-home --groups zk-publish alice; useradd --create-home bob");
    publishes(machine, "by a member");
    let refused = machine.run("runuser -u bob -- sh -c 'echo mine | zk-ctl publish'");
    assert_ne!(refused.status, 0);
    assert!(refused.said.contains("ermission denied"), "{refused:?}");
}

/// Were the call refused, the kernel could say what it likes.
fn the_clock_is_read(machine: &mut Machine) {
    // struct timex: status and errors, as a time source sets them
    let set = |status: &str| {
        format!(
            "perl -e '$t = pack(\"Lx4q4ix4\", 0x1c, 0, 0, 1000, 500, {status}) . \"\\0\" x 160; \
             exit(syscall(159, $t) < 0)'"
        )
    };
    for (status, quality) in [("1", "synchronised"), ("0x40", "free-running")] {
        machine.does(&set(status));
        machine.until(&format!(
            "[ $(bash /srv/metrics 'clock_quality{{quality=\"{quality}\"}}') = 1 ]"
        ));
    }
}

fn wrong_is_not_tried_again(machine: &mut Machine) {
    machine.does("cd /etc/zk-agent; cp agent.toml good; echo 'nonsense = 1' >> agent.toml");
    // told to reload, it goes on as it was
    machine.does("systemctl reload zk-agent");
    machine.until("journalctl --no-pager -u zk-agent | grep nonsense");
    assert_eq!(machine.property("zk-agent", "ActiveState"), "active");
    assert_ne!(machine.run("systemctl restart zk-agent").status, 0);
    // a unit that is to be started again is activating
    assert_eq!(machine.property("zk-agent", "ActiveState"), "failed");
    assert_eq!(machine.property("zk-agent", "ExecMainStatus"), "2");
    machine.does("mv /etc/zk-agent/good /etc/zk-agent/agent.toml");
    let doctor = machine.run("zk-ctl doctor");
    assert_eq!(doctor.status, 3, "{doctor:?}");
    assert!(
        doctor.said.contains("zk-agent.service is failed") && doctor.said.contains("exit status 2"),
        "{doctor:?}"
    );
    machine.does("systemctl start zk-agent");
    let doctor = machine.run("zk-ctl doctor");
    assert!(
        doctor.said.contains("zk-agent.service is active"),
        "{doctor:?}"
    );
}

fn killed_it_starts_again(machine: &mut Machine) {
    publishes(machine, "before the kill");
    machine.does("systemctl kill --signal KILL zk-agent");
    restarted(machine);
    publishes(machine, "after the kill");
    delivered(machine);
}

fn the_watchdog_ends_it(machine: &mut Machine) {
    // sooner than the unit says
    machine.does(
        "mkdir -p /etc/systemd/system/zk-agent.service.d
        printf '[Service]\nWatchdogSec=10s\n' > /etc/systemd/system/zk-agent.service.d/soon.conf
        systemctl daemon-reload; systemctl restart zk-agent",
    );
    let fed = machine.property("zk-agent", "WatchdogTimestampMonotonic");
    machine.until(&format!(
        "[ $(systemctl show --value -p WatchdogTimestampMonotonic zk-agent) != {fed} ]"
    ));
    assert_eq!(machine.property("zk-agent", "NRestarts"), "0");
    publishes(machine, "before the stop");
    machine.does("systemctl kill --signal STOP zk-agent");
    restarted(machine);
    machine.does("journalctl --no-pager -u zk-agent | grep -i 'watchdog timeout'");
    machine.does("rm -r /etc/systemd/system/zk-agent.service.d; systemctl daemon-reload");
    machine.does("systemctl restart zk-agent");
    delivered(machine);
}

fn a_reboot(machine: &mut Machine) {
    publishes(machine, "before the reboot");
    machine.boots_again("systemctl reboot");
    machine.until("systemctl is-active zk-gateway zk-agent");
    publishes(machine, "after the reboot");
    let audit = audited(machine, 6);
    assert_eq!(audit.matches("\n  stream ").count(), 1, "{audit}");
}

/// Nobody syncs a disk or ends a program, and nothing has been delivered.
fn a_power_cut(machine: &mut Machine) {
    machine.does("systemctl stop zk-gateway");
    for what in ["when nobody listens", "just before the cut"] {
        publishes(machine, what);
    }
    machine.boots_again("echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger");
    machine.until("systemctl is-active zk-gateway zk-agent");
    audited(machine, 8);
}

/// Another device, whose key is on a token; the PIN is where the service's user can't read.
fn a_pin_is_a_credential(machine: &mut Machine) {
    machine.does(
        "set -e
        systemctl stop zk-agent
        mkdir /var/lib/zk-agent/tokens
        echo 'directories.tokendir = /var/lib/zk-agent/tokens' > /etc/zk-agent/softhsm2.conf
        export SOFTHSM2_CONF=/etc/zk-agent/softhsm2.conf
        softhsm2-util --init-token --free --label plant --so-pin 5550199 --pin 8317402
        (umask 077; echo 8317402 > /etc/zk-agent/hsm-pin)
        key='pkcs11:token=plant;object=pi-02?pin-source=file:/etc/zk-agent/hsm-pin'
        zk-ctl hsm keys generate --hsm $key
        zk-setup device add pi-02 --dir ~/zk --hsm $key --endpoint localhost:8443 \
            --passphrase-file passphrase
        chown -R zk-agent /var/lib/zk-agent/tokens
        mkdir /etc/zk-agent/pi-02
        cp zk/devices/pi-02/* /etc/zk-agent/pi-02/
        sed -i 's|file:/etc/zk-agent/hsm-pin|credential:hsm-pin|; s|/var/lib/zk-agent/spool|&-2|' \
            /etc/zk-agent/pi-02/agent.toml
        mkdir -p /etc/systemd/system/zk-agent.service.d
        printf '[Service]\n%s\n' 'LoadCredential=hsm-pin:/etc/zk-agent/hsm-pin' \
            'Environment=SOFTHSM2_CONF=/etc/zk-agent/softhsm2.conf' \
            ExecStart= 'ExecStart=/usr/bin/zk-agent --config /etc/zk-agent/pi-02/agent.toml' \
            > /etc/systemd/system/zk-agent.service.d/token.conf
        systemctl daemon-reload
        systemctl start zk-agent",
    );
    delivered(machine);
    machine.does("! journalctl --no-pager -u zk-agent | grep 8317402");
    machine.does(
        "systemctl stop zk-agent; rm -r /etc/systemd/system/zk-agent.service.d
        systemctl daemon-reload; systemctl start zk-agent",
    );
    let reader = "zk-reader --config zk/reader.toml --passphrase-file passphrase";
    let audit = machine.does(&format!("{reader} audit"));
    assert!(audit.contains("pi-02: complete"), "{audit}");
}

fn upgraded_and_removed(machine: &mut Machine) {
    let pid = machine.does(&format!("{PID} zk-agent"));
    machine.does(&format!(
        "echo RUST_LOG=debug >> /{SETTINGS}; cp /{SETTINGS} mine
        dpkg --force-confdef --force-confold --install /srv/newer/zk-agent.deb
        dpkg --status zk-agent | grep '^Version: 99' && cmp /{SETTINGS} mine"
    ));
    assert_eq!(machine.property("zk-agent", "ActiveState"), "active");
    assert_ne!(machine.does(&format!("{PID} zk-agent")), pid);
    publishes(machine, "after the upgrade");
    audited(machine, 9);
    machine.does("dpkg --remove zk-agent zk-gateway");
    machine.does("! pgrep -x 'zk-agent|zk-gateway'");
    for unit in ["zk-agent", "zk-gateway"] {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive");
    }
    machine.does(&format!(
        "test -e /{SETTINGS} && dpkg --purge zk-agent zk-gateway"
    ));
    machine.does(&format!(
        "! test -e /{SETTINGS} && ls /var/lib/zk-agent/spool"
    ));
    machine.does("ls /etc/zk-agent/key.pem /var/lib/zk-gateway/store.db");
    let failed = machine.does("systemctl --failed --no-legend");
    assert_eq!(failed.trim(), "");
}

/// A user hands over a note, and it is on disk.
fn publishes(machine: &mut Machine, note: &str) {
    machine.does(&format!(
        "runuser -u alice -- sh -c 'echo note {note} | zk-ctl publish'"
    ));
}

/// All that has been taken has arrived.
fn delivered(machine: &mut Machine) {
    machine.until(
        "bash /srv/metrics last_delivery_seconds && [ $(bash /srv/metrics publisher_online) = 1 ]",
    );
}

/// systemd has started it again, once.
fn restarted(machine: &mut Machine) {
    machine.until(
        "[ $(systemctl show --value -p NRestarts zk-agent) = 1 ] && systemctl is-active zk-agent",
    );
}

/// The agent ends, with nothing left; the owner finds nothing missing, and all notes.
fn audited(machine: &mut Machine, notes: usize) -> String {
    delivered(machine);
    machine.does("systemctl stop zk-agent");
    let reader = "zk-reader --config zk/reader.toml --passphrase-file passphrase";
    let audit = machine.does(&format!("{reader} audit"));
    println!("{}", audit.trim());
    let found = machine.does(&format!(
        "{reader} list --json | grep -o 'note [a-z ]*' | sort -u"
    ));
    assert_eq!(found.lines().count(), notes, "{found}");
    machine.does("systemctl start zk-agent");
    audit
}

fn metric(machine: &mut Machine, name: &str) -> u64 {
    let said = machine.does(&format!("bash /srv/metrics {name}"));
    said.trim().parse().unwrap()
}

/// Prints one of the agent's metrics.
const METRICS: &str = r#"
exec 9<> /dev/tcp/127.0.0.1/9465
printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&9
while read -r name value; do
    [ "$name" = "zk_agent_$1" ] && { echo "${value%$'\r'}"; exit; }
done <&9
exit 1
"#;

const SETTINGS: &str = "etc/default/zk-agent";

const PID: &str = "systemctl show --value -p MainPID";
