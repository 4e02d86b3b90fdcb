//! The sensors of a machine, on simulated buses.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use zk_sensors::{MilliCelsius, Quality, SensorError, SensorId, SimulatedBus};

use crate::world::{Run, World, finish, mode, program};

const CELLAR: &str = "28-0000000a0001";
const BOILER: &str = "28-0000000a0002";
const OLD: &str = "10-00080278d0e4";

/// Two buses, three sensors.
struct Tree {
    dir: TempDir,
    wires: SimulatedBus,
    second: SimulatedBus,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wires = SimulatedBus::create(dir.path(), &[id(CELLAR), id(BOILER)]).unwrap();
        let second = SimulatedBus::create(dir.path(), &[id(OLD)]).unwrap();
        Self { dir, wires, second }
    }

    fn sensors(&self, arguments: &[&str]) -> Run {
        finish(&mut self.program(arguments), b"")
    }

    /// As a person on a machine without a configuration.
    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = program(self.dir.path());
        command.env("ZK_CTL_SENSORS_ROOT", self.dir.path());
        command.arg("sensors").args(arguments);
        command
    }

    fn file(&self, sensor: &str, name: &str) -> PathBuf {
        let devices = self.dir.path().join("bus/w1/devices");
        devices.join(sensor).join(name)
    }

    fn read(&self, sensor: &str, name: &str) -> String {
        fs::read_to_string(self.file(sensor, name)).unwrap()
    }

    fn write(&self, sensor: &str, name: &str, text: &str) {
        let path = self.file(sensor, name);
        fs::remove_file(&path).unwrap();
        fs::write(path, text).unwrap();
    }

    fn bulk(&self) -> String {
        let bus = self.dir.path().join("devices/w1_bus_master1");
        fs::read_to_string(bus.join("therm_bulk_read")).unwrap()
    }
}

#[test]
fn a_table_has_each_sensor_with_its_value_and_what_that_is_worth() {
    let mut tree = Tree::new();
    tree.wires.set(id(CELLAR), MilliCelsius(-10_125)).unwrap();
    tree.wires.set_resolution(id(BOILER), 9).unwrap();
    tree.write(BOILER, "ext_power", "0\n");
    let run = tree.sensors(&[]).ends(0);
    assert_eq!(
        columns(run.text()),
        [
            "SENSOR CELSIUS QUALITY AGE BUS RESOLUTION POWER",
            "10-00080278d0e4 20.000 ok # s w1_bus_master2 - external",
            "28-0000000a0001 -10.125 ok # s w1_bus_master1 12 bits external",
            "28-0000000a0002 20.000 ok # s w1_bus_master1 9 bits parasite",
        ]
    );
    assert_eq!(run.err, "");
    // its columns are below one another
    let places: Vec<_> = run.text().lines().map(|line| line.find("w1_bus")).collect();
    assert_eq!(places[0], None);
    assert!(places[1].is_some() && places[1..].iter().all(|place| *place == places[1]));
    assert_eq!(run.text().lines().next().unwrap().find("BUS"), places[1]);
}

/// A value in doubt is shown with its quality, and what gives none is shown too.
#[test]
fn what_is_not_well_is_shown_and_ends_with_3_and_what_to_do() {
    type Fault = fn(&mut SimulatedBus, SensorId) -> Result<(), SensorError>;
    let cases: [(Fault, &str, &str, Value, &[&str]); 4] = [
        (
            SimulatedBus::power_on_value,
            "85.000 power-on # s w1_bus_master1 12 bits external",
            "power-on",
            json!(85.0),
            &["a supply of its own", "--conversion-time measured"],
        ),
        (
            SimulatedBus::false_zero,
            "- false-zero - w1_bus_master1 9 bits external",
            "false-zero",
            Value::Null,
            &["shorted"],
        ),
        (
            SimulatedBus::empty,
            "- empty - w1_bus_master1 - external",
            "empty",
            Value::Null,
            &["about 100 s", "try again"],
        ),
        (
            SimulatedBus::bad_crc,
            "- crc - w1_bus_master1 12 bits external",
            "crc",
            Value::Null,
            &["noise"],
        ),
    ];
    for (fault, row, quality, value, says) in cases {
        let mut tree = Tree::new();
        fault(&mut tree.wires, id(CELLAR)).unwrap();
        let run = tree.sensors(&[]).ends(3);
        assert_eq!(columns(run.text())[2], format!("{CELLAR} {row}"));
        run.says(&[&[quality, CELLAR], says].concat());
        assert!(!run.err.contains(BOILER), "{}", run.err);

        let json = tree.sensors(&["--json"]).ends(3).json();
        let sensor = &json["sensors"][1];
        assert_eq!(
            (&sensor["sensor"], &sensor["celsius"], &sensor["quality"]),
            (&json!(CELLAR), &value, &json!(quality))
        );
    }
}

#[test]
fn a_script_gets_an_object_with_everything() {
    let tree = Tree::new();
    let json = tree.sensors(&["--json"]).ends(0).json();
    assert_eq!(json["root"], json!(tree.dir.path()));
    assert_eq!(json["buses"], json!(["w1_bus_master1", "w1_bus_master2"]));
    assert_eq!(json["others"], json!([]));
    let members =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(
        members(&json),
        ["buses", "others", "root", "sensors", "time"]
    );
    let document = include_str!("../../../../docs/ctl.md");
    let section = document.split("\n## sensors\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    for member in members(&json).iter().chain(&members(&json["sensors"][0])) {
        assert!(
            section.contains(&format!("`{member}`")),
            "docs/ctl.md lacks {member}"
        );
    }
    let mut sensor = json["sensors"][0].clone();
    for time in ["at", "firstSeen", "since"] {
        let text = sensor[time].take();
        let text = text.as_str().unwrap();
        assert!(text.len() == 24 && text.ends_with('Z'), "{text}");
    }
    assert!(sensor["ageMs"].take().is_u64());
    assert!(sensor["lastGood"]["at"].take().is_string());
    assert_eq!(
        sensor,
        json!({
            "sensor": OLD,
            "celsius": 20.0,
            "offset": 0.0,
            "measured": 20.0,
            "quality": "ok",
            "at": null,
            "ageMs": null,
            "bus": "w1_bus_master2",
            "resolution": null,
            "power": "external",
            "conversionMs": 750,
            "checkResult": false,
            "poll": false,
            "firstSeen": null,
            "since": null,
            "failures": 0,
            "counts": {"ok": 1},
            "lastGood": {"celsius": 20.0, "at": null},
        })
    );
}

/// A driver that hangs would not answer either: these files would never end.
#[test]
fn how_it_is_set_is_not_asked_of_a_sensor_that_cannot_be_read() {
    let tree = Tree::new();
    fs::remove_file(tree.file(CELLAR, "w1_slave")).unwrap();
    for name in ["resolution", "ext_power", "conv_time", "features"] {
        let file = tree.file(CELLAR, name);
        fs::remove_file(&file).unwrap();
        let made = Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
    }
    let run = tree.sensors(&[]).ends(3);
    let row = "28-0000000a0001 - unreadable - w1_bus_master1 - -";
    assert_eq!(columns(run.text())[2], row);
    run.says(&["unreadable", CELLAR, "modprobe w1_therm", "dmesg"]);
}

/// Unless it is asked to, it does nothing that an agent would notice.
#[test]
fn it_converts_for_all_only_when_asked_to() {
    let tree = Tree::new();
    tree.sensors(&[]).ends(0);
    assert_eq!(tree.bulk(), "0\n");
    tree.sensors(&["--bulk"]).ends(0);
    assert_eq!(tree.bulk(), "trigger\n");
}

#[test]
fn what_there_is_instead_of_thermometers_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let sensors = |arguments: &[&str]| {
        let mut command = program(dir.path());
        command.args(["sensors", "--root", "."]).args(arguments);
        finish(&mut command, b"")
    };
    let none = sensors(&[]).ends(1);
    none.says(&["./bus/w1/devices", "dtoverlay=w1-gpio", "w1_therm"]);
    assert_eq!(none.text(), "");

    fs::create_dir_all(dir.path().join("bus/w1/devices")).unwrap();
    let none = sensors(&[]).ends(3);
    assert_eq!(none.text(), "no thermometer on any bus of .\n");
    let _wires = SimulatedBus::create(dir.path(), &[]).unwrap();
    let none = sensors(&[]).ends(3);
    assert_eq!(none.text(), "no thermometer on w1_bus_master1\n");
    none.says(&["pull-up"]);
    assert!(!none.err.contains("no device"), "{}", none.err);

    let device = |name: &str| {
        fs::create_dir(dir.path().join("bus/w1/devices").join(name)).unwrap();
    };
    device("01-0000000a0001");
    let none = sensors(&[]).ends(3);
    assert!(!none.err.contains("no device"), "{}", none.err);
    device("00-400000000000");
    let phantom = sensors(&[]).ends(3);
    phantom.says(&["00-400000000000 is no device"]);
    let json = sensors(&["--json"]).ends(3).json();
    assert_eq!(json["sensors"], json!([]));
    assert_eq!(
        json["others"],
        json!(["00-400000000000", "01-0000000a0001"])
    );
}

#[test]
fn it_watches_sensors_come_and_go() {
    let mut tree = Tree::new();
    let arguments = ["--watch", "--json", "--interval", "10ms"];
    let mut watching = tree.program(&arguments);
    let mut child = watching
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |quality: &str| -> Value {
        lines
            .by_ref()
            .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
            .map(|sweep| sweep["sensors"][1].clone())
            .find(|sensor| sensor["quality"] == quality)
            .unwrap()
    };
    let first = until("ok");
    assert_eq!(
        (&first["celsius"], &first["failures"]),
        (&json!(20.0), &json!(0))
    );
    tree.wires.unplug(id(CELLAR)).unwrap();
    let gone = until("unplugged");
    assert_eq!(gone["celsius"], Value::Null);
    assert_eq!(gone["bus"], Value::Null);
    assert_eq!(gone["lastGood"]["celsius"], 20.0);
    assert_eq!(gone["firstSeen"], first["firstSeen"]);
    let more = until("unplugged");
    assert_eq!(more["since"], gone["since"]);
    assert!(more["failures"].as_u64() > gone["failures"].as_u64());
    tree.wires.set(id(CELLAR), MilliCelsius(62)).unwrap();
    tree.wires.replug(id(CELLAR)).unwrap();
    let back = until("ok");
    assert_eq!(
        (&back["celsius"], &back["failures"]),
        (&json!(0.062), &json!(0))
    );
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_watches_for_as_long_as_it_was_told() {
    let mut tree = Tree::new();
    let run = tree
        .sensors(&["--watch", "--interval", "10ms", "--count", "2"])
        .ends(0);
    let lines = columns(run.text());
    assert_eq!(lines.len(), 11, "{lines:?}");
    // a time, a table, an empty line, and again
    assert!(lines[0].ends_with('Z') && lines[5].is_empty() && lines[6].ends_with('Z'));
    assert_eq!(lines[1], lines[7]);
    assert!(!run.text().contains('\x1b'));

    // the last sweep decides
    let arguments = ["--watch", "--interval", "10ms", "--count", "2"];
    let mut watching = tree.program(&arguments);
    let held = tree.second.hold(id(OLD)).unwrap();
    let (first_failed, run) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| finish(&mut watching, b""));
        (held.fail(), watcher.join().unwrap())
    });
    first_failed.unwrap();
    assert!(run.ends(0).text().contains(" empty "));
    tree.second.empty(id(OLD)).unwrap();
    let run = tree
        .sensors(&["--watch", "--interval", "10ms", "--count", "2"])
        .ends(3);
    assert!(!run.text().contains("LAST GOOD"));
    // what can't be read at all ends it
    let mut command = program(tree.dir.path());
    command.args(["sensors", "--watch", "--root", "nowhere"]);
    finish(&mut command, b"").ends(1).says(&["nowhere"]);
}

/// On a terminal one table is written over the other.
#[test]
fn a_terminal_shows_one_table() {
    let there = Command::new("script").arg("--version").output();
    assert!(there.is_ok(), "no script: sudo apt-get install bsdutils");
    let tree = Tree::new();
    let mut command = Command::new("script");
    let line = format!(
        "{} sensors --watch --interval 10ms --count 2",
        env!("CARGO_BIN_EXE_zk-ctl")
    );
    command
        .args(["-qec", &line, "/dev/null"])
        .env("ZK_CTL_SENSORS_ROOT", tree.dir.path())
        .current_dir(tree.dir.path());
    let run = finish(&mut command, b"").ends(0);
    assert_eq!(
        run.text().matches("\x1b[H\x1b[J2").count(),
        2,
        "{:?}",
        run.text()
    );
}

/// What there is no room for is left out, and never a value or what it is worth.
#[test]
fn a_narrow_terminal_shows_what_matters() {
    let mut tree = Tree::new();
    tree.wires.power_on_value(id(CELLAR)).unwrap();
    let shown = |width: usize| {
        let line = format!(
            "stty cols {width}; {} sensors 2>/dev/null",
            env!("CARGO_BIN_EXE_zk-ctl")
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("ZK_CTL_SENSORS_ROOT", tree.dir.path())
            .current_dir(tree.dir.path());
        let run = finish(&mut command, b"").ends(3);
        let text = run.text().replace('\r', "");
        let widest = text.lines().map(str::len).max().unwrap();
        let least = "28-0000000a0001 85.000 power-on";
        assert!(width < 35 || widest <= width, "{text}");
        assert!(columns(&text)[2].starts_with(least), "{text}");
        columns(&text).remove(0)
    };
    for (width, heading) in [
        (0, "SENSOR CELSIUS QUALITY AGE BUS RESOLUTION POWER"),
        (80, "SENSOR CELSIUS QUALITY AGE BUS RESOLUTION POWER"),
        (79, "SENSOR CELSIUS QUALITY AGE BUS RESOLUTION"),
        (60, "SENSOR CELSIUS QUALITY AGE BUS"),
        (50, "SENSOR CELSIUS QUALITY AGE"),
        (40, "SENSOR CELSIUS QUALITY"),
        (20, "SENSOR CELSIUS QUALITY"),
    ] {
        assert_eq!(shown(width), heading, "{width}");
    }
}

/// What the chip said, and what the agent makes of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_with_an_offset_is_shown_beside_what_was_measured() {
    let world = World::new().await;
    let sensors = [id(CELLAR), id(BOILER)];
    let mut wires = SimulatedBus::create(world.path("tree"), &sensors).unwrap();
    let root = format!("root = \"{}\"", world.arg("tree"));
    let offsets = format!("{root}\noffsets = [\"{CELLAR}=-0.25\", \"{OLD}=1\"]");
    world.reconfigure("root = \"sys\"", &offsets);
    let seen = |exit: i32, flags: &[&str]| world.ctl(&[&["sensors"], flags].concat()).ends(exit);
    let run = seen(0, &[]);
    assert_eq!(
        columns(run.text()),
        [
            "SENSOR CELSIUS MEASURED QUALITY AGE BUS RESOLUTION POWER",
            "28-0000000a0001 19.750 20.000 ok # s w1_bus_master1 12 bits external",
            "28-0000000a0002 20.000 ok # s w1_bus_master1 12 bits external",
        ]
    );
    // one that adds to nothing is a slip
    run.says(&["sensors.offsets", "10-00080278d0e4=1.000", "right name"]);
    assert!(!run.err.contains(CELLAR), "{}", run.err);
    let values = |run: &Run| {
        let sensor = run.json()["sensors"][0].clone();
        ["celsius", "offset", "measured"].map(|member| sensor[member].clone())
    };
    assert_eq!(values(&seen(0, &["--json"])), [19.75, -0.25, 20.0]);
    // another tree has no agent, and so no offsets
    let tree = ["--json", "--root", &world.arg("tree")];
    assert_eq!(values(&seen(0, &tree)), [20.0, 0.0, 20.0]);
    wires.power_on_value(id(CELLAR)).unwrap();
    assert_eq!(values(&seen(3, &["--json"])), [85.0, -0.25, 85.0]);
    wires.empty(id(CELLAR)).unwrap();
    let run = seen(3, &[]);
    let row = "28-0000000a0001 - - empty - w1_bus_master1 - external";
    assert_eq!(columns(run.text())[1], row);
}

/// The last good value stays in sight.
#[test]
fn a_value_that_is_gone_was_something_before() {
    let mut tree = Tree::new();
    let mut watching = tree.program(&["--watch", "--interval", "10ms"]);
    let mut child = watching
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |part: &str| {
        let mut lines = lines.by_ref().map(Result::unwrap);
        lines.find(|line| line.contains(part)).unwrap()
    };
    until("28-0000000a0002");
    tree.wires.unplug(id(BOILER)).unwrap();
    until("LAST GOOD");
    let row = columns(&until("28-0000000a0002")).remove(0);
    assert_eq!(row, "28-0000000a0002 - unplugged - - - - 20.000, # s ago");
    drop(lines);
    // nobody reads on: that is an end, too
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_sensor_is_set_and_read_back() {
    let tree = Tree::new();
    let run = tree.sensors(&["set", CELLAR, "--resolution", "10"]).ends(0);
    run.says(&["until it loses power", "--save", "50,000"]);
    assert_eq!(
        columns(run.text())[..2],
        ["sensor 28-0000000a0001", "resolution 10 bits"]
    );
    assert_eq!(tree.read(CELLAR, "resolution"), "10\n");
    assert_eq!(tree.read(CELLAR, "eeprom_cmd"), "");
    assert_eq!(tree.read(BOILER, "resolution"), "12\n");

    let all = [
        "set",
        CELLAR,
        "--resolution",
        "9",
        "--conversion-time",
        "900ms",
        "--poll",
        "on",
        "--save",
        "--json",
    ];
    let run = tree.sensors(&all).ends(0);
    assert_eq!(run.err, "");
    assert_eq!(
        run.json(),
        json!({
            "sensor": CELLAR,
            "resolution": 9,
            "conversionMs": 900,
            "poll": true,
            "saved": true,
        })
    );
    assert_eq!(tree.read(CELLAR, "conv_time"), "900\n");
    assert_eq!(tree.read(CELLAR, "features"), "2\n");
    // what the check of a result was set to stays
    tree.write(CELLAR, "features", "3\n");
    tree.sensors(&["set", CELLAR, "--poll", "off"]).ends(0);
    assert_eq!(tree.read(CELLAR, "features"), "1\n");
    // a saved resolution alone
    assert_eq!(tree.read(CELLAR, "eeprom_cmd"), "restore\n");
    tree.write(CELLAR, "eeprom_cmd", "");
    tree.sensors(&["set", CELLAR, "--save"]).ends(0);
    assert_eq!(tree.read(CELLAR, "eeprom_cmd"), "restore\n");
}

#[test]
fn what_cannot_be_set_is_told_apart() {
    let mut tree = Tree::new();
    for (arguments, code, says) in [
        (
            ["set", OLD, "--resolution", "9"].as_slice(),
            2,
            ["DS18S20", "fixed"],
        ),
        (&["set", OLD, "--save"], 2, ["DS18S20", "fixed"]),
        (
            &["set", CELLAR, "--resolution", "13"],
            2,
            ["--resolution", "9..=12"],
        ),
        (
            &["set", CELLAR, "--resolution", "8"],
            2,
            ["--resolution", "9..=12"],
        ),
        (
            &["set", CELLAR, "--conversion-time", "1ms"],
            2,
            ["1ms", "2 ms to 10 s"],
        ),
        (
            &["set", CELLAR, "--conversion-time", "soon"],
            2,
            ["measured", "900ms"],
        ),
        (&["set", CELLAR], 2, ["--resolution", "--save"]),
        (&["set", "28-1", "--save"], 2, ["28-1", "28-0000000a0001"]),
        (
            &["set", "28-0000000a0009", "--save"],
            2,
            ["28-0000000a0009", "zk-ctl sensors"],
        ),
        (&["--watch", "set", CELLAR, "--save"], 2, ["set", "Usage"]),
        (&["--count", "3"], 2, ["--watch", "Usage"]),
        (&["--watch", "--count", "0"], 2, ["--count", "1"]),
        (&["--watch", "--interval", "1ms"], 2, ["--interval", "10ms"]),
    ] {
        let run = tree.sensors(arguments).ends(code);
        run.says(&says);
        assert_eq!(run.text(), "", "{arguments:?}");
    }
    assert_eq!(tree.read(CELLAR, "resolution"), "12\n");
    assert_eq!(tree.read(OLD, "eeprom_cmd"), "");

    tree.wires.empty(id(CELLAR)).unwrap();
    let mute = tree.sensors(&["set", CELLAR, "--save"]).ends(1);
    mute.says(&[CELLAR, "does not answer", "100 s"]);
    tree.wires.unplug(id(CELLAR)).unwrap();
    tree.sensors(&["set", CELLAR, "--save"]).ends(2);
}

/// A flag, then the variable, then the agent's own, then the kernel's.
#[tokio::test(flavor = "multi_thread")]
async fn the_agents_sensors_are_shown_unless_others_are_asked_for() {
    let world = World::new().await;
    let tree = |name: &str, sensor: &str| {
        SimulatedBus::create(world.path(name), &[id(sensor)]).unwrap();
    };
    tree("agents", CELLAR);
    tree("variables", BOILER);
    tree("flags", OLD);
    let agent = world.path("agent.toml");
    let seen = |config: &Path, variable: bool, flag: bool| {
        let mut command = program(&world.path("."));
        command.args(["sensors", "--json", "--config"]).arg(config);
        if variable {
            command.env("ZK_CTL_SENSORS_ROOT", world.path("variables"));
        }
        if flag {
            command.arg("--root").arg(world.path("flags"));
        }
        finish(&mut command, b"")
    };
    let text = fs::read_to_string(&agent).unwrap();
    let root = world.arg("agents");
    let text = text.replace("root = \"sys\"", &format!("root = \"{root}\""));
    fs::write(&agent, text).unwrap();
    for (variable, flag, sensor) in [
        (false, false, CELLAR),
        (true, false, BOILER),
        (true, true, OLD),
    ] {
        let run = seen(&agent, variable, flag).ends(0);
        assert_eq!(run.json()["sensors"][0]["sensor"], sensor);
        assert_eq!(run.err, "");
    }
    // a configuration that was named has to be there, if it is needed
    let none = world.path("none.toml");
    seen(&none, false, false).ends(2).says(&["none.toml"]);
    assert_eq!(seen(&none, true, false).ends(0).err, "");
    // none at all is no reason to show nothing
    let mut command = program(&world.path("."));
    let run = finish(command.args(["sensors", "--json"]), b"");
    assert!(!run.err.contains("agent.toml"), "{}", run.err);
    assert_ne!(run.code, 2);
}

#[test]
fn the_document_has_every_quality() {
    let document = include_str!("../../../../docs/sensors.md");
    for quality in Quality::ALL {
        let has = if quality.has_value() { "yes" } else { "no" };
        let row = format!("\n| `{quality}` | {has} | ");
        assert!(document.contains(&row), "docs/sensors.md lacks {row:?}");
    }
}

/// What udev would run for a sensor that is plugged in.
#[test]
fn the_documents_udev_rule_lets_a_group_write() {
    let document = include_str!("../../../../docs/sensors.md");
    let mut lines = document.lines();
    let rule = lines.find(|line| line.starts_with("ACTION==")).unwrap();
    let part = |begin: &str| {
        let rest = rule.split(begin).nth(1).unwrap();
        rest.split('"').next().unwrap()
    };
    assert_eq!(part("KERNEL==\""), "[0-9a-f][0-9a-f]-*");
    assert_eq!(part("TEST==\""), "../therm_bulk_read");
    let tree = Tree::new();
    let group = Command::new("id").arg("-g").output().unwrap();
    let group = String::from_utf8(group.stdout).unwrap();
    let devices = tree.dir.path().join("devices");
    for (bus, sensor) in [("w1_bus_master1", CELLAR), ("w1_bus_master2", OLD)] {
        let place = devices.join(bus).join(sensor);
        let script = part("RUN+=\"/bin/sh -c '")
            .trim_end_matches('\'')
            .replace("/sys%p", place.to_str().unwrap())
            .replace("$$", "$")
            .replace("zk-agent", group.trim());
        let mut shell = Command::new("/bin/sh");
        let run = finish(shell.args(["-c", &script]), b"").ends(0);
        assert_eq!(run.err, "");
        assert_eq!(mode(&place.join("../therm_bulk_read")), 0o664);
    }
    // Settings stay root's.
    assert_eq!(mode(&tree.file(CELLAR, "resolution")), 0o644);
}

fn id(text: &str) -> SensorId {
    text.parse().unwrap()
}

/// Lines with one space between two words, and the digits of an age, which are
/// any, as `#`.
fn columns(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        for at in 1..words.len() {
            if words[at] == "s" {
                assert!(words[at - 1].parse::<f64>().unwrap() < 600.0, "{line}");
                words[at - 1] = "#".to_owned();
            }
        }
        words.join(" ")
    };
    text.lines().map(line).collect()
}
