//! The simulator as a C program has it: loaded, and called by pointers.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

use libloading::Library;
use p256::ecdsa::VerifyingKey;
use tempfile::TempDir;
use zk_hsm_sim::{Device, Settings};

/// A negative errno.
pub(crate) type Code = c_int;
pub(crate) type Context = *mut c_void;
pub(crate) type Answer<T> = Result<T, Code>;

pub(crate) const EPERM: Code = -1;
pub(crate) const ENOENT: Code = -2;
pub(crate) const EIO: Code = -5;
pub(crate) const ENODEV: Code = -19;
pub(crate) const EINVAL: Code = -22;
pub(crate) const EFBIG: Code = -27;
pub(crate) const ENOSYS: Code = -38;
pub(crate) const EBADMSG: Code = -74;
pub(crate) const ETIMEDOUT: Code = -110;

/// A device in a directory that ends with the test.
pub(crate) struct Room {
    pub(crate) dir: TempDir,
    pub(crate) device: Device,
}

pub(crate) fn room(settings: impl Into<Settings>) -> Room {
    let dir = TempDir::new().unwrap();
    let device = Device::create(dir.path().join("device"), settings).unwrap();
    Room { dir, device }
}

impl Room {
    pub(crate) fn load(&self) -> Module {
        Module::load(&self.device.module_path())
    }

    pub(crate) fn chip(&self) -> Chip {
        self.load().open().unwrap()
    }
}

/// The loaded library. It stays loaded, as the vendor's does in zk-hsm.
#[derive(Clone, Copy)]
pub(crate) struct Module(&'static Library);

impl Module {
    pub(crate) fn load(path: &Path) -> Self {
        // SAFETY: the simulator has no initialisers but Rust's own.
        let library = unsafe { Library::new(path) }.unwrap();
        Self(Box::leak(Box::new(library)))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        // SAFETY: nothing is called.
        unsafe { self.0.get::<*const c_void>(name) }.is_ok()
    }

    /// A function, which is called by the prototype that `F` is.
    pub(crate) fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the test gives the type of the vendor's header.
        *unsafe { self.0.get::<F>(name) }.unwrap()
    }

    pub(crate) fn version(&self) -> String {
        let version = self.function::<extern "C" fn() -> *const c_char>("zkSimulatorVersion");
        // SAFETY: a static string.
        unsafe { CStr::from_ptr(version()) }
            .to_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) fn open(&self) -> Answer<Chip> {
        let open = self.function::<extern "C" fn(*mut Context) -> c_int>("zkOpen");
        let mut context = ptr::null_mut();
        sign_of(open(&raw mut context))?;
        assert!(!context.is_null());
        Ok(Chip {
            module: *self,
            context: context.addr(),
        })
    }
}

/// A context. The functions are safe to call with what these methods give them.
#[derive(Clone, Copy)]
pub(crate) struct Chip {
    pub(crate) module: Module,
    context: usize,
}

/// A negative one is an error.
pub(crate) fn sign_of(code: c_int) -> Answer<c_int> {
    if code < 0 { Err(code) } else { Ok(code) }
}

/// A buffer that the library gave, freed as the vendor's callers free it. None
/// for NULL.
pub(crate) fn take(pointer: *mut u8, n: usize) -> Option<Vec<u8>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the library says that there are so many bytes, which are the
    // caller's to free, and malloc's.
    unsafe {
        assert!(libc::malloc_usable_size(pointer.cast()) >= n);
        let bytes = std::slice::from_raw_parts(pointer, n).to_vec();
        libc::free(pointer.cast());
        Some(bytes)
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

type Out = *mut *mut u8;
type Size = *mut c_int;

impl Chip {
    pub(crate) fn context(self) -> Context {
        ptr::without_provenance_mut(self.context)
    }

    /// Whatever puts a buffer and its size out.
    fn buffer(self, call: impl FnOnce(Context, Out, Size) -> c_int) -> Answer<Option<Vec<u8>>> {
        self.buffer_and_code(call).map(|(buffer, _)| buffer)
    }

    fn buffer_and_code(
        self,
        call: impl FnOnce(Context, Out, Size) -> c_int,
    ) -> Answer<(Option<Vec<u8>>, c_int)> {
        let (mut buffer, mut size) = (ptr::null_mut(), 0);
        let code = call(self.context(), &raw mut buffer, &raw mut size);
        let taken = take(buffer, size.try_into().unwrap());
        if code < 0 {
            assert!(taken.is_none() && size == 0, "an error leaves all alone");
        }
        Ok((taken, sign_of(code)?))
    }

    pub(crate) fn close(self) -> Answer<c_int> {
        self.plain("zkClose")
    }

    /// A function of the context alone.
    pub(crate) fn plain(self, name: &str) -> Answer<c_int> {
        let function = self
            .module
            .function::<extern "C" fn(Context) -> c_int>(name);
        sign_of(function(self.context()))
    }

    /// A function of one number.
    pub(crate) fn number(self, name: &str, n: c_int) -> Answer<c_int> {
        type F = extern "C" fn(Context, c_int) -> c_int;
        sign_of(self.module.function::<F>(name)(self.context(), n))
    }

    /// A signature that is there.
    pub(crate) fn sign(self, digest: &[u8; 32], slot: c_int) -> Answer<Vec<u8>> {
        self.try_sign(digest, slot).map(Option::unwrap)
    }

    pub(crate) fn try_sign(self, digest: &[u8; 32], slot: c_int) -> Answer<Option<Vec<u8>>> {
        type F = extern "C" fn(Context, *const u8, c_int, Out, Size) -> c_int;
        let sign = self.module.function::<F>("zkGenECDSASigFromDigest");
        self.buffer(|context, out, size| sign(context, digest.as_ptr(), slot, out, size))
    }

    pub(crate) fn sign_recoverable(self, digest: &[u8; 32], slot: c_int) -> Answer<(Vec<u8>, u8)> {
        type F = extern "C" fn(Context, *const u8, c_int, Out, Size, *mut u8) -> c_int;
        let sign = self
            .module
            .function::<F>("zkGenECDSASigFromDigestWithRecID");
        let mut id = 0xff;
        let signature = self.buffer(|context, out, size| {
            sign(context, digest.as_ptr(), slot, out, size, &raw mut id)
        })?;
        Ok((signature.unwrap(), id))
    }

    pub(crate) fn verify(self, digest: &[u8; 32], slot: c_int, signature: &[u8]) -> Answer<c_int> {
        self.verify_by("zkVerifyECDSASigFromDigest", digest, slot, signature)
    }

    pub(crate) fn verify_foreign(
        self,
        digest: &[u8; 32],
        slot: c_int,
        signature: &[u8],
    ) -> Answer<c_int> {
        let name = "zkVerifyECDSASigFromDigestWithForeignKeySlot";
        self.verify_by(name, digest, slot, signature)
    }

    fn verify_by(
        self,
        name: &str,
        digest: &[u8; 32],
        slot: c_int,
        signature: &[u8],
    ) -> Answer<c_int> {
        type F = extern "C" fn(Context, *const u8, c_int, *const u8, c_int) -> c_int;
        let (at, n) = (signature.as_ptr(), signature.len().try_into().unwrap());
        let verify = self.module.function::<F>(name);
        sign_of(verify(self.context(), digest.as_ptr(), slot, at, n))
    }

    /// X and Y.
    pub(crate) fn public_key(self, slot: c_int) -> Answer<Vec<u8>> {
        type F = extern "C" fn(Context, Out, Size, c_int) -> c_int;
        let function = self.module.function::<F>("zkGetECDSAPubKey");
        self.buffer(|context, out, size| function(context, out, size, slot))
            .map(Option::unwrap)
    }

    pub(crate) fn export_public_key(self, slot: c_int, foreign: bool) -> Answer<Vec<u8>> {
        type F = extern "C" fn(Context, Out, Size, c_int, bool) -> c_int;
        let function = self.module.function::<F>("zkExportPubKey");
        self.buffer(|context, out, size| function(context, out, size, slot, foreign))
            .map(Option::unwrap)
    }

    pub(crate) fn verifying_key(self, slot: c_int) -> VerifyingKey {
        verifying_key(&self.public_key(slot).unwrap())
    }

    pub(crate) fn save_public_key(self, path: &Path, slot: c_int) -> Answer<c_int> {
        type F = extern "C" fn(Context, *const c_char, c_int) -> c_int;
        let function = self.module.function::<F>("zkSaveECDSAPubKey2File");
        sign_of(function(self.context(), c_path(path).as_ptr(), slot))
    }

    pub(crate) fn export_public_key_to(
        self,
        path: &Path,
        slot: c_int,
        foreign: bool,
    ) -> Answer<c_int> {
        type F = extern "C" fn(Context, *const c_char, c_int, bool) -> c_int;
        let function = self.module.function::<F>("zkExportPubKey2File");
        let path = c_path(path);
        sign_of(function(self.context(), path.as_ptr(), slot, foreign))
    }

    pub(crate) fn random(self, n: c_int) -> Answer<Option<Vec<u8>>> {
        type F = extern "C" fn(Context, Out, c_int) -> c_int;
        let mut buffer = ptr::null_mut();
        let function = self.module.function::<F>("zkGetRandBytes");
        let code = function(self.context(), &raw mut buffer, n);
        sign_of(code).map(|_| take(buffer, n.try_into().unwrap()))
    }

    pub(crate) fn random_file(self, path: &Path, n: c_int) -> Answer<c_int> {
        type F = extern "C" fn(Context, *const c_char, c_int) -> c_int;
        let function = self.module.function::<F>("zkCreateRandDataFile");
        sign_of(function(self.context(), c_path(path).as_ptr(), n))
    }

    pub(crate) fn lock(self, data: &[u8], shared: bool) -> Vec<u8> {
        self.b2b("zkLockDataB2B", data, shared).unwrap().0.unwrap()
    }

    /// With the return code.
    pub(crate) fn unlock(self, data: &[u8], shared: bool) -> Answer<(Option<Vec<u8>>, c_int)> {
        self.b2b("zkUnlockDataB2B", data, shared)
    }

    pub(crate) fn b2b(
        self,
        name: &str,
        data: &[u8],
        shared: bool,
    ) -> Answer<(Option<Vec<u8>>, c_int)> {
        type F = extern "C" fn(Context, *const u8, c_int, Out, Size, bool) -> c_int;
        let (at, n) = (data.as_ptr(), data.len().try_into().unwrap());
        let function = self.module.function::<F>(name);
        self.buffer_and_code(|context, out, size| function(context, at, n, out, size, shared))
    }

    pub(crate) fn b2f(self, name: &str, data: &[u8], to: &Path, shared: bool) -> Answer<c_int> {
        type F = extern "C" fn(Context, *const u8, c_int, *const c_char, bool) -> c_int;
        let (at, n) = (data.as_ptr(), data.len().try_into().unwrap());
        let function = self.module.function::<F>(name);
        sign_of(function(self.context(), at, n, c_path(to).as_ptr(), shared))
    }

    pub(crate) fn f2b(
        self,
        name: &str,
        from: &Path,
        shared: bool,
    ) -> Answer<(Option<Vec<u8>>, c_int)> {
        type F = extern "C" fn(Context, *const c_char, Out, Size, bool) -> c_int;
        let (function, from) = (self.module.function::<F>(name), c_path(from));
        self.buffer_and_code(|context, out, size| {
            function(context, from.as_ptr(), out, size, shared)
        })
    }

    pub(crate) fn f2f(self, name: &str, from: &Path, to: &Path, shared: bool) -> Answer<c_int> {
        type F = extern "C" fn(Context, *const c_char, *const c_char, bool) -> c_int;
        let (from, to) = (c_path(from), c_path(to));
        let function = self.module.function::<F>(name);
        sign_of(function(self.context(), from.as_ptr(), to.as_ptr(), shared))
    }

    pub(crate) fn remove_key(self, slot: c_int, foreign: bool) -> Answer<c_int> {
        type F = extern "C" fn(Context, c_int, bool) -> c_int;
        let function = self.module.function::<F>("zkRemoveKey");
        sign_of(function(self.context(), slot, foreign))
    }

    pub(crate) fn store_foreign(self, curve: c_int, key: &[u8]) -> Answer<c_int> {
        type F = extern "C" fn(Context, c_int, *const u8, c_int) -> c_int;
        let function = self.module.function::<F>("zkStoreForeignPubKey");
        let n = key.len().try_into().unwrap();
        sign_of(function(self.context(), curve, key.as_ptr(), n))
    }

    /// The pool's size, and the slots in use.
    pub(crate) fn slots(self, foreign: bool) -> Answer<(c_int, Vec<c_int>)> {
        type F = extern "C" fn(Context, bool, Size, *mut *mut c_int, Size) -> c_int;
        let function = self.module.function::<F>("zkGetAllocSlotsList");
        let (mut pool, mut list, mut n) = (0, ptr::null_mut(), 0);
        let context = self.context();
        sign_of(function(
            context,
            foreign,
            &raw mut pool,
            &raw mut list,
            &raw mut n,
        ))?;
        Ok((pool, integers(list.cast(), n, c_int::from_ne_bytes)))
    }

    pub(crate) fn perimeter(self) -> Answer<Vec<u32>> {
        type F = extern "C" fn(Context, *mut *mut u32, Size) -> c_int;
        let function = self.module.function::<F>("zkGetPerimeterDetectInfo");
        let (mut list, mut n) = (ptr::null_mut(), 0);
        sign_of(function(self.context(), &raw mut list, &raw mut n))?;
        Ok(integers(list.cast(), n, u32::from_ne_bytes))
    }

    pub(crate) fn perimeter_action(self, channel: c_int, action: u32) -> Answer<c_int> {
        type F = extern "C" fn(Context, c_int, u32) -> c_int;
        let function = self.module.function::<F>("zkSetPerimeterEventAction");
        sign_of(function(self.context(), channel, action))
    }

    pub(crate) fn wait(self, name: &str, milliseconds: c_uint) -> Answer<c_int> {
        type F = extern "C" fn(Context, c_uint) -> c_int;
        let function = self.module.function::<F>(name);
        sign_of(function(self.context(), milliseconds))
    }

    pub(crate) fn text(self, name: &str) -> Answer<Option<String>> {
        type F = extern "C" fn(Context, *mut *mut c_char) -> c_int;
        let mut text = ptr::null_mut();
        sign_of(self.module.function::<F>(name)(
            self.context(),
            &raw mut text,
        ))?;
        if text.is_null() {
            return Ok(None);
        }
        // SAFETY: a string that ends with NUL.
        let n = unsafe { CStr::from_ptr(text) }.count_bytes();
        Ok(take(text.cast(), n).map(|bytes| String::from_utf8(bytes).unwrap()))
    }

    pub(crate) fn float(self, name: &str) -> Answer<f32> {
        type F = extern "C" fn(Context, *mut f32) -> c_int;
        let mut value = f32::NAN;
        sign_of(self.module.function::<F>(name)(
            self.context(),
            &raw mut value,
        ))?;
        Ok(value)
    }

    pub(crate) fn binding(self) -> Answer<(bool, bool)> {
        type F = extern "C" fn(Context, *mut bool, *mut bool) -> c_int;
        let function = self.module.function::<F>("zkGetCurrentBindingInfo");
        let (mut locked, mut bound) = (false, false);
        sign_of(function(self.context(), &raw mut locked, &raw mut bound))?;
        Ok((locked, bound))
    }

    pub(crate) fn time(self, precise: bool) -> Answer<u32> {
        type F = extern "C" fn(Context, *mut u32, bool) -> c_int;
        let mut seconds = 0;
        let function = self.module.function::<F>("zkGetTime");
        sign_of(function(self.context(), &raw mut seconds, precise))?;
        Ok(seconds)
    }
}

fn integers<T>(list: *mut u8, n: c_int, of_bytes: impl Fn([u8; 4]) -> T) -> Vec<T> {
    let bytes = take(list, usize::try_from(n).unwrap() * 4).unwrap();
    let items = bytes.chunks_exact(4);
    items
        .map(|item| of_bytes(item.try_into().unwrap()))
        .collect()
}

pub(crate) fn verifying_key(public: &[u8]) -> VerifyingKey {
    assert_eq!(public.len(), 64);
    VerifyingKey::from_sec1_bytes(&[&[4], public].concat()).unwrap()
}
