//! What goes wrong, and when.

use std::f64::consts::TAU;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// What goes wrong with a device: the content of its `faults.toml`. The default
/// is that nothing does.
///
/// Parsed from TOML by [`str::parse`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The daemon between library and chip.
    pub daemon: Daemon,
    /// Each is followed that applies to a call, in this order.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
}

impl From<Rule> for Faults {
    fn from(rule: Rule) -> Self {
        Self {
            rules: vec![rule],
            ..Self::default()
        }
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }
}

/// The daemon between library and chip, the vendor's `zkifc`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Daemon {
    /// How often it was restarted. A context belongs to the daemon it was opened
    /// under: under another one each call with it fails, `zkClose` excepted.
    pub restarts: u64,
    /// The negative `errno` of such calls, and of all while it is down; -19
    /// (ENODEV) unless set.
    #[serde(deserialize_with = "negative")]
    pub code: i32,
    /// What it does now.
    pub state: DaemonState,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            restarts: 0,
            code: -19,
            state: DaemonState::default(),
        }
    }
}

/// What the daemon does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DaemonState {
    /// Every call fails, `zkOpen` too.
    Down,
    /// Every call waits until it is another state, `zkOpen` too.
    Stuck,
    /// It answers.
    #[default]
    Up,
}

/// A fault, and the calls that it strikes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// A C function (`zkOpen`), a group of them (`sign`), or `any`.
    #[serde(deserialize_with = "known_calls")]
    pub on: String,
    /// So many calls pass before the first that is struck.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub after: u64,
    /// So many calls are struck; all, unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What happens to them.
    pub fault: Fault,
}

impl Rule {
    /// `fault` for all calls of `on`.
    pub fn new(on: impl Into<String>, fault: Fault) -> Self {
        Self {
            on: on.into(),
            after: 0,
            count: None,
            fault,
        }
    }

    /// Lets `calls` pass first.
    #[must_use]
    pub fn after(mut self, calls: u64) -> Self {
        self.after = calls;
        self
    }

    /// Is over after `calls`.
    #[must_use]
    pub fn count(mut self, calls: u64) -> Self {
        self.count = Some(calls);
        self
    }

    fn is_for(&self, call: Call) -> bool {
        self.on == call.name || self.on == call.group || self.on == ANY
    }
}

/// What happens to a call.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fault {
    /// It does nothing and returns this negative `errno`.
    #[serde(deserialize_with = "negative")]
    Code(i32),
    /// One bit of a signature's r is flipped.
    FlipR,
    /// One bit of a signature's s is flipped.
    FlipS,
    /// It doesn't return before the rule is gone from the file. Then it goes on
    /// as if nothing had been.
    Hang,
    /// A signature's s is the one above n/2.
    HighS,
    /// Another key is in the slot, for ever the same.
    KeyChanged,
    /// The slot is empty: -2 (ENOENT).
    KeyVanished,
    /// It takes longer.
    Latency(Latency),
    /// An output buffer is cut or filled up with zeros to this length. It and the
    /// length that is returned agree.
    Length(u16),
    /// A signature's s is the one below n/2.
    LowS,
    /// It returns success, but NULL for what it should have put out.
    NullOutput,
    /// It takes longer, and the longer the less rest there is.
    Throttle(Throttle),
}

/// How much longer a call takes, in milliseconds. The same seed gives the same
/// times.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Latency {
    /// Always the same.
    Fixed(u32),
    /// A normal distribution, without what would be below zero.
    Normal {
        /// The mean.
        mean: u32,
        /// The standard deviation.
        deviation: u32,
        /// For the random numbers.
        #[serde(default)]
        seed: u64,
    },
    /// Anything in between.
    Uniform {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
        /// For the random numbers.
        #[serde(default)]
        seed: u64,
    },
}

/// Slower and slower, as secure elements get that count what might be an attack:
/// each call adds one to a count, and time takes it away again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Throttle {
    /// Milliseconds when the count is 0.
    pub rested: u32,
    /// Milliseconds when the count is at its most.
    pub tired: u32,
    /// The count at its most. In between the time grows evenly.
    pub calls: u32,
    /// Milliseconds after which the count is one less.
    pub recovery: u32,
}

impl Default for Throttle {
    /// From 76 ms to 520 ms within a minute at one call a second, and one call
    /// forgotten in 5 s.
    fn default() -> Self {
        Self {
            rested: 76,
            tired: 520,
            calls: 48,
            recovery: 5000,
        }
    }
}

/// A function, and the group it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
}

impl Call {
    pub(crate) fn named(name: &'static str) -> Self {
        let group = GROUPS
            .iter()
            .find(|(_, calls)| calls.contains(&name))
            .map_or(ANY, |(group, _)| group);
        Self { name, group }
    }
}

const ANY: &str = "any";

/// The vendor's 76 functions.
pub(crate) const GROUPS: [(&str, &[&str]); 15] = [
    ("open", &["zkOpen"]),
    ("close", &["zkClose"]),
    (
        "sign",
        &[
            "zkGenECDSASigFromDigest",
            "zkGenECDSASigFromDigestWithRecID",
        ],
    ),
    (
        "verify",
        &[
            "zkVerifyECDSASigFromDigest",
            "zkVerifyECDSASigFromDigestWithForeignKeySlot",
        ],
    ),
    (
        "public-key",
        &[
            "zkExportPubKey",
            "zkExportPubKey2File",
            "zkGetECDSAPubKey",
            "zkSaveECDSAPubKey2File",
        ],
    ),
    (
        "slots",
        &[
            "zkDisablePubKeyExport",
            "zkGenKeyPair",
            "zkGetAllocSlotsList",
            "zkRemoveKey",
            "zkStoreForeignPubKey",
        ],
    ),
    ("random", &["zkCreateRandDataFile", "zkGetRandBytes"]),
    (
        "lock",
        &[
            "zkLockDataB2B",
            "zkLockDataB2F",
            "zkLockDataF2B",
            "zkLockDataF2F",
        ],
    ),
    (
        "unlock",
        &[
            "zkUnlockDataB2B",
            "zkUnlockDataB2F",
            "zkUnlockDataF2B",
            "zkUnlockDataF2F",
        ],
    ),
    (
        "info",
        &[
            "zkGetAUXTemp",
            "zkGetBatteryVoltage",
            "zkGetCPUTemp",
            "zkGetFirmwareVersionString",
            "zkGetModelNumberString",
            "zkGetRTCDrift",
            "zkGetSerialNumberString",
        ],
    ),
    ("binding", &["zkGetCurrentBindingInfo", "zkLockBinding"]),
    ("time", &["zkGetTime"]),
    ("led", &["zkLEDFlash", "zkLEDOff", "zkLEDOn"]),
    (
        "perimeter",
        &[
            "zkClearPerimeterDetectEvents",
            "zkGetPerimeterDetectInfo",
            "zkSetDigitalPerimeterDetectDelays",
            "zkSetDigitalPerimeterDetectLPMaxBits",
            "zkSetDigitalPerimeterDetectLPPeriod",
            "zkSetPerimeterEventAction",
            "zkWaitForPerimeterEvent",
        ],
    ),
    (
        "other",
        &[
            "zkAddOrUpdateSupervisedBootFile",
            "zkAddRestoreSLIP39Mnemonic",
            "zkAddSLIP39MemberPassword",
            "zkCancelSLIP39Session",
            "zkDoECDHAndKDF",
            "zkDoECDHAndKDFWithIntPeerPubkey",
            "zkDoRawECDH",
            "zkDoRawECDHWithIntPeerPubkey",
            "zkGenEphemeralKeyPair",
            "zkGenOversightWallet",
            "zkGenWalletChildKey",
            "zkGenWalletMasterSeedWithBIP39",
            "zkGenWalletMasterSeedWithSLIP39",
            "zkGetAccelerometerData",
            "zkGetSupervisedBootFileManifest",
            "zkGetWalletKeySlotFromNodeAddr",
            "zkGetWalletNodeAddrFromKeySlot",
            "zkInvalidateEphemeralKey",
            "zkRemoveSupervisedBootFile",
            "zkRestoreWalletMasterSeedFromBIP39Mnemonic",
            "zkRestoreWalletMasterSeedFromSLIP39",
            "zkSetBatteryVoltageAction",
            "zkSetBatteryVoltageThreshold",
            "zkSetCPUHighTempThreshold",
            "zkSetCPULowTempThreshold",
            "zkSetCPUTempAction",
            "zkSetI2CAddr",
            "zkSetSLIP39GroupInfo",
            "zkSetSupervisedBootPolicy",
            "zkSetTapSensitivity",
            "zkWaitForTap",
        ],
    ),
];

fn known_calls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let on = String::deserialize(deserializer)?;
    let known = |(group, calls): &(&str, &[&str])| *group == on || calls.contains(&on.as_str());
    if on == ANY || GROUPS.iter().any(known) {
        return Ok(on);
    }
    let groups: Vec<_> = GROUPS.iter().map(|(group, _)| *group).collect();
    Err(D::Error::custom(format!(
        "there is no function or group `{on}`; groups are {ANY}, {}",
        groups.join(", ")
    )))
}

fn negative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let code = i32::deserialize(deserializer)?;
    if (-4095..0).contains(&code) {
        Ok(code)
    } else {
        let problem = format!("{code} is no error: -1 to -4095 are");
        Err(D::Error::custom(problem))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a call has to do before it does its work, and to its result.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) code: Option<i32>,
    pub(crate) delay: Duration,
    /// Wait while one of these is in the file.
    pub(crate) hang: Vec<Rule>,
    pub(crate) effects: Effects,
}

/// What a call does to its result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Effects {
    pub(crate) flip_r: bool,
    pub(crate) flip_s: bool,
    /// Some(true) for the one above n/2.
    pub(crate) high_s: Option<bool>,
    pub(crate) key_changed: bool,
    pub(crate) key_vanished: bool,
    pub(crate) length: Option<u16>,
    pub(crate) null: bool,
}

/// The file as it was last read, and how often each rule applied since then.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    path: Option<PathBuf>,
    /// Tells one writing of the file from the next, were it the same text.
    stamp: Option<(u64, i64, i64)>,
    text: String,
    faults: Faults,
    progress: Vec<Progress>,
    /// Why the file can't be followed.
    problem: Option<String>,
}

#[derive(Debug)]
struct Progress {
    calls: u64,
    random: fastrand::Rng,
    tiredness: f64,
    tired_at: Option<Instant>,
}

impl Progress {
    fn new(rule: &Rule) -> Self {
        let seed = match rule.fault {
            Fault::Latency(Latency::Normal { seed, .. } | Latency::Uniform { seed, .. }) => seed,
            _ => 0,
        };
        Self {
            calls: 0,
            random: fastrand::Rng::with_seed(seed),
            tiredness: 0.0,
            tired_at: None,
        }
    }

    fn latency(&mut self, latency: &Latency) -> Duration {
        match *latency {
            Latency::Fixed(time) => Duration::from_millis(time.into()),
            Latency::Normal {
                mean, deviation, ..
            } => {
                // Box and Muller; never the logarithm of 0
                let radius = (-2.0 * (1.0 - self.random.f64()).ln()).sqrt();
                let normal = radius * (TAU * self.random.f64()).cos();
                let time = normal.mul_add(f64::from(deviation), f64::from(mean));
                Duration::from_secs_f64(time.max(0.0) / 1000.0)
            }
            Latency::Uniform { min, max, .. } => {
                let time = self.random.u32(min.min(max)..=max.max(min));
                Duration::from_millis(time.into())
            }
        }
    }

    fn throttle(&mut self, throttle: &Throttle, now: Instant) -> Duration {
        let most = f64::from(throttle.calls.max(1));
        if let Some(before) = self.tired_at.replace(now) {
            let rest = now.saturating_duration_since(before).as_secs_f64() * 1000.0;
            let recovered = rest / f64::from(throttle.recovery.max(1));
            self.tiredness = (self.tiredness - recovered).max(0.0);
        }
        let share = self.tiredness / most;
        self.tiredness = (self.tiredness + 1.0).min(most);
        let (rested, tired) = (f64::from(throttle.rested), f64::from(throttle.tired));
        let time = (tired - rested).mul_add(share, rested);
        Duration::from_secs_f64(time.max(0.0) / 1000.0)
    }
}

impl Engine {
    /// One that reads `path` anew for each call, or never fails.
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            ..Self::default()
        }
    }

    /// What the file says now. The error is to be told if it is new: the first
    /// of the two says that.
    pub(crate) fn read(&mut self) -> Result<&Faults, (bool, String)> {
        let Some(path) = &self.path else {
            return Ok(&self.faults);
        };
        let before = self.problem.clone();
        let result = read_file(path).and_then(|(stamp, text)| {
            if self.stamp != stamp || self.text != text || self.problem.is_some() {
                let faults = text.parse::<Faults>()?;
                self.progress = faults.rules.iter().map(Progress::new).collect();
                self.faults = faults;
            }
            (self.stamp, self.text, self.problem) = (stamp, text, None);
            Ok(())
        });
        match result {
            Ok(()) => Ok(&self.faults),
            Err(problem) => {
                let problem = format!("{}: {problem}", path.display());
                self.problem = Some(problem.clone());
                Err((before.as_ref() != Some(&problem), problem))
            }
        }
    }

    /// Counts the call, and says what is to happen to it.
    pub(crate) fn plan(&mut self, call: Call, now: Instant) -> Plan {
        let mut plan = Plan::default();
        for (rule, progress) in self.faults.rules.iter().zip(&mut self.progress) {
            if !rule.is_for(call) {
                continue;
            }
            let nth = progress.calls;
            progress.calls = nth.saturating_add(1);
            let over = rule.count.map(|count| rule.after.saturating_add(count));
            if nth < rule.after || over.is_some_and(|over| nth >= over) {
                continue;
            }
            let effects = &mut plan.effects;
            match &rule.fault {
                Fault::Code(code) => plan.code = plan.code.or(Some(*code)),
                Fault::FlipR => effects.flip_r = true,
                Fault::FlipS => effects.flip_s = true,
                Fault::Hang => plan.hang.push(rule.clone()),
                Fault::HighS => effects.high_s = Some(true),
                Fault::KeyChanged => effects.key_changed = true,
                Fault::KeyVanished => effects.key_vanished = true,
                Fault::Latency(latency) => plan.delay += progress.latency(latency),
                Fault::Length(length) => effects.length = Some(*length),
                Fault::LowS => effects.high_s = Some(false),
                Fault::NullOutput => effects.null = true,
                Fault::Throttle(throttle) => plan.delay += progress.throttle(throttle, now),
            }
        }
        plan
    }
}

type Stamp = Option<(u64, i64, i64)>;

fn read_file(path: &PathBuf) -> Result<(Stamp, String), String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, String::new())),
        Err(error) => return Err(error.to_string()),
    };
    let read = || {
        let metadata = file.metadata()?;
        let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        let mut text = String::new();
        (&mut file).take(MAX_FILE).read_to_string(&mut text)?;
        Ok::<_, io::Error>((Some(stamp), text))
    };
    let mut read = read;
    read().map_err(|error| error.to_string())
}

/// Enough for hundreds of rules; what is longer is cut, and doesn't parse.
const MAX_FILE: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn rng(latency: Latency) -> (Progress, Latency) {
        let rule = Rule::new("sign", Fault::Latency(latency.clone()));
        (Progress::new(&rule), latency)
    }

    #[test]
    fn there_are_76_functions_each_once() {
        let mut names: Vec<_> = GROUPS.iter().flat_map(|(_, calls)| *calls).collect();
        assert_eq!(names.len(), 76);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 76);
    }

    #[test]
    fn uniform_latency_stays_between_and_repeats_with_its_seed() {
        let make = || {
            let (mut progress, latency) = rng(Latency::Uniform {
                min: 20,
                max: 90,
                seed: 7,
            });
            (0..100)
                .map(|_| progress.latency(&latency).as_millis())
                .collect::<Vec<_>>()
        };
        let times = make();
        assert!(times.iter().all(|time| (20..=90).contains(time)));
        assert!(times.iter().any(|time| *time < 40) && times.iter().any(|time| *time > 70));
        assert_eq!(times, make());
    }

    #[test]
    fn normal_latency_has_its_mean_and_is_never_negative() {
        let (mut progress, latency) = rng(Latency::Normal {
            mean: 80,
            deviation: 15,
            seed: 1,
        });
        let times: Vec<_> = (0..2000)
            .map(|_| progress.latency(&latency).as_secs_f64() * 1000.0)
            .collect();
        let mean = times.iter().sum::<f64>() / 2000.0;
        assert!((78.0..82.0).contains(&mean), "{mean}");
        let near = times.iter().filter(|time| (65.0..95.0).contains(*time));
        assert!((1200..1500).contains(&near.count()));
    }

    #[test]
    fn a_throttled_chip_tires_at_one_call_a_second_and_recovers() {
        let throttle = Throttle::default();
        let mut progress = Progress::new(&Rule::new("sign", Fault::Throttle(throttle.clone())));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(progress.throttle(&throttle, start).as_millis(), 76);
        let times: Vec<_> = (1..=120)
            .map(|second| progress.throttle(&throttle, at(second)).as_millis())
            .collect();
        assert!(times.is_sorted());
        assert!(times[10] < 200 && times[119] > 500, "{times:?}");
        // Five minutes later it is as it was.
        assert_eq!(progress.throttle(&throttle, at(420)).as_millis(), 76);
        // At one call in ten seconds it never tires.
        for call in 1..100 {
            let time = progress.throttle(&throttle, at(420 + 10 * call));
            assert_eq!(time.as_millis(), 76);
        }
    }
}
