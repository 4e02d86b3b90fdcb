//! What is measured, and what goes wrong with that.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use zk_sensors::{MilliCelsius, SensorError, SensorId, SimulatedBus};

/// Both sensors count up, each in its own steps, unless something is wrong with
/// them: pulled, mute, noisy, slow, at random. Says in the end what was, and how
/// often; then all is well.
pub(crate) fn measure(
    mut bus: SimulatedBus,
    mut rng: fastrand::Rng,
    ended: &Receiver<()>,
) -> BTreeMap<&'static str, u64> {
    let mut sensors = ["28-0000000a0001", "28-0000000a0002"].map(|id| Wired {
        id: id.parse().unwrap(),
        left: 0,
    });
    let mut counts = BTreeMap::new();
    let mut value = 0;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(15)) {
        value = (value + 1) % 640;
        for (step, sensor) in (1..).zip(&mut sensors) {
            let value = MilliCelsius(-40_000 + value * 125 * step);
            if sensor.left > 1 {
                sensor.left -= 1;
                continue;
            }
            if sensor.left == 1 {
                sensor.left = 0;
                bus.replug(sensor.id).unwrap();
            }
            bus.set(sensor.id, value).unwrap();
            if rng.u8(..100) == 0 {
                let what = sensor.fail(&mut bus, &mut rng);
                *counts.entry(what).or_default() += 1;
            }
        }
    }
    for sensor in sensors {
        bus.replug(sensor.id).unwrap();
        bus.set(sensor.id, MilliCelsius(20_000)).unwrap();
    }
    counts
}

struct Wired {
    id: SensorId,
    /// Turns until all is well again.
    left: u32,
}

impl Wired {
    fn fail(&mut self, bus: &mut SimulatedBus, rng: &mut fastrand::Rng) -> &'static str {
        let fault = rng.u8(..9);
        if fault < 6 {
            self.left = rng.u32(1..60);
        }
        let (what, done) = match fault {
            0 => ("sensor: pulled", bus.unplug(self.id)),
            1 => ("sensor: mute", bus.empty(self.id)),
            2 => ("sensor: power-on value", bus.power_on_value(self.id)),
            3 => ("sensor: shorted wire", bus.false_zero(self.id)),
            4 => ("sensor: noise", bus.bad_crc(self.id)),
            _ => {
                if fault == 6 {
                    bus.leave_unread().unwrap();
                }
                let mut held = bus.hold(self.id).unwrap();
                held.begun().unwrap();
                thread::sleep(Duration::from_millis(rng.u64(..1500)));
                let old = MilliCelsius(85_000);
                match fault {
                    5 => ("sensor: pulled while it is read", held.unplug()),
                    6 => ("sensor: slow, then stale", held.answer_with(old)),
                    7 => ("sensor: slow, then nothing", held.fail()),
                    _ => ("sensor: slow", held.answer()),
                }
            }
        };
        match done {
            // Who read it was killed.
            Err(SensorError::Simulation { source, .. })
                if source.kind() == ErrorKind::BrokenPipe => {}
            done => done.unwrap(),
        }
        what
    }
}
