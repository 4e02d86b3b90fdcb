//! A Zymkey, or another HSM of Zymbit's, through the vendor's library
//! `libzk_app_utils.so`.
//!
//! # Return codes
//!
//! The vendor says that a negative code is a failure, and which code what, only
//! of -ETIMEDOUT. All are taken for negative `errno` values, and sorted so:
//!
//! | code | class |
//! | --- | --- |
//! | those of [`TRANSIENT`]: the way to the chip | transient |
//! | -ENOSYS, -EOPNOTSUPP | [`Error::Unsupported`] |
//! | -EINVAL, of random, lock, unlock, generate | logic: they have arguments of the caller's |
//! | -EINVAL otherwise | transient: slot and digest are as they must be, so it is the context that isn't |
//! | every other one; the vendor uses -1 for any failure | transient: opening again costs little, giving up for good would strand a device |
//!
//! Success without an output, or with one of the wrong length, is transient.
//!
//! That a slot is empty has no code. It is taken for certain
//! ([`Error::KeyMissing`]) when the chip refuses the slot's public key by a code
//! that isn't of the way, and three times in a row gives that of another slot and
//! refuses this one again; after -ENOENT a random byte will do instead.

#[allow(unsafe_code)]
mod ffi;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libc::c_int;
use zeroize::Zeroizing;

use self::ffi::{Calls, Context, Failure, Library};
use super::{Backend, Opener, printable};
use crate::error::{Class, Error, Operation};
use crate::hsm::{Binding, Health, Info, KeyEntry, MAX_LOCK, MAX_LOCK_OVERHEAD, VerifyingKey};
use crate::library::{self, Chip};
use crate::uri::{BackendKind, HsmUri};

pub(crate) fn opener(uri: &HsmUri, slot: u16, module: Option<&str>, patience: Duration) -> Opener {
    let name = Name(uri.to_string().into());
    let module = module.map(PathBuf::from);
    // found once: a library that is exchanged meanwhile isn't loaded beside
    // the first one
    let mut loaded = None;
    Box::new(move || {
        let library = match loaded {
            Some(library) => library,
            None => *loaded.insert(load(module.as_deref(), patience)?),
        };
        let name = name.clone();
        Ok(Box::new(Zymkey::open(
            name,
            slot,
            library,
            Operation::Open,
            patience,
        )?))
    })
}

pub(crate) fn list(
    uri: &HsmUri,
    module: Option<&str>,
    deadline: Duration,
) -> Result<Vec<KeyEntry>, Error> {
    const LIST: Operation = Operation::List;
    let start = Instant::now();
    let name = Name(uri.to_string().into());
    let library = load(module.map(Path::new), deadline)?;
    let mut hsm = Zymkey::open(name, 0, library, LIST, deadline)?;
    let chip = hsm.context.at(LIST);
    let (slots, listed) = match chip.slots() {
        Ok(slots) => (slots, true),
        Err(failure) if failure.is_unsupported() => (PRE_MADE.to_vec(), false),
        Err(failure) => return Err(hsm.name.error(LIST, failure)),
    };
    let mut keys = Vec::new();
    for slot in slots {
        if start.elapsed() > deadline {
            return Err(Error::TimedOut {
                operation: LIST,
                after: deadline,
            });
        }
        let public_key = match chip.public_key(slot) {
            Ok(key) => match key.as_ref().and_then(verifying_key) {
                Some(key) => Some(key),
                // of another curve
                None => continue,
            },
            // its export was disabled, or there is no such slot
            Err(failure) if failure.is_a_refusal() && listed => None,
            Err(failure) if failure.is_a_refusal() => continue,
            Err(failure) => return Err(hsm.name.error(LIST, failure)),
        };
        keys.push(KeyEntry {
            uri: uri.at_slot(slot),
            public_key,
        });
    }
    Ok(keys)
}

pub(crate) fn generate(
    uri: &HsmUri,
    module: Option<&str>,
    deadline: Duration,
) -> Result<HsmUri, Error> {
    const GENERATE: Operation = Operation::Generate;
    let start = Instant::now();
    let name = Name(uri.to_string().into());
    let library = load(module.map(Path::new), deadline)?;
    let mut hsm = Zymkey::open(name, 0, library, GENERATE, deadline)?;
    // no key is made for a caller who has given up
    let left = deadline.saturating_sub(start.elapsed());
    if left.is_zero() {
        return Err(Error::TimedOut {
            operation: GENERATE,
            after: deadline,
        });
    }
    hsm.context.set_patience(left);
    let slot = hsm.context.at(GENERATE).generate();
    slot.map(|slot| uri.at_slot(slot))
        .map_err(|failure| hsm.name.error(GENERATE, failure))
}

/// The library at `module`, or where the vendor's packages put it.
fn load(module: Option<&Path>, patience: Duration) -> Result<&'static Library, Error> {
    let [first, ref others @ ..] = LIBRARIES.map(Path::new);
    let installed = || others.iter().copied().find(|path| path.exists());
    let path = match module {
        Some(module) => module,
        None if first.exists() => first,
        None => installed().unwrap_or(first),
    };
    Library::load(&library::trusted(path, INSTALL)?, INSTALL, patience)
}

/// One key slot of an open chip.
struct Zymkey {
    name: Name,
    slot: u16,
    context: Context,
}

impl Zymkey {
    fn open(
        name: Name,
        slot: u16,
        library: &'static Library,
        operation: Operation,
        patience: Duration,
    ) -> Result<Self, Error> {
        match Context::open(library, operation, patience) {
            Ok(context) => Ok(Self {
                name,
                slot,
                context,
            }),
            Err(failure) => Err(name.error(operation, failure)),
        }
    }

    /// Does `work` with the chip.
    fn call<T>(
        &mut self,
        operation: Operation,
        work: impl FnOnce(&Calls<'_>) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let result = work(&self.context.at(operation));
        result.map_err(|failure| self.name.error(operation, failure))
    }

    /// Whether the chip, which has refused this slot's public key, is in order
    /// and has nothing in the slot.
    fn is_missing(&mut self, refused: &Failure) -> bool {
        let slot = self.slot;
        let chip = self.context.at(Operation::Open);
        // it may be there, with its export disabled
        if chip.slots().is_ok_and(|slots| slots.contains(&slot)) {
            return false;
        }
        let others = PRE_MADE.into_iter().filter(|&other| other != slot);
        // a bad connection fails now and then, and maybe by the same code
        (0..TRIALS).all(|_| {
            let is_in_order = others
                .clone()
                .any(|other| chip.public_key(other).is_ok())
                // all keys are gone: a code that means nothing else will do then
                || refused.is(libc::ENOENT) && chip.random(1).is_ok();
            is_in_order
                && chip
                    .public_key(slot)
                    .is_err_and(|again| again.is_a_refusal())
        })
    }

    /// Sees, once for each library, that it gives back what was locked, and
    /// refuses it when a bit of it was changed: its return code for that is
    /// told in two ways, and by the wrong one everything would seem authentic.
    fn trust_unlocking(&mut self, operation: Operation) -> Result<(), Error> {
        if self.context.library().is_unlock_trusted() {
            return Ok(());
        }
        let untrusted = |name: &Name, problem| Error::UnlockUntrusted {
            hsm: name.0.clone(),
            problem,
        };
        let mut random = [0; 34];
        getrandom::fill(&mut random).map_err(|source| Error::Random { source })?;
        let [high, low, canary @ ..] = random;
        let (mut locked, opened) = self.call(operation, |chip| {
            let locked = chip.lock(&canary, MAX_LOCKED)?;
            let opened = chip.unlock(&locked, MAX_LOCKED)?;
            Ok((locked, opened))
        })?;
        if opened.is_none_or(|opened| *opened != canary) {
            return Err(untrusted(&self.name, GIVES_NOTHING_BACK));
        }
        // any bit
        let bit = usize::from(u16::from_be_bytes([high, low])) % (8 * locked.len());
        locked[bit / 8] ^= 0x80 >> (bit % 8);
        let chip = self.context.at(operation);
        match chip.unlock(&locked, MAX_LOCKED) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(untrusted(&self.name, OPENS_CHANGED)),
            Err(failure) if failure.is_a_refusal() => {}
            Err(failure) => return Err(self.name.error(operation, failure)),
        }
        self.context.library().trust_unlock();
        Ok(())
    }
}

impl Backend for Zymkey {
    fn chip(&self) -> Option<Arc<Chip>> {
        Some(self.context.library().chip())
    }

    fn info(&mut self) -> Result<Info, Error> {
        let (model, serial, firmware) = self.call(Operation::Info, |chip| {
            Ok((
                if_there(chip.model())?,
                if_there(chip.serial())?,
                if_there(chip.firmware())?,
            ))
        })?;
        let named = |model: &String| model.to_ascii_lowercase().contains("simulator");
        let development =
            self.context.library().is_simulator() || model.as_ref().is_some_and(named);
        Ok(Info {
            backend: BackendKind::Zymkey,
            model: model.as_deref().map(printable),
            serial: serial.as_deref().map(printable),
            firmware: firmware.as_deref().map(printable),
            development,
        })
    }

    fn health(&mut self) -> Result<Health, Error> {
        let time = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
        self.call(Operation::Health, |chip| {
            Ok(Health {
                binding: if_able(chip.binding())?.map(|(locked, bound)| Binding { locked, bound }),
                battery_volts: if_able(chip.battery())?,
                cpu_celsius: if_able(chip.temperature())?,
                time: if_there(chip.time())?.map(time),
                perimeter: if_there(chip.perimeter())?.map(|circuits| {
                    let broken = |seconds| (seconds != 0).then(|| time(seconds));
                    circuits
                        .into_iter()
                        .map(broken)
                        .collect::<Vec<Option<SystemTime>>>()
                }),
            })
        })
    }

    fn public_key(&mut self) -> Result<VerifyingKey, Error> {
        let slot = self.slot;
        let bytes = match self.context.at(Operation::Open).public_key(slot) {
            Ok(bytes) => bytes,
            Err(failure) if failure.is_a_refusal() && self.is_missing(&failure) => {
                let hsm = self.name.0.clone();
                return Err(Error::KeyMissing { hsm });
            }
            Err(failure) => return Err(self.name.error(Operation::Open, failure)),
        };
        bytes.as_ref().and_then(verifying_key).ok_or_else(|| {
            let failure = Failure::Answer {
                function: "zkExportPubKey",
                code: 0,
                problem: "success, but no public key on P-256",
            };
            self.name.error(Operation::Open, failure)
        })
    }

    fn sign(&mut self, digest: &[u8; 32]) -> Result<[u8; 64], Error> {
        let slot = self.slot;
        self.call(Operation::Sign, |chip| chip.sign(digest, slot))
    }

    fn random(&mut self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.call(Operation::Random, |chip| chip.random(n))
    }

    fn lock(&mut self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        // whoever locks a secret gives up the open one, so a faulty copy of the
        // locked one must not leave
        self.trust_unlocking(Operation::Lock)?;
        self.call(Operation::Lock, |chip| {
            let locked = chip.lock(plain, MAX_LOCKED)?;
            match chip.unlock(&locked, MAX_LOCKED)? {
                Some(opened) if *opened == plain => Ok(locked),
                _ => Err(Failure::Answer {
                    function: "zkLockDataB2B",
                    code: 0,
                    problem: "success, but what it put out can't be unlocked",
                }),
            }
        })
    }

    fn unlock(&mut self, locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.trust_unlocking(Operation::Unlock)?;
        self.call(Operation::Unlock, |chip| chip.unlock(locked, MAX_LOCKED))?
            .ok_or(Error::UnlockRefused)
    }
}

/// The HSM's URI, as errors name it.
#[derive(Clone)]
struct Name(Box<str>);

impl Name {
    fn error(&self, operation: Operation, failure: Failure) -> Error {
        let (function, code, (meaning, class, next)) = match failure {
            Failure::Turn(error) => return error,
            failure if failure.is_unsupported() => return self.unsupported(operation),
            Failure::Missing => return self.unsupported(operation),
            Failure::Argument { function, problem } => (function, 0, (problem, Class::Logic, ASK)),
            Failure::Answer {
                function,
                code,
                problem,
            } => (function, code, (problem, Class::Transient, UPDATE)),
            Failure::Code { function, code } => (function, code, sort(operation, code)),
        };
        Error::Library {
            hsm: self.0.clone(),
            function,
            code: code.into(),
            meaning,
            class,
            next,
        }
    }

    fn unsupported(&self, operation: Operation) -> Error {
        Error::Unsupported {
            hsm: self.0.clone(),
            what: match operation {
                Operation::Close | Operation::Open => "be opened",
                Operation::Generate => "generate keys",
                Operation::Health => "tell how it is",
                Operation::Info => "tell what it is",
                Operation::List => "list keys",
                Operation::Lock => "lock data",
                Operation::Random => "give random bytes",
                Operation::Sign => "sign",
                Operation::Unlock => "unlock data",
            },
            why: "the model, or the installed version of the vendor's library, doesn't have that",
        }
    }
}

impl Failure {
    /// The library hasn't got it, or says that the chip hasn't.
    fn is_unsupported(&self) -> bool {
        match self {
            Self::Code { .. } => self.is(libc::ENOSYS) || self.is(libc::EOPNOTSUPP),
            Self::Missing => true,
            Self::Answer { .. } | Self::Argument { .. } | Self::Turn(_) => false,
        }
    }

    /// As far as one can tell the chip was reached, and won't do it.
    fn is_a_refusal(&self) -> bool {
        matches!(self, Self::Code { code, .. } if name(TRANSIENT, *code).is_none())
    }

    fn is(&self, errno: c_int) -> bool {
        matches!(self, Self::Code { code, .. } if *code == -errno)
    }
}

/// What there is, or `None` if the library or the chip hasn't got it.
fn if_there<T>(result: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match result {
        Err(failure) if failure.is_unsupported() => Ok(None),
        result => result.map(Some),
    }
}

/// The same for what not all models have: nobody has said by which code the
/// others refuse.
fn if_able<T>(result: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match result {
        Err(failure) if failure.is_a_refusal() => Ok(None),
        result => if_there(result),
    }
}

/// A code's name, its class, and what a person should do.
fn sort(operation: Operation, code: c_int) -> (&'static str, Class, &'static str) {
    if let Some(name) = name(TRANSIENT, code) {
        return (name, Class::Transient, DAEMON);
    }
    let has_arguments = matches!(
        operation,
        Operation::Generate | Operation::Lock | Operation::Random | Operation::Unlock
    );
    let (class, next) = match code.checked_neg() {
        Some(libc::EINVAL) if has_arguments => (Class::Logic, ASK),
        Some(libc::EACCES) => (Class::Transient, ACCESS),
        _ => (Class::Transient, DAEMON),
    };
    (name(OTHERS, code).unwrap_or("unknown"), class, next)
}

fn name(codes: &[(c_int, &'static str)], code: c_int) -> Option<&'static str> {
    codes
        .iter()
        .find_map(|&(errno, name)| (code == -errno).then_some(name))
}

/// A point on P-256, if it is one.
fn verifying_key(xy: &[u8; 64]) -> Option<VerifyingKey> {
    let mut point = [4; 65];
    point[1..].copy_from_slice(xy);
    VerifyingKey::from_sec1_bytes(&point).ok()
}

/// How often an empty slot is looked at again.
const TRIALS: usize = 3;

/// Slots whose key pairs every model comes with.
const PRE_MADE: [u16; 3] = [0, 1, 2];

/// The most bytes that are taken from locking or unlocking.
const MAX_LOCKED: usize = MAX_LOCK + MAX_LOCK_OVERHEAD;

/// Where the vendor's packages put the library, now and in very old releases.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/libzk_app_utils.so",
    "/usr/local/lib/libzk_app_utils.so",
];

/// Failures on the way to the chip, in the library, its daemon or the bus.
const TRANSIENT: &[(c_int, &str)] = &[
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::ENXIO, "ENXIO"),
    (libc::EBADF, "EBADF"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EBUSY, "EBUSY"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENFILE, "ENFILE"),
    (libc::EMFILE, "EMFILE"),
    (libc::EPIPE, "EPIPE"),
    (libc::EPROTO, "EPROTO"),
    (libc::ECONNABORTED, "ECONNABORTED"),
    (libc::ECONNRESET, "ECONNRESET"),
    (libc::ENOBUFS, "ENOBUFS"),
    (libc::ENOTCONN, "ENOTCONN"),
    (libc::ESHUTDOWN, "ESHUTDOWN"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::EHOSTDOWN, "EHOSTDOWN"),
    #[cfg(target_os = "linux")]
    (libc::EREMOTEIO, "EREMOTEIO"),
];

const OTHERS: &[(c_int, &str)] = &[
    (libc::EPERM, "EPERM, or any failure"),
    (libc::ENOENT, "ENOENT"),
    (libc::EACCES, "EACCES"),
    (libc::EFAULT, "EFAULT"),
    (libc::EEXIST, "EEXIST"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EMSGSIZE, "EMSGSIZE"),
    (libc::EBADMSG, "EBADMSG"),
];

const ACCESS: &str = "run this as a user who may reach the HSM's daemon (`zkifc`)";
const ASK: &str = "correct the URI or what was asked";
const DAEMON: &str = "see that the HSM's daemon runs (`systemctl status zkifc`) and that its LED \
    blinks once in 3 s; if not, check I2C, the wiring, and that the CPU governor is `performance`";
const INSTALL: &str = "install Zymbit's packages (zkapputilslib, zkifc), or name the library with \
    `?module-path=/absolute/path`; a machine without an HSM can use the simulator's, zk-hsm-sim";
const UPDATE: &str = "if this repeats, update the vendor's library";

const GIVES_NOTHING_BACK: &str = "didn't give back with success (a 1) what it had just locked";
const OPENS_CHANGED: &str = "unlocked data that was changed";

#[cfg(test)]
mod tests {
    use zk_hsm_sim::{Device, Fault, Latency, Model, Rule};

    use super::*;
    use crate::fault::PATIENCE;

    #[test]
    fn no_key_is_made_for_a_caller_who_has_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::create(directory.path(), Model::Hsm6).unwrap();
        let module = device.module_path();
        let module = module.to_str();
        let uri: HsmUri = "zymkey:slot=0".parse().unwrap();
        let count = || list(&uri, module, PATIENCE).unwrap().len();
        let before = count();
        let slow = Rule::new("open", Fault::Latency(Latency::Fixed(300)));
        device.set_faults(&slow.into()).unwrap();

        let short = Duration::from_millis(200);
        let error = generate(&uri, module, short).unwrap_err();

        assert!(
            matches!(error, Error::TimedOut { operation: Operation::Generate, after } if after == short),
            "{error}"
        );
        device.clear_faults().unwrap();
        assert_eq!(count(), before);
        generate(&uri, module, PATIENCE).unwrap();
        assert_eq!(count(), before + 1);
    }
}
