//! Keys on PKCS#11 tokens (version 2.40 and later), through cryptoki.
//!
//! Tested with SoftHSM2, which keeps keys in files and is for development.
//! Zymbit has a library of its own, `libzk_pkcs11.so`: closed, not exercised
//! here. Its keys are made with `zk_pkcs11-util`, and who uses it must be in
//! the group `zk_pkcs11`.
//!
//! - One call at a time goes into a library, whatever the number of handles and
//!   tokens: [`library::Chip`](crate::library::Chip).
//! - A library looks for tokens when it is initialized, and most never again.
//!   So when a token is missing, or an opened one did no work, the library is
//!   initialized anew, as long as nobody else in this process had initialized
//!   it first. That ends all its sessions: other handles get the error
//!   `CKR_SESSION_HANDLE_INVALID` and open theirs again.
//! - Who is logged in is known per process and token, not per session: once one
//!   handle is logged in, others need no PIN.

mod ckr;
mod module;
mod pin;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use self::module::{Inside, Module};
use self::pin::{Pin, Refusals};
use super::{Backend, Opener, printable};
use crate::error::{Error, Operation};
use crate::hsm::{Health, Info, KeyEntry, VerifyingKey};
use crate::library::Chip;
use crate::uri::{self, BackendKind, HsmUri};

pub(crate) fn opener(uri: &HsmUri, key: &uri::Pkcs11, deadline: Duration) -> Opener {
    let wanted = Wanted::new(uri, key, deadline);
    Box::new(move || Ok(Box::new(Connection::open(&wanted)?)))
}

/// The P-256 keys of the token.
pub(crate) fn list(
    uri: &HsmUri,
    key: &uri::Pkcs11,
    deadline: Duration,
) -> Result<Vec<KeyEntry>, Error> {
    let (_inside, token) = Token::open(&Wanted::new(uri, key, deadline), Operation::List)?;
    let mut entries = Vec::new();
    for key in token.private_keys(None, None)? {
        let public_key = match token.public_key(&key) {
            Ok(public_key) => Some(public_key),
            Err(Error::Ambiguous { .. } | Error::Unsupported { .. }) => None,
            Err(error) => return Err(error),
        };
        // what has no name can't be named
        if let Some(uri) = token.uri(&key)? {
            entries.push(KeyEntry { uri, public_key });
        }
    }
    Ok(entries)
}

/// Makes a key with the label and the id of the URI.
pub(crate) fn generate(
    uri: &HsmUri,
    key: &uri::Pkcs11,
    deadline: Duration,
) -> Result<HsmUri, Error> {
    let start = Instant::now();
    let (_inside, token) = Token::open(&Wanted::new(uri, key, deadline), Operation::Generate)?;
    let failed = token.failed("generate keys");
    let label = key.object.clone().map(String::into_bytes);
    let names = [
        label.clone().map(Attribute::Label),
        key.id.clone().map(Attribute::Id),
    ];
    for name in names.into_iter().flatten() {
        let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), name];
        if !token.find("generate keys", &template)?.is_empty() {
            return Err(Error::KeyExists {
                hsm: token.hsm().into(),
            });
        }
    }
    let id = match &key.id {
        Some(id) => id.clone(),
        None => random_id()?.into(),
    };
    let mut name = vec![Attribute::Token(true), Attribute::Id(id.clone())];
    name.extend(label.clone().map(Attribute::Label));
    let public = [
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::EcParams(P256.into()),
    ];
    // for signing only; CKA_DECRYPT stays unsaid, as no mechanism decrypts by such
    // a key, and tpm2-pkcs11 makes none when that is false
    let private = [
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    let session = token.context.open_rw_session(token.slot).map_err(&failed)?;
    // no key is made for a caller who has given up
    if start.elapsed() >= deadline {
        return Err(Error::TimedOut {
            operation: Operation::Generate,
            after: deadline,
        });
    }
    let (_, handle) = session
        .generate_key_pair(
            &Mechanism::EccKeyPairGen,
            &[&name[..], &public].concat(),
            &[&name[..], &private].concat(),
        )
        .map_err(&failed)?;
    let key = Key {
        handle,
        label,
        id: Some(id),
    };
    token
        .uri(&key)?
        .ok_or_else(|| ckr::nonsense(token.hsm(), "C_GenerateKeyPair", "a key without an id"))
}

/// What is to be opened, and how.
struct Wanted {
    hsm: Box<str>,
    key: uri::Pkcs11,
    /// How long to wait for the turn.
    patience: Duration,
    /// What was opened last has done some work.
    worked: AtomicBool,
}

impl Wanted {
    fn new(uri: &HsmUri, key: &uri::Pkcs11, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            hsm: uri.to_string().into(),
            key: key.clone(),
            patience,
            worked: AtomicBool::new(true),
        })
    }
}

/// A token with a session on it. Whoever calls it has the turn.
struct Token {
    session: Session,
    context: Pkcs11,
    slot: Slot,
    info: TokenInfo,
    module: &'static Module,
    wanted: Arc<Wanted>,
}

/// A private key on a token, good for one session.
struct Key {
    handle: ObjectHandle,
    label: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

impl Token {
    /// Finds the token, opens a session there, and logs in.
    fn open(wanted: &Arc<Wanted>, operation: Operation) -> Result<(Inside, Self), Error> {
        let (hsm, key) = (&*wanted.hsm, &wanted.key);
        let module = Module::at(key.module.as_deref())?;
        // may take its time, so before the turn
        let pin = key.pin.as_ref().map(Pin::read).transpose()?;
        let mut inside = module.enter(operation, wanted.patience)?;
        let context = inside.context(hsm)?;
        if !wanted.worked.load(Ordering::Relaxed) {
            inside.renew(hsm)?;
        }
        let (slot, info) = match find_token(&context, wanted) {
            Err(Error::TokenMissing { .. }) if inside.renew(hsm)? => find_token(&context, wanted)?,
            found => found?,
        };
        let session = context
            .open_ro_session(slot)
            .map_err(ckr::failed(hsm, OPEN))?;
        let token = Self {
            session,
            context,
            slot,
            info,
            module,
            wanted: Arc::clone(wanted),
        };
        token.log_in(pin.as_ref())?;
        Ok((inside, token))
    }

    fn log_in(&self, pin: Option<&Pin>) -> Result<(), Error> {
        let state = self.session.get_session_info().map_err(self.failed(OPEN))?;
        if matches!(
            state.session_state(),
            SessionState::RoUser | SessionState::RwUser
        ) {
            return Ok(());
        }
        let Some(pin) = pin else {
            if !self.info.login_required() {
                return Ok(());
            }
            return Err(Error::Pin {
                pin_source: "the URI".into(),
                problem: "this token gives its keys only after a login; say where the PIN is, as \
                          in ?pin-source=file:/etc/zk/pin",
            });
        };
        let refused = |(problem, next)| Error::PinRefused {
            hsm: self.hsm().into(),
            problem,
            next,
        };
        if self.info.user_pin_locked() {
            return Err(refused(ckr::LOCKED));
        }
        if self.info.user_pin_final_try() {
            return Err(refused(FINAL_TRY));
        }
        let library = self.module.path();
        let token = &format!("{} {}", self.info.serial_number(), self.info.label());
        if Refusals::with(|refusals| refusals.contain(library, token, pin))? {
            return Err(refused(REFUSED_BEFORE));
        }
        let result = match self.session.login_with_raw(UserType::User, &pin.raw()) {
            // somebody else of this process was faster
            Err(CryptokiError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            result => result,
        };
        match result.map_err(self.failed("log in")) {
            Err(error @ Error::PinRefused { .. }) => {
                Refusals::with(|refusals| refusals.add(library, token, pin))?;
                Err(error)
            }
            result => result,
        }
    }

    /// The private P-256 keys that may sign, of this label and id.
    fn private_keys(&self, label: Option<&str>, id: Option<&[u8]>) -> Result<Vec<Key>, Error> {
        let mut template = vec![
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::EC),
        ];
        template.extend(label.map(|label| Attribute::Label(label.into())));
        template.extend(id.map(|id| Attribute::Id(id.into())));
        let mut keys = Vec::new();
        for handle in self.find(OPEN, &template)? {
            let mut key = Key {
                handle,
                label: None,
                id: None,
            };
            let mut fits = true;
            for attribute in self.attributes(
                handle,
                &[
                    AttributeType::EcParams,
                    AttributeType::Id,
                    AttributeType::Label,
                    AttributeType::Sign,
                ],
            )? {
                match attribute {
                    Attribute::EcParams(curve) => fits &= curve == P256,
                    Attribute::Id(id) if !id.is_empty() => key.id = Some(id),
                    Attribute::Label(label) if !label.is_empty() => key.label = Some(label),
                    Attribute::Sign(signs) => fits &= signs,
                    _ => {}
                }
            }
            if fits {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// The one key that the URI names.
    fn key(&self) -> Result<Key, Error> {
        let wanted = &self.wanted.key;
        let mut keys = self.private_keys(wanted.object.as_deref(), wanted.id.as_deref())?;
        let found = keys.len();
        let Some(key) = keys.pop() else {
            return Err(Error::KeyMissing {
                hsm: self.hsm().into(),
            });
        };
        if found > 1 {
            return Err(self.ambiguous("private keys", found));
        }
        let always = self.attributes(key.handle, &[AttributeType::AlwaysAuthenticate])?;
        if let [Attribute::AlwaysAuthenticate(true)] = always[..] {
            return Err(Error::Unsupported {
                hsm: self.hsm().into(),
                what: "sign with this key",
                why: "it wants the PIN for each signature (CKA_ALWAYS_AUTHENTICATE); make one that \
                      doesn't",
            });
        }
        Ok(key)
    }

    /// Where it is found first: a public key of the same id and label, or of one
    /// of them; the private key itself; a certificate of the same id.
    fn public_key(&self, key: &Key) -> Result<VerifyingKey, Error> {
        let label = key.label.clone().map(Attribute::Label);
        let id = key.id.clone().map(Attribute::Id);
        let templates = [
            [id.clone(), label.clone()],
            [id.clone(), None],
            [None, label],
        ];
        for names in templates {
            let mut template = vec![
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::KeyType(KeyType::EC),
            ];
            template.extend(names.into_iter().flatten());
            if template.len() == 2 {
                continue;
            }
            let mut found = Vec::new();
            for handle in self.find(OPEN, &template)? {
                match self.point(handle)? {
                    Some(point) if !found.contains(&point) => found.push(point),
                    _ => {}
                }
            }
            match found[..] {
                [] => {}
                [public_key] => return Ok(public_key),
                _ => return Err(self.ambiguous("public keys", found.len())),
            }
        }
        if let Some(public_key) = self.point(key.handle)? {
            return Ok(public_key);
        }
        if let Some(id) = id {
            let template = [Attribute::Class(ObjectClass::CERTIFICATE), id];
            for handle in self.find(OPEN, &template)? {
                for attribute in self.attributes(handle, &[AttributeType::Value])? {
                    if let Attribute::Value(der) = attribute
                        && let Some(public_key) = certified(&der)
                    {
                        return Ok(public_key);
                    }
                }
            }
        }
        Err(Error::Unsupported {
            hsm: self.hsm().into(),
            what: "tell this key's public key",
            why: "the token has no public key and no certificate of the same id (or label); put \
                  one of them there, as with `pkcs11-tool --write-object`",
        })
    }

    /// The public key that an object gives as its point.
    fn point(&self, handle: ObjectHandle) -> Result<Option<VerifyingKey>, Error> {
        let attributes =
            self.attributes(handle, &[AttributeType::EcParams, AttributeType::EcPoint])?;
        let mut point = None;
        for attribute in attributes {
            match attribute {
                Attribute::EcParams(curve) if curve != P256 => return Ok(None),
                Attribute::EcPoint(bytes) => point = parse_point(&bytes),
                _ => {}
            }
        }
        Ok(point)
    }

    /// The URI that opens a key of this token.
    fn uri(&self, key: &Key) -> Result<Option<HsmUri>, Error> {
        let text = |text: &str| {
            let text = unpadded(text);
            let plain = !text.is_empty() && !text.chars().any(char::is_control);
            plain.then(|| text.to_owned())
        };
        let wanted = &self.wanted.key;
        let label = key.label.as_deref().and_then(|l| str::from_utf8(l).ok());
        let named = uri::Pkcs11 {
            token: text(self.info.label()).or_else(|| wanted.token.clone()),
            serial: text(self.info.serial_number()).or_else(|| wanted.serial.clone()),
            object: label.and_then(text),
            id: key.id.clone(),
            ..wanted.clone()
        };
        if named.object.is_none() && named.id.is_none() {
            return Ok(None);
        }
        Ok(Some(HsmUri::pkcs11(&named)?))
    }

    /// The keys that lock and unlock: any of this label that never leaves the
    /// token.
    fn lock_keys(&self, what: &'static str, label: &[u8]) -> Result<Vec<ObjectHandle>, Error> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(label.into()),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ];
        self.find(what, &template)
    }

    fn make_lock_key(&self, label: &[u8]) -> Result<(), Error> {
        // else there would be a key that nothing can be done with
        let mechanisms = self.context.get_mechanism_list(self.slot);
        if !mechanisms
            .map_err(self.failed(LOCK))?
            .contains(&MechanismType::AES_GCM)
        {
            return Err(Error::Unsupported {
                hsm: self.hsm().into(),
                what: LOCK,
                why: "the token has no AES-GCM (CKM_AES_GCM)",
            });
        }
        let template = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(32.into()),
            Attribute::Label(label.into()),
            Attribute::Id(random_id()?.into()),
        ];
        self.context
            .open_rw_session(self.slot)
            .and_then(|session| session.generate_key(&Mechanism::AesKeyGen, &template))
            .map(|_| ())
            .map_err(self.failed(LOCK))
    }

    fn encrypt(&self, key: ObjectHandle, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|source| Error::Random { source })?;
        let mut locked = [LOCK_MAGIC, &nonce].concat();
        let failed = self.failed(LOCK);
        let gcm = GcmParams::new(&mut nonce, LOCK_MAGIC, TAG_BITS.into()).map_err(&failed)?;
        let sealed = self
            .session
            .encrypt(&Mechanism::AesGcm(gcm), key, plain)
            .map_err(&failed)?;
        if sealed.len() != plain.len() + TAG {
            return Err(ckr::nonsense(
                self.hsm(),
                "C_Encrypt",
                "a ciphertext of the wrong length",
            ));
        }
        locked.extend(sealed);
        Ok(locked)
    }

    /// `None` if the key doesn't open it, or perhaps the token has a problem.
    fn decrypt(&self, key: ObjectHandle, locked: &[u8]) -> Result<Decrypted, Error> {
        let Some((nonce, sealed)) = locked
            .strip_prefix(LOCK_MAGIC)
            .and_then(<[u8]>::split_first_chunk::<NONCE>)
            .filter(|(_, sealed)| sealed.len() > TAG)
        else {
            return Ok(Decrypted::Refused);
        };
        let failed = self.failed(UNLOCK);
        let mut nonce = *nonce;
        let gcm = GcmParams::new(&mut nonce, LOCK_MAGIC, TAG_BITS.into()).map_err(&failed)?;
        match self.session.decrypt(&Mechanism::AesGcm(gcm), key, sealed) {
            Ok(plain) => Ok(Decrypted::Plain(plain.into())),
            Err(CryptokiError::Pkcs11(rv, _)) if ckr::is_bad_data(rv) => Ok(Decrypted::Refused),
            Err(CryptokiError::Pkcs11(rv, _)) if ckr::is_unclear(rv) => Ok(Decrypted::Unclear),
            Err(error) => Err(failed(error)),
        }
    }

    /// Sees that what was encrypted is decrypted again, and that what was
    /// changed isn't.
    fn probe(&self, key: ObjectHandle) -> Result<(), Error> {
        let mut canary = [0; 32];
        getrandom::fill(&mut canary).map_err(|source| Error::Random { source })?;
        let mut locked = self.encrypt(key, &canary)?;
        let problem = match self.decrypt(key, &locked)? {
            Decrypted::Plain(plain) if *plain == canary => None,
            Decrypted::Plain(_) => Some("another plaintext than was encrypted"),
            Decrypted::Refused | Decrypted::Unclear => Some("refusal of what it had encrypted"),
        };
        if let Some(problem) = problem {
            return Err(ckr::nonsense(self.hsm(), "C_Decrypt", problem));
        }
        if let Some(last) = locked.last_mut() {
            *last ^= 1;
        }
        match self.decrypt(key, &locked)? {
            Decrypted::Refused | Decrypted::Unclear => Ok(()),
            Decrypted::Plain(_) => Err(Error::UnlockUntrusted {
                hsm: self.hsm().into(),
                problem: "unlocked data that was changed",
            }),
        }
    }

    fn find(&self, what: &'static str, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Error> {
        self.session
            .find_objects(template)
            .map_err(self.failed(what))
    }

    fn attributes(
        &self,
        handle: ObjectHandle,
        wanted: &[AttributeType],
    ) -> Result<Vec<Attribute>, Error> {
        self.session
            .get_attributes(handle, wanted)
            .map_err(self.failed(OPEN))
    }

    fn ambiguous(&self, what: &'static str, found: usize) -> Error {
        Error::Ambiguous {
            hsm: self.hsm().into(),
            what,
            found,
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(CryptokiError) -> Error {
        ckr::failed(self.hsm(), what)
    }

    fn hsm(&self) -> &str {
        &self.wanted.hsm
    }
}

enum Decrypted {
    Plain(Zeroizing<Vec<u8>>),
    Refused,
    /// The data is at fault, or the token has a problem.
    Unclear,
}

/// The token that the URI names.
fn find_token(context: &Pkcs11, wanted: &Wanted) -> Result<(Slot, TokenInfo), Error> {
    let (hsm, key) = (&*wanted.hsm, &wanted.key);
    let failed = ckr::failed(hsm, OPEN);
    let (mut found, mut present, mut problem) = (Vec::new(), Vec::new(), None);
    for slot in context.get_slots_with_token().map_err(&failed)? {
        let info = match context.get_token_info(slot) {
            Ok(info) => info,
            // one token's trouble isn't another's
            Err(error) => {
                problem = Some(failed(error));
                continue;
            }
        };
        let is = |field: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| unpadded(wanted) == unpadded(field))
        };
        if info.token_initialized() {
            present.push(format!("{:?}", unpadded(info.label())));
        }
        if is(info.label(), &key.token)
            && is(info.serial_number(), &key.serial)
            && is(info.manufacturer_id(), &key.manufacturer)
            && is(info.model(), &key.model)
        {
            found.push((slot, info));
        }
    }
    match (found.len(), found.pop(), problem) {
        (1, Some(token), _) => Ok(token),
        (0, _, Some(problem)) => Err(problem),
        (0, _, None) => Err(Error::TokenMissing {
            hsm: hsm.into(),
            present: match present.len() {
                0 => "none".into(),
                _ => present.join(", ").into(),
            },
        }),
        (count, ..) => Err(Error::Ambiguous {
            hsm: hsm.into(),
            what: "tokens",
            found: count,
        }),
    }
}

/// A token's field without its padding: blanks, or zero bytes as tpm2-pkcs11 has
/// them.
fn unpadded(field: &str) -> &str {
    field.trim_end_matches([' ', '\0'])
}

/// One open key.
struct Connection {
    /// Until it is dropped.
    token: Option<Token>,
    key: Key,
    public_key: VerifyingKey,
    /// The initialization that the session belongs to.
    generation: u64,
    /// The key has been seen to unlock nothing that was changed.
    probed: Option<ObjectHandle>,
}

impl Connection {
    fn open(wanted: &Arc<Wanted>) -> Result<Self, Error> {
        let result = Token::open(wanted, Operation::Open);
        wanted.worked.store(false, Ordering::Relaxed);
        let (mut inside, token) = result?;
        let key = token.key()?;
        let public_key = token.public_key(&key)?;
        inside.opened();
        Ok(Self {
            token: Some(token),
            key,
            public_key,
            generation: inside.generation(),
            probed: None,
        })
    }

    /// Calls the library when it is our turn.
    fn call<T>(
        &mut self,
        operation: Operation,
        work: impl FnOnce(&mut Self, &Token) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Some(token) = self.token.take() else {
            return Err(Error::WorkerDied);
        };
        let result = self.call_with(operation, &token, work);
        self.token = Some(token);
        result
    }

    fn call_with<T>(
        &mut self,
        operation: Operation,
        token: &Token,
        work: impl FnOnce(&mut Self, &Token) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let worked = &token.wanted.worked;
        let inside = token.module.enter(operation, token.wanted.patience)?;
        if inside.generation() != self.generation {
            // the handles may be those of another session by now; that isn't the
            // token's fault
            worked.store(true, Ordering::Relaxed);
            return Err(ckr::stale(token.hsm()));
        }
        let result = work(self, token);
        if result.is_ok() {
            worked.store(true, Ordering::Relaxed);
        }
        result
    }

    fn lock_label(&self) -> Vec<u8> {
        let mut label = match (&self.key.label, &self.key.id) {
            (Some(label), _) => label.clone(),
            (None, id) => {
                let id = id.as_deref().unwrap_or_default();
                let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                hex.into_bytes()
            }
        };
        label.extend(b" lock");
        label
    }

    /// Sees once for each key that it unlocks nothing that was changed.
    fn trust(&mut self, token: &Token, key: ObjectHandle) -> Result<(), Error> {
        if self.probed != Some(key) {
            token.probe(key)?;
            self.probed = Some(key);
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(token) = self.token.take() else {
            return;
        };
        match token.module.enter(Operation::Close, token.wanted.patience) {
            Ok(mut inside) if inside.generation() == self.generation => {
                drop(token);
                inside.closed();
            }
            // its handle isn't ours any more, or somebody is stuck inside: it is
            // left as it is
            _ => std::mem::forget(token),
        }
    }
}

impl Backend for Connection {
    fn chip(&self) -> Option<Arc<Chip>> {
        self.token.as_ref().map(|token| token.module.chip())
    }

    fn info(&mut self) -> Result<Info, Error> {
        let Some(token) = &self.token else {
            return Err(Error::WorkerDied);
        };
        let info = &token.info;
        let text = |text: &str| {
            let text = unpadded(text);
            (!text.is_empty()).then(|| printable(text))
        };
        let version = info.firmware_version();
        // Zymbit's library has been seen to call its tokens so, too
        let zymbit = token
            .module
            .path()
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"libzk_pkcs11.so"));
        Ok(Info {
            backend: BackendKind::Pkcs11,
            model: text(info.model()).or_else(|| text(info.manufacturer_id())),
            serial: text(info.serial_number()),
            firmware: Some(format!("{}.{}", version.major(), version.minor())),
            development: info.model().starts_with("SoftHSM") && !zymbit,
        })
    }

    /// PKCS#11 measures nothing; this sees that the session is alive.
    fn health(&mut self) -> Result<Health, Error> {
        self.call(Operation::Health, |_, token| {
            let failed = token.failed("tell how it is");
            token.session.get_session_info().map_err(failed)?;
            Ok(Health::default())
        })
    }

    fn public_key(&mut self) -> Result<VerifyingKey, Error> {
        Ok(self.public_key)
    }

    fn sign(&mut self, digest: &[u8; 32]) -> Result<[u8; 64], Error> {
        self.call(Operation::Sign, |this, token| {
            let signature = token
                .session
                .sign(&Mechanism::Ecdsa, this.key.handle, digest)
                .map_err(token.failed("sign with ECDSA"))?;
            signature.try_into().map_err(|_| {
                ckr::nonsense(
                    token.hsm(),
                    "C_Sign",
                    "a signature that isn't 64 bytes long",
                )
            })
        })
    }

    fn random(&mut self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.call(Operation::Random, |_, token| {
            let mut bytes = Zeroizing::new(vec![0; n]);
            // there are tokens that give no more at once
            for chunk in bytes.chunks_mut(1024) {
                token
                    .session
                    .generate_random_slice(chunk)
                    .map_err(token.failed("give random numbers"))?;
            }
            Ok(bytes)
        })
    }

    /// AES-256-GCM by a key that is made on the token when it is first needed,
    /// and never leaves it. Two processes may make one each at the same time:
    /// then both stay, and all are tried when something is unlocked.
    fn lock(&mut self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        self.call(Operation::Lock, |this, token| {
            let label = this.lock_label();
            let mut keys = token.lock_keys(LOCK, &label)?;
            if keys.is_empty() {
                token.make_lock_key(&label)?;
                keys = token.lock_keys(LOCK, &label)?;
            }
            let Some(&key) = keys.first() else {
                return Err(ckr::nonsense(
                    token.hsm(),
                    "C_GenerateKey",
                    "a key that isn't there",
                ));
            };
            // a secret that is locked is given up
            this.trust(token, key)?;
            token.encrypt(key, plain)
        })
    }

    fn unlock(&mut self, locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.call(Operation::Unlock, |this, token| {
            let label = this.lock_label();
            for key in token.lock_keys(UNLOCK, &label)? {
                this.trust(token, key)?;
                let result = match token.decrypt(key, locked)? {
                    // a token that refuses good data has a problem; if it is in
                    // order, it is asked once more
                    Decrypted::Unclear => {
                        token.probe(key)?;
                        token.decrypt(key, locked)?
                    }
                    result => result,
                };
                if let Decrypted::Plain(plain) = result {
                    return Ok(plain);
                }
            }
            Err(Error::UnlockRefused)
        })
    }
}

/// `CKA_EC_POINT`: the DER OCTET STRING of a point, or just the point.
fn parse_point(bytes: &[u8]) -> Option<VerifyingKey> {
    let point = match bytes {
        // a point of 65 or 33 bytes, as SEC 1 writes it, in an OCTET STRING
        [0x04, 0x41, point @ ..] if point.len() == 0x41 => point,
        [0x04, 0x21, point @ ..] if point.len() == 0x21 => point,
        point => point,
    };
    VerifyingKey::from_sec1_bytes(point).ok()
}

/// The public key of a certificate.
fn certified(der: &[u8]) -> Option<VerifyingKey> {
    let certificate = Certificate::from_der(der).ok()?;
    let key = certificate.tbs_certificate().subject_public_key_info();
    VerifyingKey::from_sec1_bytes(key.subject_public_key.as_bytes()?).ok()
}

fn random_id() -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|source| Error::Random { source })?;
    Ok(id)
}

/// `CKA_EC_PARAMS` of P-256: the DER of its object identifier,
/// 1.2.840.10045.3.1.7.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Locked data: magic (4 bytes), nonce (12), AES-256-GCM ciphertext, tag (16);
/// the magic is authenticated, too. Its last byte is the version.
const LOCK_MAGIC: &[u8] = b"ZKP1";
const NONCE: usize = 12;
const TAG: usize = 16;
const TAG_BITS: u64 = 8 * TAG as u64;

/// What is being done, for errors.
const OPEN: &str = "open the key";
const LOCK: &str = "lock data";
const UNLOCK: &str = "unlock data";

const FINAL_TRY: (&str, &str) = (
    "one more wrong PIN would lock the token, so none is tried",
    "log in once by hand with the right one (`pkcs11-tool --login --list-objects`), and put it \
     where pin-source says",
);
const REFUSED_BEFORE: (&str, &str) = (
    "the token refused this PIN before, so it isn't tried again",
    "put the right one where pin-source says; if this was made the right one since, restart this \
     program",
);

#[cfg(test)]
mod tests {
    use ecdsa::SigningKey;
    use p256::NistP256;
    use p256::elliptic_curve::Generate;

    use super::*;

    #[test]
    fn points_are_read_as_der_and_bare() {
        let key = *SigningKey::<NistP256>::generate().verifying_key();
        for compressed in [false, true] {
            let point = key.to_sec1_point(compressed);
            let point = point.as_bytes();
            let length = u8::try_from(point.len()).unwrap();
            let der = [&[0x04, length], point].concat();
            assert_eq!(parse_point(point), Some(key));
            assert_eq!(parse_point(&der), Some(key));
            for cut in 0..der.len() {
                assert_eq!(parse_point(&der[..cut]), None);
            }
            assert_eq!(parse_point(&[&der[..], &[0]].concat()), None);
        }
        assert_eq!(parse_point(&[0; 65]), None);
        assert_eq!(parse_point(&[0]), None, "the point at infinity");
    }
}
