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
    Features, Listing, MilliCelsius, Offset, Power, Quality, Reading, SensorHealth, SensorId,
    Thermometer, W1Bus,
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

/// Which sensors are looked at.
struct Place {
    root: PathBuf,
    /// Those of the agent that reads this tree.
    offsets: Vec<Offset>,
    /// What is to be said of how it was found.
    hint: Option<String>,
}

impl Place {
    fn find(common: &Common, tree: &SensorTree) -> Result<Self, Error> {
        let other = |root: &Path, hint| Self {
            root: root.to_owned(),
            offsets: Vec::new(),
            hint,
        };
        if let Some(root) = &tree.root {
            return Ok(other(root, None));
        }
        let sys = Path::new("/sys");
        match common.read() {
            Ok(config) => Ok(Self {
                root: config.sensors.root,
                offsets: config.sensors.offsets,
                hint: None,
            }),
            Err(error) if !common.is_usual() => Err(error),
            // People look at sensors before there is a configuration, and without a
            // right to read it.
            Err(Error::NoConfig { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(other(sys, None))
            }
            Err(error) => {
                let hint = format!(
                    "These are the sensors of /sys, without offsets; the agent's may be others: \
                     {error}"
                );
                Ok(other(sys, Some(hint)))
            }
        }
    }

    /// A bus for looking at: unless it is asked for, nothing is done that would empty
    /// the readings of an agent.
    fn bus(&self, bulk: bool) -> Result<W1Bus, Error> {
        let mut bus = W1Bus::new(&self.root);
        bus.set_offsets(&self.offsets)?;
        Ok(if bulk { bus } else { bus.without_bulk() })
    }
}

fn show(common: &Common, arguments: &Sensors) -> Result<Outcome, Error> {
    let place = Place::find(common, &arguments.tree)?;
    let mut bus = place.bus(arguments.bulk)?;
    let mut progress = Progress::new();
    match bus.list()?.thermometers.len() {
        0 | 1 => {}
        sensors => progress.show(&format!("reading {sensors} thermometers")),
    }
    let seen = Sweep::take(&mut bus, &place);
    progress.end();
    let seen = seen?;
    let outcome = Outcome {
        exit: seen.exit(),
        ..Outcome::done(seen.text(terminal_width()), seen.to_json())
    };
    let hints = seen.hints().into_iter().chain(place.hint);
    Ok(hints.fold(outcome, Outcome::hint))
}

/// All sensors at one time.
struct Sweep {
    root: PathBuf,
    at: SystemTime,
    buses: Vec<String>,
    others: Vec<String>,
    sensors: Vec<Sensor>,
    /// Of sensors that are not here.
    idle_offsets: Vec<Offset>,
}

/// One of them. What can't be found out, or has no meaning, is missing.
struct Sensor {
    reading: Reading,
    /// It is in the value.
    offset: MilliCelsius,
    health: SensorHealth,
    bus: Option<String>,
    resolution: Option<u8>,
    power: Option<Power>,
    conversion: Option<Duration>,
    features: Option<Features>,
}

impl Sweep {
    fn take(bus: &mut W1Bus, place: &Place) -> Result<Self, Error> {
        let readings = bus.read_all(SystemTime::now)?;
        // A bus that goes meanwhile has no sensors any more.
        let listing = bus.list().unwrap_or_default();
        let sensors: Vec<_> = readings
            .into_iter()
            .filter_map(|reading| {
                let health = bus.health().get(&reading.sensor)?.clone();
                let offset = bus.offset(reading.sensor);
                let place = find(&listing, reading.sensor);
                Some(Sensor::new(reading, offset, health, place))
            })
            .collect();
        let mut idle_offsets = place.offsets.clone();
        let is_here = |offset: &Offset| {
            let mut readings = sensors.iter().map(|sensor| sensor.reading);
            readings.any(|reading| reading.sensor == offset.sensor)
        };
        idle_offsets.retain(|offset| !is_here(offset));
        Ok(Self {
            root: place.root.clone(),
            at: SystemTime::now(),
            buses: listing.buses,
            others: listing.others,
            sensors,
            idle_offsets,
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

    /// A table no wider than `width`, by leaving columns out where that helps.
    fn text(&self, width: Option<usize>) -> String {
        if self.sensors.is_empty() {
            return format!("no thermometer on {}", self.buses_text());
        }
        let rows: Vec<_> = self
            .sensors
            .iter()
            .map(|sensor| sensor.row(self.at))
            .collect();
        let mut shown: Vec<_> = (0..HEADING.len())
            .filter(|column| rows.iter().any(|row| !row[*column].is_empty()))
            .collect();
        let heading = HEADING.map(str::to_owned);
        let all: Vec<_> = std::iter::once(heading).chain(rows).collect();
        let draw = |shown: &[usize]| {
            let pick = |row: &Row| -> Vec<_> { shown.iter().map(|at| row[*at].clone()).collect() };
            table(&all.iter().map(pick).collect::<Vec<_>>())
        };
        let mut text = draw(&shown);
        for column in SPARE {
            if width.is_none_or(|width| text.lines().all(|line| line.len() <= width)) {
                break;
            }
            shown.retain(|at| HEADING[*at] != column);
            text = draw(&shown);
        }
        text
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
        for offset in &self.idle_offsets {
            hints.push(format!(
                "sensors.offsets has {offset}, and there is no such thermometer here: is it the \
                 right name?"
            ));
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
    fn new(
        reading: Reading,
        offset: MilliCelsius,
        health: SensorHealth,
        place: Option<&Thermometer>,
    ) -> Self {
        let bus = place.and_then(Thermometer::bus).map(str::to_owned);
        // a driver that hangs would not answer these questions either
        let place = place.filter(|_| reading.quality != Quality::Unreadable);
        Self {
            reading,
            offset,
            health,
            bus,
            resolution: place.and_then(|place| place.resolution().ok().flatten()),
            power: place.and_then(|place| place.power().ok()),
            conversion: place.and_then(|place| place.conversion_time().ok()),
            features: place.and_then(|place| place.features().ok()),
        }
    }

    fn row(&self, now: SystemTime) -> Row {
        let none = || "-".to_owned();
        let reading = &self.reading;
        let text = |value: Option<MilliCelsius>| {
            let text = value.map_or_else(none, |value| value.to_string());
            format!("{text:>8}")
        };
        let measured = match self.offset.0 {
            0 => String::new(),
            _ => text(self.health.measured),
        };
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
            text(reading.value),
            measured,
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
            "offset": self.offset,
            "measured": health.measured,
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
    let place = Place::find(common, &arguments.tree)?;
    let bus = place.bus(arguments.bulk)?;
    let hints = place.hint.iter().cloned().collect();
    let (events, happened) = channel();
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::Thread)?;
    let ended = events.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // nobody listens once it has ended
            let _ = ended.send(Event::Signal);
        }
    });
    let (interval, count) = (arguments.interval, arguments.count);
    // a sweep takes its time, and a signal isn't to wait for it
    std::thread::spawn(move || sweeps(bus, &place, interval, count, &events));
    let exit = match print(&happened, json)? {
        // whoever read it has seen enough
        Printed::Broken | Printed::Ended => 0,
        Printed::Last(exit) => exit,
    };
    Ok(Outcome {
        output: Output::Said,
        exit,
        hints,
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
    place: &Place,
    interval: Duration,
    count: Option<u64>,
    events: &Sender<Event>,
) {
    let mut left = count;
    while left != Some(0) {
        left = left.map(|left| left - 1);
        let sweep = Sweep::take(&mut bus, place).map(Box::new);
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
            writeln!(out, "{clear}{gap}{time}\n{}", sweep.text(terminal_width()))
        };
        match printed.and_then(|()| out.flush()) {
            Ok(()) => first = false,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Printed::Broken),
            Err(error) => return Err(Error::Print(error)),
        }
    }
}

fn set(common: &Common, arguments: &SetSensor) -> Result<Outcome, Error> {
    let Place { root, hint, .. } = Place::find(common, &arguments.tree)?;
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
    Ok(hint.into_iter().fold(outcome, Outcome::hint))
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
             read it? Or the bus's driver hangs: dmesg says more, and another start of the machine \
             helps"
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

/// Of standard output, if that is a terminal which has one.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// What is said of a sensor; a column without anything in it isn't shown.
type Row = [String; HEADING.len()];

const HEADING: [&str; 9] = [
    "SENSOR",
    " CELSIUS",
    "MEASURED",
    "QUALITY",
    "AGE",
    "BUS",
    "RESOLUTION",
    "POWER",
    "LAST GOOD",
];

/// Columns that a narrow terminal can do without. A value and what it is worth are
/// none of them.
const SPARE: [&str; 6] = ["POWER", "RESOLUTION", "BUS", "AGE", "MEASURED", "LAST GOOD"];

/// Moves the cursor up, and clears what is below it.
const CLEAR: &str = "\x1b[H\x1b[J";

const NO_SENSOR: &str = "Is one connected, its data line on the pin of the overlay (dtoverlay=w1-gpio: \
                         GPIO 4), with a pull-up of 4.7 kOhm to 3.3 V? The kernel looks for new ones every \
                         10 s or so.";

const PULL_UP: &str = "is there a pull-up of 4.7 kOhm between data and 3.3 V?";
