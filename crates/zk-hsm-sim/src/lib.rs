//! A simulator of Zymbit's security modules: a C library that takes the place of
//! the vendor's `libzk_app_utils.so`, with keys in software, and with faults on
//! command.
//!
//! It exports the vendor's 76 functions and one of its own, `zkSimulatorVersion`,
//! by which a program knows it. A program loads it as it loads the vendor's, by an
//! absolute path. It says that it is a simulator in every string it returns and,
//! once, on standard error.
//!
//! **It protects nothing.** Its keys lie in a file.
//!
//! ```no_run
//! use std::path::Path;
//! use zk_hsm_sim::{Device, Fault, Faults, Model, Rule};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::create("chip", Model::Zymkey4i)?;
//! let library = device.module_path(); // for the program under test
//! device.set_faults(&Rule::new("sign", Fault::Code(-110)).after(10).count(1).into())?;
//! // The eleventh signature times out.
//! device.clear_faults()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Which device
//!
//! A device is a directory that holds a `zk-hsm-sim.toml`. The library takes, at
//! the first `zkOpen` of a process,
//!
//! 1. the directory that the environment variable `ZK_HSM_SIM_DIR` names, else
//! 2. the directory that the library's own file is in, if that is a device (links
//!    are followed), else
//! 3. a device in memory that ends with the process. No fault strikes it.
//!
//! A library is one device in a process. A copy in another directory is another
//! one: [`Device::create`] makes such a directory, and so does
//! `mkdir chip; cp libzk_hsm_sim.so chip; echo 'model = "hsm6"' >chip/zk-hsm-sim.toml`.
//! Several processes may use one device at a time.
//!
//! | file | content |
//! | --- | --- |
//! | `zk-hsm-sim.toml` | [`Settings`]: `model` (`zymkey4i`, `hsm4`, `hsm6`), `unlock` (`client`, `header`), `serial` |
//! | `state.toml` | the keys, mode 0600, made at the first opening; perimeter, battery, binding |
//! | `faults.toml` | [`Faults`]; without it nothing goes wrong |
//! | `libzk_hsm_sim.so` | the copy of the library |
//!
//! The environment variables `ZK_HSM_SIM_MODEL` and `ZK_HSM_SIM_UNLOCK` go before
//! what the file says, and are how a device in memory is told. An unknown key or
//! value anywhere is an error: `zkOpen` returns `-EINVAL`, and the reason is on
//! standard error.
//!
//! # How it behaves
//!
//! - Public keys are X ‖ Y and signatures r ‖ s, 64 bytes, on P-256; other curves
//!   are `-ENOSYS`. A digest signed twice has two signatures, and s is high in half
//!   of them. The recovery id is the parity of y.
//! - A `zymkey4i` and an `hsm4` have keys in slots 0 to 2, an `hsm6` in 0 to 11; it
//!   makes others in 16 to 527, and keeps public keys of others in 128 slots of
//!   their own, from 1. A slot that
//!   can't be is `-EINVAL`, an empty one `-ENOENT`. What a model doesn't have, and
//!   ECDH, wallets and supervised boot of any model, is `-ENOSYS`.
//! - What is locked for the device alone is opened by it alone; what is locked with
//!   the shared key, by every simulator with that key. Neither is opened with the
//!   other's key, nor with any bit changed: `zkUnlockDataB2B` then returns what
//!   [`Unlock`] says, the other three `-EBADMSG`. What is longer than 16 MiB is
//!   `-EFBIG`.
//! - Nothing is done for good: `zkLockBinding`, `zkDisablePubKeyExport` and the
//!   perimeter's self-destruct flag are `-EPERM`.
//! - The perimeter's two channels are broken by [`Device::breach`] and stay broken
//!   until cleared. `zkWaitForPerimeterEvent` returns at once while one is broken
//!   whose flag to notify is set. Nobody ever taps.
//! - Battery and binding are as [`Device::set_battery`] and [`Device::set_bound`]
//!   leave them, on the models that tell of them.
//! - Buffers come from libc's `malloc`. NULL, negative lengths, closed and made-up
//!   contexts, and paths that are not absolute are `-EINVAL`; `zkClose(NULL)` is 0.
//!   Where a call fails, what its pointers lead to is left alone.
//!
//! # Faults
//!
//! `faults.toml` is read anew at each call, so that a chip fails while a program
//! uses it. It is written best by [`Device::set_faults`], which replaces it whole.
//! One that can't be parsed makes each call `-EIO`, with the reason on standard
//! error.
//!
//! A rule strikes calls of a function or a group; `after` so many, and `count` of
//! them. Calls are counted in each process by itself, and anew when the file is
//! written. Of several rules each does what it does; of several codes the first is
//! returned.
//!
//! Groups are `any`, `open`, `close`, `sign`, `verify`, `public-key`, `slots`,
//! `random`, `lock`, `unlock`, `info`, `binding`, `time`, `led`, `perimeter` and
//! `other`.
//!
//! ```
//! # let text = r#"
//! [daemon]                # zkifc, between library and chip
//! restarts = 1            # contexts opened under another number fail
//! code = -19              # with this
//! state = "up"            # or "down": each call fails; "stuck": each call waits
//!
//! [[rule]]
//! on = "sign"             # both functions that sign
//! after = 10              # ten are as they should be
//! count = 3               # and three
//! fault = { code = -110 } # time out
//!
//! [[rule]]
//! on = "zkGetRandBytes"
//! fault = "hang"          # until this rule is gone
//!
//! [[rule]]
//! on = "sign"             # 76 ms, growing past 500 ms without rest
//! fault = { throttle = { rested = 76, tired = 520, calls = 48, recovery = 5000 } }
//!
//! [[rule]]
//! on = "any"              # or { fixed = 80 }, { uniform = { min = 20, max = 90 } }
//! fault = { latency = { normal = { mean = 30, deviation = 10, seed = 1 } } }
//!
//! [[rule]]
//! on = "sign"
//! fault = "flip-s"        # or "flip-r", "high-s", "low-s"
//!
//! [[rule]]
//! on = "public-key"
//! fault = "key-changed"   # or "key-vanished"
//!
//! [[rule]]
//! on = "lock"
//! fault = "null-output"   # with success
//!
//! [[rule]]
//! on = "unlock"
//! fault = { length = 63 }
//! # "#;
//! # let faults: zk_hsm_sim::Faults = text.parse().unwrap();
//! # assert_eq!(faults.rules.len(), 8);
//! # assert_eq!(faults.daemon.restarts, 1);
//! ```
//!
//! Milliseconds are of [`Latency`] and [`Throttle`]. A chip does one thing at a
//! time: who waits for one call's latency waits for the others' before it, but a
//! call that hangs is in nobody's way.

mod chip;
mod device;
mod faults;
mod ffi;
mod state;

pub use device::{Device, Error, Model, Settings, Unlock};
pub use faults::{Daemon, DaemonState, Fault, Faults, Latency, Rule, Throttle};
