//! How sensors are set, as their files tell it, and the traps in setting them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{id, wait_for_open_files};
use tempfile::TempDir;
use zk_sensors::{ConversionTime, Features, Power, SensorError, SimulatedBus, Thermometer, W1Bus};

const A: &str = "28-0000000a0001";
const OLD: &str = "10-00080278d0e4";

/// On every Linux but MIPS, SPARC and Alpha.
const O_NONBLOCK: i32 = 0o4000;

#[test]
fn settings_are_read_as_the_driver_tells_them() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    assert_eq!(sensor.resolution().unwrap(), Some(12));
    assert_eq!(sensor.power().unwrap(), Power::External);
    assert_eq!(
        sensor.conversion_time().unwrap(),
        Duration::from_millis(750)
    );
    assert_eq!(sensor.features().unwrap(), Features::default());

    tree.write("ext_power", "0\n");
    tree.write("conv_time", "734\n");
    assert_eq!(sensor.power().unwrap(), Power::Parasite);
    assert_eq!(sensor.power().unwrap().as_str(), "parasite");
    assert_eq!(
        sensor.conversion_time().unwrap(),
        Duration::from_millis(734)
    );
    for (text, check_result, poll) in [
        ("1\n", true, false),
        ("2\n", false, true),
        ("3\n", true, true),
    ] {
        tree.write("features", text);
        let expected = Features { check_result, poll };
        assert_eq!(sensor.features().unwrap(), expected);
    }
    for (text, bits) in [("9\n", 9), ("14\n", 14)] {
        tree.write("resolution", text);
        assert_eq!(sensor.resolution().unwrap(), Some(bits));
    }
}

/// A sensor that was pulled, and one that was added by hand, look like this.
#[test]
fn a_sensor_that_does_not_answer_says_so_instead_of_a_setting() {
    let mut tree = Tree::new(A);
    let sensor = tree.sensor();
    tree.wires.empty(id(A)).unwrap();
    let error = sensor.resolution().unwrap_err();
    assert!(
        matches!(error, SensorError::NoAnswer { code: 5, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("is it plugged in?"), "{error}");
    // what is not the chip's own still looks well
    assert_eq!(
        sensor.conversion_time().unwrap(),
        Duration::from_millis(750)
    );
    assert_eq!(sensor.features().unwrap(), Features::default());
    // an empty wire
    tree.write("resolution", "-19\n");
    tree.write("ext_power", "-19\n");
    for error in [
        sensor.resolution().unwrap_err(),
        sensor.power().unwrap_err(),
    ] {
        assert!(
            matches!(error, SensorError::NoAnswer { code: 19, .. }),
            "{error}"
        );
    }
    // nothing is set blindly
    let error = sensor.save().unwrap_err();
    assert!(matches!(error, SensorError::NoAnswer { .. }), "{error}");
    assert_eq!(tree.read("eeprom_cmd"), "");

    tree.wires.unplug(id(A)).unwrap();
    let error = sensor.resolution().unwrap_err();
    assert!(matches!(error, SensorError::Setting { .. }), "{error}");
    assert!(error.to_string().contains("the sensor is gone"), "{error}");
}

#[test]
fn what_the_driver_does_not_write_is_no_setting() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    let long = "1".repeat(10_000);
    for text in [
        "",
        "\n",
        "x\n",
        "12",
        "012\n",
        "+9\n",
        " 9\n",
        "9 \n",
        "9\n9\n",
        "9\r\n",
        "0x9\n",
        "8\n",
        "15\n",
        "0\n",
        "-4096\n",
        "-99999999999\n",
        "99999999999999999999\n",
        "265\n",
        "9.0\n",
        "\u{1b}[2J\n",
        &long,
    ] {
        if text == "12" {
            // the end of the line may be missing, as in a plain file
            tree.write("resolution", text);
            assert_eq!(sensor.resolution().unwrap(), Some(12));
            continue;
        }
        for name in ["resolution", "ext_power", "conv_time", "features"] {
            tree.write(name, text);
        }
        let error = sensor.resolution().unwrap_err();
        assert!(
            matches!(&error, SensorError::BadSetting { path, text }
                if path.ends_with("resolution") && text.chars().count() <= 40),
            "{text:?}: {error}"
        );
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
        for (error, right) in [
            (sensor.power().err(), ["0\n"].as_slice()),
            (sensor.features().err(), &["0\n"]),
            (
                sensor.conversion_time().err(),
                &["0\n", "8\n", "15\n", "265\n"],
            ),
        ] {
            match error {
                Some(error) => assert!(
                    matches!(error, SensorError::BadSetting { .. }),
                    "{text:?}: {error}"
                ),
                None => assert!(right.contains(&text), "{text:?}"),
            }
        }
    }
    for (name, text) in [
        ("ext_power", "2\n"),
        ("features", "4\n"),
        ("conv_time", "-1\n"),
        ("conv_time", "4294967296\n"),
    ] {
        tree.write(name, text);
        let error = match name {
            "ext_power" => sensor.power().unwrap_err(),
            "features" => sensor.features().unwrap_err(),
            _ => sensor.conversion_time().unwrap_err(),
        };
        assert!(
            matches!(error, SensorError::BadSetting { .. }),
            "{name} {text:?}: {error}"
        );
    }
    // files that never end, or can't be read
    for target in ["/dev/zero", "/proc/self/mem"] {
        tree.link("resolution", target);
        let error = sensor.resolution().unwrap_err();
        assert!(
            matches!(
                error,
                SensorError::BadSetting { .. } | SensorError::Setting { .. }
            ),
            "{error}"
        );
    }
}

#[test]
fn a_resolution_is_written_as_a_word_and_read_back() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    for bits in 9..=12 {
        sensor.set_resolution(bits).unwrap();
        assert_eq!(tree.read("resolution"), format!("{bits}\n"));
        assert_eq!(sensor.resolution().unwrap(), Some(bits));
    }
    // the driver would set 9 and 10 for 13 and 14
    for bits in [0, 1, 8, 13, 14, 15, 255] {
        let error = sensor.set_resolution(bits).unwrap_err();
        assert!(
            matches!(error, SensorError::BadResolution { sensor, bits: b }
                if sensor == id(A) && b == bits),
            "{error}"
        );
        assert_eq!(tree.read("resolution"), "12\n");
    }
}

/// The driver takes no notice of what is no number to it, and some copies of the
/// chip none of any resolution.
#[test]
fn a_resolution_that_is_not_taken_is_an_error() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    let (result, word) = tree.driven("resolution", "12\n", || sensor.set_resolution(10));
    assert_eq!(word, "10\n");
    let error = result.unwrap_err();
    assert!(
        matches!(&error, SensorError::NotTaken { sensor, what: "resolution", asked, found }
            if *sensor == id(A) && asked == "10" && found == "12"),
        "{error}"
    );
    // one that does not answer any more
    let (result, _) = tree.driven("resolution", "-5\n", || sensor.set_resolution(10));
    let error = result.unwrap_err();
    assert!(
        matches!(error, SensorError::NoAnswer { code: 5, .. }),
        "{error}"
    );

    // nothing is written by halves, and what the system says is passed on
    for (target, errno) in [("/dev/full", 28), ("/proc/self/mem", 5)] {
        tree.link("resolution", target);
        let error = sensor.set_resolution(10).unwrap_err();
        assert!(
            matches!(&error, SensorError::Setting { verb: "write", source, .. }
                if source.raw_os_error() == Some(errno)),
            "{error}"
        );
    }
}

#[test]
fn a_ds18s20_has_no_resolution() {
    let tree = Tree::new(OLD);
    let sensor = tree.sensor();
    assert!(!tree.file("resolution").exists());
    assert_eq!(sensor.resolution().unwrap(), None);
    for error in [
        sensor.set_resolution(12).unwrap_err(),
        sensor.save().unwrap_err(),
    ] {
        assert!(matches!(error, SensorError::NoResolution { .. }), "{error}");
    }
    assert!(!tree.file("resolution").exists());
    assert_eq!(tree.read("eeprom_cmd"), "");
    assert_eq!(
        sensor.conversion_time().unwrap(),
        Duration::from_millis(750)
    );
}

/// Both words with their newlines, and the resolution as it is after that.
#[test]
fn what_is_saved_is_loaded_again_and_compared() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    let mut words = tree.pipe("eeprom_cmd");
    assert_eq!(sensor.save().unwrap(), 12);
    let mut text = [0; 64];
    let length = words.read(&mut text).unwrap();
    assert_eq!(&text[..length], b"save\nrestore\n");
    // nothing else writes to it
    sensor.set_resolution(9).unwrap();
    assert!(words.read(&mut text).is_err());

    fill(&mut words);
    let pipe = tree.file("eeprom_cmd");
    let error = thread::scope(|scope| {
        let saving = scope.spawn(|| sensor.save());
        wait_for_open_files(&pipe, 2);
        tree.write("resolution", "12\n");
        drain(&mut words, "restore\n");
        saving.join().unwrap().unwrap_err()
    });
    assert!(
        matches!(&error, SensorError::NotTaken { what: "resolution in the EEPROM", asked, found, .. }
            if asked == "9" && found == "12"),
        "{error}"
    );
}

#[test]
fn a_conversion_time_is_the_data_sheets_a_fixed_one_or_measured() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    let ms = Duration::from_millis;
    let fixed = |time| sensor.set_conversion_time(ConversionTime::Fixed(time));
    assert_eq!(fixed(ms(600)).unwrap(), ms(600));
    assert_eq!(tree.read("conv_time"), "600\n");
    for time in [
        ms(0),
        ms(1),
        ms(10_001),
        Duration::from_micros(2_500),
        Duration::MAX,
    ] {
        let error = fixed(time).unwrap_err();
        assert!(
            matches!(error, SensorError::BadConversionTime { time: t, .. } if t == time),
            "{error}"
        );
        assert_eq!(tree.read("conv_time"), "600\n");
    }
    for (time, word, answer) in [
        (ConversionTime::DataSheet, "0\n", "750\n"),
        (ConversionTime::Measured, "1\n", "734\n"),
    ] {
        let (result, written) =
            tree.driven("conv_time", answer, || sensor.set_conversion_time(time));
        assert_eq!(written, word);
        assert_eq!(format!("{}\n", result.unwrap().as_millis()), answer);
        // a file that keeps the word instead
        let error = sensor.set_conversion_time(time).unwrap_err();
        assert!(matches!(error, SensorError::NotTaken { .. }), "{error}");
    }
    let (result, _) = tree.driven("conv_time", "750\n", || fixed(ms(600)));
    let error = result.unwrap_err();
    assert!(
        matches!(&error, SensorError::NotTaken { asked, found, .. }
            if asked == "600ms" && found == "750ms"),
        "{error}"
    );
}

/// With parasite power the driver leaves polling out and says nothing.
#[test]
fn features_are_written_as_their_sum_and_read_back() {
    let tree = Tree::new(A);
    let sensor = tree.sensor();
    for (check_result, poll, sum) in [
        (true, true, "3\n"),
        (false, true, "2\n"),
        (true, false, "1\n"),
        (false, false, "0\n"),
    ] {
        sensor
            .set_features(Features { check_result, poll })
            .unwrap();
        assert_eq!(tree.read("features"), sum);
    }
    let both = Features {
        check_result: true,
        poll: true,
    };
    let (result, word) = tree.driven("features", "1\n", || sensor.set_features(both));
    assert_eq!(word, "3\n");
    let error = result.unwrap_err();
    assert!(
        matches!(&error, SensorError::NotTaken { asked, found, .. } if asked == "3" && found == "1"),
        "{error}"
    );
    assert!(error.to_string().contains("parasite power"), "{error}");
}

/// Root may do everything, so it runs this test again as another user.
#[test]
fn who_may_not_write_is_told_what_to_do() {
    let name = "who_may_not_write_is_told_what_to_do";
    let tree = Tree::new(A);
    tree.write("probe", "");
    let probe = tree.file("probe");
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o444)).unwrap();
    if OpenOptions::new().write(true).open(&probe).is_ok() {
        let dir = tree.dir.path();
        let test = dir.join("test");
        fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        let output = Command::new(&test)
            .args(["--exact", name])
            .env("TMPDIR", dir)
            .current_dir(dir)
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let read_only = fs::Permissions::from_mode(0o444);
    fs::set_permissions(tree.file("resolution"), read_only).unwrap();
    // also where there is nothing to change
    for bits in [10, 12] {
        let error = tree.sensor().set_resolution(bits).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SensorError::Setting { .. }), "{text}");
        assert!(text.contains("resolution: Permission denied"), "{text}");
        assert!(text.contains("udev rule"), "{text}");
    }
    assert_eq!(tree.read("resolution"), "12\n");
}

/// A simulated bus with one sensor, whose files the test changes.
struct Tree {
    dir: TempDir,
    wires: SimulatedBus,
    sensor: &'static str,
}

impl Tree {
    fn new(sensor: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wires = SimulatedBus::create(dir.path(), &[id(sensor)]).unwrap();
        Self { dir, wires, sensor }
    }

    fn sensor(&self) -> Thermometer {
        let mut listing = W1Bus::new(self.dir.path()).list().unwrap();
        assert_eq!(listing.thermometers.len(), 1);
        listing.thermometers.remove(0)
    }

    fn file(&self, name: &str) -> PathBuf {
        let bus = self.dir.path().join("devices/w1_bus_master1");
        bus.join(self.sensor).join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// Replaces a file, whatever it is.
    fn write(&self, name: &str, text: &str) {
        let aside = self.dir.path().join("aside");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, self.file(name)).unwrap();
    }

    fn link(&self, name: &str, target: &str) {
        fs::remove_file(self.file(name)).unwrap();
        symlink(target, self.file(name)).unwrap();
    }

    /// Puts a pipe in the place of a file; gives both its ends in one.
    fn pipe(&self, name: &str) -> File {
        let path = self.file(name);
        fs::remove_file(&path).unwrap();
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let mut both = OpenOptions::new();
        both.read(true).write(true).custom_flags(O_NONBLOCK);
        both.open(&path).unwrap()
    }

    /// Has a file answer, as a driver's does, what the driver wants and not what
    /// was written to it. Gives the word that was written, too. The writer is
    /// kept waiting by a full pipe until the answer is there.
    fn driven<T: Send>(
        &self,
        name: &str,
        answer: &str,
        write: impl FnOnce() -> T + Send,
    ) -> (T, String) {
        let mut pipe = self.pipe(name);
        let path = self.file(name);
        fill(&mut pipe);
        thread::scope(|scope| {
            let writer = scope.spawn(write);
            wait_for_open_files(&path, 2);
            self.write(name, answer);
            let word = drain(&mut pipe, "\n");
            (writer.join().unwrap(), word)
        })
    }
}

fn fill(pipe: &mut File) {
    while pipe.write(&[0; 4096]).is_ok() {}
}

/// Empties a pipe until its end is this; gives all but the zeros.
fn drain(pipe: &mut File, end: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.ends_with(end) {
        match pipe.read(&mut bytes) {
            Ok(length) => {
                let read = String::from_utf8_lossy(&bytes[..length]);
                text.push_str(read.trim_start_matches('\0'));
            }
            Err(_) => thread::yield_now(),
        }
    }
    text
}
