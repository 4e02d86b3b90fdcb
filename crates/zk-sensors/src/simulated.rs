use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::error::SensorError;
use crate::id::{Family, SensorId};
use crate::reading::MilliCelsius;
use crate::scratchpad::{Scratchpad, SlaveFile, crc8};

/// One **simulated** 1-Wire bus: a tree of real files like the kernel's.
///
/// No sensor stands behind it. It is for demonstrations and tests on a machine
/// without a bus, and needs no root: names, links, modes and bytes are those of
/// Linux 6.12 with w1_therm, below a directory instead of `/sys`:
///
/// ```text
/// bus/w1/devices/28-0000000a0001 -> ../../../devices/w1_bus_master1/28-0000000a0001
/// bus/w1/devices/w1_bus_master1  -> ../../../devices/w1_bus_master1
/// devices/w1_bus_master1/therm_bulk_read, w1_master_slaves, …
/// devices/w1_bus_master1/28-0000000a0001/w1_slave, temperature, resolution, …
/// ```
///
/// A sensor starts at 20 °C and 12 bits. Each file is replaced at once, by a
/// rename, so a reader in another thread or process sees the old content or the
/// new; two files of one sensor may be of different moments.
///
/// It plays what goes wrong with a bus:
///
/// | fault | here | is read as |
/// | --- | --- | --- |
/// | missing: pulled, and the kernel has noticed | [`unplug`](Self::unplug) | `unplugged` |
/// | pulled just now, mute, or added by hand and not there | [`empty`](Self::empty) | `empty` |
/// | pulled while it is read | [`hold`](Self::hold), [`unplug`](HeldReading::unplug) | `empty`, then `unplugged` |
/// | slow | [`hold`](Self::hold), [`answer`](HeldReading::answer) | what it says in the end |
/// | power-on value | [`power_on_value`](Self::power_on_value) | `power-on` |
/// | shorted wire | [`false_zero`](Self::false_zero) | `false-zero` |
/// | noise, in an old kernel's words | [`bad_crc`](Self::bad_crc) | `crc` |
/// | stale: an old bulk conversion of another program | [`leave_unread`](Self::leave_unread), [`hold`](Self::hold), [`answer_with`](HeldReading::answer_with) | the next value, or `stale-suspect` |
/// | a driver that hangs | [`hold`](Self::hold), and nothing more | `unreadable`, after 100 s |
/// | deaf: it misses the command to convert | no [`set`](Self::set) | the old value, `ok` |
///
/// Files cannot do all that a driver does. A read takes no time and converts
/// nothing. What is written to a file has no effect on another: `therm_bulk_read`
/// keeps the word, and `resolution` the number. A failed `hwmon` read is empty
/// here and EIO there. The `w1_seq` of a DS28EA00 and the files of `power/` are
/// missing. The tree has a directory `.staging` of its own, and is not removed
/// when this value is dropped.
#[derive(Debug)]
pub struct SimulatedBus {
    tree: Tree,
    sensors: Vec<Sensor>,
}

impl SimulatedBus {
    /// Makes a bus with these sensors in the tree at `root`.
    ///
    /// `root` is created where needed. Where it has a simulated bus already,
    /// this one is added beside it, as `w1_bus_master2` and so on.
    ///
    /// # Errors
    ///
    /// [`SensorError::Simulation`] if a file cannot be written, or if one of the
    /// sensors is in the tree already; then no bus has been added.
    pub fn create(root: impl Into<PathBuf>, sensors: &[SensorId]) -> Result<Self, SensorError> {
        let mut bus = Self {
            tree: Tree::create(root.into(), sensors)?,
            sensors: sensors.iter().map(|id| Sensor::new(*id)).collect(),
        };
        for sensor in &mut bus.sensors {
            bus.tree.plug(sensor)?;
        }
        bus.tree.tell_of(&bus.sensors)?;
        Ok(bus)
    }

    /// The directory that stands for `/sys`: what [`W1Bus::new`](crate::W1Bus::new) takes.
    pub fn root(&self) -> &Path {
        &self.tree.root
    }

    /// Lets a sensor measure `value`, to the nearest 1/16 °C and then down to
    /// what its resolution has. Ends whatever was wrong with the sensor, except
    /// that it may be unplugged: then it has this value when it is back.
    ///
    /// # Errors
    ///
    /// [`SensorError::TooFar`] beyond −2048 to 2047.9 °C (DS18S20: −128.2 to
    /// 127.7 °C); within that, a value outside −55 to 125 °C is written and will
    /// be read as [`Quality::OutOfRange`](crate::Quality::OutOfRange).
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn set(&mut self, sensor: SensorId, value: MilliCelsius) -> Result<(), SensorError> {
        self.change(sensor, |sensor| {
            if Scratchpad::measured(sensor.id.family(), value, sensor.bits).is_none() {
                return Err(SensorError::TooFar {
                    sensor: sensor.id,
                    value,
                });
            }
            sensor.value = value;
            sensor.state = State::Sound;
            Ok(())
        })
    }

    /// Has a sensor measure with 9 to 12 bits from now on.
    ///
    /// # Errors
    ///
    /// [`SensorError::BadResolution`] for other numbers, and for any number with
    /// a DS18S20. [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn set_resolution(&mut self, sensor: SensorId, bits: u8) -> Result<(), SensorError> {
        self.change(sensor, |sensor| {
            if !(9..=12).contains(&bits) || sensor.id.family() == Family::Ds18s20 {
                return Err(SensorError::BadResolution {
                    sensor: sensor.id,
                    bits,
                });
            }
            sensor.bits = bits;
            Ok(())
        })
    }

    /// A brown-out during each conversion: the sensor shows its power-on value,
    /// 85 °C with byte 6 at `0c`, until the next [`set`](Self::set).
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn power_on_value(&mut self, sensor: SensorId) -> Result<(), SensorError> {
        self.fail(sensor, State::PowerOn)
    }

    /// A shorted wire: all bytes are zero, and the driver takes them for 0 °C,
    /// until the next [`set`](Self::set).
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn false_zero(&mut self, sensor: SensorId) -> Result<(), SensorError> {
        self.fail(sensor, State::FalseZero)
    }

    /// A sensor that does not answer, or not intelligibly: its readings are
    /// empty, until the next [`set`](Self::set). A sensor pulled off the wire
    /// looks like this for about 100 s, and then like [`unplug`](Self::unplug);
    /// one that was added by hand and does not exist looks like this for good.
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn empty(&mut self, sensor: SensorId) -> Result<(), SensorError> {
        self.fail(sensor, State::Empty)
    }

    /// A noisy wire under a kernel before 5.x: one bit of the temperature has
    /// tipped over and the file says `NO`, until the next [`set`](Self::set).
    /// (A newer kernel makes this an [empty](Self::empty) reading.)
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn bad_crc(&mut self, sensor: SensorId) -> Result<(), SensorError> {
        self.fail(sensor, State::BadCrc)
    }

    /// Takes a sensor away: its link and directory go, as when the kernel has
    /// searched the wire for it in vain. Unplugging twice is fine.
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn unplug(&mut self, sensor: SensorId) -> Result<(), SensorError> {
        self.tree.unplug(find(&mut self.sensors, sensor)?)?;
        self.tree.tell_of(&self.sensors)
    }

    /// Brings an unplugged sensor back, in the state it was in. Nothing happens
    /// if it is there.
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn replug(&mut self, sensor: SensorId) -> Result<(), SensorError> {
        self.tree.plug(find(&mut self.sensors, sensor)?)?;
        self.tree.tell_of(&self.sensors)
    }

    /// Another program has triggered a bulk conversion and not read it:
    /// `therm_bulk_read` says so, until somebody writes to it.
    ///
    /// # Errors
    ///
    /// [`SensorError::Simulation`].
    pub fn leave_unread(&mut self) -> Result<(), SensorError> {
        self.tree
            .write(&self.tree.master(), "therm_bulk_read", 0o644, b"1\n")
    }

    /// A slow sensor: whoever reads it next waits until the value that this
    /// returns says how the reading ends.
    ///
    /// ```
    /// use std::thread;
    /// use std::time::SystemTime;
    /// use zk_sensors::{Quality, SensorId, SimulatedBus, W1Bus};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let cellar: SensorId = "28-0000000a0001".parse()?;
    /// let mut wires = SimulatedBus::create(dir.path(), &[cellar])?;
    /// let mut bus = W1Bus::new(wires.root());
    ///
    /// let held = wires.hold(cellar)?;
    /// let reader = thread::spawn(move || bus.read_all(SystemTime::now));
    /// // pulled while it is read
    /// held.unplug()?;
    /// let readings = reader.join().expect("no panic")?;
    /// assert_eq!(readings[0].quality, Quality::Empty);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`]; [`SensorError::Simulation`], also of a
    /// sensor that is unplugged.
    pub fn hold(&mut self, sensor: SensorId) -> Result<HeldReading<'_>, SensorError> {
        find(&mut self.sensors, sensor)?;
        self.tree.hold(sensor)?;
        Ok(HeldReading {
            bus: self,
            sensor,
            pipe: None,
        })
    }

    fn fail(&mut self, sensor: SensorId, state: State) -> Result<(), SensorError> {
        self.change(sensor, |sensor| {
            sensor.state = state;
            Ok(())
        })
    }

    fn change(
        &mut self,
        sensor: SensorId,
        change: impl FnOnce(&mut Sensor) -> Result<(), SensorError>,
    ) -> Result<(), SensorError> {
        let sensor = find(&mut self.sensors, sensor)?;
        let before = sensor.told();
        change(sensor)?;
        self.tree.tell_change(sensor, &before)
    }
}

/// A reading of a simulated sensor that waits to be ended, by
/// [`SimulatedBus::hold`].
///
/// Each way to end it waits until somebody reads. The next reading is an
/// ordinary one again. Dropped without an end, a reading that has begun fails.
#[must_use = "whoever reads the sensor waits for the end of this"]
#[derive(Debug)]
pub struct HeldReading<'a> {
    bus: &'a mut SimulatedBus,
    sensor: SensorId,
    pipe: Option<File>,
}

impl HeldReading<'_> {
    /// Waits until somebody reads the sensor.
    ///
    /// # Errors
    ///
    /// [`SensorError::Simulation`].
    pub fn begun(&mut self) -> Result<(), SensorError> {
        if self.pipe.is_none() {
            let path = self.bus.tree.w1_slave(self.sensor);
            // a pipe opens when it has both its ends
            let pipe = OpenOptions::new().write(true).open(&path);
            self.pipe = Some(pipe.map_err(at(&path))?);
        }
        Ok(())
    }

    /// Ends it as any other reading of this sensor.
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn answer(self) -> Result<(), SensorError> {
        let content = find(&mut self.bus.sensors, self.sensor)?.w1_slave();
        self.end(&content)
    }

    /// Ends it with another value than the sensor has, and a good checksum: what
    /// it measured when a conversion was triggered that nobody read.
    ///
    /// # Errors
    ///
    /// [`SensorError::TooFar`] as of [`SimulatedBus::set`]; then the reading
    /// fails. [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn answer_with(self, value: MilliCelsius) -> Result<(), SensorError> {
        let sensor = find(&mut self.bus.sensors, self.sensor)?;
        let (id, family) = (sensor.id, sensor.id.family());
        match Scratchpad::measured(family, value, sensor.bits) {
            Some(bytes) => self.end(SlaveFile::of(family, bytes).print().as_bytes()),
            None => {
                self.fail()?;
                Err(SensorError::TooFar { sensor: id, value })
            }
        }
    }

    /// Ends it without a byte, as the driver ends those that fail.
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn fail(self) -> Result<(), SensorError> {
        self.end(b"")
    }

    /// Pulls the sensor meanwhile: the reading ends without a byte, and the
    /// sensor is gone.
    ///
    /// # Errors
    ///
    /// [`SensorError::UnknownSensor`], [`SensorError::Simulation`].
    pub fn unplug(mut self) -> Result<(), SensorError> {
        self.begun()?;
        self.bus.unplug(self.sensor)
    }

    fn end(mut self, content: &[u8]) -> Result<(), SensorError> {
        self.begun()?;
        self.let_go()?;
        match &mut self.pipe {
            Some(pipe) => pipe
                .write_all(content)
                .map_err(at(&self.bus.tree.w1_slave(self.sensor))),
            None => Ok(()),
        }
    }

    /// Puts a file where the pipe is, for the next reading.
    fn let_go(&mut self) -> Result<(), SensorError> {
        let sensor = find(&mut self.bus.sensors, self.sensor)?;
        if sensor.hwmon.is_none() {
            return Ok(());
        }
        let path = self.bus.tree.w1_slave(self.sensor);
        let dir = path.parent().unwrap_or(&path);
        self.bus
            .tree
            .write(dir, "w1_slave", 0o644, &sensor.w1_slave())
    }
}

impl Drop for HeldReading<'_> {
    fn drop(&mut self) {
        // a reader that waits for the pipe's other end gets it, and nothing more
        let path = self.bus.tree.w1_slave(self.sensor);
        let is_pipe = fs::metadata(&path).is_ok_and(|file| file.file_type().is_fifo());
        if is_pipe {
            let _ends = OpenOptions::new().read(true).write(true).open(&path);
            let _ = self.let_go();
        }
    }
}

/// A smooth, repeatable temperature for a simulated sensor: a day's rise and
/// fall about a mean, with a small ripple.
///
/// ```
/// use zk_sensors::{Curve, MilliCelsius};
///
/// let (greenhouse, cellar) = (Curve::new(1), Curve::new(2));
/// assert_ne!(greenhouse.at(0), cellar.at(0));
/// assert_eq!(greenhouse.at(10), greenhouse.at(10 + 19 * Curve::DAY));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    mean: i32,
    swing: i32,
    shift: u64,
}

impl Curve {
    /// Steps in a day: one for each minute.
    pub const DAY: u64 = 1440;

    /// The curve of a seed: mean 16 to 24 °C, up to 2 to 6 °C from it.
    pub fn new(seed: u64) -> Self {
        // the multiplier of Knuth's MMIX generator, to spread small seeds
        let mixed = seed.wrapping_add(1).wrapping_mul(6_364_136_223_846_793_005);
        let pick = |shift: u32, below: u16| (mixed >> shift) as u16 % below;
        Self {
            mean: 16_000 + i32::from(pick(48, 8_001)),
            swing: 2_000 + i32::from(pick(32, 4_001)),
            shift: u64::from(pick(16, 1440)),
        }
    }

    /// The temperature at a step. Neighbouring steps differ by less than
    /// 0.05 °C.
    pub fn at(&self, step: u64) -> MilliCelsius {
        let step = step % (19 * Self::DAY) + self.shift;
        MilliCelsius(self.mean + wave(step, Self::DAY, self.swing) + wave(step, RIPPLE, 250))
    }
}

/// The directory tree, and one bus in it.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    /// `w1_bus_master1`.
    master: String,
}

impl Tree {
    /// Makes the directories, and the files of a bus without sensors.
    fn create(root: PathBuf, sensors: &[SensorId]) -> Result<Self, SensorError> {
        for dir in [
            ".staging",
            "bus/w1/devices",
            "bus/w1/drivers/w1_master_driver",
            "bus/w1/drivers/w1_slave_driver",
            "class/hwmon",
            "devices",
        ] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        for (index, sensor) in sensors.iter().enumerate() {
            let link = root.join("bus/w1/devices").join(sensor.to_string());
            if link.symlink_metadata().is_ok() || sensors.iter().take(index).any(|s| s == sensor) {
                return Err(at(&link)(io::ErrorKind::AlreadyExists.into()));
            }
        }
        let mut number = 1_u32;
        let master = loop {
            let master = format!("w1_bus_master{number}");
            let path = root.join("devices").join(&master);
            match fs::create_dir(&path) {
                Ok(()) => break master,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(at(&path)(error)),
            }
        };

        let tree = Self { root, master };
        let bus = tree.root.join("bus/w1");
        tree.write(&bus, "drivers_autoprobe", 0o644, b"1\n")?;
        tree.write(&bus, "drivers_probe", 0o200, b"")?;
        tree.write(&bus, "uevent", 0o200, b"")?;
        let dir = tree.master();
        for (name, mode, content) in [
            ("uevent", 0o644, "DRIVER=w1_master_driver\n"),
            (
                "w1_master_add",
                0o664,
                "write device id xx-xxxxxxxxxxxx to add slave\n",
            ),
            ("w1_master_attempts", 0o444, "1\n"),
            ("w1_master_max_slave_count", 0o664, "64\n"),
            ("w1_master_name", 0o444, &format!("{}\n", tree.master)),
            ("w1_master_pointer", 0o444, "0x0000000000000000\n"),
            ("w1_master_pullup", 0o664, "1\n"),
            (
                "w1_master_remove",
                0o664,
                "write device id xx-xxxxxxxxxxxx to remove slave\n",
            ),
            ("w1_master_search", 0o664, "-1\n"),
            ("w1_master_timeout", 0o444, "2\n"),
            ("w1_master_timeout_us", 0o444, "0\n"),
        ] {
            tree.write(&dir, name, mode, content.as_bytes())?;
        }
        let power = dir.join("power");
        fs::create_dir(&power).map_err(at(&power))?;
        link(&dir, "driver", "../../bus/w1/drivers/w1_master_driver")?;
        link(&dir, "subsystem", "../../bus/w1")?;
        let target = format!("../../../devices/{}", tree.master);
        link(&tree.listing(), &tree.master, &target)?;
        Ok(tree)
    }

    /// Builds a sensor's directory aside, moves it into place, then lists it.
    fn plug(&self, sensor: &mut Sensor) -> Result<(), SensorError> {
        if sensor.hwmon.is_some() {
            return Ok(());
        }
        let name = sensor.id.to_string();
        let class = self.root.join("class/hwmon");
        let hwmon = (1_u32..)
            .map(|number| format!("hwmon{number}"))
            .find(|hwmon| class.join(hwmon).symlink_metadata().is_err())
            .unwrap_or_default();
        let building = self.staging(&name);
        let monitor = building.join("hwmon").join(&hwmon);
        for dir in [building.join("power"), monitor.join("power")] {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
        }
        for (name, mode, content) in sensor.fixed_files().into_iter().chain(sensor.told()) {
            self.write(&building, name, mode, &content)?;
        }
        let driver = "../../../bus/w1/drivers/w1_slave_driver";
        link(&building, "driver", driver)?;
        link(&building, "subsystem", "../../../bus/w1")?;
        self.write(&monitor, "name", 0o444, b"w1_slave_temp\n")?;
        self.write(&monitor, "temp1_input", 0o444, &sensor.temperature())?;
        self.write(&monitor, "uevent", 0o644, b"")?;
        link(&monitor, "device", &format!("../../../{name}"))?;
        link(&monitor, "subsystem", "../../../../../class/hwmon")?;

        let dir = self.master().join(&name);
        fs::rename(&building, &dir).map_err(at(&dir))?;
        let target = format!("../../devices/{}/{name}", self.master);
        link(&class, &hwmon, &format!("{target}/hwmon/{hwmon}"))?;
        link(&self.listing(), &name, &format!("../{target}"))?;
        sensor.hwmon = Some(hwmon);
        Ok(())
    }

    fn unplug(&self, sensor: &mut Sensor) -> Result<(), SensorError> {
        let Some(hwmon) = sensor.hwmon.take() else {
            return Ok(());
        };
        let name = sensor.id.to_string();
        for link in [
            self.listing().join(&name),
            self.root.join("class/hwmon").join(hwmon),
        ] {
            fs::remove_file(&link).map_err(at(&link))?;
        }
        let (dir, gone) = (self.master().join(&name), self.staging(&name));
        fs::rename(&dir, &gone).map_err(at(&dir))?;
        fs::remove_dir_all(&gone).map_err(at(&gone))
    }

    /// Rewrites those of a sensor's files that have something new to say.
    fn tell_change(&self, sensor: &Sensor, before: &[NewFile]) -> Result<(), SensorError> {
        let Some(hwmon) = &sensor.hwmon else {
            return Ok(());
        };
        let dir = self.master().join(sensor.id.to_string());
        let monitor = dir.join("hwmon").join(hwmon);
        for (name, mode, content) in sensor.told() {
            if before
                .iter()
                .any(|(n, _, old)| *n == name && *old == content)
            {
                continue;
            }
            self.write(&dir, name, mode, &content)?;
            if name == "temperature" {
                self.write(&monitor, "temp1_input", 0o444, &content)?;
            }
        }
        Ok(())
    }

    /// Rewrites what the bus's files say of its sensors.
    fn tell_of(&self, sensors: &[Sensor]) -> Result<(), SensorError> {
        let dir = self.master();
        let plugged = || sensors.iter().filter(|s| s.hwmon.is_some());
        let mut names: String = plugged().map(|s| format!("{}\n", s.id)).collect();
        if names.is_empty() {
            names = "not found.\n".into();
        }
        let count = format!("{}\n", plugged().count());
        self.write(&dir, "w1_master_slave_count", 0o444, count.as_bytes())?;
        self.write(&dir, "w1_master_slaves", 0o444, names.as_bytes())?;
        let bulk = dir.join("therm_bulk_read");
        match plugged().any(|s| s.id.family().has_bulk()) {
            true if !bulk.exists() => self.write(&dir, "therm_bulk_read", 0o644, b"0\n"),
            false if bulk.exists() => fs::remove_file(&bulk).map_err(at(&bulk)),
            _ => Ok(()),
        }
    }

    /// Puts a pipe in the place of a sensor's answer.
    fn hold(&self, sensor: SensorId) -> Result<(), SensorError> {
        let path = self.w1_slave(sensor);
        let aside = self.staging("w1_slave");
        mknodat(CWD, &aside, FileType::Fifo, Mode::from(0o644), 0)
            .map_err(io::Error::from)
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(|source| {
                // nothing is left in the way of the next
                let _ = fs::remove_file(&aside);
                at(&path)(source)
            })
    }

    /// Writes a file aside and moves it into place.
    fn write(&self, dir: &Path, name: &str, mode: u32, content: &[u8]) -> Result<(), SensorError> {
        let path = dir.join(name);
        let aside = self.staging(name);
        fs::write(&aside, content)
            .and_then(|()| fs::set_permissions(&aside, Permissions::from_mode(mode)))
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(at(&path))
    }

    fn master(&self) -> PathBuf {
        self.root.join("devices").join(&self.master)
    }

    fn w1_slave(&self, sensor: SensorId) -> PathBuf {
        self.master().join(sensor.to_string()).join("w1_slave")
    }

    fn listing(&self) -> PathBuf {
        self.root.join("bus/w1/devices")
    }

    /// A place on the same file system that only this bus uses.
    fn staging(&self, name: &str) -> PathBuf {
        let staging = self.root.join(".staging");
        staging.join(format!("{}-{name}", self.master))
    }
}

#[derive(Debug)]
struct Sensor {
    id: SensorId,
    bits: u8,
    value: MilliCelsius,
    state: State,
    /// The name of its hwmon directory while it is plugged in.
    hwmon: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    BadCrc,
    Empty,
    FalseZero,
    PowerOn,
    Sound,
}

/// Name, mode and content.
type NewFile = (&'static str, u32, Vec<u8>);

impl Sensor {
    fn new(id: SensorId) -> Self {
        Self {
            id,
            bits: 12,
            value: MilliCelsius(20_000),
            state: State::Sound,
            hwmon: None,
        }
    }

    /// What is in the chip, if it can be heard at all.
    fn scratchpad(&self) -> Option<Scratchpad> {
        let family = self.id.family();
        match self.state {
            State::Sound | State::BadCrc => Scratchpad::measured(family, self.value, self.bits),
            State::PowerOn => Some(Scratchpad::power_on(family, self.bits)),
            State::FalseZero => Some(Scratchpad([0; 9])),
            State::Empty => None,
        }
    }

    fn w1_slave(&self) -> Vec<u8> {
        let Some(kept) = self.scratchpad() else {
            return Vec::new();
        };
        let mut bytes = kept;
        if matches!(self.state, State::BadCrc) {
            bytes.0[0] ^= 0x40;
        }
        let file = SlaveFile {
            kept,
            ..SlaveFile::of(self.id.family(), bytes)
        };
        file.print().into_bytes()
    }

    fn temperature(&self) -> Vec<u8> {
        match self.state {
            State::BadCrc => Vec::new(),
            _ => self.scratchpad().map_or_else(Vec::new, |bytes| {
                format!("{}\n", bytes.driver_value(self.id.family())).into_bytes()
            }),
        }
    }

    /// The files that tell of the sensor's state.
    fn told(&self) -> Vec<NewFile> {
        let Scratchpad([_, _, high, low, config, ..]) =
            self.scratchpad().unwrap_or(Scratchpad([0; 9]));
        let bits = match self.state {
            State::Empty => "-5\n".into(),
            _ => format!("{}\n", 9 + (config >> 5 & 3)),
        };
        let conversion = match self.bits {
            9 => "95\n",
            10 => "190\n",
            11 => "375\n",
            _ => "750\n",
        };
        let mut files = vec![
            ("w1_slave", 0o644, self.w1_slave()),
            ("temperature", 0o444, self.temperature()),
            ("alarms", 0o644, format!("{low} {high}\n").into_bytes()),
            ("conv_time", 0o644, conversion.into()),
        ];
        if self.id.family() != Family::Ds18s20 {
            files.push(("resolution", 0o644, bits.into_bytes()));
        }
        files
    }

    /// The files that stay as they are.
    fn fixed_files(&self) -> Vec<NewFile> {
        let id = self.id.to_string();
        let (family, serial) = id.split_once('-').unwrap_or_default();
        let (family, serial) = (family.to_uppercase(), serial.to_uppercase());
        let mut rom = self.id.rom().to_vec();
        rom.push(crc8(&rom));
        let uevent =
            format!("DRIVER=w1_slave_driver\nW1_FID={family}\nW1_SLAVE_ID={serial:0>24}\n");
        vec![
            ("eeprom_cmd", 0o200, Vec::new()),
            ("ext_power", 0o444, b"1\n".into()),
            ("features", 0o644, b"0\n".into()),
            ("id", 0o444, rom),
            ("name", 0o444, format!("{id}\n").into_bytes()),
            ("uevent", 0o644, uevent.into_bytes()),
        ]
    }
}

fn find(sensors: &mut [Sensor], id: SensorId) -> Result<&mut Sensor, SensorError> {
    sensors
        .iter_mut()
        .find(|sensor| sensor.id == id)
        .ok_or(SensorError::UnknownSensor { sensor: id })
}

/// A wave of parabolas, which is a sine to within 6 %, between −swing and
/// +swing; `period` is even.
fn wave(step: u64, period: u64, swing: i32) -> i32 {
    let half = period / 2;
    let x = step % half;
    let height = 4 * x * (half - x) * u64::from(swing.unsigned_abs()) / (half * half);
    let height = i32::try_from(height).unwrap_or(swing);
    if step % period < half {
        height
    } else {
        -height
    }
}

fn link(dir: &Path, name: &str, target: &str) -> Result<(), SensorError> {
    let path = dir.join(name);
    symlink(target, &path).map_err(at(&path))
}

/// Makes an error of what the system said about a path.
fn at(path: &Path) -> impl Fn(io::Error) -> SensorError {
    move |source| SensorError::Simulation {
        path: path.to_owned(),
        source,
    }
}

/// The ripple's period in steps: 19 days are a whole number of both waves.
const RIPPLE: u64 = 190;
