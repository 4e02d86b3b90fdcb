use std::net::IpAddr;

use rustls::pki_types::DnsName;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Ia5String, PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc4519;
use x509_cert::der::{Any, Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

use crate::error::Error;

/// Whom a certificate is for: a distinguished name and, beside it, alternative
/// names (RFC 5280, sections 4.1.2.6 and 4.2.1.6).
///
/// A text alone is a common name, so `hsm.csr("pi-01")` does. Values are taken
/// literally: a comma begins no further attribute. They are checked by whoever
/// takes the subject, before anything is signed.
///
/// ```
/// use zk_hsm::Subject;
///
/// // what just-in-time registration of AWS IoT looks at
/// let subject = Subject::new("pi-01")
///     .organization("Example Ltd")
///     .organizational_unit("Greenhouse 3")
///     .country("DE")
///     .serial_number("1000000012345678")
///     .dns_name("pi-01.plant.example.org")
///     .uri("urn:dev:mac:b827ebfffe123456");
/// # let dir = tempfile::tempdir()?;
/// # let uri = zk_hsm::create_soft_key(dir.path().join("key.pem"))?;
/// # let hsm = zk_hsm::Hsm::open(&uri, zk_hsm::Options::default())?;
/// let pem = hsm.csr(subject)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject {
    common_name: String,
    serial_number: Option<String>,
    organizational_unit: Option<String>,
    organization: Option<String>,
    state: Option<String>,
    country: Option<String>,
    alternatives: Vec<Alternative>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Alternative {
    Dns(String),
    Ip(IpAddr),
    Uri(String),
}

impl Subject {
    /// With this common name (CN) and nothing else: 1 to 64 characters. In this
    /// project it is the device's name.
    pub fn new(common_name: impl Into<String>) -> Self {
        Self {
            common_name: common_name.into(),
            serial_number: None,
            organizational_unit: None,
            organization: None,
            state: None,
            country: None,
            alternatives: Vec::new(),
        }
    }

    /// The serial number of the device (not of the certificate): 1 to 64
    /// letters, digits, spaces and `'()+,-./:=?`.
    #[must_use]
    pub fn serial_number(self, serial_number: impl Into<String>) -> Self {
        let serial_number = Some(serial_number.into());
        Self {
            serial_number,
            ..self
        }
    }

    /// The organizational unit (OU): 1 to 64 characters.
    #[must_use]
    pub fn organizational_unit(self, unit: impl Into<String>) -> Self {
        let organizational_unit = Some(unit.into());
        Self {
            organizational_unit,
            ..self
        }
    }

    /// The organization (O): 1 to 64 characters.
    #[must_use]
    pub fn organization(self, organization: impl Into<String>) -> Self {
        let organization = Some(organization.into());
        Self {
            organization,
            ..self
        }
    }

    /// The state or province (ST): 1 to 128 characters.
    #[must_use]
    pub fn state(self, state: impl Into<String>) -> Self {
        let state = Some(state.into());
        Self { state, ..self }
    }

    /// The country (C): two capital letters (ISO 3166).
    #[must_use]
    pub fn country(self, country: impl Into<String>) -> Self {
        let country = Some(country.into());
        Self { country, ..self }
    }

    /// One more alternative name: a host name of letters, digits and hyphens
    /// (RFC 1034, section 3.5), without a wildcard and a final dot.
    #[must_use]
    pub fn dns_name(self, name: impl Into<String>) -> Self {
        self.alternative(Alternative::Dns(name.into()))
    }

    /// One more alternative name: an IP address.
    #[must_use]
    pub fn ip_address(self, address: impl Into<IpAddr>) -> Self {
        self.alternative(Alternative::Ip(address.into()))
    }

    /// One more alternative name: a URI with its scheme (RFC 3986), of at most
    /// 2048 bytes.
    #[must_use]
    pub fn uri(self, uri: impl Into<String>) -> Self {
        self.alternative(Alternative::Uri(uri.into()))
    }

    fn alternative(mut self, name: Alternative) -> Self {
        self.alternatives.push(name);
        self
    }

    /// The distinguished name, from the country down to the device.
    pub(crate) fn name(&self) -> Result<Name, Error> {
        let mut sequence = RdnSequence::default();
        for (kind, value) in [
            (&COUNTRY, &self.country),
            (&STATE, &self.state),
            (&ORGANIZATION, &self.organization),
            (&ORGANIZATIONAL_UNIT, &self.organizational_unit),
            (&COMMON_NAME, &Some(self.common_name.clone())),
            (&SERIAL_NUMBER, &self.serial_number),
        ] {
            let Some(value) = value else { continue };
            let attribute = AttributeTypeAndValue {
                oid: kind.oid,
                value: kind.encode(value)?,
            };
            let mut rdn = RelativeDistinguishedName::default();
            rdn.insert(attribute)?;
            sequence.push(rdn);
        }
        Ok(Name::from_der(&sequence.to_der()?)?)
    }

    /// The extension with the alternative names, if there are any.
    pub(crate) fn alternative_names(&self) -> Result<Option<SubjectAltName>, Error> {
        let names = self.alternatives.iter().map(|name| match name {
            Alternative::Dns(name) if is_host_name(name) => {
                Ok(GeneralName::DnsName(Ia5String::new(name)?))
            }
            Alternative::Dns(_) => {
                let problem = "must be a host name of letters, digits and hyphens, such as \
                               pi-01.example.org";
                Err(refused("DNS name", problem))
            }
            Alternative::Ip(address) => Ok((*address).into()),
            Alternative::Uri(uri) if is_uri(uri) => Ok(GeneralName::UniformResourceIdentifier(
                Ia5String::new(uri)?,
            )),
            Alternative::Uri(_) => {
                let problem = "must be a URI with its scheme, such as urn:dev:mac:0024befffe804ff1, \
                               of at most 2048 bytes";
                Err(refused("URI", problem))
            }
        });
        let names: Vec<_> = names.collect::<Result<_, _>>()?;
        Ok((!names.is_empty()).then_some(SubjectAltName(names)))
    }
}

/// A common name.
impl From<&str> for Subject {
    fn from(common_name: &str) -> Self {
        Self::new(common_name)
    }
}

/// A kind of attribute, and what its value may be (RFC 5280, appendix A.1).
struct Kind {
    oid: ObjectIdentifier,
    what: &'static str,
    allowed: Allowed,
}

enum Allowed {
    /// A UTF8String of at most so many characters.
    Text { max: usize },
    /// A PrintableString of at most so many characters.
    Printable { max: usize },
    /// Two capital letters.
    Country,
}

impl Kind {
    fn encode(&self, value: &str) -> Result<Any, Error> {
        let refused = |problem: &str| Err(refused(self.what, problem));
        // what looks like another name must not be signed
        if value.chars().any(char::is_control) {
            return refused("has a control character");
        }
        let (max, printable) = match self.allowed {
            Allowed::Text { max } => (max, false),
            Allowed::Printable { max } => (max, true),
            Allowed::Country => {
                if value.len() != 2 || !value.bytes().all(|byte| byte.is_ascii_uppercase()) {
                    return refused("must be two capital letters (ISO 3166), such as DE");
                }
                (2, true)
            }
        };
        let count = value.chars().count();
        if count == 0 {
            return refused("is empty");
        }
        if count > max {
            let problem = format!("has {count} characters; RFC 5280 allows {max} at most");
            return refused(&problem);
        }
        if !printable {
            return Ok(Any::encode_from(&Utf8StringRef::new(value)?)?);
        }
        match PrintableStringRef::new(value) {
            Ok(value) => Ok(Any::encode_from(&value)?),
            Err(_) => refused("may have letters, digits, spaces and '()+,-./:=? only"),
        }
    }
}

fn refused(attribute: &'static str, problem: &str) -> Error {
    Error::Subject {
        attribute,
        problem: problem.into(),
    }
}

/// The preferred name syntax that RFC 5280 asks for. `DnsName` would take `_`
/// and a final dot, too.
fn is_host_name(name: &str) -> bool {
    DnsName::try_from(name).is_ok() && !name.contains('_') && !name.ends_with('.')
}

/// RFC 3986, section 3: a scheme, and a rest of the characters that may stand in
/// a URI.
fn is_uri(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else {
        return false;
    };
    let scheme_goes_on = |c: u8| c.is_ascii_alphanumeric() || b"+-.".contains(&c);
    let mut rest_of_percent = rest.split('%').skip(1);
    uri.len() <= 2048
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(scheme_goes_on)
        && !rest.is_empty()
        && rest
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&c))
        && rest_of_percent.all(|after| {
            let mut digits = after.bytes().take(2);
            digits.len() == 2 && digits.all(|c| c.is_ascii_hexdigit())
        })
}

const COMMON_NAME: Kind = Kind {
    oid: rfc4519::CN,
    what: "common name",
    allowed: Allowed::Text { max: 64 },
};
const SERIAL_NUMBER: Kind = Kind {
    oid: rfc4519::SERIAL_NUMBER,
    what: "serial number",
    allowed: Allowed::Printable { max: 64 },
};
const ORGANIZATIONAL_UNIT: Kind = Kind {
    oid: rfc4519::OU,
    what: "organizational unit",
    allowed: Allowed::Text { max: 64 },
};
const ORGANIZATION: Kind = Kind {
    oid: rfc4519::O,
    what: "organization",
    allowed: Allowed::Text { max: 64 },
};
const STATE: Kind = Kind {
    oid: rfc4519::ST,
    what: "state",
    allowed: Allowed::Text { max: 128 },
};
const COUNTRY: Kind = Kind {
    oid: rfc4519::C,
    what: "country",
    allowed: Allowed::Country,
};
