use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a key is: what [`Hsm::open`](crate::Hsm::open) opens.
///
/// | form | what it names |
/// | --- | --- |
/// | `zymkey:slot=0` | key slot 0 to 655 of the Zymkey or Zymbit HSM in this machine |
/// | `pkcs11:token=T;object=O` | a private key on a PKCS#11 token, as RFC 7512 writes it |
/// | `soft:/etc/zk/key.pem` | a key file, **for development**: an absolute path, taken as it stands |
///
/// Values are percent-encoded; attributes may stand once each.
///
/// # PKCS#11
///
/// A `pkcs11:` URI picks the token by `token` (its label) or `serial`, and
/// `manufacturer` and `model`; the key by `object` (its label) or `id`.
/// `type=private` is allowed and means nothing more. All that are there must
/// match, blanks at the end of a token's fields aside; more than one match is
/// an error. Only P-256 keys count. The public key is taken from a public key
/// object of the same id and label, or of one of them, from the private key,
/// or from a certificate of the same id.
///
/// `pin-source` says where the PIN is; a token that wants no login needs none.
///
/// | `pin-source` | where the PIN is |
/// | --- | --- |
/// | `file:/absolute/path` | a file of this user or root, which nobody else may read or write |
/// | `credential:NAME` | that file in `$CREDENTIALS_DIRECTORY`, for systemd's `LoadCredential=` |
/// | `env:NAME` | that variable; warned of, as other programs of the user can read it |
///
/// A line's end after the PIN doesn't count. A PIN in the URI itself
/// (`pin-value`) is refused, so a URI can be logged. **A PIN that the token
/// refuses is tried once in a process**: an HSM is closed for good then, and
/// none is tried where one more would lock the token.
///
/// The library is `/usr/lib/libzk_pkcs11.so` if it is there, or else SoftHSM2's
/// where Debian puts it. The former is Zymbit's: closed, and not among what this
/// crate is tested with; it gets its keys by `zk_pkcs11-util`, and its users
/// must be in the group `zk_pkcs11`. SoftHSM2 keeps keys in files: it is for
/// development, and is announced so.
///
/// # Libraries
///
/// `zymkey:` and `pkcs11:` take `?module-path=/absolute/library.so` to load
/// another library than these. It must belong to root or the user of this
/// process, as must all directories above it. Nobody else may have write access
/// to it and its directory; further up a group may, and anybody where the sticky
/// bit is set, as for `/tmp`.
///
/// A URI decides which library is loaded into the process: take it from
/// configuration, never from a message.
///
/// ```
/// use zk_hsm::HsmUri;
///
/// let uri: HsmUri = "pkcs11:object=device%20key;token=plant".parse()?;
/// assert_eq!(uri.to_string(), "pkcs11:token=plant;object=device%20key");
///
/// let refused = "soft:key.pem".parse::<HsmUri>().unwrap_err();
/// assert_eq!(refused.to_string(), "`soft:` needs an absolute path, as in soft:/etc/zk/key.pem");
/// # Ok::<(), zk_hsm::UriError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HsmUri(Target);

impl HsmUri {
    /// The URI of a key file. The path must be absolute and UTF-8.
    ///
    /// # Errors
    ///
    /// [`UriError::SoftPath`] or [`UriError::TooLong`].
    pub fn soft(path: impl AsRef<Path>) -> Result<Self, UriError> {
        let path = path.as_ref().to_str().ok_or(UriError::SoftPath)?;
        format!("soft:{path}").parse()
    }

    /// The URI of a key on a token, if it isn't too long.
    pub(crate) fn pkcs11(key: &Pkcs11) -> Result<Self, UriError> {
        format!("pkcs11:{key}").parse()
    }

    /// Which backend opens it.
    #[must_use]
    pub fn backend(&self) -> BackendKind {
        match self.0 {
            Target::Pkcs11(_) => BackendKind::Pkcs11,
            Target::Soft { .. } => BackendKind::Soft,
            Target::Zymkey { .. } => BackendKind::Zymkey,
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.0
    }

    /// Another key slot of the same Zymkey. Not for other backends.
    pub(crate) fn at_slot(&self, slot: u16) -> Self {
        let mut uri = self.clone();
        if let Target::Zymkey { slot: own, .. } = &mut uri.0 {
            *own = slot;
        }
        uri
    }
}

impl FromStr for HsmUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > MAX_LEN {
            return Err(UriError::TooLong { len: text.len() });
        }
        let (scheme, rest) = text.split_once(':').ok_or(UriError::Scheme)?;
        let uri = Self(match scheme {
            "pkcs11" => Target::Pkcs11(Pkcs11::parse(rest)?),
            "soft" => parse_soft(rest)?,
            "zymkey" => parse_zymkey(rest)?,
            _ => return Err(UriError::Scheme),
        });
        // the canonical form encodes more, and has to be parsed again
        match uri.to_string().len() {
            len if len > MAX_LEN => Err(UriError::TooLong { len }),
            _ => Ok(uri),
        }
    }
}

impl fmt::Display for HsmUri {
    /// The canonical form: parsing it gives an equal URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Soft { path } => write!(f, "soft:{path}"),
            Target::Zymkey { slot, module } => {
                write!(f, "zymkey:slot={slot}")?;
                Separator("?").opt(f, "module-path", module.as_deref().map(str::as_bytes))
            }
            Target::Pkcs11(key) => write!(f, "pkcs11:{key}"),
        }
    }
}

/// The kinds of backend.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum BackendKind {
    /// A PKCS#11 token.
    Pkcs11,
    /// A key file, for development.
    Soft,
    /// A Zymkey or Zymbit HSM through the vendor's library.
    Zymkey,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pkcs11 => "pkcs11",
            Self::Soft => "soft",
            Self::Zymkey => "zymkey",
        })
    }
}

/// Why a text is no HSM URI. No variant holds a value from the URI, so that a
/// PIN in the wrong place gets into no log.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// An attribute that the scheme doesn't have.
    #[error("`{scheme}:` has no attribute `{name}` there; it takes {allowed}")]
    Attribute {
        /// The URI's scheme.
        scheme: BackendKind,
        /// The attribute's name.
        name: String,
        /// The attributes it has.
        allowed: &'static str,
    },

    /// A part that isn't `name=value`.
    #[error(
        "a `{scheme}:` URI is made of name=value parts, separated by `;` before a `?` and by `&` \
         after it; names are lower-case letters and `-`"
    )]
    Malformed {
        /// The URI's scheme.
        scheme: BackendKind,
    },

    /// An attribute that must be there isn't.
    #[error("`{scheme}:` needs {what}")]
    Missing {
        /// The URI's scheme.
        scheme: BackendKind,
        /// What is missing.
        what: &'static str,
    },

    /// A PIN in the URI.
    #[error(
        "a PIN must not stand in a URI, where logs and process lists show it: put it into a file \
         of mode 0600 and name that with pin-source=file:/absolute/path, or use \
         pin-source=credential:NAME"
    )]
    PinValue,

    /// The same attribute twice.
    #[error("attribute `{name}` stands twice; say it once")]
    Repeated {
        /// The attribute's name.
        name: String,
    },

    /// No known scheme.
    #[error("an HSM URI begins with `zymkey:`, `pkcs11:` or `soft:`, as in zymkey:slot=0")]
    Scheme,

    /// The path of a key file isn't an absolute UTF-8 path without control
    /// characters.
    #[error("`soft:` needs an absolute path, as in soft:/etc/zk/key.pem")]
    SoftPath,

    /// Too long to be meant.
    #[error("the URI has {len} bytes when it is encoded; 1024 are the most")]
    TooLong {
        /// Its length, or that of its canonical form.
        len: usize,
    },

    /// A value that the attribute can't have.
    #[error("the value of `{name}` must be {expected}")]
    Value {
        /// The attribute's name.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}

/// What a URI names, parsed.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Target {
    Pkcs11(Pkcs11),
    Soft { path: String },
    Zymkey { slot: u16, module: Option<String> },
}

/// RFC 7512, the attributes that pick one private key.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Pkcs11 {
    pub(crate) token: Option<String>,
    pub(crate) manufacturer: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) object: Option<String>,
    pub(crate) id: Option<Vec<u8>>,
    pub(crate) module: Option<String>,
    pub(crate) pin: Option<PinSource>,
}

/// Where a PIN comes from; never the PIN itself.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum PinSource {
    Credential(String),
    Env(String),
    File(PathBuf),
}

impl Pkcs11 {
    fn parse(text: &str) -> Result<Self, UriError> {
        const SCHEME: BackendKind = BackendKind::Pkcs11;
        const PATH: &str = "token, manufacturer, serial, model, object, id and type=private before \
                            a `?`, module-path and pin-source after it";
        let (path, query) = split_query(text);
        let mut key = Self::default();
        let mut kind = None;
        for (name, value) in attributes(SCHEME, path, ';')? {
            match name {
                "token" => once(&mut key.token, name, path_text("token", value)?)?,
                "manufacturer" => {
                    once(
                        &mut key.manufacturer,
                        name,
                        path_text("manufacturer", value)?,
                    )?;
                }
                "serial" => once(&mut key.serial, name, path_text("serial", value)?)?,
                "model" => once(&mut key.model, name, path_text("model", value)?)?,
                "object" => once(&mut key.object, name, path_text("object", value)?)?,
                "id" => once(&mut key.id, name, decode("id", value, PATH_CHARS)?)?,
                "type" if value == "private" => once(&mut kind, name, ())?,
                "type" => {
                    let (name, expected) = ("type", "`private`");
                    return Err(UriError::Value { name, expected });
                }
                _ => return Err(unknown(SCHEME, name, PATH)),
            }
        }
        for (name, value) in attributes(SCHEME, query, '&')? {
            match name {
                "module-path" => once(&mut key.module, name, module_value(value)?)?,
                "pin-source" => once(&mut key.pin, name, PinSource::parse(value)?)?,
                _ => return Err(unknown(SCHEME, name, PATH)),
            }
        }
        let what = if key.token.is_none() && key.serial.is_none() {
            "the token, as token=LABEL or serial=NUMBER"
        } else if key.object.is_none() && key.id.is_none() {
            "the key, as object=LABEL or id=%01"
        } else {
            return Ok(key);
        };
        Err(UriError::Missing {
            scheme: SCHEME,
            what,
        })
    }
}

impl fmt::Display for Pkcs11 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut path = Separator("");
        for (name, value) in [
            ("token", &self.token),
            ("manufacturer", &self.manufacturer),
            ("serial", &self.serial),
            ("model", &self.model),
            ("object", &self.object),
        ] {
            path.opt(f, name, value.as_deref().map(str::as_bytes))?;
        }
        path.opt(f, "id", self.id.as_deref())?;
        let mut query = Separator("?");
        query.opt(f, "module-path", self.module.as_deref().map(str::as_bytes))?;
        let pin = self.pin.as_ref().map(PinSource::to_string);
        query.opt(f, "pin-source", pin.as_deref().map(str::as_bytes))
    }
}

impl PinSource {
    fn parse(value: &str) -> Result<Self, UriError> {
        let refused = UriError::Value {
            name: "pin-source",
            expected: "file:/absolute/path, credential:NAME or env:NAME",
        };
        let value = query_text("pin-source", value)?;
        let is_name = |name: &str| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        match value.split_once(':') {
            Some(("credential", name)) if is_name(name) => Ok(Self::Credential(name.to_owned())),
            Some(("env", name)) if is_name(name) => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) => {
                // RFC 8089: file:///path is file:/path, and file://host/path is elsewhere
                let path = path.strip_prefix("//").unwrap_or(path);
                if path.starts_with('/') && !path.starts_with("//") {
                    Ok(Self::File(path.into()))
                } else {
                    Err(refused)
                }
            }
            _ => Err(refused),
        }
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

fn parse_soft(path: &str) -> Result<Target, UriError> {
    if !path.starts_with('/') || path.ends_with('/') || path.chars().any(char::is_control) {
        return Err(UriError::SoftPath);
    }
    Ok(Target::Soft {
        path: path.to_owned(),
    })
}

fn parse_zymkey(text: &str) -> Result<Target, UriError> {
    const SCHEME: BackendKind = BackendKind::Zymkey;
    const ALLOWED: &str = "slot before a `?`, module-path after it";
    let (path, query) = split_query(text);
    let (mut slot, mut module) = (None, None);
    for (name, value) in attributes(SCHEME, path, ';')? {
        match name {
            "slot" => once(&mut slot, name, slot_value(value)?)?,
            _ => return Err(unknown(SCHEME, name, ALLOWED)),
        }
    }
    for (name, value) in attributes(SCHEME, query, '&')? {
        match name {
            "module-path" => once(&mut module, name, module_value(value)?)?,
            _ => return Err(unknown(SCHEME, name, ALLOWED)),
        }
    }
    let slot = slot.ok_or(UriError::Missing {
        scheme: SCHEME,
        what: "the key slot, as slot=0",
    })?;
    Ok(Target::Zymkey { slot, module })
}

/// `a=1;b=2?c=3` to `a=1;b=2` and `c=3`.
fn split_query(text: &str) -> (&str, Option<&str>) {
    match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    }
}

/// The `name=value` parts, values still encoded.
fn attributes<'a>(
    scheme: BackendKind,
    part: impl Into<Option<&'a str>>,
    separator: char,
) -> Result<Vec<(&'a str, &'a str)>, UriError> {
    let Some(part) = part.into() else {
        return Ok(Vec::new());
    };
    let is_name = |name: &str| {
        (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    };
    part.split(separator)
        .map(|part| part.split_once('=').filter(|(name, _)| is_name(name)))
        .collect::<Option<_>>()
        .ok_or(UriError::Malformed { scheme })
}

fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::Repeated {
            name: name.to_owned(),
        }),
    }
}

fn unknown(scheme: BackendKind, name: &str, allowed: &'static str) -> UriError {
    if name == "pin-value" {
        return UriError::PinValue;
    }
    let name = name.to_owned();
    UriError::Attribute {
        scheme,
        name,
        allowed,
    }
}

fn slot_value(value: &str) -> Result<u16, UriError> {
    let canonical = |slot: &u16| *slot <= MAX_SLOT && slot.to_string() == value;
    value.parse().ok().filter(canonical).ok_or(UriError::Value {
        name: "slot",
        expected: "a number from 0 to 655",
    })
}

fn module_value(value: &str) -> Result<String, UriError> {
    let path = query_text("module-path", value)?;
    if path.starts_with('/') {
        Ok(path)
    } else {
        Err(UriError::Value {
            name: "module-path",
            expected: "an absolute path",
        })
    }
}

/// A value before the `?`.
fn path_text(name: &'static str, value: &str) -> Result<String, UriError> {
    text(name, decode(name, value, PATH_CHARS)?)
}

/// A value after the `?`.
fn query_text(name: &'static str, value: &str) -> Result<String, UriError> {
    text(name, decode(name, value, QUERY_CHARS)?)
}

fn text(name: &'static str, bytes: Vec<u8>) -> Result<String, UriError> {
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or(UriError::Value {
            name,
            expected: "UTF-8 text without control characters",
        })
}

/// Percent-decodes a value, which must not be empty.
fn decode(name: &'static str, value: &str, plain: &[u8]) -> Result<Vec<u8>, UriError> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut rest = value.bytes();
    std::iter::from_fn(|| {
        Some(match rest.next()? {
            b'%' => rest.next().zip(rest.next()).and_then(|(h, l)| Some(digit(h)? << 4 | digit(l)?)),
            b if b.is_ascii_alphanumeric() || plain.contains(&b) => Some(b),
            _ => None,
        })
    })
    .collect::<Option<Vec<u8>>>()
    .filter(|decoded| !decoded.is_empty())
    .ok_or(UriError::Value {
        name,
        expected: "not empty; other bytes than letters, digits and -._~:[]@!$'()*+,= are written %XX",
    })
}

/// What to write before the next attribute: nothing, then `;` in the path;
/// `?`, then `&` in the query.
struct Separator(&'static str);

impl Separator {
    fn opt(&mut self, f: &mut fmt::Formatter<'_>, name: &str, value: Option<&[u8]>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        write!(f, "{}{name}=", self.0)?;
        let (next, plain): (_, &[u8]) = match self.0 {
            "" | ";" => (";", b"-._~:"),
            _ => ("&", b"-._~:/"),
        };
        self.0 = next;
        value.iter().try_for_each(|&byte| {
            if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
                f.write_char(byte.into())
            } else {
                write!(f, "%{byte:02X}")
            }
        })
    }
}

const MAX_LEN: usize = 1024;

/// Slots 0 to 15 are made in the factory; 640 more can be allocated from 16 up.
pub(crate) const MAX_SLOT: u16 = 655;

/// What may stand unencoded in a value, letters and digits aside (RFC 7512,
/// pk11-pchar and pk11-qchar).
const PATH_CHARS: &[u8] = b"-._~:[]@!$'()*+,=&";
const QUERY_CHARS: &[u8] = b"-._~:[]@!$'()*+,=/?|";
