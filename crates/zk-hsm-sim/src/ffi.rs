//! The vendor's C functions, and the only unsafe code.
//!
//! Prototypes are those of the vendor's `zk_app_utils.h`, where a context is a
//! `void *` and everything returns an `int`. What a caller of C functions promises
//! is taken for granted: pointers are NULL or lead to what the prototype says,
//! and live as long as the call. All else is checked.
//!
//! Pointers to what is of a known size are references here, or `None` for NULL:
//! Rust guarantees that layout. A `bool` is one byte of which only 0 is false.

#![allow(unsafe_code, non_snake_case)]

use std::ffi::{CStr, OsStr, c_char, c_double, c_float, c_int, c_uint, c_void};
use std::mem::{MaybeUninit, size_of};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::chip::{self, Chip, Code, Session};
use crate::faults::Effects;

type Context = *mut c_void;
/// Where a result goes.
type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;
type Digest<'a> = Option<&'a [u8; 32]>;

/// What a simulated device says of itself; no library of the vendor's has this
/// function. The string is static, UTF-8, and ends with NUL.
#[unsafe(no_mangle)]
extern "C" fn zkSimulatorVersion() -> *const c_char {
    concat!("zk-hsm-sim ", env!("CARGO_PKG_VERSION"), "\0")
        .as_ptr()
        .cast()
}

#[unsafe(no_mangle)]
extern "C" fn zkOpen(context: Out<'_, Context>) -> c_int {
    answer(|| {
        let context = context.ok_or(Errno::INVAL)?;
        let handle = Chip::open(own_file())?;
        context.write(std::ptr::without_provenance_mut(handle));
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkClose(context: Context) -> c_int {
    answer(|| Chip::close(context.addr()).map(|()| 0))
}

#[unsafe(no_mangle)]
extern "C" fn zkLEDOn(context: Context) -> c_int {
    with(context, "zkLEDOn", |_| Ok(0))
}

#[unsafe(no_mangle)]
extern "C" fn zkLEDOff(context: Context) -> c_int {
    with(context, "zkLEDOff", |_| Ok(0))
}

#[unsafe(no_mangle)]
extern "C" fn zkLEDFlash(context: Context, _on: c_uint, _off: c_uint, _times: c_uint) -> c_int {
    with(context, "zkLEDFlash", |_| Ok(0))
}

#[unsafe(no_mangle)]
extern "C" fn zkGetRandBytes(context: Context, bytes: Out<'_, *mut u8>, n: c_int) -> c_int {
    with(context, "zkGetRandBytes", |chip| {
        let out = bytes.ok_or(Errno::INVAL)?;
        let random = chip.random(n)?;
        // With no length to return, another one than asked for can't be told.
        let effects = Effects {
            length: None,
            ..chip.effects
        };
        give(effects, &random, out, None)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkCreateRandDataFile(context: Context, path: *const c_char, n: c_int) -> c_int {
    with(context, "zkCreateRandDataFile", |chip| {
        let path = file(path)?;
        chip::write(path, &chip.random(n)?)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkLockDataF2F(
    context: Context,
    from: *const c_char,
    to: *const c_char,
    shared: u8,
) -> c_int {
    with(context, "zkLockDataF2F", |chip| {
        let (from, to) = (file(from)?, file(to)?);
        chip::write(to, &chip.lock(&chip::read(from)?, shared != 0)?)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkLockDataB2F(
    context: Context,
    from: *const u8,
    n: c_int,
    to: *const c_char,
    shared: u8,
) -> c_int {
    with(context, "zkLockDataB2F", |chip| {
        let (from, to) = (bytes(from, n)?, file(to)?);
        chip::write(to, &chip.lock(from, shared != 0)?)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkLockDataF2B(
    context: Context,
    from: *const c_char,
    to: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    shared: u8,
) -> c_int {
    with(context, "zkLockDataF2B", |chip| {
        let (to, size) = both(to, size)?;
        let locked = chip.lock(&chip::read(file(from)?)?, shared != 0)?;
        give(chip.effects, &locked, to, Some(size))
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkLockDataB2B(
    context: Context,
    from: *const u8,
    n: c_int,
    to: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    shared: u8,
) -> c_int {
    with(context, "zkLockDataB2B", |chip| {
        let (to, size) = both(to, size)?;
        let locked = chip.lock(bytes(from, n)?, shared != 0)?;
        give(chip.effects, &locked, to, Some(size))
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkUnlockDataF2F(
    context: Context,
    from: *const c_char,
    to: *const c_char,
    shared: u8,
) -> c_int {
    with(context, "zkUnlockDataF2F", |chip| {
        let (from, to) = (file(from)?, file(to)?);
        let plain = chip.unlock(&chip::read(from)?, shared != 0)?;
        chip::write(to, &plain.ok_or(Errno::BADMSG)?)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkUnlockDataB2F(
    context: Context,
    from: *const u8,
    n: c_int,
    to: *const c_char,
    shared: u8,
) -> c_int {
    with(context, "zkUnlockDataB2F", |chip| {
        let (from, to) = (bytes(from, n)?, file(to)?);
        let plain = chip.unlock(from, shared != 0)?;
        chip::write(to, &plain.ok_or(Errno::BADMSG)?)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkUnlockDataF2B(
    context: Context,
    from: *const c_char,
    to: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    shared: u8,
) -> c_int {
    with(context, "zkUnlockDataF2B", |chip| {
        let (to, size) = both(to, size)?;
        let plain = chip.unlock(&chip::read(file(from)?)?, shared != 0)?;
        give(chip.effects, &plain.ok_or(Errno::BADMSG)?, to, Some(size))
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkUnlockDataB2B(
    context: Context,
    from: *const u8,
    n: c_int,
    to: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    shared: u8,
) -> c_int {
    with(context, "zkUnlockDataB2B", |chip| {
        let (to, size) = both(to, size)?;
        let (success, failure) = chip.unlock_codes();
        let Some(plain) = chip.unlock(bytes(from, n)?, shared != 0)? else {
            return Ok(failure);
        };
        give(chip.effects, &plain, to, Some(size))?;
        Ok(success)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGenECDSASigFromDigest(
    context: Context,
    digest: Digest<'_>,
    slot: c_int,
    signature: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
) -> c_int {
    with(context, "zkGenECDSASigFromDigest", |chip| {
        let (signature, size) = both(signature, size)?;
        let signed = chip.sign(digest.ok_or(Errno::INVAL)?, slot)?;
        give(chip.effects, &signed.signature, signature, Some(size))
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGenECDSASigFromDigestWithRecID(
    context: Context,
    digest: Digest<'_>,
    slot: c_int,
    signature: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    recovery_id: Out<'_, u8>,
) -> c_int {
    with(context, "zkGenECDSASigFromDigestWithRecID", |chip| {
        let (signature, size) = both(signature, size)?;
        let recovery_id = recovery_id.ok_or(Errno::INVAL)?;
        let signed = chip.sign(digest.ok_or(Errno::INVAL)?, slot)?;
        give(chip.effects, &signed.signature, signature, Some(size))?;
        recovery_id.write(signed.recovery_id);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkVerifyECDSASigFromDigest(
    context: Context,
    digest: Digest<'_>,
    slot: c_int,
    signature: *const u8,
    n: c_int,
) -> c_int {
    with(context, "zkVerifyECDSASigFromDigest", |chip| {
        let (digest, signature) = (digest.ok_or(Errno::INVAL)?, bytes(signature, n)?);
        Ok(chip.verify(digest, slot, false, signature)?.into())
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkVerifyECDSASigFromDigestWithForeignKeySlot(
    context: Context,
    digest: Digest<'_>,
    slot: c_int,
    signature: *const u8,
    n: c_int,
) -> c_int {
    let name = "zkVerifyECDSASigFromDigestWithForeignKeySlot";
    with(context, name, |chip| {
        let (digest, signature) = (digest.ok_or(Errno::INVAL)?, bytes(signature, n)?);
        Ok(chip.verify(digest, slot, true, signature)?.into())
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetECDSAPubKey(
    context: Context,
    key: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    slot: c_int,
) -> c_int {
    with(context, "zkGetECDSAPubKey", |chip| {
        let (key, size) = both(key, size)?;
        give(
            chip.effects,
            &chip.public_key(slot, false)?,
            key,
            Some(size),
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkExportPubKey(
    context: Context,
    key: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
    slot: c_int,
    foreign: u8,
) -> c_int {
    with(context, "zkExportPubKey", |chip| {
        let (key, size) = both(key, size)?;
        let public = chip.public_key(slot, foreign != 0)?;
        give(chip.effects, &public, key, Some(size))
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkSaveECDSAPubKey2File(context: Context, path: *const c_char, slot: c_int) -> c_int {
    with(context, "zkSaveECDSAPubKey2File", |chip| {
        chip.save_public_key(file(path)?, slot, false)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkExportPubKey2File(
    context: Context,
    path: *const c_char,
    slot: c_int,
    foreign: u8,
) -> c_int {
    with(context, "zkExportPubKey2File", |chip| {
        chip.save_public_key(file(path)?, slot, foreign != 0)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGenKeyPair(context: Context, curve: c_int) -> c_int {
    with(context, "zkGenKeyPair", |chip| chip.generate(curve))
}

#[unsafe(no_mangle)]
extern "C" fn zkRemoveKey(context: Context, slot: c_int, foreign: u8) -> c_int {
    with(context, "zkRemoveKey", |chip| {
        chip.remove(slot, foreign != 0)?;
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkStoreForeignPubKey(
    context: Context,
    curve: c_int,
    key: *const u8,
    n: c_int,
) -> c_int {
    with(context, "zkStoreForeignPubKey", |chip| {
        chip.store_foreign(curve, bytes(key, n)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkDisablePubKeyExport(context: Context, _slot: c_int, _foreign: u8) -> c_int {
    with(context, "zkDisablePubKeyExport", |chip| {
        chip.needs_large()?;
        chip.refuse("zkDisablePubKeyExport")
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetAllocSlotsList(
    context: Context,
    foreign: u8,
    most: Out<'_, c_int>,
    list: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
) -> c_int {
    with(context, "zkGetAllocSlotsList", |chip| {
        let (list, size) = both(list, size)?;
        let most = most.ok_or(Errno::INVAL)?;
        let (pool, slots) = chip.slots(foreign != 0)?;
        give_array(chip.effects, &slots, c_int::to_ne_bytes, list, size)?;
        most.write(pool);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetTime(context: Context, seconds: Out<'_, u32>, precise: u8) -> c_int {
    with(context, "zkGetTime", |chip| {
        let seconds = seconds.ok_or(Errno::INVAL)?;
        seconds.write(chip.time(precise != 0)?);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetModelNumberString(context: Context, text: Out<'_, *mut u8>) -> c_int {
    with(context, "zkGetModelNumberString", |chip| {
        give_text(chip, &chip.model_number(), text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetFirmwareVersionString(context: Context, text: Out<'_, *mut u8>) -> c_int {
    with(context, "zkGetFirmwareVersionString", |chip| {
        give_text(chip, &chip.firmware_version(), text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetSerialNumberString(context: Context, text: Out<'_, *mut u8>) -> c_int {
    with(context, "zkGetSerialNumberString", |chip| {
        give_text(chip, &chip.serial_number(), text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkLockBinding(context: Context) -> c_int {
    with(context, "zkLockBinding", |chip| {
        chip.refuse("zkLockBinding")
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetCurrentBindingInfo(
    context: Context,
    locked: Out<'_, bool>,
    bound: Out<'_, bool>,
) -> c_int {
    with(context, "zkGetCurrentBindingInfo", |chip| {
        let (locked, bound) = both(locked, bound)?;
        let binding = chip.binding()?;
        locked.write(binding.0);
        bound.write(binding.1);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetBatteryVoltage(context: Context, volts: Out<'_, c_float>) -> c_int {
    with(context, "zkGetBatteryVoltage", |chip| {
        chip.needs_large()?;
        let volts = volts.ok_or(Errno::INVAL)?;
        volts.write(f32::from(chip.millivolts()?) / 1000.0);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetCPUTemp(context: Context, celsius: Out<'_, c_float>) -> c_int {
    with(context, "zkGetCPUTemp", |chip| {
        chip.needs_large()?;
        celsius.ok_or(Errno::INVAL)?.write(41.5);
        Ok(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkWaitForTap(context: Context, milliseconds: c_uint) -> c_int {
    with(context, "zkWaitForTap", |chip| {
        chip.wait_for_tap(milliseconds).map(|()| 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkWaitForPerimeterEvent(context: Context, milliseconds: c_uint) -> c_int {
    with(context, "zkWaitForPerimeterEvent", |chip| {
        chip.wait_for_perimeter(milliseconds).map(|()| 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkSetPerimeterEventAction(context: Context, channel: c_int, action: c_uint) -> c_int {
    with(context, "zkSetPerimeterEventAction", |chip| {
        chip.perimeter_action(channel, action).map(|()| 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkGetPerimeterDetectInfo(
    context: Context,
    times: Out<'_, *mut u8>,
    size: Out<'_, c_int>,
) -> c_int {
    with(context, "zkGetPerimeterDetectInfo", |chip| {
        let (times, size) = both(times, size)?;
        let perimeter = chip.perimeter()?;
        give_array(chip.effects, &perimeter, u32::to_ne_bytes, times, size)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkClearPerimeterDetectEvents(context: Context) -> c_int {
    with(context, "zkClearPerimeterDetectEvents", |chip| {
        chip.clear_perimeter().map(|()| 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkSetI2CAddr(context: Context, address: c_int) -> c_int {
    with(context, "zkSetI2CAddr", |_| {
        if matches!(address, 0x30..=0x37 | 0x60..=0x67) {
            Ok(0)
        } else {
            Err(Errno::INVAL.into())
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn zkSetTapSensitivity(context: Context, axis: c_int, percent: c_float) -> c_int {
    with(context, "zkSetTapSensitivity", |_| {
        if (0..=3).contains(&axis) && (0.0..=100.0).contains(&percent) {
            Ok(0)
        } else {
            Err(Errno::INVAL.into())
        }
    })
}

/// The vendor's `zkAccelAxisDataType`.
#[repr(C)]
struct Axis {
    g: c_double,
    tap: c_int,
}

#[unsafe(no_mangle)]
extern "C" fn zkGetAccelerometerData(
    context: Context,
    x: Out<'_, Axis>,
    y: Out<'_, Axis>,
    z: Out<'_, Axis>,
) -> c_int {
    with(context, "zkGetAccelerometerData", |_| {
        let ((x, y), z) = (both(x, y)?, z.ok_or(Errno::INVAL)?);
        // It lies on a table.
        x.write(Axis { g: 0.0, tap: 0 });
        y.write(Axis { g: 0.0, tap: 0 });
        z.write(Axis { g: 1.0, tap: 0 });
        Ok(0)
    })
}

/// Functions of the vendor's that no simulated model has.
macro_rules! unsupported {
    ($($name:ident($($argument:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(context: Context $(, _: $argument)*) -> c_int {
            with(context, stringify!($name), |_| Err(Errno::NOSYS.into()))
        }
    )*};
}

type Text = *const c_char;
type Bytes = *const u8;
type Output = *mut c_void;

unsupported! {
    zkAddOrUpdateSupervisedBootFile(Text, c_int);
    zkAddRestoreSLIP39Mnemonic(Text, Text);
    zkAddSLIP39MemberPassword(Text, Output);
    zkCancelSLIP39Session();
    zkDoECDHAndKDF(c_int, c_int, Bytes, c_int, Bytes, c_int, Bytes, c_int, c_int, c_int, Output);
    zkDoECDHAndKDFWithIntPeerPubkey(
        c_int, c_int, c_int, u8, Bytes, c_int, Bytes, c_int, c_int, c_int, Output
    );
    zkDoRawECDH(c_int, Bytes, c_int, Output);
    zkDoRawECDHWithIntPeerPubkey(c_int, c_int, u8, Output);
    zkGenEphemeralKeyPair(c_int);
    zkGenOversightWallet(c_int, Text, Bytes, Bytes, Text, Text);
    zkGenWalletChildKey(c_int, c_uint, u8, u8, Output);
    zkGenWalletMasterSeedWithBIP39(c_int, Text, Text, Bytes, c_int, Text, Output);
    zkGenWalletMasterSeedWithSLIP39(c_int, Text, Text, Bytes, c_int, c_int, c_int, c_int, Text);
    zkGetAUXTemp(c_int, Output);
    zkGetRTCDrift(Output);
    zkGetSupervisedBootFileManifest(Output);
    zkGetWalletKeySlotFromNodeAddr(Text, Text, c_int, Output);
    zkGetWalletNodeAddrFromKeySlot(c_int, Output, Output, Output);
    zkInvalidateEphemeralKey();
    zkRemoveSupervisedBootFile(Text);
    zkRestoreWalletMasterSeedFromBIP39Mnemonic(c_int, Text, Text, Bytes, c_int, Text, Text);
    zkRestoreWalletMasterSeedFromSLIP39(c_int, Text, Text, Bytes, c_int, Text);
    zkSetBatteryVoltageAction(c_int);
    zkSetBatteryVoltageThreshold(c_float);
    zkSetCPUHighTempThreshold(c_float);
    zkSetCPULowTempThreshold(c_float);
    zkSetCPUTempAction(c_int);
    zkSetDigitalPerimeterDetectDelays(c_int, c_int);
    zkSetDigitalPerimeterDetectLPMaxBits(c_int);
    zkSetDigitalPerimeterDetectLPPeriod(c_int);
    zkSetSLIP39GroupInfo(c_int, c_int, c_int);
    zkSetSupervisedBootPolicy(c_int);
}

/// A call's return value. A defect of the simulator is an I/O error to its
/// caller, not its end.
fn answer(call: impl FnOnce() -> Result<c_int, Code>) -> c_int {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => value,
        Ok(Err(Code(code))) => code,
        Err(_) => Code::from(Errno::IO).0,
    }
}

fn with(
    context: Context,
    name: &'static str,
    work: impl FnOnce(&Session<'_>) -> Result<c_int, Code>,
) -> c_int {
    answer(|| Chip::with(context.addr(), name, work))
}

fn both<'a, 'b, T, U>(
    one: Out<'a, T>,
    other: Out<'b, U>,
) -> Result<(&'a mut MaybeUninit<T>, &'b mut MaybeUninit<U>), Code> {
    Ok((one.ok_or(Errno::INVAL)?, other.ok_or(Errno::INVAL)?))
}

/// A caller's buffer. Of no bytes it may be anywhere.
fn bytes<'a>(at: *const u8, n: c_int) -> Result<&'a [u8], Code> {
    let n = usize::try_from(n).map_err(|_| Errno::INVAL)?;
    if n == 0 {
        return Ok(&[]);
    }
    if at.is_null() {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: the C caller promises `n` readable bytes that nobody writes to
    // during the call, `n` is at most i32::MAX, and each function uses the slice
    // within its call only.
    Ok(unsafe { std::slice::from_raw_parts(at, n) })
}

/// A caller's path. It must be absolute: it is the daemon that opens files, in a
/// directory of its own.
fn file<'a>(at: *const c_char) -> Result<&'a Path, Code> {
    if at.is_null() {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: the C caller promises a string that ends with NUL and that nobody
    // writes to during the call, and each function uses it within its call only.
    let text = unsafe { CStr::from_ptr(at) };
    let path = Path::new(OsStr::from_bytes(text.to_bytes()));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Errno::INVAL.into())
    }
}

/// Puts a copy of `content` out, which the caller frees.
fn give(
    effects: Effects,
    content: &[u8],
    out: &mut MaybeUninit<*mut u8>,
    size: Out<'_, c_int>,
) -> Result<c_int, Code> {
    let length = effects.length.map_or(content.len(), usize::from);
    if let Some(size) = size {
        size.write(c_int::try_from(length).map_err(|_| Errno::OVERFLOW)?);
    }
    out.write(if effects.null {
        std::ptr::null_mut()
    } else {
        allocate(content, length)?
    });
    Ok(0)
}

/// The same for an array, whose size is the number of its elements.
fn give_array<T: Copy>(
    effects: Effects,
    content: &[T],
    to_bytes: impl Fn(T) -> [u8; 4],
    out: &mut MaybeUninit<*mut u8>,
    size: &mut MaybeUninit<c_int>,
) -> Result<c_int, Code> {
    let count = effects.length.map_or(content.len(), usize::from);
    let content: Vec<u8> = content.iter().flat_map(|item| to_bytes(*item)).collect();
    size.write(c_int::try_from(count).map_err(|_| Errno::OVERFLOW)?);
    out.write(if effects.null {
        std::ptr::null_mut()
    } else {
        allocate(&content, count * 4)?
    });
    Ok(0)
}

fn give_text(chip: &Session<'_>, text: &str, out: Out<'_, *mut u8>) -> Result<c_int, Code> {
    let out = out.ok_or(Errno::INVAL)?;
    // Without a NUL at its end a string has no length at all.
    let effects = Effects {
        length: None,
        ..chip.effects
    };
    let text = [text.as_bytes(), &[0]].concat();
    give(effects, &text, out, None)
}

/// A copy from libc's `malloc`, cut or filled up with zeros.
fn allocate(content: &[u8], length: usize) -> Result<*mut u8, Code> {
    let copied = content.len().min(length);
    // SAFETY: calloc takes any sizes, and its result is checked. The two areas
    // don't overlap, since one of them is new, and both have `copied` bytes: that
    // is no more than either's length.
    let new = unsafe {
        let new = libc::calloc(length.max(1), size_of::<u8>()).cast::<u8>();
        if !new.is_null() {
            std::ptr::copy_nonoverlapping(content.as_ptr(), new, copied);
        }
        new
    };
    if new.is_null() {
        Err(Errno::NOMEM.into())
    } else {
        Ok(new)
    }
}

/// The file that this code was loaded from. By the address of a function that isn't
/// exported, which is never another copy's.
fn own_file() -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address, and writes to `info`, which is all zeros
    // (NULL pointers) until then and therefore valid if it writes nothing. The
    // name is NULL or a string that lives as long as the library is loaded, which
    // it is while its code runs.
    let name = unsafe {
        libc::dladdr(own_file as *const c_void, info.as_mut_ptr());
        let name = info.assume_init().dli_fname;
        if name.is_null() {
            return None;
        }
        CStr::from_ptr(name).to_bytes()
    };
    Some(PathBuf::from(OsStr::from_bytes(name)))
}
