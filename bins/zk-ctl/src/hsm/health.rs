//! What a security module measures, for people and for scripts.

use std::time::SystemTime;

use serde_json::{Value, json};
use zk_envelope::Timestamp;
use zk_hsm::{Binding, Health};

/// What it measured, and what this machine's clock said at that moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) binding: Option<Binding>,
    pub(crate) battery_volts: Option<f32>,
    pub(crate) cpu_celsius: Option<f32>,
    /// By how many seconds its clock is ahead of this machine's.
    pub(crate) clock_ahead: Option<i64>,
    /// For each circuit, when it was last found broken.
    pub(crate) perimeter: Option<Vec<Option<SystemTime>>>,
}

impl Report {
    pub(crate) fn new(health: &Health) -> Self {
        let now = SystemTime::now();
        let ahead = |time: SystemTime| match time.duration_since(now) {
            Ok(ahead) => ahead.as_secs().cast_signed(),
            Err(behind) => -behind.duration().as_secs().cast_signed(),
        };
        Self {
            binding: health.binding,
            battery_volts: health.battery_volts,
            cpu_celsius: health.cpu_celsius,
            clock_ahead: health.time.map(ahead),
            perimeter: health.perimeter.clone(),
        }
    }

    /// Name and text of each thing that it told.
    pub(crate) fn items(&self) -> Vec<(&'static str, String)> {
        let told = [
            self.binding.map(binding_text),
            self.battery_volts.map(|volts| format!("{volts:.2} V")),
            self.cpu_celsius.map(|degrees| format!("{degrees:.1} °C")),
            self.clock_ahead.map(clock_text),
            self.perimeter.as_deref().map(perimeter_text),
        ];
        NAMES
            .into_iter()
            .zip(told)
            .filter_map(|(name, text)| Some((name, text?)))
            .collect()
    }

    /// The names of what it can't tell.
    pub(crate) fn untold(&self) -> Vec<&'static str> {
        let told = self.items();
        NAMES
            .into_iter()
            .filter(|name| told.iter().all(|(told, _)| told != name))
            .collect()
    }

    /// Whether anybody has opened the case.
    pub(crate) fn is_broken(&self) -> bool {
        let circuits = self.perimeter.as_deref().unwrap_or_default();
        circuits.iter().any(Option::is_some)
    }

    /// The names of what is not as it was in `before`, small moves apart.
    pub(crate) fn changes(&self, before: &Self) -> Vec<&'static str> {
        let moved = |now: Option<f32>, before: Option<f32>, by: f32| match (now, before) {
            (Some(now), Some(before)) => (now - before).abs() >= by,
            (now, before) => now.is_some() != before.is_some(),
        };
        let clock = match (self.clock_ahead, before.clock_ahead) {
            (Some(now), Some(before)) => now.abs_diff(before) >= CLOCK_MOVED,
            (now, before) => now != before,
        };
        let changed = [
            self.binding != before.binding,
            moved(self.battery_volts, before.battery_volts, BATTERY_MOVED),
            moved(self.cpu_celsius, before.cpu_celsius, TEMPERATURE_MOVED),
            clock,
            self.perimeter != before.perimeter,
        ];
        let changed = NAMES.into_iter().zip(changed);
        changed
            .filter_map(|(name, did)| did.then_some(name))
            .collect()
    }

    /// What isn't told is null.
    pub(crate) fn to_json(&self) -> Value {
        let perimeter = self.perimeter.as_ref().map(|circuits| {
            let times = circuits.iter();
            times
                .map(|broken| broken.map(|at| Timestamp::from(at).to_string()))
                .collect::<Vec<_>>()
        });
        json!({
            "locked": self.binding.map(|binding| binding.locked),
            "bound": self.binding.map(|binding| binding.bound),
            "batteryVolts": self.battery_volts.map(short),
            "temperatureCelsius": self.cpu_celsius.map(short),
            "clockAheadSeconds": self.clock_ahead,
            "perimeterBrokenAt": perimeter,
        })
    }
}

fn binding_text(binding: Binding) -> String {
    match (binding.bound, binding.locked) {
        (true, true) => "bound to this machine, for good",
        (true, false) => "bound to this machine, not for good: for development",
        (false, true) => "bound to another machine",
        (false, false) => "not bound",
    }
    .to_owned()
}

fn clock_text(ahead: i64) -> String {
    match ahead {
        0 => "as this machine's".to_owned(),
        1.. => format!("{ahead} s ahead of this machine's"),
        _ => format!("{} s behind this machine's", ahead.unsigned_abs()),
    }
}

fn perimeter_text(circuits: &[Option<SystemTime>]) -> String {
    let broken: Vec<_> = circuits
        .iter()
        .enumerate()
        .filter_map(|(circuit, at)| {
            let at = Timestamp::from((*at)?);
            Some(format!("circuit {circuit} BROKEN at {at}"))
        })
        .collect();
    match broken.len() {
        0 => format!("whole, {} circuits", circuits.len()),
        _ => broken.join(", "),
    }
}

/// In the order of [`Report`].
const NAMES: [&str; 5] = ["binding", "battery", "temperature", "clock", "perimeter"];

/// Volts and degrees by which a measurement wavers without meaning.
const BATTERY_MOVED: f32 = 0.05;
const TEMPERATURE_MOVED: f32 = 2.0;

/// Seconds: both clocks are rounded.
const CLOCK_MOVED: u64 = 2;

/// As the module tells it: in 64 bits 3.05 would be 3.049999952316284.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told() -> Report {
        Report {
            binding: Some(Binding {
                locked: false,
                bound: true,
            }),
            battery_volts: Some(3.0),
            cpu_celsius: Some(40.0),
            clock_ahead: Some(1),
            perimeter: Some(vec![None, None]),
        }
    }

    #[test]
    fn what_wavers_is_no_change_and_what_moves_is() {
        let before = told();
        let wavers = Report {
            battery_volts: Some(3.04),
            cpu_celsius: Some(41.5),
            clock_ahead: Some(2),
            ..told()
        };
        assert_eq!(wavers.changes(&before), Vec::<&str>::new());
        let moves = Report {
            binding: None,
            battery_volts: Some(2.9),
            cpu_celsius: Some(37.0),
            clock_ahead: Some(-1),
            perimeter: Some(vec![None, Some(SystemTime::UNIX_EPOCH)]),
        };
        assert_eq!(moves.changes(&before), NAMES);
        assert_eq!(Report::default().changes(&before), NAMES);
        assert_eq!(before.changes(&Report::default()), NAMES);
    }

    #[test]
    fn what_a_module_does_not_tell_is_named() {
        let report = Report {
            battery_volts: None,
            cpu_celsius: None,
            ..told()
        };
        assert_eq!(report.untold(), ["battery", "temperature"]);
        assert_eq!(Report::default().untold(), NAMES);
        assert!(told().untold().is_empty());
        assert_eq!(report.to_json()["batteryVolts"], Value::Null);
        assert_eq!(report.to_json()["bound"], true);
        assert_eq!(short(3.05).to_string(), "3.05");
    }

    #[test]
    fn a_broken_circuit_is_named_with_its_time() {
        let broken = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_836_800);
        let report = Report {
            perimeter: Some(vec![None, Some(broken)]),
            ..told()
        };
        assert!(report.is_broken() && !told().is_broken());
        let items = report.items();
        let (_, text) = items.iter().find(|(name, _)| *name == "perimeter").unwrap();
        assert_eq!(text, "circuit 1 BROKEN at 2020-01-01T00:00:00.000Z");
        assert_eq!(
            report.to_json()["perimeterBrokenAt"],
            json!([null, "2020-01-01T00:00:00.000Z"])
        );
    }

    #[test]
    fn its_clock_is_told_against_this_machines() {
        let ahead = |off: i64| {
            let now = SystemTime::now();
            let by = Duration::from_secs(off.unsigned_abs());
            let mut health = Health::default();
            health.time = Some(if off < 0 { now - by } else { now + by });
            Report::new(&health).clock_ahead.unwrap()
        };
        // between the two looks at this machine's clock a second may end
        assert!((99..=100).contains(&ahead(100)));
        assert!((-101..=-100).contains(&ahead(-100)));
        assert_eq!(clock_text(-100), "100 s behind this machine's");
    }
}
