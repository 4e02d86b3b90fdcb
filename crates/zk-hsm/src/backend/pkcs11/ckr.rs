//! What PKCS#11 functions return: numbers, names, and what is to be made of
//! them.

use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, RvError};

use crate::error::{Class, Error};

/// What a return value tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// The token isn't there.
    Gone,
    /// The token or its library is in trouble.
    Broken,
    /// A session or a handle ended before its time.
    Stale,
    /// The PIN is wrong, or the token would take none.
    Pin,
    /// The library can't work in this process, or the token needs its owner.
    Stuck,
    /// What was asked for is at fault.
    Refused,
    /// The token can't do that.
    Unsupported,
}

/// Makes an error of what cryptoki says when `hsm` was to do `what`.
pub(super) fn failed(hsm: &str, what: &'static str) -> impl Fn(CryptokiError) -> Error {
    move |problem| match problem {
        CryptokiError::Pkcs11(rv, function) => error(hsm, what, function, rv),
        CryptokiError::NullFunctionPointer | CryptokiError::NotSupported => Error::Unsupported {
            hsm: hsm.into(),
            what,
            why: "the PKCS#11 library lacks a function for it",
        },
        _ => nonsense(hsm, what, "an answer that PKCS#11 doesn't know"),
    }
}

/// The error that `hsm` gives for what `function` returned when it was to do
/// `what`.
pub(super) fn error(hsm: &str, what: &'static str, function: Function, rv: RvError) -> Error {
    let hsm: Box<str> = hsm.into();
    let (code, meaning, kind) = describe(rv);
    let (class, next) = match kind {
        Kind::Pin => {
            let (problem, next) = refusal(rv);
            return Error::PinRefused { hsm, problem, next };
        }
        Kind::Unsupported => {
            let why = "its token or the PKCS#11 library has no such function or mechanism";
            return Error::Unsupported { hsm, what, why };
        }
        // whether the PIN was counted isn't known, so there is no second try
        _ if matches!(function, Function::Login) && !kind.is_known_to_precede_the_pin(rv) => (
            Class::Fatal,
            "log in once by hand (`pkcs11-tool --login --list-objects`) and see what it says",
        ),
        Kind::Gone => (
            Class::Transient,
            "check its cable, its power and its daemon",
        ),
        Kind::Broken => (
            Class::Transient,
            "if this repeats, restart the token's daemon, or plug the token in again",
        ),
        Kind::Stale => (Class::Transient, "nothing is to be done"),
        Kind::Stuck => (Class::Fatal, "ask the documentation of the PKCS#11 library"),
        Kind::Refused => (Class::Logic, "see what the token's documentation allows"),
    };
    Error::Library {
        hsm,
        function: name(function),
        code,
        meaning,
        class,
        next,
    }
}

impl Kind {
    fn is_known_to_precede_the_pin(self, rv: RvError) -> bool {
        match self {
            Self::Gone | Self::Stale => true,
            Self::Broken => matches!(
                rv,
                RvError::DeviceError | RvError::GeneralError | RvError::HostMemory
            ),
            _ => false,
        }
    }
}

/// What the token has against the PIN, and what a person should do.
fn refusal(rv: RvError) -> (&'static str, &'static str) {
    match rv {
        RvError::PinLocked => LOCKED,
        RvError::PinExpired => (
            "the PIN has expired",
            "set a new one with the vendor's tool, and put it where pin-source says",
        ),
        RvError::UserPinNotInitialized => (
            "the token has no user PIN yet",
            "set one with the vendor's tool, and put it where pin-source says",
        ),
        _ => (
            "the token refused the PIN",
            "put the right one where pin-source says; a wrong one is never tried again by itself",
        ),
    }
}

pub(super) const LOCKED: (&str, &str) = (
    "the token has locked its user PIN after too many wrong ones",
    "unlock it with the security officer's PIN and the vendor's tool",
);

/// For an answer that has no place in PKCS#11.
pub(super) fn nonsense(hsm: &str, function: &'static str, meaning: &'static str) -> Error {
    Error::Library {
        hsm: hsm.into(),
        function,
        code: 0,
        meaning,
        class: Class::Transient,
        next: "if this repeats, update the PKCS#11 library, and report this to its vendor",
    }
}

/// For a session that ended because the library was initialized anew.
pub(super) fn stale(hsm: &str) -> Error {
    // what the library would answer, did it not give the old handles to new sessions
    error(
        hsm,
        "",
        Function::GetSessionInfo,
        RvError::SessionHandleInvalid,
    )
}

/// The answer to a decryption says that the data is at fault.
pub(super) fn is_bad_data(rv: RvError) -> bool {
    /// `CKR_AEAD_DECRYPT_FAILED`, of PKCS#11 3.0
    const AEAD_DECRYPT_FAILED: i64 = 0x42;
    match rv {
        RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::SignatureInvalid
        | RvError::SignatureLenRange => true,
        RvError::UnknownErrorCode(code) => i64::try_from(code) == Ok(AEAD_DECRYPT_FAILED),
        _ => false,
    }
}

/// The answer to a decryption may mean the data or the token.
pub(super) fn is_unclear(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::GeneralError | RvError::FunctionFailed | RvError::VendorDefined(_)
    )
}

macro_rules! table {
    ($rv:expr; $($kind:ident { $($variant:ident = $code:literal $name:ident),+ $(,)? })+) => {
        match $rv {
            $($(RvError::$variant => ($code, stringify!($name), Kind::$kind),)+)+
            RvError::VendorDefined(code) => (i64::try_from(code).unwrap_or(i64::MAX), "a code of the vendor's own", Kind::Broken),
            RvError::UnknownErrorCode(code) => (i64::try_from(code).unwrap_or(i64::MAX), "an unknown code", Kind::Broken),
        }
    };
}

/// PKCS#11 3.0, section 5.1; the numbers from its header file. What never
/// answers a call of ours is among the broken.
fn describe(rv: RvError) -> (i64, &'static str, Kind) {
    table! { rv;
        Gone {
            SlotIdInvalid = 0x003 CKR_SLOT_ID_INVALID,
            DeviceRemoved = 0x032 CKR_DEVICE_REMOVED,
            TokenNotPresent = 0x0e0 CKR_TOKEN_NOT_PRESENT,
            TokenNotRecognized = 0x0e1 CKR_TOKEN_NOT_RECOGNIZED,
        }
        Broken {
            Cancel = 0x001 CKR_CANCEL,
            HostMemory = 0x002 CKR_HOST_MEMORY,
            GeneralError = 0x005 CKR_GENERAL_ERROR,
            FunctionFailed = 0x006 CKR_FUNCTION_FAILED,
            NoEvent = 0x008 CKR_NO_EVENT,
            DeviceError = 0x030 CKR_DEVICE_ERROR,
            DeviceMemory = 0x031 CKR_DEVICE_MEMORY,
            FunctionCanceled = 0x050 CKR_FUNCTION_CANCELED,
            KeyNotNeeded = 0x064 CKR_KEY_NOT_NEEDED,
            KeyChanged = 0x065 CKR_KEY_CHANGED,
            KeyNeeded = 0x066 CKR_KEY_NEEDED,
            KeyIndigestible = 0x067 CKR_KEY_INDIGESTIBLE,
            KeyNotWrappable = 0x069 CKR_KEY_NOT_WRAPPABLE,
            KeyUnextractable = 0x06a CKR_KEY_UNEXTRACTABLE,
            SessionCount = 0x0b1 CKR_SESSION_COUNT,
            SessionExists = 0x0b6 CKR_SESSION_EXISTS,
            SessionReadWriteSoExists = 0x0b8 CKR_SESSION_READ_WRITE_SO_EXISTS,
            SignatureInvalid = 0x0c0 CKR_SIGNATURE_INVALID,
            SignatureLenRange = 0x0c1 CKR_SIGNATURE_LEN_RANGE,
            UnwrappingKeyHandleInvalid = 0x0f0 CKR_UNWRAPPING_KEY_HANDLE_INVALID,
            UnwrappingKeySizeRange = 0x0f1 CKR_UNWRAPPING_KEY_SIZE_RANGE,
            UnwrappingKeyTypeInconsistent = 0x0f2 CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
            UserAlreadyLoggedIn = 0x100 CKR_USER_ALREADY_LOGGED_IN,
            UserAnotherAlreadyLoggedIn = 0x104 CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
            UserTooManyTypes = 0x105 CKR_USER_TOO_MANY_TYPES,
            WrappedKeyInvalid = 0x110 CKR_WRAPPED_KEY_INVALID,
            WrappedKeyLenRange = 0x112 CKR_WRAPPED_KEY_LEN_RANGE,
            WrappingKeyHandleInvalid = 0x113 CKR_WRAPPING_KEY_HANDLE_INVALID,
            WrappingKeySizeRange = 0x114 CKR_WRAPPING_KEY_SIZE_RANGE,
            WrappingKeyTypeInconsistent = 0x115 CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
            RandomSeedNotSupported = 0x120 CKR_RANDOM_SEED_NOT_SUPPORTED,
            BufferTooSmall = 0x150 CKR_BUFFER_TOO_SMALL,
            SavedStateInvalid = 0x160 CKR_SAVED_STATE_INVALID,
            InformationSensitive = 0x170 CKR_INFORMATION_SENSITIVE,
            StateUnsaveable = 0x180 CKR_STATE_UNSAVEABLE,
            MutexBad = 0x1a0 CKR_MUTEX_BAD,
            MutexNotLocked = 0x1a1 CKR_MUTEX_NOT_LOCKED,
            NewPinMode = 0x1b0 CKR_NEW_PIN_MODE,
            NextOtp = 0x1b1 CKR_NEXT_OTP,
            ExceededMaxIterations = 0x1b5 CKR_EXCEEDED_MAX_ITERATIONS,
            PublicKeyInvalid = 0x1b9 CKR_PUBLIC_KEY_INVALID,
        }
        Stale {
            KeyHandleInvalid = 0x060 CKR_KEY_HANDLE_INVALID,
            ObjectHandleInvalid = 0x082 CKR_OBJECT_HANDLE_INVALID,
            OperationActive = 0x090 CKR_OPERATION_ACTIVE,
            OperationNotInitialized = 0x091 CKR_OPERATION_NOT_INITIALIZED,
            SessionClosed = 0x0b0 CKR_SESSION_CLOSED,
            SessionHandleInvalid = 0x0b3 CKR_SESSION_HANDLE_INVALID,
            UserNotLoggedIn = 0x101 CKR_USER_NOT_LOGGED_IN,
            CryptokiNotInitialized = 0x190 CKR_CRYPTOKI_NOT_INITIALIZED,
            CryptokiAlreadyInitialized = 0x191 CKR_CRYPTOKI_ALREADY_INITIALIZED,
        }
        Pin {
            PinIncorrect = 0x0a0 CKR_PIN_INCORRECT,
            PinInvalid = 0x0a1 CKR_PIN_INVALID,
            PinLenRange = 0x0a2 CKR_PIN_LEN_RANGE,
            PinExpired = 0x0a3 CKR_PIN_EXPIRED,
            PinLocked = 0x0a4 CKR_PIN_LOCKED,
            UserPinNotInitialized = 0x102 CKR_USER_PIN_NOT_INITIALIZED,
            PinTooWeak = 0x1b8 CKR_PIN_TOO_WEAK,
        }
        Stuck {
            NeedToCreateThreads = 0x009 CKR_NEED_TO_CREATE_THREADS,
            CantLock = 0x00a CKR_CANT_LOCK,
            UserTypeInvalid = 0x103 CKR_USER_TYPE_INVALID,
            FipsSelfTestFailed = 0x1b6 CKR_FIPS_SELF_TEST_FAILED,
            LibraryLoadFailed = 0x1b7 CKR_LIBRARY_LOAD_FAILED,
            FunctionRejected = 0x200 CKR_FUNCTION_REJECTED,
        }
        Refused {
            ArgumentsBad = 0x007 CKR_ARGUMENTS_BAD,
            AttributeReadOnly = 0x010 CKR_ATTRIBUTE_READ_ONLY,
            AttributeSensitive = 0x011 CKR_ATTRIBUTE_SENSITIVE,
            AttributeTypeInvalid = 0x012 CKR_ATTRIBUTE_TYPE_INVALID,
            AttributeValueInvalid = 0x013 CKR_ATTRIBUTE_VALUE_INVALID,
            ActionProhibited = 0x01b CKR_ACTION_PROHIBITED,
            DataInvalid = 0x020 CKR_DATA_INVALID,
            DataLenRange = 0x021 CKR_DATA_LEN_RANGE,
            EncryptedDataInvalid = 0x040 CKR_ENCRYPTED_DATA_INVALID,
            EncryptedDataLenRange = 0x041 CKR_ENCRYPTED_DATA_LEN_RANGE,
            KeyFunctionNotPermitted = 0x068 CKR_KEY_FUNCTION_NOT_PERMITTED,
            SessionReadOnly = 0x0b5 CKR_SESSION_READ_ONLY,
            SessionReadOnlyExists = 0x0b7 CKR_SESSION_READ_ONLY_EXISTS,
            TemplateIncomplete = 0x0d0 CKR_TEMPLATE_INCOMPLETE,
            TemplateInconsistent = 0x0d1 CKR_TEMPLATE_INCONSISTENT,
            TokenWriteProtected = 0x0e2 CKR_TOKEN_WRITE_PROTECTED,
        }
        Unsupported {
            FunctionNotParallel = 0x051 CKR_FUNCTION_NOT_PARALLEL,
            FunctionNotSupported = 0x054 CKR_FUNCTION_NOT_SUPPORTED,
            KeySizeRange = 0x062 CKR_KEY_SIZE_RANGE,
            KeyTypeInconsistent = 0x063 CKR_KEY_TYPE_INCONSISTENT,
            MechanismInvalid = 0x070 CKR_MECHANISM_INVALID,
            MechanismParamInvalid = 0x071 CKR_MECHANISM_PARAM_INVALID,
            SessionParallelNotSupported = 0x0b4 CKR_SESSION_PARALLEL_NOT_SUPPORTED,
            RandomNoRng = 0x121 CKR_RANDOM_NO_RNG,
            DomainParamsInvalid = 0x130 CKR_DOMAIN_PARAMS_INVALID,
            CurveNotSupported = 0x140 CKR_CURVE_NOT_SUPPORTED,
        }
    }
}

/// The functions that are called here.
fn name(function: Function) -> &'static str {
    match function {
        Function::CloseSession => "C_CloseSession",
        Function::Decrypt => "C_Decrypt",
        Function::DecryptInit => "C_DecryptInit",
        Function::Encrypt => "C_Encrypt",
        Function::EncryptInit => "C_EncryptInit",
        Function::Finalize => "C_Finalize",
        Function::FindObjects => "C_FindObjects",
        Function::FindObjectsInit => "C_FindObjectsInit",
        Function::GenerateKey => "C_GenerateKey",
        Function::GenerateKeyPair => "C_GenerateKeyPair",
        Function::GenerateRandom => "C_GenerateRandom",
        Function::GetAttributeValue => "C_GetAttributeValue",
        Function::GetFunctionList => "C_GetFunctionList",
        Function::GetInterface => "C_GetInterface",
        Function::GetMechanismList => "C_GetMechanismList",
        Function::GetSessionInfo => "C_GetSessionInfo",
        Function::GetSlotList => "C_GetSlotList",
        Function::GetTokenInfo => "C_GetTokenInfo",
        Function::Initialize => "C_Initialize",
        Function::Login => "C_Login",
        Function::OpenSession => "C_OpenSession",
        Function::Sign => "C_Sign",
        Function::SignInit => "C_SignInit",
        _ => "a PKCS#11 function",
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::error::Rv;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_standard() {
        let mut known = 0;
        for code in 1..0x400 as std::ffi::c_ulong {
            // cryptoki has its numbers from the standard's header
            let Rv::Error(rv) = Rv::from(code) else {
                panic!("{code:#x}")
            };
            let (number, name, _) = describe(rv);
            assert_eq!(Ok(number), i64::try_from(code), "{name}");
            if !matches!(rv, RvError::UnknownErrorCode(_)) {
                assert!(name.starts_with("CKR_"), "{name}");
                let plain = name.trim_start_matches("CKR_").replace('_', "");
                assert_eq!(plain.to_lowercase(), format!("{rv:?}").to_lowercase());
                known += 1;
            }
        }
        assert_eq!(known, 93);
    }

    #[test]
    fn codes_are_sorted() {
        let class = |rv| error("hsm", "sign", Function::Sign, rv).class();
        for rv in [
            RvError::DeviceRemoved,
            RvError::TokenNotPresent,
            RvError::SessionHandleInvalid,
            RvError::SessionClosed,
            RvError::DeviceError,
            RvError::GeneralError,
            RvError::CryptokiNotInitialized,
            RvError::KeyHandleInvalid,
            RvError::ObjectHandleInvalid,
            RvError::UserNotLoggedIn,
            RvError::VendorDefined(0x8000_0001),
            RvError::UnknownErrorCode(0x300),
        ] {
            assert_eq!(class(rv), Class::Transient, "{rv:?}");
        }
        for rv in [
            RvError::PinIncorrect,
            RvError::PinLocked,
            RvError::PinExpired,
            RvError::CantLock,
        ] {
            assert_eq!(class(rv), Class::Fatal, "{rv:?}");
        }
        for rv in [RvError::MechanismInvalid, RvError::FunctionNotSupported] {
            let error = error("hsm", "sign", Function::Sign, rv);
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
    }

    #[test]
    fn a_login_that_may_have_cost_a_try_is_not_repeated() {
        let class = |rv| error("hsm", "log in", Function::Login, rv).class();
        for rv in [
            RvError::FunctionFailed,
            RvError::ArgumentsBad,
            RvError::VendorDefined(0x8000_0001),
            RvError::UnknownErrorCode(0x300),
            RvError::UserAnotherAlreadyLoggedIn,
        ] {
            assert_eq!(class(rv), Class::Fatal, "{rv:?}");
        }
        for rv in [
            RvError::DeviceRemoved,
            RvError::DeviceError,
            RvError::SessionHandleInvalid,
            RvError::CryptokiNotInitialized,
        ] {
            assert_eq!(class(rv), Class::Transient, "{rv:?}");
        }
    }
}
