//! What the functions do, without the C of it.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aes_gcm::aead::{Aead, AeadInOut, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key};
use ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::NistP256;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use signature::hazmat::PrehashVerifier;
use zeroize::Zeroizing;

use crate::device::{self, Error, FAULTS, Model, SETTINGS, Settings, Unlock, replace};
use crate::faults::{Call, DaemonState, Effects, Engine, Faults};
use crate::state::{Foreign, KeyPair, Secret, Store};

/// A negative errno, as the C functions return it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Code(pub(crate) i32);

impl From<Errno> for Code {
    fn from(errno: Errno) -> Self {
        Self(-errno.raw_os_error())
    }
}

impl From<io::Error> for Code {
    fn from(error: io::Error) -> Self {
        // Of a temporary file's error only the kind is left.
        match (error.raw_os_error(), error.kind()) {
            (Some(errno), _) => Self(-errno),
            (None, io::ErrorKind::NotFound) => Errno::NOENT.into(),
            (None, io::ErrorKind::PermissionDenied) => Errno::ACCESS.into(),
            (None, io::ErrorKind::StorageFull) => Errno::NOSPC.into(),
            (None, _) => Errno::IO.into(),
        }
    }
}

/// A failure of the simulator's own, which no fault asked for.
impl From<Error> for Code {
    fn from(error: Error) -> Self {
        say(&describe(&error));
        match error {
            Error::NotADevice { .. } => Errno::NODEV.into(),
            Error::Syntax { .. } => Errno::INVAL.into(),
            _ => Errno::IO.into(),
        }
    }
}

/// One line on standard error, where it isn't closed. In one write, since each
/// copy of the library has a lock of its own.
fn say(text: &str) {
    let _ = io::stderr().write_all(format!("zk-hsm-sim: {text}\n").as_bytes());
}

fn describe(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => format!("{error}: {source}"),
        error => error.to_string(),
    }
}

/// The chip that this copy of the library is: one in a process.
static CHIP: Mutex<Option<Arc<Chip>>> = Mutex::new(None);

/// A device as one process has it open.
#[derive(Debug)]
pub(crate) struct Chip {
    settings: Settings,
    store: Store,
    faults: Mutex<Engine>,
    contexts: Mutex<Contexts>,
    /// Held while the chip works: it does one thing at a time.
    bus: Mutex<()>,
}

#[derive(Debug, Default)]
struct Contexts {
    /// With the daemon's restarts until then.
    open: BTreeMap<usize, u64>,
    made: usize,
}

/// Handles are numbers that are never looked up as addresses: a stale or made-up
/// one is refused and harms nobody.
const FIRST_HANDLE: usize = 0x1000;
const HANDLE_STEP: usize = 16;

impl Chip {
    /// The chip, which comes into being at the first call. `library` is the file
    /// of the library itself.
    fn get(library: Option<PathBuf>) -> Result<Arc<Self>, Code> {
        let mut chip = lock(&CHIP);
        if let Some(chip) = &*chip {
            return Ok(chip.clone());
        }
        let new = Arc::new(Self::new(library)?);
        *chip = Some(new.clone());
        Ok(new)
    }

    fn new(library: Option<PathBuf>) -> Result<Self, Code> {
        let directory = find_directory(library)?;
        let mut settings = match &directory {
            Some(directory) => Settings::read(directory)?,
            None => Settings::default(),
        };
        if let Some(model) = of_environment("ZK_HSM_SIM_MODEL", |text| {
            toml::Value::from(text).try_into().ok()
        })? {
            settings.model = model;
        }
        if let Some(unlock) = of_environment("ZK_HSM_SIM_UNLOCK", |text| {
            toml::Value::from(text).try_into().ok()
        })? {
            settings.unlock = unlock;
        }
        let (store, kept) = match &directory {
            Some(directory) => (
                Store::in_directory(directory, settings.model)?,
                format!("its keys lie open in {}", directory.display()),
            ),
            None => (
                Store::in_memory(settings.model)?,
                "its keys end with this process".to_owned(),
            ),
        };
        say(&format!(
            "this is a SIMULATOR, model {}, and no security module; {kept}",
            settings.model.name(),
        ));
        Ok(Self {
            settings,
            store,
            faults: Mutex::new(Engine::new(directory.map(|path| path.join(FAULTS)))),
            contexts: Mutex::default(),
            bus: Mutex::new(()),
        })
    }

    /// A new context.
    pub(crate) fn open(library: Option<PathBuf>) -> Result<usize, Code> {
        let chip = Self::get(library)?;
        chip.call(None, "zkOpen", |_| {
            let restarts = chip.with_faults(|faults| faults.daemon.restarts)?;
            let mut contexts = lock(&chip.contexts);
            let handle = FIRST_HANDLE + HANDLE_STEP * contexts.made;
            contexts.made += 1;
            contexts.open.insert(handle, restarts);
            Ok(handle)
        })
    }

    /// Ends a context, whatever else goes wrong. Closing none is no error.
    pub(crate) fn close(handle: usize) -> Result<(), Code> {
        if handle == 0 {
            return Ok(());
        }
        let Some(chip) = lock(&CHIP).clone() else {
            return Err(Errno::INVAL.into());
        };
        let closed = lock(&chip.contexts).open.remove(&handle);
        closed.ok_or(Errno::INVAL)?;
        chip.follow(Call::named("zkClose"), false, None)?;
        Ok(())
    }

    /// Does `work` for the context `handle`, unless something goes wrong.
    pub(crate) fn with<T>(
        handle: usize,
        name: &'static str,
        work: impl FnOnce(&Session<'_>) -> Result<T, Code>,
    ) -> Result<T, Code> {
        let Some(chip) = lock(&CHIP).clone() else {
            return Err(Errno::INVAL.into());
        };
        chip.call(Some(handle), name, work)
    }

    fn call<T>(
        &self,
        handle: Option<usize>,
        name: &'static str,
        work: impl FnOnce(&Session<'_>) -> Result<T, Code>,
    ) -> Result<T, Code> {
        let restarts = match handle {
            Some(handle) => {
                let found = lock(&self.contexts).open.get(&handle).copied();
                Some(found.ok_or(Errno::INVAL)?)
            }
            None => None,
        };
        let effects = self.follow(Call::named(name), true, restarts)?;
        work(&Session {
            chip: self,
            effects,
        })
    }

    /// Follows what the faults say of this call; the effects on its result remain.
    fn follow(
        &self,
        call: Call,
        needs_daemon: bool,
        opened_under: Option<u64>,
    ) -> Result<Effects, Code> {
        if needs_daemon {
            self.wait_while(|faults| faults.daemon.state == DaemonState::Stuck)?;
            let stale = self.with_faults(|faults| {
                let daemon = &faults.daemon;
                let other = opened_under.is_some_and(|restarts| restarts != daemon.restarts);
                (other || daemon.state == DaemonState::Down).then_some(Code(daemon.code))
            })?;
            if let Some(code) = stale {
                return Err(code);
            }
        }
        let plan = self.with_engine(|engine| engine.plan(call, Instant::now()))?;
        if !plan.hang.is_empty() {
            self.wait_while(|faults| plan.hang.iter().any(|rule| faults.rules.contains(rule)))?;
        }
        if !plan.delay.is_zero() {
            let _bus = lock(&self.bus);
            thread::sleep(plan.delay);
        }
        match plan.code {
            Some(code) => Err(Code(code)),
            None => Ok(plan.effects),
        }
    }

    fn with_faults<T>(&self, look: impl FnOnce(&Faults) -> T) -> Result<T, Code> {
        self.with_engine(|engine| look(engine.faults()))
    }

    /// With the faults as the file has them now.
    fn with_engine<T>(&self, work: impl FnOnce(&mut Engine) -> T) -> Result<T, Code> {
        let mut engine = lock(&self.faults);
        engine.read().map_err(|problem| {
            if let Some(problem) = problem {
                say(&problem);
            }
            Errno::IO
        })?;
        Ok(work(&mut engine))
    }

    fn wait_while(&self, holds: impl Fn(&Faults) -> bool) -> Result<(), Code> {
        while self.with_faults(&holds)? {
            thread::sleep(POLL);
        }
        Ok(())
    }
}

const POLL: Duration = Duration::from_millis(5);

/// The directory that is the device, or none.
fn find_directory(library: Option<PathBuf>) -> Result<Option<PathBuf>, Code> {
    if let Some(directory) = env::var_os("ZK_HSM_SIM_DIR").filter(|value| !value.is_empty()) {
        let directory = PathBuf::from(directory);
        let absolute = std::path::absolute(&directory);
        return Ok(Some(absolute.map_err(device::failed("find", &directory))?));
    }
    // Where the file lies, not where a link to it does. A program's own name may
    // be no path; then this isn't a library of its own.
    let Some(library) = library.filter(|path| path.components().count() > 1) else {
        return Ok(None);
    };
    let file = fs::canonicalize(&library).map_err(device::failed("find", &library))?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let settings = directory.join(SETTINGS);
    let is_device = settings.try_exists();
    let is_device = is_device.map_err(device::failed("find", &settings))?;
    Ok(is_device.then(|| directory.to_owned()))
}

fn of_environment<T>(
    name: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Code> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let parsed = value.to_str().and_then(parse);
    if parsed.is_none() {
        say(&format!("there is no {name}={}", value.display()));
        return Err(Errno::INVAL.into());
    }
    Ok(parsed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One call to the chip.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    chip: &'a Chip,
    pub(crate) effects: Effects,
}

/// r and s, and the parity of the point's y.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) signature: [u8; 64],
    pub(crate) recovery_id: u8,
}

impl Session<'_> {
    fn model(&self) -> Model {
        self.chip.settings.model
    }

    /// What only the larger models have.
    pub(crate) fn needs_large(&self) -> Result<(), Code> {
        if self.model().is_large() {
            Ok(())
        } else {
            Err(Errno::NOSYS.into())
        }
    }

    pub(crate) fn model_number(&self) -> String {
        format!("{} SIMULATOR (zk-hsm-sim)", self.model().name())
    }

    pub(crate) fn serial_number(&self) -> String {
        let serial = self.chip.settings.serial.as_deref();
        format!("SIMULATOR-{}", serial.unwrap_or("0"))
    }

    pub(crate) fn firmware_version(&self) -> String {
        format!("SIMULATOR-{}", env!("CARGO_PKG_VERSION"))
    }

    /// The key pair in a slot, or what a fault makes of it.
    fn key(&self, slot: i32) -> Result<SigningKey<NistP256>, Code> {
        let slot = self.slot(slot)?;
        if self.effects.key_vanished {
            return Err(Errno::NOENT.into());
        }
        let secret = self.chip.store.read(|state| state.key(slot).cloned())?;
        let mut secret = secret.ok_or(Errno::NOENT)?;
        if self.effects.key_changed {
            let hash = Sha256::new_with_prefix("another key than ").chain_update(secret.0);
            secret = Secret(hash.finalize().into());
        }
        SigningKey::from_slice(&secret.0).map_err(|_| Errno::IO.into())
    }

    /// A slot that there can be.
    fn slot(&self, slot: i32) -> Result<u32, Code> {
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let ranges = self.model().is_large() && GENERATED.contains(&slot);
        if slot < self.model().key_pairs() || ranges {
            Ok(slot)
        } else {
            Err(Errno::INVAL.into())
        }
    }

    pub(crate) fn sign(&self, digest: &[u8; 32], slot: i32) -> Result<Signed, Code> {
        let key = self.key(slot)?;
        // Never the same signature twice, as from a chip.
        let (mut signature, id) = key
            .sign_prehash_recoverable_with_rng(&mut getrandom::SysRng, digest)
            .map_err(|_| Errno::IO)?;
        let mut recovery_id = id.to_byte();
        if let Some(high) = self.effects.high_s {
            let (r, s) = signature.split_scalars();
            let low = signature.normalize_s();
            let is_high = low != signature;
            if is_high != high {
                let other = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes());
                signature = other.map_err(|_| Errno::IO)?;
                recovery_id ^= 1;
            }
        }
        let mut signature: [u8; 64] = signature.to_bytes().into();
        signature[31] ^= u8::from(self.effects.flip_r);
        signature[63] ^= u8::from(self.effects.flip_s);
        Ok(Signed {
            signature,
            recovery_id,
        })
    }

    /// Whether it is a signature by the key in a slot.
    pub(crate) fn verify(
        &self,
        digest: &[u8; 32],
        slot: i32,
        foreign: bool,
        signature: &[u8],
    ) -> Result<bool, Code> {
        let key = if foreign {
            self.foreign(slot)?
        } else {
            *self.key(slot)?.verifying_key()
        };
        Ok(Signature::from_slice(signature)
            .is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok()))
    }

    /// X and Y of a public key.
    pub(crate) fn public_key(&self, slot: i32, foreign: bool) -> Result<Vec<u8>, Code> {
        let key = self.verifying_key(slot, foreign)?;
        let point = key.to_sec1_point(false);
        // without the 4 that says uncompressed
        let coordinates = point.as_bytes().get(1..).ok_or(Errno::IO)?;
        Ok(coordinates.to_vec())
    }

    fn verifying_key(&self, slot: i32, foreign: bool) -> Result<VerifyingKey<NistP256>, Code> {
        if foreign {
            self.foreign(slot)
        } else {
            Ok(*self.key(slot)?.verifying_key())
        }
    }

    pub(crate) fn save_public_key(
        &self,
        path: &Path,
        slot: i32,
        foreign: bool,
    ) -> Result<(), Code> {
        let key = self.verifying_key(slot, foreign)?;
        let pem = key.to_public_key_pem(LineEnding::LF);
        write(path, pem.map_err(|_| Errno::IO)?.as_bytes())
    }

    fn foreign(&self, slot: i32) -> Result<VerifyingKey<NistP256>, Code> {
        self.needs_large()?;
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        if !FOREIGN.contains(&slot) {
            return Err(Errno::INVAL.into());
        }
        let public = self.chip.store.read(|state| {
            let found = state.foreign.iter().find(|key| key.slot == slot);
            found.map(|key| key.public.clone())
        })?;
        let public = base16ct::lower::decode_vec(public.ok_or(Errno::NOENT)?);
        raw_key(&public.map_err(|_| Errno::IO)?)
    }

    /// Keeps another device's public key, and says in which slot.
    pub(crate) fn store_foreign(&self, curve: i32, public: &[u8]) -> Result<i32, Code> {
        self.needs_large()?;
        only_p256(curve)?;
        raw_key(public)?;
        let public = base16ct::lower::encode_string(public);
        self.chip.store.change(|state| {
            let free = |slot: &u32| !state.foreign.iter().any(|key| key.slot == *slot);
            let slot = FOREIGN.into_iter().find(free).ok_or(Errno::NOSPC)?;
            state.foreign.push(Foreign { slot, public });
            Ok(i32::try_from(slot).map_err(|_| Errno::IO)?)
        })?
    }

    /// Makes a key pair, and says in which slot.
    pub(crate) fn generate(&self, curve: i32) -> Result<i32, Code> {
        self.needs_large()?;
        only_p256(curve)?;
        let secret = Secret::key()?;
        self.chip.store.change(|state| {
            let free = |slot: &u32| state.key(*slot).is_none();
            let slot = GENERATED.into_iter().find(free).ok_or(Errno::NOSPC)?;
            state.keys.push(KeyPair { slot, secret });
            Ok(i32::try_from(slot).map_err(|_| Errno::IO)?)
        })?
    }

    /// Takes a generated or a foreign key away.
    pub(crate) fn remove(&self, slot: i32, foreign: bool) -> Result<(), Code> {
        self.needs_large()?;
        let slot = u32::try_from(slot).map_err(|_| Errno::INVAL)?;
        let removable = if foreign {
            FOREIGN.contains(&slot)
        } else {
            GENERATED.contains(&slot)
        };
        if !removable {
            return Err(Errno::INVAL.into());
        }
        self.chip.store.change(|state| {
            let before = state.keys.len() + state.foreign.len();
            if foreign {
                state.foreign.retain(|key| key.slot != slot);
            } else {
                state.keys.retain(|key| key.slot != slot);
            }
            if state.keys.len() + state.foreign.len() == before {
                return Err(Errno::NOENT.into());
            }
            Ok(())
        })?
    }

    /// The pool's size, and the slots that hold keys.
    pub(crate) fn slots(&self, foreign: bool) -> Result<(i32, Vec<i32>), Code> {
        self.needs_large()?;
        let mut slots: Vec<u32> = self.chip.store.read(|state| {
            if foreign {
                state.foreign.iter().map(|key| key.slot).collect()
            } else {
                state.keys.iter().map(|key| key.slot).collect()
            }
        })?;
        slots.sort_unstable();
        let pool = if foreign { FOREIGN_POOL } else { POOL };
        let number = |n: u32| i32::try_from(n).map_err(|_| Code::from(Errno::IO));
        let slots: Result<_, _> = slots.into_iter().map(number).collect();
        Ok((number(pool)?, slots?))
    }

    pub(crate) fn random(&self, n: i32) -> Result<Zeroizing<Vec<u8>>, Code> {
        let n = usize::try_from(n).map_err(|_| Errno::INVAL)?;
        if n == 0 || n > MAX_DATA {
            return Err(Errno::INVAL.into());
        }
        let mut bytes = Zeroizing::new(vec![0; n]);
        getrandom::fill(&mut bytes).map_err(|_| Errno::IO)?;
        Ok(bytes)
    }

    pub(crate) fn lock(&self, plain: &[u8], shared: bool) -> Result<Vec<u8>, Code> {
        within_limit(plain)?;
        let header = header(shared);
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| Errno::IO)?;
        let payload = Payload {
            msg: plain,
            aad: &header,
        };
        let cipher = self.cipher(shared)?;
        let sealed = cipher.encrypt(&nonce.into(), payload);
        Ok([&header[..], &nonce, &sealed.map_err(|_| Errno::IO)?].concat())
    }

    /// The data, or none if what was locked is not authentic.
    pub(crate) fn unlock(
        &self,
        locked: &[u8],
        shared: bool,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Code> {
        within_limit(locked)?;
        let header = header(shared);
        let parts = locked.strip_prefix(&header[..]);
        let Some((nonce, sealed)) = parts.and_then(<[u8]>::split_first_chunk::<NONCE>) else {
            return Ok(None);
        };
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let cipher = self.cipher(shared)?;
        let opened = cipher.decrypt_in_place(nonce.into(), &header, &mut *buffer);
        Ok(opened.is_ok().then_some(buffer))
    }

    fn cipher(&self, shared: bool) -> Result<Aes256Gcm, Code> {
        let mut key = Zeroizing::new(Key::<Aes256Gcm>::default());
        if shared {
            // All simulators have it, as all devices and the vendor's service do.
            key.copy_from_slice(&Sha256::digest("zk-hsm-sim: the shared key"));
        } else {
            let one_way = self.chip.store.read(|state| state.one_way.clone())?;
            key.copy_from_slice(&one_way.0);
        }
        Ok(Aes256Gcm::new(&key))
    }

    /// What unlocking from memory to memory returns: for success, and for data
    /// that is not authentic.
    pub(crate) fn unlock_codes(&self) -> (i32, i32) {
        match self.chip.settings.unlock {
            Unlock::Client => (1, 0),
            Unlock::Header => (0, Code::from(Errno::BADMSG).0),
        }
    }

    /// Seconds since 1970; if `precise`, as soon as the next one begins.
    pub(crate) fn time(&self, precise: bool) -> Result<u32, Code> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH);
        let mut time = now().map_err(|_| Errno::OVERFLOW)?;
        if precise {
            let next = Duration::from_secs(time.as_secs() + 1);
            while time < next {
                thread::sleep(next - time);
                time = now().map_err(|_| Errno::OVERFLOW)?;
            }
        }
        Ok(u32::try_from(time.as_secs()).map_err(|_| Errno::OVERFLOW)?)
    }

    /// Nobody taps a simulator.
    pub(crate) fn wait_for_tap(&self, milliseconds: u32) -> Result<(), Code> {
        thread::sleep(Duration::from_millis(milliseconds.into()));
        Err(Errno::TIMEDOUT.into())
    }

    /// Until a channel that notifies is broken; at once, if it is and nobody has
    /// cleared it.
    pub(crate) fn wait_for_perimeter(&self, milliseconds: u32) -> Result<(), Code> {
        let end = Instant::now() + Duration::from_millis(milliseconds.into());
        loop {
            let broken = self.chip.store.read(|state| {
                let mut channels = state.perimeter.iter();
                channels.any(|channel| channel.action & NOTIFY != 0 && channel.breached != 0)
            })?;
            if broken {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT.into());
            }
            thread::sleep(left.min(POLL));
        }
    }

    pub(crate) fn perimeter_action(&self, channel: i32, action: u32) -> Result<(), Code> {
        let channel = usize::try_from(channel).map_err(|_| Errno::INVAL)?;
        if action & SELF_DESTRUCT != 0 {
            say("a simulator destroys no keys: the self-destruct flag is refused");
            return Err(Errno::PERM.into());
        }
        if action & !NOTIFY != 0 {
            return Err(Errno::INVAL.into());
        }
        self.chip.store.change(|state| {
            let perimeter = state.perimeter.get_mut(channel).ok_or(Errno::INVAL)?;
            perimeter.action = action;
            Ok(())
        })?
    }

    /// When each channel was broken, in seconds since 1970, or 0.
    pub(crate) fn perimeter(&self) -> Result<[u32; 2], Code> {
        Ok(self
            .chip
            .store
            .read(|state| state.perimeter.map(|channel| channel.breached))?)
    }

    pub(crate) fn clear_perimeter(&self) -> Result<(), Code> {
        self.chip.store.change(|state| {
            for channel in &mut state.perimeter {
                channel.breached = 0;
            }
            Ok(())
        })?
    }

    /// The battery's.
    pub(crate) fn millivolts(&self) -> Result<u16, Code> {
        Ok(self.chip.store.read(|state| state.millivolts)?)
    }

    /// Whether the binding is locked, and whether the device is bound: never
    /// locked, since that can't be taken back.
    pub(crate) fn binding(&self) -> Result<(bool, bool), Code> {
        match self.model() {
            Model::Hsm4 | Model::Hsm6 => {
                let elsewhere = self.chip.store.read(|state| state.elsewhere)?;
                Ok((false, !elsewhere))
            }
            Model::Zymkey4i => Err(Errno::NOSYS.into()),
        }
    }

    /// What can't be taken back doesn't exist here.
    pub(crate) fn refuse(&self, what: &str) -> Result<i32, Code> {
        say(&format!(
            "a simulator does nothing for good: {what} is refused"
        ));
        Err(Errno::PERM.into())
    }
}

/// The vendor's pool of key pairs, and the slots of those that are generated.
const POOL: u32 = 512;
const GENERATED: std::ops::Range<u32> = 16..16 + POOL;
/// The vendor's pool of other devices' keys. Their slots are not published; the
/// client's documentation has 0 for a failure.
const FOREIGN_POOL: u32 = 128;
const FOREIGN: std::ops::RangeInclusive<u32> = 1..=FOREIGN_POOL;

const NOTIFY: u32 = 1;
const SELF_DESTRUCT: u32 = 2;

/// The most that is locked, unlocked or made up in one call. The vendor names no
/// limit.
const MAX_DATA: usize = 16 * 1024 * 1024;

/// Locked data: magic (8 bytes, the last one a version), 0 for the one-way key or
/// 1 for the shared one, nonce (12), AES-256-GCM ciphertext, tag (16). The first 9
/// bytes are authenticated, too.
const NONCE: usize = 12;

fn header(shared: bool) -> [u8; 9] {
    let [a, b, c, d, e, f, g, h] = *b"ZKSIMLK1";
    [a, b, c, d, e, f, g, h, u8::from(shared)]
}

fn only_p256(curve: i32) -> Result<(), Code> {
    match curve {
        0 => Ok(()),
        // secp256k1, Ed25519, X25519
        1..=3 => Err(Errno::NOSYS.into()),
        _ => Err(Errno::INVAL.into()),
    }
}

/// A public key from X and Y.
fn raw_key(public: &[u8]) -> Result<VerifyingKey<NistP256>, Code> {
    if public.len() != 64 {
        return Err(Errno::INVAL.into());
    }
    let key = VerifyingKey::from_sec1_bytes(&[&[4], public].concat());
    key.map_err(|_| Errno::INVAL.into())
}

/// A file's content, within the limit, whatever length the file says it has.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Code> {
    let mut content = Zeroizing::new(Vec::new());
    let file = File::open(path)?;
    file.take(MAX_DATA as u64 + 1).read_to_end(&mut content)?;
    within_limit(&content)?;
    Ok(content)
}

fn within_limit(data: &[u8]) -> Result<(), Code> {
    if data.len() > MAX_DATA {
        return Err(Errno::FBIG.into());
    }
    Ok(())
}

/// A new file of mode 0600, complete or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Code> {
    match replace(path, content) {
        Err(Error::Io { source, .. }) => Err(source.into()),
        result => Ok(result?),
    }
}
