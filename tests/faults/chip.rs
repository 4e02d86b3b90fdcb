//! The module with the device's key, a simulated one, and what goes wrong with it.

use std::time::Instant;

use zk_hsm_sim::{Daemon, DaemonState, Device, Fault, Faults, Latency, Rule, Throttle};

/// The chip, and the daemon before it.
pub(crate) struct Chip {
    device: Device,
    /// How many daemons there have been before this one.
    restarts: u64,
    /// What is wrong with it, and since when.
    pub(crate) trouble: Option<(Trouble, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Calls fail, or take long.
    Calls,
    /// Its daemon is not there.
    Away,
    /// Its daemon does not answer.
    Hangs,
}

impl Chip {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            restarts: 0,
            trouble: None,
        }
    }

    /// Something goes wrong from now on. Returns what.
    pub(crate) fn fail(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        let sign = |fault| vec![Rule::new("sign", fault)];
        let (what, rules) = match rng.u8(..8) {
            0 => {
                let calls = rng.u64(1..8);
                let rule = Rule::new("sign", Fault::Code(-110)).count(calls);
                ("chip: signatures fail", vec![rule])
            }
            1 => {
                let calls = rng.u64(1..20);
                let rule = Rule::new("any", Fault::Code(-5)).count(calls);
                ("chip: all calls fail", vec![rule])
            }
            2 => {
                let wrong = rng.choice([Fault::FlipR, Fault::FlipS]).unwrap();
                let rule = Rule::new("sign", wrong).count(rng.u64(1..3));
                ("chip: signatures are wrong", vec![rule])
            }
            3 => {
                let (min, max, seed) = (20, rng.u32(40..400), rng.u64(..));
                let latency = Latency::Uniform { min, max, seed };
                ("chip: slow", sign(Fault::Latency(latency)))
            }
            4 => {
                let throttle = Throttle {
                    rested: 20,
                    tired: 500,
                    calls: 12,
                    recovery: 1000,
                };
                ("chip: throttles", sign(Fault::Throttle(throttle)))
            }
            5 => {
                self.restarts += 1;
                self.set(DaemonState::Up, vec![]);
                return "chip's daemon: killed, another one is there";
            }
            6 => {
                self.restarts += 1;
                self.set(DaemonState::Down, vec![]);
                self.trouble = Some((Trouble::Away, Instant::now()));
                return "chip's daemon: killed, none is there";
            }
            _ => {
                self.set(DaemonState::Stuck, vec![]);
                self.trouble = Some((Trouble::Hangs, Instant::now()));
                return "chip's daemon: hangs";
            }
        };
        self.set(DaemonState::Up, rules);
        self.trouble = Some((Trouble::Calls, Instant::now()));
        what
    }

    /// All is well from now on, with the daemon that is there.
    pub(crate) fn heal(&mut self) {
        if self.trouble.take().is_some() {
            self.set(DaemonState::Up, vec![]);
        }
    }

    pub(crate) fn is(&self, trouble: Trouble) -> bool {
        self.trouble.is_some_and(|(now, _)| now == trouble)
    }

    fn set(&self, state: DaemonState, rules: Vec<Rule>) {
        let daemon = Daemon {
            restarts: self.restarts,
            state,
            ..Daemon::default()
        };
        self.device.set_faults(&Faults { daemon, rules }).unwrap();
    }
}
