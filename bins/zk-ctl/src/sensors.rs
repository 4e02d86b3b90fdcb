//! `zk-ctl sensors`: every thermometer of this machine, what it says, and what
//! that is worth.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zk_envelope::Timestamp;
use zk_sensors::{
    Features, Listing, Power, Quality, Reading, SensorHealth, SensorId, Thermometer, W1Bus,
};

use crate::Error;
use crate::arguments::{
    Common, Conversion, SensorTree, Sensors, SensorsCommand, SetSensor, Switch,
};
use crate::outcome::{Outcome, Output, Progress, table};

pub(crate) fn run(common: &Common, arguments: &Sensors, json: bool) -> Result<Outcome, Error> {
    match &arguments.command {
        Some(SensorsCommand::Set(set_sensor)) => set(common, set_sensor),
        None if arguments.watch => watch(common, arguments, json),
        None => show(common, arguments),
    }
}

/// The tree, and what is to be said of how it was found.
fn root(common: &Common, tree: &SensorTree) -> Result<(PathBuf, Option<String>), Error> {
    if let Some(root) = &tree.root {
        return Ok((root.clone(), None));
    }
    match common.read() {
        Ok(config) => Ok((config.sensors.root, None)),
        Err(error) if !common.is_usual() => Err(error),
        // People look at sensors before there is a configuration, and without a
        // right to read it.
        Err(Error::NoConfig { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Ok((SYS.into(), None))
        }
        Err(error) => {
            let hint =
                format!("These are the sensors of {SYS}; the agent's may be others: {error}");
            Ok((SYS.into(), Some(hint)))
        }
    }
}

/// A bus for looking at: unless it is asked for, nothing is done that would empty
/// the readings of an agent.
fn bus(root: &Path, bulk: bool) -> W1Bus {
    let bus = W1Bus::new(root);
    if bulk { bus } else { bus.without_bulk() }
}

fn show(common: &Common, arguments: &Sensors) -> Result<Outcome, Error> {
    let (root, hint) = root(common, &arguments.tree)?;
    let mut bus = bus(&root, arguments.bulk);
    let mut progress = Progress::new();
    match bus.list()?.thermometers.len() {
        0 | 1 => {}
        sensors => progress.show(&format!("reading {sensors} thermometers")),
    }
    let seen = Sweep::take(&mut bus, &root);
    progress.end();
    let seen = seen?;
    let outcome = Outcome {
        exit: seen.exit(),
        ..Outcome::done(seen.text(), seen.to_json())
    };
    let outcome = seen.hints().into_iter().fold(outcome, Outcome::hint);
    Ok(match hint {
        Some(hint) => outcome.hint(hint),
        None => outcome,
    })
}

/// All sensors at one time.
struct Sweep {
    root: PathBuf,
    at: SystemTime,
    buses: Vec<String>,
    others: Vec<String>,
    sensors: Vec<Sensor>,
}

/// One of them. What can't be found out, or has no meaning, is missing.
struct Sensor {
    reading: Reading,
    health: SensorHealth,
    bus: Option<String>,
    resolution: Option<u8>,
    power: Option<Power>,
    conversion: Option<Duration>,
    features: Option<Features>,
}

impl Sweep {
    fn take(bus: &mut W1Bus, root: &Path) -> Result<Self, Error> {
        let readings = bus.read_all(SystemTime::now)?;
        // A bus that goes meanwhile has no sensors any more.
        let listing = bus.list().unwrap_or_default();
        let sensors = readings
            .into_iter()
            .filter_map(|reading| {
                let health = bus.health().get(&reading.sensor)?.clone();
                let place = find(&listing, reading.sensor);
                Some(Sensor::new(reading, health, place))
            })
            .collect();
        Ok(Self {
            root: root.to_owned(),
            at: SystemTime::now(),
            buses: listing.buses,
            others: listing.others,
            sensors,
        })
    }

    /// Whether each sensor has a value that can be believed, and there is one.
    fn is_well(&self) -> bool {
        let good = |sensor: &Sensor| sensor.reading.quality == Quality::Ok;
        !self.sensors.is_empty() && self.sensors.iter().all(good)
    }

    fn exit(&self) -> u8 {
        if self.is_well() { 0 } else { 3 }
    }

    fn text(&self) -> String {
        if self.sensors.is_empty() {
            return format!("no thermometer on {}", self.buses_text());
        }
        let mut heading = HEADING.map(str::to_owned);
        let rows: Vec<_> = self
            .sensors
            .iter()
            .map(|sensor| sensor.row(self.at))
            .collect();
        if rows.iter().all(|row| row[7].is_empty()) {
            heading[7].clear();
        }
        let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
        table(&rows)
    }

    fn buses_text(&self) -> String {
        match self.buses.as_slice() {
            [] => format!("any bus of {}", self.root.display()),
            buses => buses.join(", "),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "root": self.root,
            "time": Timestamp::from(self.at).to_string(),
            "buses": self.buses,
            "others": self.others,
            "sensors": self.sensors.iter().map(|sensor| sensor.to_json(self.at)).collect::<Vec<_>>(),
        })
    }

    /// What to do about what isn't well, once for each kind of it.
    fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        for quality in Quality::ALL {
            let of: Vec<_> = self
                .sensors
                .iter()
                .filter(|sensor| sensor.reading.quality == quality)
                .map(|sensor| sensor.reading.sensor.to_string())
                .collect();
            if let (false, Some(cure)) = (of.is_empty(), cure(quality)) {
                hints.push(format!("{quality} ({}): {cure}", of.join(", ")));
            }
        }
        if self.sensors.is_empty() {
            hints.push(NO_SENSOR.to_owned());
        }
        let phantom = |name: &&String| name.starts_with("00-");
        if let Some(name) = self.others.iter().find(phantom) {
            hints.push(format!(
                "{name} is no device but a wire that floats: {PULL_UP}"
            ));
        }
        hints
    }
}

impl Sensor {
    fn new(reading: Reading, health: SensorHealth, place: Option<&Thermometer>) -> Self {
        Self {
            reading,
            health,
            bus: place.and_then(Thermometer::bus).map(str::to_owned),
            resolution: place.and_then(|place| place.resolution().ok().flatten()),
            power: place.and_then(|place| place.power().ok()),
            conversion: place.and_then(|place| place.conversion_time().ok()),
            features: place.and_then(|place| place.features().ok()),
        }
    }

    fn row(&self, now: SystemTime) -> [String; 8] {
        let none = || "-".to_owned();
        let reading = &self.reading;
        let value = reading.value.map(|value| value.to_string());
        let age = reading.value.map(|_| since_text(reading, now));
        let resolution = self.resolution.map(|bits| format!("{bits} bits"));
        let power = self.power.map(|power| power.as_str().to_owned());
        let last_good = match &self.health.last_good {
            Some(good) if reading.quality != Quality::Ok => {
                let value = good.value.unwrap_or_default();
                format!("{value}, {} ago", since_text(good, now))
            }
            _ => String::new(),
        };
        [
            reading.sensor.to_string(),
            format!("{:>8}", value.unwrap_or_else(none)),
            reading.quality.to_string(),
            age.unwrap_or_else(none),
            self.bus.clone().unwrap_or_else(none),
            resolution.unwrap_or_else(none),
            power.unwrap_or_else(none),
            last_good,
        ]
    }

    fn to_json(&self, now: SystemTime) -> Value {
        let (reading, health) = (&self.reading, &self.health);
        let counts: serde_json::Map<_, _> = health
            .counts()
            .filter(|(_, count)| *count > 0)
            .map(|(quality, count)| (quality.to_string(), count.into()))
            .collect();
        let good = health.last_good.as_ref();
        json!({
            "sensor": reading.sensor,
            "celsius": reading.value,
            "quality": reading.quality,
            "at": time_text(reading.at),
            "ageMs": age(reading, now).as_millis() as u64,
            "bus": self.bus,
            "resolution": self.resolution,
            "power": self.power.map(Power::as_str),
            "conversionMs": self.conversion.map(|time| time.as_millis() as u64),
            "checkResult": self.features.map(|features| features.check_result),
            "poll": self.features.map(|features| features.poll),
            "firstSeen": time_text(health.first_seen),
            "since": time_text(health.since),
            "failures": health.failures,
            "counts": counts,
            "lastGood": good.map(|good| json!({
                "celsius": good.value,
                "at": time_text(good.at),
            })),
        })
    }
}

fn watch(common: &Common, arguments: &Sensors, json: bool) -> Result<Outcome, Error> {
    let (root, hint) = root(common, &arguments.tree)?;
    let (events, happened) = channel();
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::Thread)?;
    let ended = events.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // nobody listens once it has ended
            let _ = ended.send(Event::Signal);
        }
    });
    let bus = bus(&root, arguments.bulk);
    let (interval, count) = (arguments.interval, arguments.count);
    // a sweep takes its time, and a signal isn't to wait for it
    std::thread::spawn(move || sweeps(bus, &root, interval, count, &events));
    let exit = match print(&happened, json)? {
        // whoever read it has seen enough
        Printed::Broken | Printed::Ended => 0,
        Printed::Last(exit) => exit,
    };
    Ok(Outcome {
        output: Output::Said,
        exit,
        hints: hint.into_iter().collect(),
        ..Outcome::done(String::new(), Value::Null)
    })
}

enum Event {
    Swept(Result<Box<Sweep>, Error>),
    /// That was the last one.
    Last,
    /// A signal has come.
    Signal,
}

fn sweeps(
    mut bus: W1Bus,
    root: &Path,
    interval: Duration,
    count: Option<u64>,
    events: &Sender<Event>,
) {
    let mut left = count;
    while left != Some(0) {
        left = left.map(|left| left - 1);
        let sweep = Sweep::take(&mut bus, root).map(Box::new);
        let failed = sweep.is_err();
        if events.send(Event::Swept(sweep)).is_err() || failed {
            return;
        }
        if left != Some(0) {
            std::thread::sleep(interval);
        }
    }
    // nobody listens once a signal has come
    let _ = events.send(Event::Last);
}

enum Printed {
    /// Nobody reads any more.
    Broken,
    /// A signal has come.
    Ended,
    /// The last sweep's exit code.
    Last(u8),
}

/// Prints each sweep until the end: over the last one on a terminal.
fn print(happened: &Receiver<Event>, json: bool) -> Result<Printed, Error> {
    let mut out = io::stdout().lock();
    let clear = if !json && out.is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut exit = 0;
    let mut first = true;
    loop {
        let sweep = match happened.recv() {
            Ok(Event::Swept(sweep)) => sweep?,
            Ok(Event::Signal) => return Ok(Printed::Ended),
            Ok(Event::Last) | Err(_) => return Ok(Printed::Last(exit)),
        };
        exit = sweep.exit();
        let printed = if json {
            writeln!(out, "{}", sweep.to_json())
        } else {
            let gap = if first || !clear.is_empty() { "" } else { "\n" };
            let time = Timestamp::from(sweep.at);
            writeln!(out, "{clear}{gap}{time}\n{}", sweep.text())
        };
        match printed.and_then(|()| out.flush()) {
            Ok(()) => first = false,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Printed::Broken),
            Err(error) => return Err(Error::Print(error)),
        }
    }
}

fn set(common: &Common, arguments: &SetSensor) -> Result<Outcome, Error> {
    let (root, hint) = root(common, &arguments.tree)?;
    let listing = W1Bus::new(&root).list()?;
    let sensor = arguments.sensor;
    let thermometer = find(&listing, sensor).ok_or(Error::NoSensor { sensor, root })?;
    // in this order: with the resolution the driver sets the time anew
    if let Some(bits) = arguments.resolution {
        thermometer.set_resolution(bits)?;
    }
    if let Some(Conversion(time)) = arguments.conversion_time {
        thermometer.set_conversion_time(time)?;
    }
    if let Some(switch) = arguments.poll {
        let features = Features {
            poll: matches!(switch, Switch::On),
            ..thermometer.features()?
        };
        thermometer.set_features(features)?;
    }
    if arguments.save {
        thermometer.save()?;
    }
    let resolution = thermometer.resolution()?;
    let conversion = thermometer.conversion_time()?;
    let features = thermometer.features()?;
    let bits = resolution.map_or_else(|| "-".to_owned(), |bits| format!("{bits} bits"));
    let saved = if arguments.save { ", saved" } else { "" };
    let text = table(&[
        ["sensor".to_owned(), sensor.to_string()],
        ["resolution".to_owned(), format!("{bits}{saved}")],
        ["conversion".to_owned(), format!("{conversion:?}")],
        [
            "polled".to_owned(),
            if features.poll { "yes" } else { "no" }.to_owned(),
        ],
    ]);
    let json = json!({
        "sensor": sensor,
        "resolution": resolution,
        "conversionMs": conversion.as_millis() as u64,
        "poll": features.poll,
        "saved": arguments.save,
    });
    let outcome = Outcome::done(text, json);
    let outcome = if arguments.resolution.is_some() && !arguments.save {
        outcome.hint(
            "The chip has this resolution until it loses power; with --save it keeps it. Its \
             EEPROM bears about 50,000 of that.",
        )
    } else {
        outcome
    };
    Ok(match hint {
        Some(hint) => outcome.hint(hint),
        None => outcome,
    })
}

fn find(listing: &Listing, sensor: SensorId) -> Option<&Thermometer> {
    let mut thermometers = listing.thermometers.iter();
    thermometers.find(|thermometer| thermometer.id() == sensor)
}

/// What to do about readings of a quality.
fn cure(quality: Quality) -> Option<&'static str> {
    Some(match quality {
        Quality::Ok => return None,
        Quality::Crc => {
            "noise on the wire: is it too long, or beside mains cables, and is there a pull-up of \
             4.7 kOhm?"
        }
        Quality::Empty => {
            "no answer. Is it plugged in? The kernel lists a sensor for about 100 s after it is \
             gone, and one added by hand for good. If it comes and goes it is the wire. Or another \
             program was converting: try again"
        }
        Quality::FalseZero => {
            "the data line is shorted to ground, or the chip is a bad copy; it is not 0 degrees"
        }
        Quality::Fault => "the thermocouple is open or shorted: see to its wires",
        Quality::Garbled => "this is not what w1_therm writes; is it the right tree?",
        Quality::OutOfRange => "no such chip can measure this: see to the wire, or the chip",
        Quality::PowerOn => {
            "the chip lost power before or while it measured, or measures slower than its data \
             sheet: give it a supply of its own, or try zk-ctl sensors set --conversion-time \
             measured"
        }
        Quality::StaleSuspect => "the value may be old, and a new one could not be had: try again",
        Quality::Unplugged => "it is gone; see to its plug",
        Quality::Unreadable => {
            "its file can't be read: is the driver loaded (modprobe w1_therm), and may this user \
             read it?"
        }
        _ => return None,
    })
}

fn age(reading: &Reading, now: SystemTime) -> Duration {
    // of a clock that was set back: nothing
    let at = Duration::from_millis(reading.at.as_millisecond().unsigned_abs());
    now.duration_since(SystemTime::UNIX_EPOCH + at)
        .unwrap_or_default()
}

fn since_text(reading: &Reading, now: SystemTime) -> String {
    let age = age(reading, now);
    let seconds = age.as_secs();
    match seconds {
        0..10 => format!("{}.{} s", seconds, age.subsec_millis() / 100),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn time_text(time: jiff::Timestamp) -> String {
    format!("{time:.3}")
}

const HEADING: [&str; 8] = [
    "SENSOR",
    " CELSIUS",
    "QUALITY",
    "AGE",
    "BUS",
    "RESOLUTION",
    "POWER",
    "LAST GOOD",
];

const SYS: &str = "/sys";

/// Moves the cursor up, and clears what is below it.
const CLEAR: &str = "\x1b[H\x1b[J";

const NO_SENSOR: &str = "Is one connected, its data line on the pin of the overlay (dtoverlay=w1-gpio: \
                         GPIO 4), with a pull-up of 4.7 kOhm to 3.3 V? The kernel looks for new ones every \
                         10 s or so.";

const PULL_UP: &str = "is there a pull-up of 4.7 kOhm between data and 3.3 V?";
