//! The vendor's C library, as far as it is used here; all of this crate's
//! unsafe code.
//!
//! What makes the functions of this module safe to call:
//!
//! - Prototypes are those of the vendor's header `zk_app_utils.h`, their order
//!   of arguments compared with the vendor's Python client.
//! - A context is made, used and closed by one [`Context`], which is neither
//!   `Send` nor `Sync`; and only one call at a time is in the library, whatever
//!   contexts there are ([`Chip`]).
//! - What the library allocates is in a [`Block`] from the moment it returns,
//!   with success or without. Pointers that it writes are NULL before, lengths
//!   0; no length is believed beyond what the allocator says the block has.
//! - A C++ exception that the library lets out passes through Rust's frames as it
//!   may (`C-unwind`), and ends the program: nobody here could go on with it.
//! - Loaded code stays loaded: nothing is ever given to `dlclose`.
//!
//! Functions that can't be taken back are not here at all: locking the binding,
//! removing keys, perimeter actions.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Operation};
use crate::library::Chip;
use crate::uri::MAX_SLOT;

type Ctx = *mut c_void;
type Bytes = *mut *mut u8;

/// Declares [`Symbols`] and how it is looked up.
macro_rules! symbols {
    ($($field:ident = $name:literal: fn($($argument:ty),*);)*) => {
        /// The library's functions. Which of them there are depends on its age.
        struct Symbols {
            $($field: Symbol<unsafe extern "C-unwind" fn($($argument),*) -> c_int>,)*
        }

        impl Symbols {
            fn of(library: &Loaded) -> Self {
                Self {
                    $($field: Symbol {
                        name: $name,
                        // SAFETY: the vendor's header gives the function of
                        // this name this type
                        function: unsafe { library.get($name) }.ok().map(|symbol| *symbol),
                    },)*
                }
            }
        }
    };
}

symbols! {
    open = "zkOpen": fn(*mut Ctx);
    close = "zkClose": fn(Ctx);
    sign = "zkGenECDSASigFromDigest": fn(Ctx, *const u8, c_int, Bytes, *mut c_int);
    sign_recoverably = "zkGenECDSASigFromDigestWithRecID":
        fn(Ctx, *const u8, c_int, Bytes, *mut c_int, *mut u8);
    export = "zkExportPubKey": fn(Ctx, Bytes, *mut c_int, c_int, bool);
    export_old = "zkGetECDSAPubKey": fn(Ctx, Bytes, *mut c_int, c_int);
    random = "zkGetRandBytes": fn(Ctx, Bytes, c_int);
    lock = "zkLockDataB2B": fn(Ctx, *const u8, c_int, Bytes, *mut c_int, bool);
    unlock = "zkUnlockDataB2B": fn(Ctx, *const u8, c_int, Bytes, *mut c_int, bool);
    generate = "zkGenKeyPair": fn(Ctx, c_int);
    slots = "zkGetAllocSlotsList": fn(Ctx, bool, *mut c_int, *mut *mut c_int, *mut c_int);
    model = "zkGetModelNumberString": fn(Ctx, Bytes);
    firmware = "zkGetFirmwareVersionString": fn(Ctx, Bytes);
    serial = "zkGetSerialNumberString": fn(Ctx, Bytes);
    binding = "zkGetCurrentBindingInfo": fn(Ctx, *mut u8, *mut u8);
    battery = "zkGetBatteryVoltage": fn(Ctx, *mut f32);
    temperature = "zkGetCPUTemp": fn(Ctx, *mut f32);
    time = "zkGetTime": fn(Ctx, *mut u32, bool);
    perimeter = "zkGetPerimeterDetectInfo": fn(Ctx, *mut *mut u32, *mut c_int);
}

struct Symbol<F> {
    name: &'static str,
    function: Option<F>,
}

impl<F: Copy> Symbol<F> {
    fn get(&self) -> Result<F, Failure> {
        self.function.ok_or(Failure::Missing)
    }
}

/// Why a call gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// An argument that the library must not see.
    Argument {
        function: &'static str,
        problem: &'static str,
    },
    /// It said success, but what it put out can't be right.
    Answer {
        function: &'static str,
        code: c_int,
        problem: &'static str,
    },
    /// It said so.
    Code { function: &'static str, code: c_int },
    /// This library has no such function.
    Missing,
    /// Others are inside.
    Turn(Error),
}

/// A library that is loaded for as long as the process lives.
pub(super) struct Library {
    /// The dynamic linker's, which has one for each file, whatever its names.
    handle: usize,
    symbols: Symbols,
    chip: Arc<Chip>,
    simulator: bool,
    /// Unlocking has been seen to tell changed data from good.
    unlock_trusted: AtomicBool,
}

impl Library {
    /// Loads the library at `path`, which
    /// [`trusted`](crate::library::trusted) gave, unless it was loaded before.
    pub(super) fn load(
        path: &Path,
        next: &'static str,
        patience: Duration,
    ) -> Result<&'static Self, Error> {
        static LIBRARIES: Mutex<Option<HashMap<PathBuf, &'static Library>>> = Mutex::new(None);
        let chip = Chip::of(path);
        // its constructors are code of its own, which may get stuck: nobody
        // waits for that but those who want the same library
        let _turn = chip.enter(Operation::Open, patience)?;
        let libraries = || LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = libraries().get_or_insert_default().get(path) {
            return Ok(library);
        }
        let unloadable = |problem: String| Error::LibraryUnloadable {
            path: path.to_owned(),
            problem: problem.into(),
            next,
        };
        // SAFETY: running a library's constructors is what its loading is for;
        // only root and this process's user can have written this one
        let loaded =
            unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
                // what the dynamic linker says is behind it
                let source = std::error::Error::source(&error);
                unloadable(source.map_or(error.to_string(), ToString::to_string))
            })?;
        let symbols = Symbols::of(&loaded);
        // SAFETY: the symbol is only looked for
        let simulator = unsafe { loaded.get::<*const c_void>("zkSimulatorVersion") }.is_ok();
        // never closed: contexts and threads of the library may live on
        let handle = loaded.into_raw().addr();
        if let Some(name) = symbols.lacking() {
            return Err(unloadable(format!(
                "it has no function `{name}`, so it is not the vendor's"
            )));
        }
        let mut libraries = libraries();
        let libraries = libraries.get_or_insert_default();
        // by a hard link it may be here already, and has one door
        let known = libraries.values().find(|known| known.handle == handle);
        let library = known.copied().unwrap_or_else(|| {
            Box::leak(Box::new(Self {
                handle,
                symbols,
                chip: Arc::clone(&chip),
                simulator,
                unlock_trusted: AtomicBool::new(false),
            }))
        });
        libraries.insert(path.to_owned(), library);
        Ok(library)
    }

    pub(super) fn chip(&self) -> Arc<Chip> {
        Arc::clone(&self.chip)
    }

    /// It says of itself that it only plays the vendor's part.
    pub(super) fn is_simulator(&self) -> bool {
        self.simulator
    }

    pub(super) fn is_unlock_trusted(&self) -> bool {
        self.unlock_trusted.load(Ordering::Acquire)
    }

    pub(super) fn trust_unlock(&self) {
        self.unlock_trusted.store(true, Ordering::Release);
    }
}

impl Symbols {
    /// The name of a function that nothing works without, and that isn't there.
    fn lacking(&self) -> Option<&'static str> {
        [
            (self.open.function.is_some(), self.open.name),
            (self.close.function.is_some(), self.close.name),
            (
                self.sign.function.is_some() || self.sign_recoverably.function.is_some(),
                self.sign.name,
            ),
            (
                self.export.function.is_some() || self.export_old.function.is_some(),
                self.export.name,
            ),
        ]
        .into_iter()
        .find_map(|(there, name)| (!there).then_some(name))
    }
}

/// A connection to the chip.
pub(super) struct Context {
    library: &'static Library,
    /// From `zkOpen`, not NULL, not yet given to `zkClose`. That it is a raw
    /// pointer keeps a `Context` on its thread.
    raw: Ctx,
    /// How long to wait for others who are inside the library.
    patience: Duration,
}

impl Context {
    pub(super) fn open(
        library: &'static Library,
        operation: Operation,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let function = library.symbols.open.name;
        let open = library.symbols.open.get()?;
        let mut raw = ptr::null_mut();
        let turn = library
            .chip
            .enter(operation, patience)
            .map_err(Failure::Turn)?;
        // SAFETY: the pointer is good for the call, and the turn is ours
        let code = unsafe { open(&raw mut raw) };
        drop(turn);
        if code < 0 {
            // what it may have put out all the same is left alone: nobody
            // says that it can be closed
            return Err(Failure::Code { function, code });
        }
        if raw.is_null() {
            return Err(no_output(function, code));
        }
        Ok(Self {
            library,
            raw,
            patience,
        })
    }

    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The chip's functions, called for the sake of `operation`.
    pub(super) fn at(&mut self, operation: Operation) -> Calls<'_> {
        Calls {
            context: self,
            operation,
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let Ok(close) = self.library.symbols.close.get() else {
            return;
        };
        // beside a call that is stuck nothing is closed: the context is lost
        // then, which is little
        let Ok(_turn) = self.library.chip.enter(Operation::Close, self.patience) else {
            return;
        };
        // SAFETY: the context is open, nobody has it after this, and the turn
        // is ours. What it returns changes nothing
        unsafe { close(self.raw) };
    }
}

/// What can be asked of a chip.
pub(super) struct Calls<'a> {
    context: &'a mut Context,
    operation: Operation,
}

impl Calls<'_> {
    /// The public key in a slot: x ‖ y. `None` if it has the size of keys on
    /// curve 25519.
    pub(super) fn public_key(&self, slot: u16) -> Result<Option<[u8; 64]>, Failure> {
        let symbols = self.symbols();
        let (newer, older) = (&symbols.export, &symbols.export_old);
        let output = if let Some(export) = newer.function {
            let slot = checked(newer.name, slot)?;
            self.output(newer.name, |ctx, out, len| {
                // SAFETY: see `output`; false is for the chip's own keys
                unsafe { export(ctx, out, len, slot, false) }
            })?
        } else {
            let export = older.get()?;
            let slot = checked(older.name, slot)?;
            self.output(older.name, |ctx, out, len| {
                // SAFETY: see `output`
                unsafe { export(ctx, out, len, slot) }
            })?
        };
        if output.succeeded()?.len == 32 {
            return Ok(None);
        }
        output.array().map(Some)
    }

    /// An ECDSA signature over a digest: r ‖ s.
    pub(super) fn sign(&self, digest: &[u8; 32], slot: u16) -> Result<[u8; 64], Failure> {
        let symbols = self.symbols();
        let (plain, recoverable) = (&symbols.sign, &symbols.sign_recoverably);
        let digest = digest.as_ptr();
        let output = if let Some(sign) = plain.function {
            let slot = checked(plain.name, slot)?;
            self.output(plain.name, |ctx, out, len| {
                // SAFETY: see `output`; the library reads 32 bytes of digest
                unsafe { sign(ctx, digest, slot, out, len) }
            })?
        } else {
            let sign = recoverable.get()?;
            let slot = checked(recoverable.name, slot)?;
            // one byte by the header; the vendor's own client gives it four
            let mut parity = 0_u32;
            let parity = (&raw mut parity).cast();
            self.output(recoverable.name, |ctx, out, len| {
                // SAFETY: see `output`; the library reads 32 bytes of digest,
                // and what it writes the parity to outlives the call
                unsafe { sign(ctx, digest, slot, out, len, parity) }
            })?
        };
        output.array()
    }

    /// `n` random bytes, at least 1. The library says nothing of their number.
    pub(super) fn random(&self, n: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let symbol = &self.symbols().random;
        let random = symbol.get()?;
        let asked = length(symbol.name, n)?;
        let output = self.output(symbol.name, |ctx, out, len| {
            // SAFETY: see `output`
            let code = unsafe { random(ctx, out, asked) };
            *len = asked;
            code
        })?;
        output.secret(n)
    }

    /// Locks data by the key that the chip shares with nobody.
    pub(super) fn lock(&self, plain: &[u8], max: usize) -> Result<Vec<u8>, Failure> {
        let symbol = &self.symbols().lock;
        let lock = symbol.get()?;
        let len = length(symbol.name, plain.len())?;
        let output = self.output(symbol.name, |ctx, out, out_len| {
            // SAFETY: see `output`; the library reads `len` bytes of `plain`
            unsafe { lock(ctx, plain.as_ptr(), len, out, out_len, false) }
        })?;
        Ok(output.succeeded()?.filled(max)?.to_vec())
    }

    /// Unlocks data; `None` if the chip says that it isn't authentic. Success
    /// is 1 and nothing else, as the vendor's own client has it: by the header
    /// it would be 0.
    pub(super) fn unlock(
        &self,
        locked: &[u8],
        max: usize,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let symbol = &self.symbols().unlock;
        let unlock = symbol.get()?;
        let len = length(symbol.name, locked.len())?;
        let output = self.output(symbol.name, |ctx, out, out_len| {
            // SAFETY: see `output`; the library reads `len` bytes of `locked`
            unsafe { unlock(ctx, locked.as_ptr(), len, out, out_len, false) }
        })?;
        match output.succeeded()?.code {
            0 => Ok(None),
            1 => output.secret(max).map(Some),
            code => Err(Failure::Answer {
                function: symbol.name,
                code,
                problem: "neither success nor failure",
            }),
        }
    }

    /// Makes a P-256 key pair, and gives its slot.
    pub(super) fn generate(&self) -> Result<u16, Failure> {
        let symbol = &self.symbols().generate;
        let generate = symbol.get()?;
        let function = symbol.name;
        // SAFETY: the context is open, and its turn is ours
        let code = self.enter(|ctx| unsafe { generate(ctx, NISTP256) })?;
        if code < 0 {
            return Err(Failure::Code { function, code });
        }
        slot(code).ok_or(Failure::Answer {
            function,
            code,
            problem: "no slot has this number",
        })
    }

    /// The slots in which the chip has key pairs.
    pub(super) fn slots(&self) -> Result<Vec<u16>, Failure> {
        let symbol = &self.symbols().slots;
        let slots = symbol.get()?;
        let mut pool = 0;
        let output = self.output(symbol.name, |ctx, out, len| {
            // SAFETY: see `output`; false is for the chip's own keys. The
            // header calls the pool's size an input, the vendor's client
            // takes it for an output: it can be both
            unsafe { slots(ctx, false, &raw mut pool, out, len) }
        })?;
        if output.succeeded()?.len == 0 {
            return Ok(Vec::new());
        }
        let list = output.slice(usize::from(MAX_SLOT) + 1)?;
        let slots = list.iter().map(|&number: &c_int| slot(number)).collect();
        Option::ok_or(
            slots,
            Failure::Answer {
                function: output.function,
                code: output.code,
                problem: "it lists slots that no chip has",
            },
        )
    }

    pub(super) fn model(&self) -> Result<String, Failure> {
        self.text(&self.symbols().model)
    }

    pub(super) fn firmware(&self) -> Result<String, Failure> {
        self.text(&self.symbols().firmware)
    }

    pub(super) fn serial(&self) -> Result<String, Failure> {
        self.text(&self.symbols().serial)
    }

    /// Whether the binding is locked, and whether the chip is bound.
    pub(super) fn binding(&self) -> Result<(bool, bool), Failure> {
        let symbol = &self.symbols().binding;
        let binding = symbol.get()?;
        // C's bool, which a hostile library may fill with anything
        let (mut locked, mut bound) = (0, 0);
        let code = self.enter(|ctx| {
            // SAFETY: the context is open, its turn is ours, and the pointers
            // are good for the call
            unsafe { binding(ctx, &raw mut locked, &raw mut bound) }
        })?;
        succeeded(symbol.name, code)?;
        Ok((locked != 0, bound != 0))
    }

    /// In volts.
    pub(super) fn battery(&self) -> Result<f32, Failure> {
        self.measure(&self.symbols().battery)
    }

    /// In degrees Celsius.
    pub(super) fn temperature(&self) -> Result<f32, Failure> {
        self.measure(&self.symbols().temperature)
    }

    /// The chip's clock, in seconds since 1970.
    pub(super) fn time(&self) -> Result<u32, Failure> {
        let symbol = &self.symbols().time;
        let time = symbol.get()?;
        let mut seconds = 0;
        let code = self.enter(|ctx| {
            // SAFETY: the context is open, its turn is ours, and the pointer is
            // good for the call. With true it would wait for the next second
            unsafe { time(ctx, &raw mut seconds, false) }
        })?;
        succeeded(symbol.name, code)?;
        Ok(seconds)
    }

    /// For each perimeter circuit, when it was found broken, in seconds since
    /// 1970, or 0.
    pub(super) fn perimeter(&self) -> Result<Vec<u32>, Failure> {
        let symbol = &self.symbols().perimeter;
        let perimeter = symbol.get()?;
        let output = self.output(symbol.name, |ctx, out, len| {
            // SAFETY: see `output`
            unsafe { perimeter(ctx, out, len) }
        })?;
        Ok(output.succeeded()?.slice(MAX_CIRCUITS)?.to_vec())
    }

    fn measure(
        &self,
        symbol: &Symbol<unsafe extern "C-unwind" fn(Ctx, *mut f32) -> c_int>,
    ) -> Result<f32, Failure> {
        let measure = symbol.get()?;
        let mut value = f32::NAN;
        let code = self.enter(|ctx| {
            // SAFETY: the context is open, its turn is ours, and the pointer is
            // good for the call
            unsafe { measure(ctx, &raw mut value) }
        })?;
        succeeded(symbol.name, code)?;
        if value.is_finite() {
            Ok(value)
        } else {
            Err(Failure::Answer {
                function: symbol.name,
                code,
                problem: "success, but no number",
            })
        }
    }

    /// A C string that the library allocates.
    fn text(
        &self,
        symbol: &Symbol<unsafe extern "C-unwind" fn(Ctx, Bytes) -> c_int>,
    ) -> Result<String, Failure> {
        let text = symbol.get()?;
        let mut output = self.output(symbol.name, |ctx, out, _| {
            // SAFETY: see `output`
            unsafe { text(ctx, out) }
        })?;
        let room = output.succeeded()?.block.room().min(MAX_TEXT);
        // SAFETY: the block has this room (none, if it is NULL)
        let len = unsafe { libc::strnlen(output.block.0.cast(), room) };
        // no room is left for the end of one that fills its block
        output.len = c_int::try_from(len).unwrap_or(c_int::MAX);
        let bytes = output.slice(room.saturating_sub(1))?;
        let text = std::str::from_utf8(bytes).map(str::to_owned);
        text.map_err(|_| Failure::Answer {
            function: symbol.name,
            code: output.code,
            problem: "it put out no text",
        })
    }

    fn symbols(&self) -> &'static Symbols {
        &self.context.library.symbols
    }

    /// Has `call` made with the open context, when it is its turn.
    fn enter(&self, call: impl FnOnce(Ctx) -> c_int) -> Result<c_int, Failure> {
        let context = &self.context;
        let _turn = context
            .library
            .chip
            .enter(self.operation, context.patience)
            .map_err(Failure::Turn)?;
        Ok(call(context.raw))
    }

    /// [`enter`](Self::enter) for a function that puts out a block and its
    /// length.
    ///
    /// `call` gets an open context whose turn it is, the address of a null
    /// pointer and that of a zero, both good until it returns. It must write
    /// to the first what `malloc` gave and nobody else has, or leave it: as
    /// the vendor's functions do.
    fn output<T: Copy>(
        &self,
        function: &'static str,
        call: impl FnOnce(Ctx, *mut *mut T, &mut c_int) -> c_int,
    ) -> Result<Output<T>, Failure> {
        let mut block = Block(ptr::null_mut());
        let mut len = 0;
        let code = self.enter(|ctx| call(ctx, &raw mut block.0, &mut len))?;
        Ok(Output {
            function,
            code,
            block,
            len,
        })
    }
}

/// What a function gave back.
struct Output<T: Copy> {
    function: &'static str,
    code: c_int,
    block: Block<T>,
    /// How many `T` the library says it put out.
    len: c_int,
}

impl<T: Copy> Output<T> {
    fn succeeded(&self) -> Result<&Self, Failure> {
        succeeded(self.function, self.code).map(|()| self)
    }

    /// What was put out, if its length can be true and is at most `max`.
    fn slice(&self, max: usize) -> Result<&[T], Failure> {
        let start = self.block.0;
        if start.is_null() {
            return Err(no_output(self.function, self.code));
        }
        let len = usize::try_from(self.len)
            .ok()
            .filter(|&len| len <= max.min(self.block.room()))
            .ok_or(wrong_length(self.function, self.code))?;
        // SAFETY: the allocator says that the block has room for `len` of `T`,
        // `malloc` aligns for every C type, the library says that it wrote
        // them, all bit patterns are a `T` (`u8`, `u32` or `c_int`), and
        // nothing changes or frees the block while `self` is borrowed
        Ok(unsafe { slice::from_raw_parts(start, len) })
    }

    /// The same, at least one.
    fn filled(&self, max: usize) -> Result<&[T], Failure> {
        let items = self.slice(max)?;
        if items.is_empty() {
            return Err(wrong_length(self.function, self.code));
        }
        Ok(items)
    }
}

impl Output<u8> {
    /// Exactly `N` bytes.
    fn array<const N: usize>(&self) -> Result<[u8; N], Failure> {
        let bytes = self.succeeded()?.slice(usize::MAX)?;
        bytes
            .try_into()
            .map_err(|_| wrong_length(self.function, self.code))
    }

    /// 1 to `max` bytes, in memory that forgets.
    fn secret(&self, max: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
        Ok(Zeroizing::new(self.succeeded()?.filled(max)?.to_vec()))
    }
}

/// Memory that the library allocated for its caller, or NULL. It is zeroed,
/// since it may hold a secret, and freed in any case.
struct Block<T>(*mut T);

impl<T> Block<T> {
    /// How many `T` it has room for.
    fn room(&self) -> usize {
        // SAFETY: it is NULL, which has no room, or came from `malloc`
        let bytes = unsafe { room(self.0.cast()) };
        bytes / size_of::<T>()
    }

    fn wipe(&mut self) {
        if self.0.is_null() {
            return;
        }
        let content = self.0.cast::<MaybeUninit<T>>();
        // SAFETY: the allocator says that there is so much room, nobody else
        // has it, and it need not have been written to
        unsafe { slice::from_raw_parts_mut(content, self.room()) }.zeroize();
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: it is NULL, or came from `malloc`, and nobody has it after this
        unsafe { libc::free(self.0.cast()) };
    }
}

#[cfg(target_vendor = "apple")]
use libc::malloc_size as room;
#[cfg(not(target_vendor = "apple"))]
use libc::malloc_usable_size as room;

fn succeeded(function: &'static str, code: c_int) -> Result<(), Failure> {
    if code < 0 {
        return Err(Failure::Code { function, code });
    }
    Ok(())
}

fn no_output(function: &'static str, code: c_int) -> Failure {
    Failure::Answer {
        function,
        code,
        problem: "success, but no output",
    }
}

fn wrong_length(function: &'static str, code: c_int) -> Failure {
    Failure::Answer {
        function,
        code,
        problem: "an output of the wrong length",
    }
}

/// A slot as the library takes it. Numbers far beyond the last one have crashed
/// the vendor's daemon.
fn checked(function: &'static str, slot: u16) -> Result<c_int, Failure> {
    if slot > MAX_SLOT {
        let problem = "no slot has this number";
        return Err(Failure::Argument { function, problem });
    }
    Ok(slot.into())
}

/// A slot as the library gives it.
fn slot(number: c_int) -> Option<u16> {
    u16::try_from(number).ok().filter(|&slot| slot <= MAX_SLOT)
}

/// A length as the library takes it: it is at least 1.
fn length(function: &'static str, len: usize) -> Result<c_int, Failure> {
    c_int::try_from(len)
        .ok()
        .filter(|&len| len > 0)
        .ok_or(Failure::Argument {
            function,
            problem: "no such length is possible",
        })
}

/// `ZK_EC_KEY_TYPE`'s first.
const NISTP256: c_int = 0;

/// The vendor's devices have two perimeter circuits.
const MAX_CIRCUITS: usize = 64;

const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use zk_hsm_sim::{Device, Fault, Model, Rule};

    use super::*;
    use crate::fault::PATIENCE;

    /// Closing would hang, so a thread that gets past it hasn't closed.
    #[test]
    fn nothing_is_closed_beside_a_call_that_is_stuck() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::create(directory.path(), Model::Zymkey4i).unwrap();
        let path = crate::library::trusted(&device.module_path(), "").unwrap();
        let library = Library::load(&path, "", PATIENCE).unwrap();
        let (opened, is_open) = mpsc::channel();
        let (close, may_close) = mpsc::channel::<()>();
        let (closed, is_closed) = mpsc::channel();
        let thread = thread::spawn(move || {
            let context = Context::open(library, Operation::Open, Duration::ZERO).unwrap();
            opened.send(()).unwrap();
            may_close.recv().unwrap();
            drop(context);
            closed.send(()).unwrap();
        });
        is_open.recv_timeout(PATIENCE).unwrap();
        let stuck = library.chip.enter(Operation::Sign, PATIENCE).unwrap();
        let hang = Rule::new("zkClose", Fault::Hang);
        device.set_faults(&hang.into()).unwrap();

        close.send(()).unwrap();
        is_closed.recv_timeout(PATIENCE).unwrap();

        thread.join().unwrap();
        drop(stuck);
    }

    #[test]
    fn a_library_is_loaded_once_whatever_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::create(directory.path(), Model::Zymkey4i).unwrap();
        let load = |path: &Path| {
            let path = crate::library::trusted(path, "").unwrap();
            Library::load(&path, "", PATIENCE).unwrap()
        };
        let first = load(&device.module_path());
        assert!(ptr::eq(first, load(&device.module_path())));

        let [symbolic, hard] = ["symbolic.so", "hard.so"].map(|name| directory.path().join(name));
        std::os::unix::fs::symlink(device.module_path(), &symbolic).unwrap();
        std::fs::hard_link(device.module_path(), &hard).unwrap();
        for name in [symbolic, hard] {
            assert!(ptr::eq(first, load(&name)), "{}", name.display());
        }

        // a copy is another one
        let other = tempfile::tempdir().unwrap();
        let other = Device::create(other.path(), Model::Zymkey4i).unwrap();
        assert!(!ptr::eq(first, load(&other.module_path())));
    }

    #[test]
    fn a_block_is_zeroed_as_far_as_it_goes() {
        for len in [1, 24, 100, 4096] {
            // SAFETY: it takes any size
            let start: *mut u8 = unsafe { libc::malloc(len) }.cast();
            // the optimizer knows how much `malloc` was asked for, and must not here
            let start = std::hint::black_box(start);
            assert!(!start.is_null());
            let mut block = Block(start);
            let room = block.room();
            assert!(room >= len);
            // SAFETY: the allocator says that there is so much room
            unsafe { start.write_bytes(0xaa, room) };
            block.wipe();
            // SAFETY: the same, all of it written to
            let content = unsafe { slice::from_raw_parts(start, room) };
            assert!(content.iter().all(|&byte| byte == 0));
        }
        let mut none = Block::<u8>(ptr::null_mut());
        none.wipe();
        assert_eq!(none.room(), 0);
    }
}
